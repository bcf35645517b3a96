use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::batch::v1::{Job, JobStatus},
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use loadtest_core::{
    metrics::{RunnerMetrics, RunnerState},
    resource::{LoadTestStatus, OnRunnerLoss, Verdict},
};

use k8s_openapi::jiff::SignedDuration;
use loadtest_core::{
    Duration,
    resource::{Aborted, Sizing},
};

use super::{running::COLLECT_INTERVAL, starting::STARTUP_POLL_INTERVAL, *};
use crate::{
    collect::Collection,
    observe::runner::{Runner, Termination, Waiting},
    observe::start::{START_ANNOTATION, StartRecord},
    observe::state::RunCache,
    testing::{example_settings, example_test, noon, ready_runner, sizing_of, validated},
};

/// Returns the time this many seconds after the start.
fn time_after_start(seconds: i64) -> Timestamp {
    noon() + SignedDuration::from_secs(seconds)
}

fn example_sizing() -> Sizing {
    sizing_of(&example_test())
}

fn observed_in(phase: Phase) -> Observed {
    let mut test = example_test();
    test.status = Some(LoadTestStatus {
        observed_generation: Some(1),
        phase: Some(phase.into()),
        plan: Some(example_sizing()),
        ..LoadTestStatus::default()
    });
    let mut job = Job::default();
    job.metadata.creation_timestamp = Some(Time(noon()));
    job.status = Some(JobStatus { active: Some(2), ..JobStatus::default() });
    let cache = RunCache { first_seen: Some(noon()), ..RunCache::default() };
    let mut observed = Observed::new(test, cache);
    observed.job = Some(job);
    observed.runners = vec![ready_runner(0), ready_runner(1)];
    observed
}

fn start_record() -> StartRecord {
    StartRecord { at: noon(), pods: vec!["pod-0".into(), "pod-1".into()] }
}

fn observed_after_start(phase: Phase) -> Observed {
    let mut observed = observed_in(phase);
    let text = serde_json::to_string(&start_record()).unwrap();
    let annotations = BTreeMap::from([(START_ANNOTATION.to_owned(), text)]);
    observed.job.as_mut().unwrap().metadata.annotations = Some(annotations);
    observed
}

fn observed_under_load() -> Observed {
    let mut observed = observed_after_start(Phase::Running);
    observed.cache.start_accepted = start_record().pods.into_iter().collect();
    observed
}

fn condition(kind: &str, value: &str, reason: &str) -> Condition {
    Condition {
        type_: kind.into(),
        status: value.into(),
        reason: reason.into(),
        message: String::new(),
        last_transition_time: Time(noon()),
        observed_generation: None,
    }
}

/// Writes to the status that one runner is lost.
fn report_loss(observed: &mut Observed) {
    let status = observed.test.status.get_or_insert_default();
    status.measurement.get_or_insert_default().runners_lost = 1;
}

/// Writes to the status that the Job is deleted because runners did not stop.
fn force_stop(observed: &mut Observed) {
    let status = observed.test.status.get_or_insert_default();
    status.conditions.push(condition("StopForced", "True", "OrdersNotTaken"));
    observed.cache.start = Some(start_record());
}

fn collection_of(observed: &mut Observed) -> &mut Collection {
    Arc::make_mut(&mut observed.cache.collection)
}

fn set_runner(observed: &mut Observed, index: u32, runner: RunnerMetrics) {
    collection_of(observed).add_stored(index, runner);
}

fn finish_runner(observed: &mut Observed, index: u32) {
    let state = RunnerState::Done;
    set_runner(observed, index, RunnerMetrics { state, ..RunnerMetrics::default() });
}

fn decision_at(observed: &Observed, seconds: i64) -> Decision {
    decide(observed, &example_settings(), time_after_start(seconds))
}

#[test]
fn suspended_test_gets_no_plan_until_it_is_resumed() {
    let mut suspended = observed_in(Phase::Pending);
    suspended.test.status = None;
    suspended.test.spec.suspend = true;
    assert_eq!(decision_at(&suspended, 0), Decision::ReportSuspended(example_sizing()));
    suspended.test.spec.cancel = true;
    assert_eq!(decision_at(&suspended, 0), Decision::Admit(example_sizing()));
    suspended.test.spec.cancel = false;
    suspended.test.spec.suspend = false;
    assert_eq!(decision_at(&suspended, 0), Decision::Admit(example_sizing()));
}

