//! The result of a test so far, for those who watch it.

use std::collections::BTreeMap;

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use loadtest_core::{
    Duration,
    judge::{RunContext, Timeline, progress_of},
    metrics::Metrics,
    plan::ValidTest,
    resource::{LoadTest, LoadTestStatus, Named, Phase},
    result::{RunFacts, RunResult, Series, build_result},
};

use super::status::build_status;

/// The facts of a run that don't change.
pub(crate) struct RunDescription<'a> {
    /// The test.
    pub(crate) test: &'a LoadTest,
    /// Its validated spec.
    pub(crate) valid: &'a ValidTest,
    /// Identifies the run.
    pub(crate) uid: String,
    /// Start of the load.
    pub(crate) start_time: Timestamp,
}

impl RunDescription<'_> {
    /// The result of the run so far, without its series. `metrics` has the measurements of each runner.
    pub(crate) fn result_so_far(
        &self,
        metrics: &Metrics,
        examples: BTreeMap<(String, String), String>,
        timeline: &Timeline,
    ) -> RunResult {
        let runners = metrics.runners.len() as u64;
        let context = RunContext {
            runners,
            // Unknown for several runners.
            start_skew: (runners <= 1).then_some(Duration::ZERO),
            examples,
            ..RunContext::default()
        };
        let judged = build_status(self.valid, metrics, timeline, &context, self.start_time);
        let duration = self.valid.load.duration();
        let mut status = running_status(judged, metrics.elapsed_seconds, duration);
        status.progress = Some(progress_of(self.valid, metrics, runners, metrics.users));
        self.result(&status, metrics, Series::default())
    }

    /// The result with this status.
    pub(crate) fn result(
        &self,
        status: &LoadTestStatus,
        metrics: &Metrics,
        series: Series,
    ) -> RunResult {
        let facts = RunFacts {
            generator: concat!("loadtest ", env!("CARGO_PKG_VERSION")).into(),
            uid: self.uid.clone(),
            test: self.test,
            valid: self.valid,
            status,
            losses: BTreeMap::new(),
        };
        build_result(&facts, metrics, series)
    }
}

/// The status of a test that runs, from that of a test that would end now: it has no verdict yet.
fn running_status(judged: LoadTestStatus, elapsed: f64, duration: Duration) -> LoadTestStatus {
    let is_stopping = elapsed >= duration.as_secs_f64();
    let phase = if is_stopping { Phase::Stopping } else { Phase::Running };
    let message = if is_stopping {
        "The load has ended; requests in flight may still end.".to_owned()
    } else {
        let elapsed = Duration::from_secs_f64(elapsed.floor());
        format!("{elapsed} of {duration}. The verdict follows at the end.")
    };
    let condition = Condition {
        type_: "Passed".into(),
        status: "Unknown".into(),
        reason: phase.name().into(),
        message,
        last_transition_time: Time(Timestamp::now()),
        observed_generation: None,
    };
    LoadTestStatus {
        phase: Some(phase.into()),
        verdict: None,
        finish_time: None,
        conditions: vec![condition],
        ..judged
    }
}
