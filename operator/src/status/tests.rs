use std::sync::Arc;

use super::*;
use crate::{
    observe::{start::START_ANNOTATION, state::RunCache},
    testing::{example_test, noon, sizing_of, validated},
};
use k8s_openapi::{api::batch::v1::Job, jiff::SignedDuration};
use loadtest_core::metrics::{RunnerMetrics, RunnerState};

fn observed_with(status: LoadTestStatus) -> Observed {
    let mut test = example_test();
    test.metadata.uid = Some("0a1b".into());
    test.status = Some(status);
    Observed::new(test, RunCache::default())
}

fn admitted_status() -> LoadTestStatus {
    let decision = Decision::Admit(sizing_of(&example_test()));
    next_status(&observed_with(LoadTestStatus::default()), &decision, noon()).0
}

fn condition_status(status: &LoadTestStatus, kind: &str) -> String {
    status.condition(kind).unwrap().status.clone()
}

#[test]
fn waiting_changes_no_status_and_publishes_no_event() {
    let old = admitted_status();
    let decision = Decision::Wait(Duration::from_secs(1));
    assert_eq!(next_status(&observed_with(old.clone()), &decision, noon()), (old, None));
}

#[test]
fn progress_shows_ready_runners_before_the_start() {
    let mut starting = admitted_status();
    starting.phase = Some(Phase::Starting.into());
    let mut observed = observed_with(starting);
    observed.runners = vec![crate::testing::ready_runner(0), crate::testing::ready_runner(1)];
    observed.runners[1].ready = false;
    let (status, event) = next_status(&observed, &Decision::Wait(Duration::from_secs(1)), noon());
    assert_eq!((status.progress.unwrap().runners, event), (1, None));
}

#[test]
fn a_takeover_keeps_until_when_windows_are_judged() {
    let seconds = Duration::from_secs;
    // A process that has judged nothing yet.
    let judged_with = |progress: Option<Progress>| {
        let mut running = admitted_status();
        running.phase = Some(Phase::Running.into());
        running.progress = progress;
        let merged = Metrics { elapsed_seconds: 40.0, ..Metrics::default() };
        run_progress(&observed_with(running), &validated(&example_test()), &merged, 0).judged
    };
    let late = Progress { elapsed: seconds(39), judged: Some(seconds(20)), ..Progress::default() };
    assert_eq!(judged_with(Some(late.clone())), Some(seconds(20)));
    assert_eq!(judged_with(Some(Progress { judged: None, ..late })), Some(seconds(39)));
    // No process has judged anything, because a runner has been silent from the start.
    assert_eq!(judged_with(None), Some(Duration::ZERO));
}

#[test]
fn every_end_of_a_test_sets_finished() {
    let ends = [
        Decision::Conclude { cancelled: false, failed: None },
        Decision::Conclude { cancelled: true, failed: None },
        Decision::Fail(Reason::ImagePull, "no image".into()),
        Decision::CancelUnstarted,
        Decision::Reject(Reason::InvalidSpec, "spec.scenario: too large".into()),
    ];
    for end in ends {
        let observed = observed_with(admitted_status());
        let (status, event) = next_status(&observed, &end, noon());
        assert_eq!(condition_status(&status, "Finished"), "True", "{end:?}");
        assert!(status.known_phase().unwrap().is_final() && event.is_none());
        let ending = draft_ending(&observed.test, &status, noon()).unwrap();
        assert!(ending.draft.note.len() > 10, "{ending:?}");
    }
}

