use std::time::Duration;

use loadtest_core::{
    metrics::{Identity, LatencyMetric, Outcome, RunnerHistory},
    resource::Verdict,
};
use serde_json::json;

use super::*;
use crate::{
    observe::start::StartRecord,
    testing::{example_test, noon, ready_runner, validated},
};

/// A runner that sends ten requests in each second.
struct TestRunner {
    index: u32,
    metrics: RunnerMetrics,
    history: RunnerHistory,
}

impl TestRunner {
    fn new(index: u32) -> Self {
        let identity = Identity { run_uid: "uid".into(), index, pod_uid: format!("pod-{index}") };
        let history = RunnerHistory::new(identity.clone());
        let metrics = RunnerMetrics { identity, ..RunnerMetrics::default() };
        Self { index, metrics, history }
    }

    /// Runs until a second of the load. From 30 s to 40 s, responses take 3 s.
    fn run_until(&mut self, second: u32) {
        while self.metrics.metrics.elapsed_seconds < f64::from(second) {
            let metrics = &mut self.metrics.metrics;
            let latency = if (30.0..40.0).contains(&metrics.elapsed_seconds) { 3.0 } else { 0.05 };
            metrics.elapsed_seconds += 1.0;
            let task = metrics.tasks.entry("health".into()).or_default();
            task.requests[Outcome::Success.index()] += 10;
            task.successes_in_load += 10;
            let samples = task.latencies.get_mut(LatencyMetric::ResponseTime, Outcome::Success);
            samples.record(latency, 10);
            self.metrics.state = RunnerState::Running;
            let now = Duration::from_secs_f64(self.metrics.metrics.elapsed_seconds);
            self.history.record(self.metrics.clone(), now);
        }
    }

    fn answer(&self, collection: &Collection) -> Answer {
        let steps = self.history.after(collection.last_step(self.index));
        let bytes = encode_steps(steps.clone(), None).unwrap().into();
        let now = Instant::now();
        Answer { index: self.index, sent_at: now, received_at: now, steps, bytes }
    }
}

fn targets() -> Targets {
    let mut test = example_test();
    test.spec.thresholds = serde_json::from_value(json!([
        {"metric": "responseTime", "statistic": "p50", "target": "< 1s", "critical": "> 2s", "window": "10s"},
    ]))
    .unwrap();
    let valid = validated(&test);
    let pods = vec!["pod-0".into(), "pod-1".into()];
    Targets {
        namespace: "default".into(),
        run_uid: "uid".into(),
        load: valid.load.duration(),
        valid,
        start: StartRecord { at: noon(), pods },
        runners: vec![ready_runner(0), ready_runner(1)],
        status: LoadTestStatus::default(),
    }
}

/// Lets two runners run, and asks them at these seconds.
fn collect_at(
    collection: &mut Collection,
    runners: &mut [TestRunner; 2],
    targets: &Targets,
    seconds: impl IntoIterator<Item = u32>,
) {
    for second in seconds {
        runners.iter_mut().for_each(|runner| runner.run_until(second));
        let answers = runners.iter().map(|runner| runner.answer(collection)).collect();
        collection.apply(answers, targets, noon());
    }
}

fn requests(collection: &Collection) -> u64 {
    collection.sum.all_tasks().completed_requests()
}

fn verdict(collection: &Collection, targets: &Targets) -> Verdict {
    let timeline = collection.timeline().unwrap();
    let rows = timeline.rows_at_end(&targets.valid, &collection.sum, None);
    rows[0].verdict.known().unwrap()
}

#[test]
fn a_window_that_fell_into_a_restart_is_judged() {
    let targets = targets();
    let mut runners = [TestRunner::new(0), TestRunner::new(1)];
    let mut watched = Collection::default();
    collect_at(&mut watched, &mut runners, &targets, (2..=100).step_by(2));
    assert_eq!((requests(&watched), verdict(&watched, &targets)), (2000, Verdict::Critical));

    let mut restarted = Collection::default();
    collect_at(&mut restarted, &mut runners, &targets, [100]);
    assert_eq!((requests(&restarted), verdict(&restarted, &targets)), (2000, Verdict::Critical));
    let points = |collection: &Collection| collection.series().unwrap().series().points.len();
    assert_eq!((points(&watched), points(&restarted)), (50, 50));
}

