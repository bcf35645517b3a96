use std::time::{Duration, Instant};

use loadtest_core::{
    metrics::{Identity, LatencyMetric, Outcome, RunnerHistory, decode_steps},
    resource::{LoadTestStatus, Progress, Verdict},
};
use serde_json::json;

use super::*;
use crate::{
    observe::start::StartRecord,
    testing::{example_test, noon, ready_runner, validated},
};

/// A runner that sends ten requests in each second.
#[derive(Clone)]
struct TestRunner {
    index: u32,
    metrics: RunnerMetrics,
    history: RunnerHistory,
}

impl TestRunner {
    fn new(index: u32) -> Self {
        let identity = Identity { run_uid: "uid".into(), index, pod_uid: format!("pod-{index}") };
        let history = RunnerHistory::new(identity.clone(), None);
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
            self.history.record(&self.metrics, now).unwrap();
        }
    }

    fn answer(&self, collection: &Collection) -> Answer {
        let bytes = self.history.encode_after(collection.last_step(self.index)).unwrap();
        let elapsed = self.metrics.metrics.elapsed_seconds;
        let (steps, now) = (decode_steps(&bytes).unwrap(), Instant::now());
        let round_trip = RoundTrip { sent_at: now, received_at: now, work_seconds: 0.0 };
        Answer { index: self.index, round_trip, elapsed, steps }
    }
}

fn targets() -> Targets {
    let mut test = example_test();
    test.spec.load.duration = Some(loadtest_core::Duration::from_secs(600));
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

/// Asks these runners.
fn ask(collection: &mut Collection, runners: &[&TestRunner], targets: &Targets, now: Timestamp) {
    collection.begin_round();
    for runner in runners {
        collection.add_answer(runner.answer(collection), targets, now).unwrap();
    }
    collection.end_round(targets, now);
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
        ask(collection, &runners.iter().collect::<Vec<_>>(), targets, noon());
    }
}

fn merged(collection: &Collection) -> Metrics {
    collection.merged(|index| format!("runner {index}"))
}

fn requests(collection: &Collection) -> u64 {
    merged(collection).all_tasks().completed_requests()
}

fn verdict(collection: &Collection, targets: &Targets) -> Verdict {
    let timeline = collection.timeline().unwrap();
    let rows = timeline.rows_at_end(&targets.valid, &merged(collection), None);
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
    let points = |collection: &Collection| collection.series().unwrap().series().len();
    assert_eq!((points(&watched), points(&restarted)), (50, 50));
}