#[test]
fn status_of_a_newer_version_is_left_as_it_is() {
    let mut newer = observed_under_load();
    newer.test.status.as_mut().unwrap().phase = serde_json::from_str(r#""Draining""#).unwrap();
    assert_eq!(decision_at(&newer, 300), Decision::NothingToDo);
}

#[test]
fn test_with_an_invalid_spec_and_no_plan_ends() {
    for mut observed in [observed_in(Phase::Pending), observed_under_load()] {
        observed.valid = Err(vec![]);
        let decision = decision_at(&observed, 10);
        assert!(matches!(decision, Decision::Fail(Reason::InvalidSpec, _)), "{decision:?}");
    }
    let mut cancelled = observed_in(Phase::Pending);
    cancelled.valid = Err(vec![]);
    cancelled.test.spec.cancel = true;
    assert_eq!(decision_at(&cancelled, 10), Decision::CancelUnstarted);
}

#[test]
fn new_test_is_admitted_with_its_sizing() {
    let mut new = observed_in(Phase::Pending);
    new.test.status = None;
    assert_eq!(decision_at(&new, 0), Decision::Admit(example_sizing()));
}

#[test]
fn admitted_test_is_launched_even_if_the_job_exists() {
    assert_eq!(decision_at(&observed_in(Phase::Pending), 0), Decision::Launch(example_sizing()));
}

#[test]
fn only_pods_of_the_start_record_get_start_orders() {
    let mut replaced = observed_after_start(Phase::Running);
    replaced.runners[1].uid = "replacement".into();
    report_loss(&mut replaced);
    replaced.test.spec.on_runner_loss = OnRunnerLoss::Continue;
    assert_eq!(
        decision_at(&replaced, 1),
        Decision::SendStart(start_record(), vec!["pod-0".into()])
    );
}

#[test]
fn start_orders_are_repeated_until_accepted() {
    let mut half = observed_after_start(Phase::Running);
    half.cache.start_accepted.insert("pod-0".into());
    assert_eq!(decision_at(&half, 1), Decision::SendStart(start_record(), vec!["pod-1".into()]));
    assert_eq!(
        decision_at(&observed_under_load(), 1),
        Decision::ReportProgress(Phase::Running, COLLECT_INTERVAL)
    );
}

#[test]
fn test_ends_when_the_last_runner_is_done() {
    let mut observed = observed_under_load();
    assert!(matches!(decision_at(&observed, 120), Decision::ReportProgress(Phase::Stopping, _)));
    finish_runner(&mut observed, 0);
    assert!(matches!(decision_at(&observed, 121), Decision::ReportProgress(Phase::Stopping, _)));
    finish_runner(&mut observed, 1);
    assert_eq!(decision_at(&observed, 121), Decision::Conclude { cancelled: false, failed: None });
    assert_eq!(observed.run_context(false).runners_lost, 0);
}

#[test]
fn lost_runner_is_reported_at_once_and_stops_the_test() {
    let mut observed = observed_under_load();
    observed.runners[1].termination =
        Some(Termination { exit_code: Some(137), message: "OOMKilled".into() });
    // Its log may still hold its last numbers.
    let running = Decision::ReportProgress(Phase::Running, COLLECT_INTERVAL);
    assert_eq!(decision_at(&observed, 10), running);
    collection_of(&mut observed).note_log_read("pod-1");
    let text = "runner 1 (pod burst-1 on node n1) ended with exit code 137: OOMKilled (raise spec.runners.resources.limits.memory)";
    assert_eq!(decision_at(&observed, 10), Decision::ReportLoss(vec![text.into()]));
    report_loss(&mut observed);
    assert_eq!(decision_at(&observed, 11), Decision::SendStop(vec!["pod-0".into()]));
    observed.test.spec.on_runner_loss = OnRunnerLoss::Continue;
    assert_eq!(decision_at(&observed, 11), running);
    observed.test.spec.min_runners = std::num::NonZeroU32::new(2);
    assert_eq!(decision_at(&observed, 11), Decision::SendStop(vec!["pod-0".into()]));
    finish_runner(&mut observed, 0);
    assert_eq!(decision_at(&observed, 121), Decision::Conclude { cancelled: false, failed: None });
    assert_eq!(observed.run_context(false).runners_lost, 1);
}

#[test]
fn runner_killed_under_load_is_lost_despite_its_last_metrics() {
    let mut observed = observed_under_load();
    let mut partial = RunnerMetrics { state: RunnerState::CutShort, ..RunnerMetrics::default() };
    partial.metrics.elapsed_seconds = 10.0;
    observed.runners[1].termination =
        Some(Termination { exit_code: Some(75), message: "evicted".into() });
    set_runner(&mut observed, 1, partial);
    assert!(matches!(decision_at(&observed, 11), Decision::ReportLoss(_)));
    report_loss(&mut observed);
    finish_runner(&mut observed, 0);
    assert_eq!(decision_at(&observed, 121), Decision::Conclude { cancelled: false, failed: None });
    assert_eq!(observed.run_context(false).runners_lost, 1);
}

#[test]
fn load_end_follows_the_elapsed_time_of_the_runners() {
    let mut observed = observed_under_load();
    let left =
        |observed: &Observed| match decide(observed, &example_settings(), time_after_start(119)) {
            Decision::ReportProgress(Phase::Running, left) => left,
            other => panic!("{other:?}"),
        };
    assert_eq!(left(&observed), Duration::from_millis(1050));
    // The start orders came half a second late.
    let mut snapshot = RunnerMetrics { state: RunnerState::Running, ..RunnerMetrics::default() };
    snapshot.metrics.elapsed_seconds = 118.5;
    set_runner(&mut observed, 0, snapshot);
    collection_of(&mut observed).note_answer(0, time_after_start(119));
    assert_eq!(left(&observed), Duration::from_millis(1550));
}

#[test]
fn disrupted_runner_is_released_after_its_final_snapshot() {
    let mut observed = observed_under_load();
    observed.runners[1].disrupted = true;
    assert_eq!(
        decision_at(&observed, 10),
        Decision::ReportProgress(Phase::Running, COLLECT_INTERVAL)
    );
    let partial = RunnerMetrics { state: RunnerState::CutShort, ..RunnerMetrics::default() };
    set_runner(&mut observed, 1, partial);
    assert_eq!(decision_at(&observed, 10), Decision::SendRelease(vec!["pod-1".into()]));
    observed.cache.released.insert("pod-1".into());
    assert!(matches!(decision_at(&observed, 10), Decision::ReportLoss(_)));
}

#[test]
fn load_duration_is_zero_after_an_early_end() {
    let valid = validated(&example_test());
    assert_eq!(observed_under_load().load_duration(&valid), Duration::from_secs(120));
    let mut cancelled = observed_under_load();
    cancelled.test.spec.cancel = true;
    let mut stopping = observed_under_load();
    stopping.cache.stop_sent_at = Some(time_after_start(10));
    for ended in [cancelled, stopping] {
        assert_eq!(ended.load_duration(&valid), Duration::ZERO);
    }
}

#[test]
fn silent_runner_is_given_up_after_a_minute() {
    let mut observed = observed_under_load();
    finish_runner(&mut observed, 0);
    collection_of(&mut observed).note_answer(1, time_after_start(150));
    assert!(matches!(decision_at(&observed, 200), Decision::ReportProgress(..)));
    assert_eq!(decision_at(&observed, 210), Decision::Conclude { cancelled: false, failed: None });
}

#[test]
fn cancel_stops_running_runners_and_removes_unstarted_ones() {
    let mut early = observed_in(Phase::Starting);
    early.test.spec.cancel = true;
    assert_eq!(decision_at(&early, 1), Decision::CancelUnstarted);
    let mut late = observed_under_load();
    late.test.spec.cancel = true;
    assert_eq!(decision_at(&late, 1), Decision::SendStop(start_record().pods));
    late.cache.stop_accepted = start_record().pods.into_iter().collect();
    assert!(matches!(decision_at(&late, 1), Decision::ReportProgress(Phase::Stopping, _)));
}

#[test]
fn abort_is_in_the_status_before_runners_are_stopped() {
    let aborted = Aborted {
        key: example_test().spec.thresholds[0].key(),
        observed: "12%".into(),
        bound: "> 5%".parse().unwrap(),
        elapsed: Duration::from_secs(9),
        samples: 100,
    };
    let mut breached = observed_under_load();
    collection_of(&mut breached).set_aborted(aborted.clone());
    assert_eq!(decision_at(&breached, 10), Decision::ReportAbort(aborted.clone()));
    breached.test.status.as_mut().unwrap().aborted = Some(aborted);
    assert_eq!(decision_at(&breached, 10), Decision::SendStop(start_record().pods));
    breached.cache.stop_accepted = start_record().pods.into_iter().collect();
    assert!(matches!(decision_at(&breached, 11), Decision::ReportProgress(Phase::Stopping, _)));
}

#[test]
fn a_runner_that_accepts_its_start_and_never_begins_is_lost() {
    let mut observed = observed_under_load();
    finish_runner(&mut observed, 0);
    set_runner(&mut observed, 1, RunnerMetrics::default());
    for (seconds, is_lost) in [(5, false), (30, true)] {
        collection_of(&mut observed).note_answer(1, time_after_start(seconds));
        let decision = decision_at(&observed, seconds + 1);
        assert_eq!(matches!(decision, Decision::ReportLoss(_)), is_lost, "{decision:?}");
    }
}

#[test]
fn runners_that_missed_their_start_are_lost() {
    let mut missed = observed_after_start(Phase::Running);
    for index in 0..2 {
        set_runner(&mut missed, index, RunnerMetrics::default());
        collection_of(&mut missed).note_answer(index, time_after_start(119));
    }
    assert!(matches!(decision_at(&missed, 1), Decision::SendStart(..)));
    // A runner that has said nothing since the start may run.
    let mut silent = missed.clone();
    (0..2).for_each(|index| collection_of(&mut silent).note_answer(index, time_after_start(0)));
    assert!(matches!(decision_at(&silent, 3), Decision::ReportProgress(Phase::Running, _)));
    // As long as one of them may run, the others do not count as lost at once.
    let mut half = missed.clone();
    collection_of(&mut half).note_answer(1, time_after_start(0));
    assert!(matches!(decision_at(&half, 3), Decision::ReportProgress(Phase::Running, _)));
    assert!(matches!(decision_at(&half, 12), Decision::ReportLoss(_)));
    // Nobody has started, so that all start later.
    let Decision::PersistStart(next) = decision_at(&missed, 3) else { panic!() };
    assert!(next.pods == start_record().pods && next.at > time_after_start(3), "{next:?}");
    // The API server is slow: the next start leaves it more time.
    missed.cache.missed_starts = 1;
    let Decision::PersistStart(next) = decision_at(&missed, 3) else { panic!() };
    assert!(next.at > time_after_start(10), "{next:?}");
    // An operator that comes back much later starts no load.
    let Decision::ReportLoss(losses) = decision_at(&missed, 1200) else { panic!() };
    assert_eq!(losses.len(), 2);
    // A later start of one runner would make another load than the one that was asked for.
    finish_runner(&mut missed, 1);
    assert!(matches!(decision_at(&missed, 3), Decision::ReportLoss(_)));
    report_loss(&mut missed);
    assert_eq!(decision_at(&missed, 3), Decision::Conclude { cancelled: false, failed: None });
    assert_eq!(missed.run_context(false).runners_lost, 1);
}

#[test]
fn cancelled_test_does_not_wait_for_a_dead_node() {
    let mut cancelled = observed_after_start(Phase::Running);
    cancelled.test.spec.cancel = true;
    cancelled.cache.start_accepted.insert("pod-0".into());
    assert_eq!(decision_at(&cancelled, 10), Decision::SendStop(start_record().pods));
    cancelled.cache.stop_accepted.insert("pod-0".into());
    cancelled.cache.stop_sent_at = Some(time_after_start(10));
    finish_runner(&mut cancelled, 0);
    collection_of(&mut cancelled).note_answer(0, time_after_start(12));
    collection_of(&mut cancelled).note_answer(1, time_after_start(9));
    assert_eq!(decision_at(&cancelled, 19), Decision::SendStop(vec!["pod-1".into()]));
    assert_eq!(decision_at(&cancelled, 20), Decision::ForceStop(vec!["pod-1".into()]));
    force_stop(&mut cancelled);
    assert_eq!(decision_at(&cancelled, 21), Decision::DeleteStoppedJob);
    cancelled.job.as_mut().unwrap().metadata.deletion_timestamp = Some(Time(time_after_start(21)));
    assert!(matches!(decision_at(&cancelled, 21), Decision::ReportProgress(Phase::Stopping, _)));
    let end = Decision::Conclude { cancelled: true, failed: None };
    assert_eq!(decision_at(&cancelled, 70), end);
}

#[test]
fn unreachable_runners_end_the_test_with_advice() {
    let unheard = observed_after_start(Phase::Running);
    assert!(matches!(decision_at(&unheard, 1), Decision::SendStart(..)));
    assert!(matches!(decision_at(&unheard, 40), Decision::ReportProgress(..)));
    let Decision::Conclude { failed: Some((reason, why)), .. } = decision_at(&unheard, 46) else {
        panic!()
    };
    assert_eq!(reason, Reason::Unreachable);
    assert!(why.contains("9464") && why.contains("network policies"), "{why}");
}

#[test]
fn start_waits_for_the_replacement_of_an_evicted_runner() {
    let mut evicted = observed_in(Phase::Starting);
    evicted.runners[1].disrupted = true;
    assert_eq!(decision_at(&evicted, 1), Decision::Wait(STARTUP_POLL_INTERVAL));
    evicted.runners[1].termination =
        Some(Termination { exit_code: Some(76), message: String::new() });
    assert_eq!(decision_at(&evicted, 1), Decision::Wait(STARTUP_POLL_INTERVAL));
    evicted.runners.push(Runner { uid: "pod-2".into(), ..ready_runner(1) });
    let Decision::PersistStart(start) = decision_at(&evicted, 2) else { panic!() };
    assert_eq!(start.pods, ["pod-0", "pod-2"]);
}

#[test]
fn job_of_a_failed_test_is_deleted_after_the_status_write() {
    assert_eq!(decision_at(&observed_in(Phase::Error), 1), Decision::DeleteJob);
    assert_eq!(decision_at(&observed_in(Phase::Cancelled), 1), Decision::DeleteJob);
    assert_eq!(decision_at(&observed_after_start(Phase::Error), 1), Decision::DeleteJob);
    assert!(matches!(
        decision_at(&observed_after_start(Phase::Cancelled), 1),
        Decision::SendRelease(_)
    ));
}

#[test]
fn reconciliations_happen_at_stage_ends() {
    let mut staged = observed_under_load();
    staged.test.spec.load = serde_json::from_str(
        r#"{"stages": [{"duration": "10s", "users": 1}, {"duration": "10s", "users": 2}]}"#,
    )
    .unwrap();
    staged.valid = Ok(validated(&staged.test));
    let Decision::ReportProgress(Phase::Running, wait) = decision_at(&staged, 9) else { panic!() };
    assert_eq!(wait, Duration::from_millis(1050));
    let Decision::ReportProgress(Phase::Running, wait) = decision_at(&staged, 11) else { panic!() };
    assert_eq!(wait, COLLECT_INTERVAL);
}

#[test]
fn finished_test_releases_its_runners_once() {
    let mut over = observed_after_start(Phase::Finished);
    assert_eq!(decision_at(&over, 130), Decision::SendRelease(start_record().pods));
    over.cache.released = start_record().pods.into_iter().collect();
    assert_eq!(decision_at(&over, 130), Decision::NothingToDo);
}

#[test]
fn finished_test_is_deleted_after_its_time_to_live() {
    let mut over = observed_after_start(Phase::Finished);
    over.job = None;
    over.test.spec.ttl_seconds_after_finished = Some(10);
    over.test.status.as_mut().unwrap().finish_time = Some(Time(time_after_start(130)));
    assert!(matches!(decision_at(&over, 135), Decision::Wait(_)));
    assert_eq!(decision_at(&over, 140), Decision::DeleteTest);
}

#[test]
fn failed_tests_can_live_longer_than_passed_ones() {
    let mut over = observed_after_start(Phase::Finished);
    over.job = None;
    let ttl = serde_json::json!({"passed": "10s", "failed": "1h"});
    over.test.spec.ttl = Some(serde_json::from_value(ttl).unwrap());
    over.test.spec.ttl_seconds_after_finished = Some(60);
    let status = over.test.status.as_mut().unwrap();
    status.finish_time = Some(Time(time_after_start(130)));
    let mut is_deleted = |phase: Phase, verdict: Verdict, seconds: i64| {
        let status = over.test.status.as_mut().unwrap();
        (status.phase, status.verdict) = (Some(phase.into()), Some(verdict.into()));
        decision_at(&over, 130 + seconds) == Decision::DeleteTest
    };
    for verdict in [Verdict::Pass, Verdict::Warning, Verdict::NotJudged] {
        assert!(
            !is_deleted(Phase::Finished, verdict, 9) && is_deleted(Phase::Finished, verdict, 10)
        );
    }
    for verdict in [Verdict::Fail, Verdict::Critical, Verdict::Inconclusive] {
        assert!(
            !is_deleted(Phase::Finished, verdict, 3599)
                && is_deleted(Phase::Finished, verdict, 3600)
        );
    }
    assert!(!is_deleted(Phase::Cancelled, Verdict::NotJudged, 3599));
    // Without a time for a result, that of all results counts.
    over.test.spec.ttl = Some(serde_json::from_value(serde_json::json!({"failed": "1h"})).unwrap());
    let status = over.test.status.as_mut().unwrap();
    (status.phase, status.verdict) = (Some(Phase::Finished.into()), Some(Verdict::Pass.into()));
    assert_eq!(decision_at(&over, 190), Decision::DeleteTest);
}

mod safety;
mod starting;