#[test]
fn the_event_of_an_end_follows_from_the_status() {
    let at = |seconds| noon() + SignedDuration::from_secs(seconds);
    let observed = observed_with(admitted_status());
    let draft = |decision: &Decision| {
        let (status, _) = next_status(&observed, decision, noon());
        draft_ending(&observed.test, &status, noon()).unwrap()
    };
    let rejected = draft(&Decision::Reject(Reason::InvalidSpec, "spec.load: too large".into()));
    let EventDraft { reason, note, warning } = &rejected.draft;
    assert_eq!((&**reason, &**note, *warning), ("Rejected", "spec.load: too large", true));
    let failed = draft(&Decision::Fail(Reason::JobLost, "the Job was deleted".into())).draft;
    assert_eq!((&*failed.reason, failed.warning), ("JobLost", true));
    assert!(failed.note.starts_with("the Job was deleted"), "{}", failed.note);
    // The command line and reports tell the same cause.
    let cause = |decision: &Decision| {
        next_status(&observed, decision, noon()).0.verdict_message().to_owned()
    };
    assert_eq!(cause(&Decision::Fail(Reason::JobLost, "the Job was deleted".into())), failed.note);
    let refused = Decision::Reject(Reason::InvalidSpec, "spec.load: too large".into());
    assert_eq!(cause(&refused), "spec.load: too large");
    let cancelled = draft(&Decision::CancelUnstarted).draft;
    assert_eq!(cancelled.reason, "Cancelled");
    assert!(cancelled.note.starts_with("Inconclusive: the test was"), "{}", cancelled.note);
    // The next process drafts the same, but not for a test that ended long ago.
    let end = Decision::Reject(Reason::InvalidSpec, "spec.load: too large".into());
    let (status, _) = next_status(&observed, &end, noon());
    let later = |seconds| draft_ending(&observed.test, &status, at(seconds));
    assert_eq!((later(500), later(700)), (Some(rejected), None));
    // A test that was rejected before can end again.
    let (again, _) = next_status(&observed, &end, at(100));
    assert_ne!(draft_ending(&observed.test, &again, at(100)), later(500));
}

#[test]
fn a_run_without_traffic_is_inconclusive() {
    let decision = Decision::Conclude { cancelled: false, failed: None };
    let (status, _) = next_status(&observed_with(admitted_status()), &decision, noon());
    assert_eq!(
        (status.known_phase(), status.known_verdict()),
        (Some(Phase::Finished), Some(Verdict::Inconclusive))
    );
    assert_eq!(condition_status(&status, "Passed"), "Unknown");
}

#[test]
fn judged_stages_survive_a_restart_of_the_operator() {
    use loadtest_core::resource::StageRow;
    let stage = |load: &str, missed: Option<&str>| StageRow {
        load: load.into(),
        requests: 100,
        error_rate: "0%".into(),
        throughput: "10/s".into(),
        p95: None,
        verdict: if missed.is_some() { Verdict::Fail } else { Verdict::Pass }.into(),
        missed: missed.map(Into::into),
        observed: None,
    };
    let mut status = admitted_status();
    status.phase = Some(Phase::Running.into());
    status.stages = vec![stage("5 users", None), stage("10 users", Some("errorRate"))];
    let mut observed = observed_with(status.clone());
    observed.test.spec.load = serde_json::from_value(serde_json::json!({"stages": [
        {"duration": "10s", "users": 5},
        {"duration": "10s", "users": 10},
        {"duration": "10s", "users": 20},
    ]}))
    .unwrap();
    observed.valid = Ok(validated(&observed.test));
    let decision = Decision::Conclude { cancelled: false, failed: None };
    let (concluded, _) = next_status(&observed, &decision, noon());
    assert_eq!(concluded.stages, status.stages);
    let point = concluded.breaking_point.unwrap();
    assert_eq!(
        (point.last_passed.as_deref(), point.first_failed.as_deref()),
        (Some("5 users"), Some("10 users"))
    );
}

#[test]
fn suspended_tests_are_accepted_and_have_no_plan() {
    let decision = Decision::ReportSuspended(sizing_of(&example_test()));
    let observed = observed_with(LoadTestStatus::default());
    let (status, event) = next_status(&observed, &decision, noon());
    assert_eq!((status.known_phase(), &status.plan), (Some(Phase::Pending), &None));
    assert_eq!(condition_status(&status, "Accepted"), "True");
    assert_eq!(status.condition("Started").unwrap().reason, "Suspended");
    assert_eq!(event.unwrap().reason, "Suspended");
    // The next reconciliation changes nothing and publishes no second Event.
    let again = next_status(&observed_with(status.clone()), &decision, noon());
    assert_eq!(again, (status.clone(), None));
    // An edit that makes the spec invalid replaces the reason.
    let rejected = Decision::Reject(Reason::InvalidSpec, "spec.load: is missing".into());
    let (status, _) = next_status(&observed_with(status), &rejected, noon());
    assert_eq!(status.condition("Started").unwrap().reason, "InvalidSpec");
}

