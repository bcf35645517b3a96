//! The runners of a run, as the last reconciliation saw them. Pure.

use loadtest_core::{Duration, plan::ValidTest, resource::LoadTestStatus};

use crate::observe::{runner::Runner, start::StartRecord};

/// Interval between two rounds while load runs.
const INTERVAL: Duration = Duration::from_secs(2);
/// Interval at the start of the load: users wait for the first numbers.
const EARLY_INTERVAL: Duration = Duration::from_millis(500);
/// Length of the start of the load.
const EARLY: Duration = Duration::from_secs(4);
/// Interval while a test ends, and what each runner adds to it.
const ENDING_INTERVAL: Duration = Duration::from_millis(300);
const ENDING_INTERVAL_PER_RUNNER: Duration = Duration::from_millis(2);

/// What the last reconciliation saw of a run.
#[derive(Clone, Debug)]
pub(crate) struct Targets {
    /// Namespace of the test.
    pub(crate) namespace: String,
    /// UID of the test.
    pub(crate) run_uid: String,
    /// The validated test.
    pub(crate) valid: ValidTest,
    /// Start time, and the pods that were started.
    pub(crate) start: StartRecord,
    /// The runner pods, by their indices.
    pub(crate) runners: Vec<Runner>,
    /// Duration of the load; zero as soon as something ends it early.
    pub(crate) load: Duration,
    /// The status that an earlier process may have written.
    pub(crate) status: LoadTestStatus,
}

/// The pods that were started, as far as they still exist.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StartedPods<'a> {
    /// Start time, and the UIDs of the pods by index.
    pub(crate) start: &'a StartRecord,
    /// The pods that exist, by their indices.
    pub(crate) runners: &'a [Runner],
}

impl<'a> StartedPods<'a> {
    /// Returns the indices of all started runners.
    pub(crate) fn indices(self) -> std::ops::Range<u32> {
        0..u32::try_from(self.start.pods.len()).unwrap_or(u32::MAX)
    }

    /// Returns the UID of a started pod.
    pub(crate) fn uid(self, index: u32) -> &'a str {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        self.start.pods.get(index).map_or("", String::as_str)
    }

    /// Returns a started pod, if it still exists.
    pub(crate) fn get(self, index: u32) -> Option<&'a Runner> {
        pods_of_index(self.runners, index).find(|runner| runner.uid == self.uid(index))
    }

    /// Returns the name of a runner in messages: its index and its node.
    pub(crate) fn name(self, index: u32) -> String {
        runner_name(self.runners, index)
    }

    /// Describes how a runner was lost.
    pub(crate) fn describe_loss(self, index: u32) -> String {
        match self.get(index) {
            Some(runner) => runner.describe_loss(),
            None => format!("runner {index}: its pod was deleted"),
        }
    }
}

/// Returns the pods with an index, of pods that are sorted by their indices.
fn pods_of_index(runners: &[Runner], index: u32) -> impl Iterator<Item = &Runner> {
    let first = runners.partition_point(|runner| runner.index < index);
    runners.iter().skip(first).take_while(move |runner| runner.index == index)
}

/// Returns the name of a runner in messages: its index and its node.
pub(crate) fn runner_name(runners: &[Runner], index: u32) -> String {
    let runner = pods_of_index(runners, index).next();
    match runner.and_then(|runner| runner.node.as_ref()) {
        Some(node) => format!("runner {index} on node {node}"),
        None => format!("runner {index}"),
    }
}

impl Targets {
    /// Returns the pods that were started.
    pub(crate) fn pods(&self) -> StartedPods<'_> {
        StartedPods { start: &self.start, runners: &self.runners }
    }

    /// Returns the time until the next round, `elapsed` after the start of the load.
    pub(crate) fn pause(&self, elapsed: Duration) -> Duration {
        if elapsed >= self.load {
            let runners = u32::try_from(self.start.pods.len()).unwrap_or(u32::MAX);
            let millis = ENDING_INTERVAL_PER_RUNNER.as_millis_f64() * f64::from(runners);
            return INTERVAL.min(ENDING_INTERVAL.plus(Duration::from_secs_f64(millis / 1e3)));
        }
        let interval = if elapsed < EARLY { EARLY_INTERVAL } else { INTERVAL };
        interval.min(time_to_next_boundary(&self.valid, elapsed))
    }
}

/// Returns the time until the end of the current stage or of the load, plus a margin of 50 ms.
pub(crate) fn time_to_next_boundary(valid: &ValidTest, elapsed: Duration) -> Duration {
    let ends = valid.load.stages().into_iter().map(|stage| stage.end);
    let next = ends.chain([valid.load.duration()]).find(|end| *end > elapsed).unwrap_or(elapsed);
    next.minus(elapsed).plus(Duration::from_millis(50))
}