#[test]
fn a_gap_of_two_minutes_leaves_no_hole() {
    let targets = targets();
    let mut runners = [TestRunner::new(0), TestRunner::new(1)];
    let mut collection = Collection::default();
    collect_at(&mut collection, &mut runners, &targets, [2, 4, 6, 100]);
    assert_eq!((requests(&collection), verdict(&collection, &targets)), (2000, Verdict::Critical));
    assert_eq!(collection.timeline().unwrap().unobserved(), loadtest_core::Duration::ZERO);
}

#[test]
fn a_longer_gap_counts_everything_once() {
    let targets = targets();
    let mut runners = [TestRunner::new(0), TestRunner::new(1)];
    let mut collection = Collection::default();
    collect_at(&mut collection, &mut runners, &targets, [2, 4, 300, 302]);
    assert_eq!(requests(&collection), 6040);
    let health = &collection.sum.tasks["health"];
    let samples = health.latencies.get(LatencyMetric::ResponseTime, Outcome::Success);
    assert_eq!(samples.count(), 6040);
    assert!(collection.timeline().unwrap().unobserved() > loadtest_core::Duration::ZERO);
}

#[test]
fn a_restored_runner_is_not_counted_twice() {
    let targets = targets();
    let mut runners = [TestRunner::new(0), TestRunner::new(1)];
    let mut earlier = Collection::default();
    collect_at(&mut earlier, &mut runners, &targets, (2..=50).step_by(2));
    let series = earlier.series().unwrap().clone();
    let alive = earlier.alive(usize::MAX);
    let mut restored = Collection::restored(GoneRunners::default(), alive, series);
    assert_eq!(requests(&restored), 1000);
    runners.iter_mut().for_each(|runner| runner.run_until(60));
    // The other runner is silent: its numbers stay.
    let answer = runners[0].answer(&restored);
    restored.apply(vec![answer], &targets, noon());
    assert_eq!(requests(&restored), 1100);
    collect_at(&mut restored, &mut runners, &targets, [70]);
    assert_eq!((requests(&restored), verdict(&restored, &targets)), (1400, Verdict::Critical));
}

#[test]
fn a_lost_runner_keeps_its_numbers() {
    let mut targets = targets();
    let mut runners = [TestRunner::new(0), TestRunner::new(1)];
    let mut collection = Collection::default();
    collect_at(&mut collection, &mut runners, &targets, (2..=200).step_by(2));
    targets.runners.pop();
    collection.settle_gone(targets.pods());
    assert_eq!(requests(&collection), 4000);
    assert_eq!(collection.gone().metrics.all_tasks().completed_requests(), 2000);
    assert!(collection.gone().runners[&1].loss.as_ref().unwrap().contains("deleted"));
    let merged = collection.merged(|index| format!("runner {index}"));
    let counts: Vec<u64> = merged.runners.values().map(|runner| runner.requests).collect();
    assert_eq!(counts, [2000, 2000]);
}

#[test]
fn the_last_metrics_of_a_log_replace_earlier_answers() {
    let targets = targets();
    let mut runners = [TestRunner::new(0), TestRunner::new(1)];
    let mut collection = Collection::default();
    collect_at(&mut collection, &mut runners, &targets, [2, 4]);
    runners[1].run_until(9);
    let last = RunnerMetrics { state: RunnerState::CutShort, ..runners[1].metrics.clone() };
    collection.replace(1, last);
    assert_eq!(requests(&collection), 130);
    assert!(collection.is_final(1) && collection.is_lost(targets.pods(), 1));
}