#[test]
fn a_window_has_the_throttling_of_each_runner() {
    let (mut collection, targets) = (Collection::default(), targets());
    let mut runners = [TestRunner::new(0), TestRunner::new(1)];
    for second in 1..=60 {
        // The first runner was held up for longer, but before the responses became slow.
        runners[0].metrics.metrics.throttled_seconds = 5.0;
        if (31..=40).contains(&second) {
            runners[1].metrics.metrics.throttled_seconds += 0.3;
        }
        collect_at(&mut collection, &mut runners, &targets, [second]);
    }
    assert_eq!(verdict(&collection, &targets), Verdict::Inconclusive);
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
fn windows_that_waited_for_a_runner_are_not_judged_later() {
    let mut targets = targets();
    let mut runners = [TestRunner::new(0), TestRunner::new(1)];
    let mut earlier = Collection::default();
    collect_at(&mut earlier, &mut runners, &targets, (2..=20).step_by(2));
    for second in (22..=100).step_by(2) {
        runners[0].run_until(second);
        ask(&mut earlier, &[&runners[0]], &targets, noon());
    }
    let judged = earlier.timeline().unwrap().judged();
    assert_eq!(judged, loadtest_core::Duration::from_secs(20));
    // Another process takes over when the runners know the time before 40 s as one step. The windows of the slow
    // responses fell into it.
    let elapsed = loadtest_core::Duration::from_secs(100);
    let progress = Progress { elapsed, judged: Some(judged), ..Progress::default() };
    targets.status.progress = Some(progress);
    let mut restarted = Collection::default();
    collect_at(&mut restarted, &mut runners, &targets, (160..=180).step_by(2));
    assert_eq!(verdict(&restarted, &targets), Verdict::Inconclusive);
}

#[test]
fn a_longer_gap_counts_everything_once() {
    let targets = targets();
    let mut runners = [TestRunner::new(0), TestRunner::new(1)];
    let mut collection = Collection::default();
    collect_at(&mut collection, &mut runners, &targets, [2, 4, 300, 302]);
    assert_eq!(requests(&collection), 6040);
    let merged = merged(&collection);
    let health = &merged.tasks["health"];
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
    let mut restored = Collection::restored(
        GoneRunners::default(),
        alive.iter().map(PackedRunner::unpack).collect(),
        series,
        None,
    );
    assert_eq!(requests(&restored), 1000);
    runners.iter_mut().for_each(|runner| runner.run_until(60));
    // The other runner is silent: its numbers stay.
    ask(&mut restored, &[&runners[0]], &targets, noon());
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
    let last_step = collection.last_step(1);
    collection.move_gone_runners(targets.pods());
    // A release order for it names the step.
    assert!(last_step > 0 && collection.last_step(1) == last_step);
    assert_eq!(requests(&collection), 4000);
    assert_eq!(collection.gone().metrics.all_tasks().completed_requests(), 2000);
    assert!(collection.gone().runners[&1].loss.as_ref().unwrap().contains("deleted"));
    let merged = merged(&collection);
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
    collection.replace(1, last, &targets);
    assert_eq!(requests(&collection), 130);
    assert!(collection.is_final(1) && collection.is_lost(targets.pods(), 1));
}

/// Restarts the operator at a time at which an earlier process has judged all but the last ten seconds.
fn restart_at(second: u32) {
    let mut targets = targets();
    let mut runners = [TestRunner::new(0), TestRunner::new(1)];
    runners.iter_mut().for_each(|runner| runner.run_until(second));
    let row = json!({
        "metric": "responseTime", "statistic": "p50", "window": "10s", "bound": "< 1s",
        "observed": "50ms", "samples": 100, "verdict": "Pass",
    });
    targets.status.thresholds = vec![serde_json::from_value(row).unwrap()];
    let elapsed = format!("{}s", second - 10);
    let progress = json!({"percent": 46, "elapsed": elapsed, "runners": 2, "users": 10});
    targets.status.progress = Some(serde_json::from_value(progress).unwrap());
    let mut restarted = Collection::default();
    collect_at(&mut restarted, &mut runners, &targets, [second, second + 2]);
    let found = (requests(&restarted), verdict(&restarted, &targets));
    assert_eq!(found, (u64::from(second + 2) * 20, Verdict::Pass), "{second} s");
    assert_eq!(restarted.timeline().unwrap().unobserved(), loadtest_core::Duration::ZERO);
}

#[test]
fn a_restart_spoils_no_window() {
    // The history reaches back to the start, or not.
    restart_at(25);
    restart_at(290);
}

#[test]
fn a_restart_spoils_no_stage_that_began_long_ago() {
    let mut targets = targets();
    let mut test = example_test();
    let stage = |users: u32| json!({"users": users, "duration": "300s", "ramp": "Step"});
    let load = json!({"stages": [stage(10), stage(20)]});
    test.spec.load = serde_json::from_value(load).unwrap();
    targets.valid.load = validated(&test).load;
    let mut runners = [TestRunner::new(0), TestRunner::new(1)];
    let mut earlier = Collection::default();
    collect_at(&mut earlier, &mut runners, &targets, (2..=310).step_by(2));
    let timeline = earlier.timeline().unwrap();
    assert_eq!(timeline.stages().len(), 1);
    targets.status.stages = timeline.stages().to_vec();
    let start = earlier.stage_start();
    assert_eq!(start.as_ref().map(|start| start.elapsed_seconds), Some(300.0));
    // Another process takes over 250 s after the start of the second stage.
    runners.iter_mut().for_each(|runner| runner.run_until(550));
    for (stored, expected) in [(start, Verdict::Pass), (None, Verdict::Inconclusive)] {
        let series = earlier.series().unwrap().clone();
        let alive = earlier.alive(usize::MAX);
        let mut restored = Collection::restored(
            GoneRunners::default(),
            alive.iter().map(PackedRunner::unpack).collect(),
            series,
            stored.as_ref(),
        );
        let mut runners = runners.clone();
        collect_at(&mut restored, &mut runners, &targets, (550..=602).step_by(2));
        let rows = restored.timeline().unwrap().stages();
        assert_eq!((rows.len(), rows[1].verdict.known()), (2, Some(expected)));
    }
}

#[test]
fn a_replay_waits_for_a_late_runner() {
    let targets = targets();
    let mut runners = [TestRunner::new(0), TestRunner::new(1)];
    runners.iter_mut().for_each(|runner| runner.run_until(100));
    let mut collection = Collection::default();
    ask(&mut collection, &[&runners[0]], &targets, noon());
    assert!(collection.timeline().is_none());
    assert_eq!(requests(&collection), 1000, "what is known is not held back");
    ask(&mut collection, &[&runners[0], &runners[1]], &targets, noon());
    assert_eq!((requests(&collection), verdict(&collection, &targets)), (2000, Verdict::Critical));
    assert_eq!(collection.timeline().unwrap().unobserved(), loadtest_core::Duration::ZERO);
}

/// Asks both runners every two seconds, but the second one only if `answers`, until 200 s.
fn collect_with_silence(answers: impl Fn(u32) -> bool) -> (Collection, Targets) {
    let targets = targets();
    let mut runners = [TestRunner::new(0), TestRunner::new(1)];
    let mut collection = Collection::default();
    for second in (2..=200).step_by(2) {
        runners.iter_mut().for_each(|runner| runner.run_until(second));
        let asked = if answers(second) { &runners[..] } else { &runners[..1] };
        let now = noon() + SignedDuration::from_secs(second.into());
        ask(&mut collection, &asked.iter().collect::<Vec<_>>(), &targets, now);
    }
    (collection, targets)
}

#[test]
fn windows_wait_for_a_runner_that_is_cut_off() {
    // The slow responses come while the second runner is silent.
    let (collection, targets) = collect_with_silence(|second| !(20..=120).contains(&second));
    assert_eq!((requests(&collection), verdict(&collection, &targets)), (4000, Verdict::Critical));
    let timeline = collection.timeline().unwrap();
    assert_eq!(timeline.unobserved(), loadtest_core::Duration::ZERO);
    assert!(!collection.judged.has_pending() && collection.without_silent.is_none());
    assert_eq!(collection.series().unwrap().series().len(), 100);
}

#[test]
fn windows_are_judged_when_a_silent_runner_is_lost() {
    let mut targets = targets();
    let mut runners = [TestRunner::new(0), TestRunner::new(1)];
    let mut collection = Collection::default();
    collect_at(&mut collection, &mut runners, &targets, (2..=20).step_by(2));
    for second in (22..=60).step_by(2) {
        runners[0].run_until(second);
        ask(&mut collection, &[&runners[0]], &targets, noon());
    }
    assert_eq!(verdict(&collection, &targets), Verdict::Pass);
    targets.runners.pop();
    collection.judge_rest(&targets);
    assert_eq!((requests(&collection), verdict(&collection, &targets)), (800, Verdict::Critical));
    assert!(!collection.judged.has_pending());
    assert_eq!(collection.series().unwrap().series().len(), 30);
}

#[test]
fn a_silent_runner_at_the_end_leaves_its_windows_unobserved() {
    let targets = targets();
    let mut runners = [TestRunner::new(0), TestRunner::new(1)];
    let mut collection = Collection::default();
    collect_at(&mut collection, &mut runners, &targets, (2..=20).step_by(2));
    for second in (22..=28).step_by(2) {
        runners[0].run_until(second);
        ask(&mut collection, &[&runners[0]], &targets, noon());
    }
    collection.judge_rest(&targets);
    assert_eq!(verdict(&collection, &targets), Verdict::Inconclusive);
    assert!(collection.timeline().unwrap().unobserved() > loadtest_core::Duration::ZERO);
}

#[test]
fn windows_are_judged_before_a_runner_tells_everything_again() {
    let targets = targets();
    let mut runners = [TestRunner::new(0), TestRunner::new(1)];
    let mut collection = Collection::default();
    collect_at(&mut collection, &mut runners, &targets, (2..=20).step_by(2));
    for second in (22..=300).step_by(2) {
        runners[0].run_until(second);
        ask(&mut collection, &[&runners[0]], &targets, noon());
    }
    // Its history reaches back to 180 s.
    collect_at(&mut collection, &mut runners, &targets, [302]);
    assert_eq!((requests(&collection), verdict(&collection, &targets)), (6040, Verdict::Critical));
    assert!(collection.timeline().unwrap().unobserved() > loadtest_core::Duration::ZERO);
}

#[test]
fn load_that_has_ended_is_not_aborted_by_a_late_answer() {
    let mut targets = targets();
    let mut test = example_test();
    test.spec.thresholds = serde_json::from_value(json!([
        {"metric": "responseTime", "statistic": "p50", "target": "< 1s", "critical": "> 2s", "window": "5s",
         "abort": {"after": "5s", "for": "3s"}},
    ]))
    .unwrap();
    targets.valid.thresholds = validated(&test).thresholds;
    for (load, is_aborted) in [(600, true), (50, false)] {
        targets.load = loadtest_core::Duration::from_secs(load);
        let mut runners = [TestRunner::new(0), TestRunner::new(1)];
        let mut collection = Collection::default();
        collect_at(&mut collection, &mut runners, &targets, [50]);
        assert_eq!(collection.aborted().is_some(), is_aborted, "{load} s");
    }
}

#[test]
fn windows_wait_for_no_runner_for_ever() {
    let (collection, targets) = collect_with_silence(|second| second < 50 || second == 200);
    assert!(!collection.judged.has_pending());
    assert!(collection.timeline().unwrap().unobserved() > loadtest_core::Duration::ZERO);
    assert_eq!(verdict(&collection, &targets), Verdict::Critical, "before the silence");
}

#[test]
fn windows_wait_less_when_the_other_runners_have_ended() {
    let targets = targets();
    let mut runners = [TestRunner::new(0), TestRunner::new(1)];
    let mut collection = Collection::default();
    collect_at(&mut collection, &mut runners, &targets, (2..=20).step_by(2));
    runners[0].run_until(60);
    runners[0].metrics.state = RunnerState::Done;
    let ended = runners[0].metrics.clone();
    runners[0].history.record(&ended, Duration::from_secs(61)).unwrap();
    for (seconds, has_pending) in [(0, true), (49, true), (50, false)] {
        let now = noon() + SignedDuration::from_secs(seconds);
        ask(&mut collection, &[&runners[0]], &targets, now);
        assert_eq!(collection.judged.has_pending(), has_pending, "{seconds} s");
    }
    assert_eq!(verdict(&collection, &targets), Verdict::Critical);
}

#[test]
fn runners_that_miss_rounds_in_turn_hold_up_nothing() {
    let targets = targets();
    let mut runners = [TestRunner::new(0), TestRunner::new(1)];
    let mut collection = Collection::default();
    for second in (2..=200).step_by(2) {
        runners.iter_mut().for_each(|runner| runner.run_until(second));
        let asked = &runners[usize::from(second % 4 == 0)];
        let now = noon() + SignedDuration::from_secs(second.into());
        ask(&mut collection, &[asked], &targets, now);
    }
    let timeline = collection.timeline().unwrap();
    assert_eq!(timeline.unobserved(), loadtest_core::Duration::ZERO);
    assert!(collection.series().unwrap().series().len() >= 98);
}

#[test]
fn a_silent_runner_holds_back_no_abort() {
    let mut targets = targets();
    targets.valid.thresholds = {
        let mut test = example_test();
        test.spec.thresholds = serde_json::from_value(json!([
            {"metric": "responseTime", "statistic": "p50", "target": "< 1ms", "critical": "> 2ms",
             "abort": {"after": "5s", "for": "5s"}},
        ]))
        .unwrap();
        validated(&test).thresholds
    };
    let mut runner = TestRunner::new(0);
    let mut collection = Collection::default();
    for second in (2..30).step_by(2) {
        runner.run_until(second);
        let now = noon() + SignedDuration::from_secs(second.into());
        ask(&mut collection, &[&runner], &targets, now);
    }
    assert!(collection.aborted().is_some());
    // Once due, an abort stays due.
    ask(&mut collection, &[&runner], &targets, noon());
    assert!(collection.aborted().is_some());
}

#[test]
fn answers_that_can_not_be_true_are_refused() {
    let targets = targets();
    let mut runner = TestRunner::new(0);
    runner.run_until(4);
    let mut collection = Collection::default();
    let mut late = runner.answer(&collection);
    late.elapsed = 1e6;
    let refused = collection.add_answer(late, &targets, noon());
    assert!(matches!(refused, Err(RefusedAnswer::Elapsed { .. })), "{refused:?}");
    let mut gap = runner.answer(&collection);
    gap.steps.remove(0);
    let refused = collection.add_answer(gap, &targets, noon());
    assert!(matches!(refused, Err(RefusedAnswer::Gap { .. })), "{refused:?}");
    assert_eq!(requests(&collection), 0);

    let mut foreign = runner.answer(&collection);
    let task = foreign.steps[1].runner.metrics.tasks["health"].clone();
    foreign.steps[1].runner.metrics.tasks.insert("foreign".into(), task);
    collection.add_answer(foreign, &targets, noon()).unwrap();
    assert_eq!(merged(&collection).tasks.keys().collect::<Vec<_>>(), ["health"]);
}