#[test]
fn failed_test_that_had_started_stays_started() {
    let started = LoadTestStatus { start_time: Some(MicroTime(noon())), ..admitted_status() };
    let decision = Decision::Fail(Reason::InvalidSpec, "no plan".into());
    let (status, _) = next_status(&observed_with(started), &decision, noon());
    assert_eq!(status.condition("Started").unwrap().reason, "Pending");
    assert_eq!(status.condition("Passed").unwrap().message, "the test could not be judged");
}

#[test]
fn conditions_name_the_generation_that_they_describe() {
    let generations = |status: LoadTestStatus| -> Vec<Option<i64>> {
        status.conditions.iter().map(|condition| condition.observed_generation).collect()
    };
    assert_eq!(generations(admitted_status()), [Some(1); 4]);
}

#[test]
fn status_of_a_newer_version_is_left_as_it_is() {
    let newer = LoadTestStatus {
        verdict: serde_json::from_str(r#""Splendid""#).unwrap(),
        ..admitted_status()
    };
    let decision = Decision::Conclude { cancelled: false, failed: None };
    let next = next_status(&observed_with(newer.clone()), &decision, noon());
    assert_eq!(next, (newer, None));
}

#[test]
fn transition_time_changes_only_with_the_condition_status() {
    let later = noon() + SignedDuration::from_secs(60);
    let decision = Decision::Fail(Reason::StartTimeout, "slow".into());
    let (status, _) = next_status(&observed_with(admitted_status()), &decision, later);
    let time = |kind: &str| status.condition(kind).unwrap().last_transition_time.0;
    assert_eq!(time("Started"), noon());
    assert_eq!(time("Finished"), later);
}

#[test]
fn progress_is_throttled_and_phase_changes_are_not() {
    let mut running = admitted_status();
    running.phase = Some(Phase::Running.into());
    let decision = Decision::ReportProgress(Phase::Running, Duration::from_secs(2));
    running.summary = Some(summarize(&loadtest_core::metrics::TaskMetrics::default(), 1.0));
    let (progressed, _) = next_status(&observed_with(running.clone()), &decision, noon());
    let at = |s| Some(noon() - SignedDuration::from_secs(s));
    assert!(is_throttled(&running, &progressed, at(4), noon()));
    assert!(!is_throttled(&running, &progressed, at(5), noon()));
    assert!(!is_throttled(&running, &progressed, None, noon()));
    let decision = Decision::ReportProgress(Phase::Stopping, Duration::from_secs(2));
    let (stopping, _) = next_status(&observed_with(running.clone()), &decision, noon());
    assert!(!is_throttled(&running, &stopping, at(1), noon()));
}

#[test]
fn throttled_progress_builds_no_status() {
    let mut running = admitted_status();
    running.phase = Some(Phase::Running.into());
    running.summary = Some(summarize(&loadtest_core::metrics::TaskMetrics::default(), 1.0));
    let progress = |phase| Decision::ReportProgress(phase, Duration::from_secs(2));
    let can_skip = |status: &LoadTestStatus, decision: &Decision, seconds: i64| {
        let mut observed = observed_with(status.clone());
        observed.cache.written_at = Some(noon() - SignedDuration::from_secs(seconds));
        can_skip_status(&observed, decision, noon())
    };
    assert!(can_skip(&running, &progress(Phase::Running), 4));
    assert!(!can_skip(&running, &progress(Phase::Running), 5));
    assert!(!can_skip(&running, &progress(Phase::Stopping), 4));
    assert!(!can_skip(&running, &Decision::ReportLoss(Vec::new()), 4));
    let without_numbers = LoadTestStatus { summary: None, ..running.clone() };
    assert!(!can_skip(&without_numbers, &progress(Phase::Running), 4));
    let of_an_earlier_spec = LoadTestStatus { observed_generation: Some(0), ..running };
    assert!(!can_skip(&of_an_earlier_spec, &progress(Phase::Running), 4));
}

#[test]
fn silent_runners_are_told_once_and_until_they_answer() {
    let mut running = admitted_status();
    running.phase = Some(Phase::Running.into());
    let at = |seconds| noon() + SignedDuration::from_secs(seconds);
    let mut observed = observed_with(running);
    let start = StartRecord { at: noon(), pods: vec!["pod-0".into(), "pod-1".into()] };
    let annotation = (START_ANNOTATION.to_owned(), serde_json::to_string(&start).unwrap());
    let mut job = Job::default();
    job.metadata.annotations = Some([annotation].into());
    observed.job = Some(job);
    observed.runners = vec![crate::testing::ready_runner(0), crate::testing::ready_runner(1)];
    let progress = Decision::ReportProgress(Phase::Running, Duration::from_secs(2));
    let step = |observed: &mut Observed, heard: &[(u32, i64)], seconds| {
        let targets = observed.targets().unwrap();
        let collection = Arc::make_mut(&mut observed.cache.collection);
        heard.iter().for_each(|(index, heard)| collection.note_answer(*index, at(*heard)));
        collection.end_round(&targets, at(seconds));
        let (status, event) = next_status(observed, &progress, at(seconds));
        observed.test.status = Some(status.clone());
        (status.condition("RunnersSilent").cloned(), event)
    };
    assert_eq!(step(&mut observed, &[(0, 19), (1, 10)], 20), (None, None));
    let (silent, event) = step(&mut observed, &[(0, 31)], 32);
    let (silent, event) = (silent.unwrap(), event.unwrap());
    assert_eq!((&*silent.status, &*event.reason, event.warning), ("True", "RunnersSilent", true));
    assert!(silent.message.starts_with("1 of 2 runners did not answer"), "{}", silent.message);
    assert!(silent.message.contains("(runner 1 on node n1)"), "{}", silent.message);
    let (silent, event) = step(&mut observed, &[], 60);
    let silent = silent.unwrap();
    assert!(silent.message.starts_with("2 of 2 runners"), "{}", silent.message);
    assert_eq!((silent.status.as_str(), event), ("True", None));
    // Another runner is no reason to write the status at once.
    let mut status = observed.status();
    set_condition(&mut status, "RunnersSilent", "True", "NoAnswer", "1 of 2 runners", at(60));
    assert!(is_throttled(&observed.status(), &status, Some(at(59)), at(60)));
    // A new process does not know yet who is silent.
    let known = std::mem::take(&mut observed.cache.collection);
    observed.cache.first_seen = Some(at(61));
    let (silent, event) = step(&mut observed, &[(0, 62)], 63);
    assert_eq!((silent.unwrap().status.as_str(), event), ("True", None));
    observed.cache.collection = known;
    // The end of the test ends the silence of those that have told everything.
    let end = Decision::Conclude { cancelled: false, failed: None };
    let (ended, _) = next_status(&observed, &end, at(65));
    let message = &ended.condition("RunnersSilent").unwrap().message;
    assert!(message.contains("did not answer the operator until the end"), "{message}");
    let mut done = observed.clone();
    for index in 0..2 {
        let runner = RunnerMetrics { state: RunnerState::Done, ..RunnerMetrics::default() };
        Arc::make_mut(&mut done.cache.collection).add_stored(index, runner);
    }
    let (ended, _) = next_status(&done, &end, at(65));
    assert_eq!(condition_status(&ended, "RunnersSilent"), "False");
    let (silent, event) = step(&mut observed, &[(0, 69), (1, 69)], 70);
    assert_eq!((silent.unwrap().status.as_str(), event), ("False", None));
}

#[test]
fn lost_runner_is_told_while_the_test_runs() {
    let mut running = admitted_status();
    running.phase = Some(Phase::Running.into());
    let text = "runner 1 (pod burst-1 on node n1) ended with exit code 137: OOMKilled";
    let decision = Decision::ReportLoss(vec![text.into()]);
    let (status, event) = next_status(&observed_with(running), &decision, noon());
    assert_eq!(status.measurement.as_ref().unwrap().runners_lost, 1);
    let event = event.unwrap();
    assert_eq!((event.reason.as_str(), event.warning), ("RunnersLost", true));
    // Another loss just after it is told at once.
    let losses = vec![text.to_owned(), "runner 0 ended".to_owned()];
    let decision = Decision::ReportLoss(losses);
    let mut observed = observed_with(status.clone());
    let (more, _) = next_status(&observed, &decision, noon());
    assert!(!is_throttled(&status, &more, Some(noon()), noon()));
    assert_eq!(more.measurement.unwrap().runners_lost, 2);
    observed.job = Some(crate::testing::suspended_job());
    let (_, evicted) = next_status(&observed, &decision, noon());
    let note = evicted.unwrap().note;
    assert!(note.starts_with("lost 2 runners because somebody has suspended the Job"), "{note}");
    for word in [
        "lost 1 runner; the test stops because of spec.onRunnerLoss. Details:",
        "burst-1",
        "node n1",
        "OOMKilled",
    ] {
        assert!(event.note.contains(word), "{}", event.note);
    }
}

#[test]
fn generation_catches_up_after_an_edit_of_a_finished_test() {
    let mut over = admitted_status();
    over.phase = Some(Phase::Finished.into());
    let mut observed = observed_with(over);
    observed.test.metadata.generation = Some(2);
    for decision in [Decision::NothingToDo, Decision::Wait(Duration::from_secs(1))] {
        let (status, event) = next_status(&observed, &decision, noon());
        assert_eq!((status.observed_generation, event), (Some(2), None));
        assert!(status.conditions.iter().all(|c| c.observed_generation == Some(2)));
    }
}

#[test]
fn waiting_test_says_what_it_waits_for() {
    let mut starting = admitted_status();
    starting.phase = Some(Phase::Starting.into());
    let mut observed = observed_with(starting);
    observed.runners = vec![crate::testing::ready_runner(0), crate::testing::ready_runner(1)];
    observed.runners[1].ready = false;
    let started = |observed: &Observed| {
        let decision = Decision::Wait(Duration::from_secs(1));
        let status = next_status(observed, &decision, noon()).0;
        let condition = status.condition("Started").unwrap().clone();
        (condition.reason, condition.message)
    };
    assert_eq!(started(&observed), ("Pending".into(), "1 of 2 runners ready".into()));
    observed.runners[1].waiting =
        Some(Waiting { reason: "ErrImagePull".into(), message: "no such host".into() });
    let text = "1 of 2 runners ready; runner burst-1: ErrImagePull: no such host";
    assert_eq!(started(&observed), ("ErrImagePull".into(), text.into()));
    observed.runners.clear();
    observed.job = Some(crate::testing::suspended_job());
    let (reason, message) = started(&observed);
    assert_eq!(reason, "JobSuspended");
    let text = "0 of 2 runners ready; the Job burst is suspended, as a queue such as Kueue";
    assert!(message.starts_with(text), "{message}");
}

#[test]
fn status_never_counts_backwards() {
    let mut running = admitted_status();
    running.phase = Some(Phase::Running.into());
    running.summary = Some(Summary { requests: 500, ..Summary::default() });
    let mut observed = observed_with(running);
    let mut snapshot = loadtest_core::metrics::RunnerMetrics::default();
    snapshot.metrics.elapsed_seconds = 10.0;
    snapshot.metrics.tasks.entry("health".into()).or_default().requests[0] = 300;
    Arc::make_mut(&mut observed.cache.collection).add_stored(0, snapshot);
    let decision = Decision::ReportProgress(Phase::Running, Duration::from_secs(2));
    let (status, _) = next_status(&observed, &decision, noon());
    assert_eq!(status.summary.unwrap().requests, 500);
}

#[test]
fn the_largest_status_has_less_than_64_kb() {
    use loadtest_core::{
        metrics::{LatencyMetric, Metrics, Outcome, RunnerMetrics, RunnerState},
        resource::LoadTestSpec,
    };
    let name = |index: usize| format!("{:0>63}", format!("t{index}"));
    let tasks: Vec<_> = (0..64)
        .map(
            |i| serde_json::json!({"name": name(i), "chat": {"models": ["m"], "messages": ["hi"]}}),
        )
        .collect();
    let rows: Vec<_> = (0..64)
        .map(|i| {
            serde_json::json!({
                "task": name(i), "metric": "timeToFirstResponse", "statistic": "p99.9",
                "target": "< 1ms", "warning": "< 2ms", "critical": "> 500s",
            })
        })
        .collect();
    let stages: Vec<_> =
        (1..=64).map(|i| serde_json::json!({"duration": "1m", "users": 10 * i})).collect();
    let spec: LoadTestSpec = serde_json::from_value(serde_json::json!({
        "target": {"http": "http://c"}, "load": {"stages": stages},
        "scenario": {"tasks": tasks}, "thresholds": rows,
    }))
    .unwrap();
    let mut metrics = Metrics { elapsed_seconds: 3840.0, user_seconds: 1e6, ..Metrics::default() };
    let mut cache = RunCache::default();
    for i in 0..64 {
        let task = metrics.tasks.entry(name(i)).or_default();
        task.requests = [123_456_789, 1_234_567, 123_456, 1234];
        for (metric, _) in LatencyMetric::all_judged() {
            let latency = task.latencies.get_mut(metric, Outcome::Success);
            latency.record(0.1234, 123_456_789);
            latency.record(83.4, 1000);
        }
        for status in 500..530 {
            task.statuses.insert(status.to_string(), 123_456);
            let kind = format!("http_{status}");
            task.errors.insert(kind.clone(), 123_456);
            cache.error_examples.insert((name(i), kind), "x".repeat(400));
        }
    }
    let runner = RunnerMetrics { state: RunnerState::Done, metrics, ..RunnerMetrics::default() };
    Arc::make_mut(&mut cache.collection).add_stored(0, runner);
    let mut test = example_test();
    test.spec = spec;
    test.status = Some(admitted_status());
    let observed = Observed::new(test, cache);
    let decision = Decision::Conclude { cancelled: false, failed: None };
    let (mut status, _) = next_status(&observed, &decision, noon());
    let size = |status: &LoadTestStatus| serde_json::to_vec(status).unwrap().len();
    let whole = status.clone();
    assert!(size(&whole) > 100_000, "{} bytes", size(&whole));
    set_result_stored(&mut status, Ok("a"), noon());
    limit_size(&mut status, noon());
    assert!(size(&status) < 61_000, "{} bytes", size(&status));
    assert_eq!((status.tasks.len(), status.thresholds.len(), status.errors.len()), (64, 64, 20));
    assert_eq!(status.tasks[63].summary.p99, whole.tasks[63].summary.p99);
    assert_eq!(condition_status(&status, "StatusShortened"), "True");
    let shortened = status.clone();
    limit_size(&mut status, noon());
    assert_eq!(status, shortened);
    let missed = loadtest_core::resource::StageRow {
        load: "1,000,000 users".into(),
        requests: 123_456_789,
        error_rate: "12.34%".into(),
        throughput: "123,456.78/s".into(),
        p95: Some("123.4ms".into()),
        verdict: Verdict::Critical.into(),
        missed: Some(format!("{} timeToFirstResponse p99.9", name(0))),
        observed: Some("123.4ms".into()),
    };
    let mut with_stages = LoadTestStatus { stages: vec![missed; 64], ..whole.clone() };
    set_result_stored(&mut with_stages, Ok("a"), noon());
    limit_size(&mut with_stages, noon());
    assert!(size(&with_stages) < 64_000, "{} bytes", size(&with_stages));
    assert_eq!(with_stages.tasks[63].summary.p99, whole.tasks[63].summary.p99);
}

#[test]
fn the_status_of_a_test_with_many_runners_is_small() {
    let mut sizing = sizing_of(&example_test());
    sizing.runners = 10_000;
    let observed = observed_with(LoadTestStatus::default());
    let (mut status, _) = next_status(&observed, &Decision::Admit(sizing.clone()), noon());
    for decision in [Decision::Launch(sizing), Decision::Wait(Duration::from_secs(1))] {
        let mut observed = observed_with(status);
        observed.runners = (0..10_000).map(crate::testing::ready_runner).collect();
        status = next_status(&observed, &decision, noon()).0;
    }
    let losses = (0..10_000).map(|i| format!("runner {i} (pod a-{i}) ended")).collect();
    let decision = Decision::ReportLoss(losses);
    let (status, _) = next_status(&observed_with(status), &decision, noon());
    let size = serde_json::to_vec(&status).unwrap().len();
    assert!(size < 8000, "{size} bytes");
}
