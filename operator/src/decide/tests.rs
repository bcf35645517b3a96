use std::collections::BTreeMap;

use k8s_openapi::{
    api::batch::v1::{Job, JobStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};
use loadtest_core::{
    metrics::{RunnerNumbers, RunnerState},
    resource::LoadTestStatus,
};

use super::*;
use crate::{
    state::{RunCache, START_ANNOTATION, Termination, Waiting},
    testing::{example_settings, example_test, noon, ready_runner},
};

fn at(seconds: i64) -> Timestamp {
    noon() + SignedDuration::from_secs(seconds)
}

fn sizing() -> Sizing {
    sizing::size(&example_test().spec)
}

fn observed(phase: Phase) -> Observed {
    let mut test = example_test();
    test.status = Some(LoadTestStatus {
        observed_generation: Some(1),
        phase: Some(phase),
        plan: Some(sizing()),
        ..LoadTestStatus::default()
    });
    let mut job = Job::default();
    job.metadata.creation_timestamp = Some(Time(noon()));
    job.status = Some(JobStatus { active: Some(2), ..JobStatus::default() });
    Observed {
        test,
        job: Some(job),
        runners: vec![ready_runner(0), ready_runner(1)],
        cache: RunCache { first_seen: Some(noon()), ..RunCache::default() },
    }
}

fn record() -> StartRecord {
    StartRecord { at: noon(), pods: vec!["pod-0".into(), "pod-1".into()] }
}

fn started(phase: Phase) -> Observed {
    let mut observed = observed(phase);
    let text = serde_json::to_string(&record()).unwrap();
    let annotations = BTreeMap::from([(START_ANNOTATION.to_owned(), text)]);
    observed.job.as_mut().unwrap().metadata.annotations = Some(annotations);
    observed
}

fn under_load() -> Observed {
    let mut observed = started(Phase::Running);
    observed.cache.start_accepted = record().pods.into_iter().collect();
    observed
}

fn done(observed: &mut Observed, index: u32) {
    let state = RunnerState::Done;
    observed.cache.snapshots.insert(index, RunnerNumbers { state, ..RunnerNumbers::default() });
}

fn next(observed: &Observed, seconds: i64) -> Decision {
    decide(observed, &example_settings(), at(seconds))
}

#[test]
fn a_new_test_is_admitted_with_its_sizing() {
    let mut new = observed(Phase::Pending);
    new.test.status = None;
    assert_eq!(next(&new, 0), Decision::Admit(sizing()));
}

#[test]
fn an_admitted_test_is_launched_even_if_the_job_exists_already() {
    assert_eq!(next(&observed(Phase::Pending), 0), Decision::Launch(sizing()));
}

#[test]
fn the_start_waits_for_every_runner() {
    let mut one_unready = observed(Phase::Starting);
    one_unready.runners[1].ready = false;
    assert_eq!(next(&one_unready, 1), Decision::Wait(STARTUP_POLL_INTERVAL));
    let Decision::PersistStart(start) = next(&observed(Phase::Starting), 1) else { panic!() };
    assert_eq!(start.pods, record().pods);
    assert!(start.at > at(1));
}

#[test]
fn a_runner_whose_machine_is_too_small_says_what_to_change() {
    let mut observed = observed(Phase::Starting);
    let message = "Error: 2000 users need 2100 open files".to_owned();
    observed.runners[1].termination =
        Some(Termination { exit_code: Some(EXIT_PREFLIGHT), message });
    let Decision::Fail(reason, told) = next(&observed, 1) else { panic!() };
    assert_eq!(reason, Reason::Preflight);
    assert!(told.contains("2100 open files"), "{told}");
}

#[test]
fn a_durable_start_is_never_decided_again() {
    assert_eq!(next(&started(Phase::Starting), 1), Decision::ReportStarted(record()));
}

#[test]
fn a_job_that_is_gone_is_never_made_again() {
    let mut lost = observed(Phase::Starting);
    lost.job = None;
    assert!(matches!(next(&lost, 1), Decision::Fail(Reason::JobLost, _)));
    let mut lost = observed(Phase::Running);
    lost.job = None;
    let decision = next(&lost, 1);
    assert!(
        matches!(decision, Decision::Conclude { failed: Some((Reason::JobLost, _)), .. }),
        "{decision:?}"
    );
}

#[test]
fn a_missing_secret_ends_the_run_within_thirty_seconds() {
    let mut blocked = observed(Phase::Starting);
    blocked.runners[0].ready = false;
    blocked.runners[0].waiting = Some(Waiting {
        reason: "CreateContainerConfigError".into(),
        message: "secret \"api\" not found".into(),
    });
    assert_eq!(next(&blocked, 5), Decision::Wait(STARTUP_POLL_INTERVAL));
    let Decision::Fail(Reason::ContainerConfig, message) = next(&blocked, 12) else { panic!() };
    assert!(message.contains("secret \"api\" not found"), "{message}");
}

#[test]
fn an_image_that_never_comes_ends_the_run() {
    let mut blocked = observed(Phase::Starting);
    blocked.runners[0].ready = false;
    blocked.runners[0].waiting =
        Some(Waiting { reason: "ImagePullBackOff".into(), message: "no such image".into() });
    assert_eq!(next(&blocked, 60), Decision::Wait(STARTUP_POLL_INTERVAL));
    assert!(matches!(next(&blocked, 100), Decision::Fail(Reason::ImagePull, _)));
}

#[test]
fn an_unschedulable_runner_gets_the_whole_start_timeout() {
    let mut stuck = observed(Phase::Starting);
    stuck.runners[1].ready = false;
    stuck.runners[1].unschedulable = Some("0/1 nodes are available".into());
    assert_eq!(next(&stuck, 299), Decision::Wait(STARTUP_POLL_INTERVAL));
    assert!(matches!(next(&stuck, 300), Decision::Fail(Reason::Unschedulable, _)));
}

#[test]
fn only_the_pods_of_the_start_are_ordered() {
    let mut replaced = started(Phase::Running);
    replaced.runners[1].uid = "replacement".into();
    assert_eq!(next(&replaced, 1), Decision::SendStart(record(), vec!["pod-0".into()]));
}

#[test]
fn orders_are_sent_until_taken_and_then_no_more() {
    let mut half = started(Phase::Running);
    half.cache.start_accepted.insert("pod-0".into());
    assert_eq!(next(&half, 1), Decision::SendStart(record(), vec!["pod-1".into()]));
    assert_eq!(next(&under_load(), 1), Decision::ReportProgress(Phase::Running, COLLECT_INTERVAL));
}

#[test]
fn the_test_stops_at_its_duration_and_ends_with_its_last_runner() {
    let mut observed = under_load();
    assert!(matches!(next(&observed, 120), Decision::ReportProgress(Phase::Stopping, _)));
    done(&mut observed, 0);
    assert!(matches!(next(&observed, 121), Decision::ReportProgress(Phase::Stopping, _)));
    done(&mut observed, 1);
    assert_eq!(next(&observed, 121), Decision::Conclude { cancelled: false, failed: None });
    assert_eq!(observed.run_context(false).runners_lost, 0);
}

#[test]
fn a_killed_runner_is_lost_and_the_others_run_on() {
    let mut observed = under_load();
    observed.runners[1].termination =
        Some(Termination { exit_code: Some(137), message: "OOMKilled".into() });
    assert_eq!(next(&observed, 10), Decision::ReportProgress(Phase::Running, COLLECT_INTERVAL));
    done(&mut observed, 0);
    assert_eq!(next(&observed, 121), Decision::Conclude { cancelled: false, failed: None });
    assert_eq!(observed.run_context(false).runners_lost, 1);
}

#[test]
fn a_runner_killed_under_load_is_lost_though_its_numbers_are_there() {
    let mut observed = under_load();
    let mut part = RunnerNumbers { state: RunnerState::CutShort, ..RunnerNumbers::default() };
    part.numbers.elapsed_seconds = 10.0;
    observed.runners[1].termination =
        Some(Termination { exit_code: Some(75), message: "evicted".into() });
    observed.cache.snapshots.insert(1, part);
    // What the others do is not judged as if it were all, nor ended by what it seems.
    observed.cache.scraped_now.insert(0);
    observed.update_timeline();
    assert!(observed.cache.timeline.is_none());
    assert_eq!(next(&observed, 11), Decision::ReportProgress(Phase::Running, COLLECT_INTERVAL));
    done(&mut observed, 0);
    assert_eq!(next(&observed, 121), Decision::Conclude { cancelled: false, failed: None });
    assert_eq!(observed.run_context(false).runners_lost, 1);
}

#[test]
fn the_next_look_is_at_the_end_of_a_stage_as_the_runners_count() {
    let mut observed = under_load();
    let left = |observed: &Observed| match decide(observed, &example_settings(), at(119)) {
        Decision::ReportProgress(Phase::Running, left) => left,
        other => panic!("{other:?}"),
    };
    assert_eq!(left(&observed), Duration::from_millis(1050));
    // They were told to start half a second late.
    let mut told = RunnerNumbers { state: RunnerState::Running, ..RunnerNumbers::default() };
    told.numbers.elapsed_seconds = 118.5;
    observed.cache.snapshots.insert(0, told);
    observed.cache.scraped_now.insert(0);
    assert_eq!(left(&observed), Duration::from_millis(1550));
}

#[test]
fn a_runner_that_has_to_leave_is_released_once_its_numbers_are_here() {
    let mut observed = under_load();
    observed.runners[1].disrupted = true;
    assert_eq!(next(&observed, 10), Decision::ReportProgress(Phase::Running, COLLECT_INTERVAL));
    let part = RunnerNumbers { state: RunnerState::CutShort, ..RunnerNumbers::default() };
    observed.cache.snapshots.insert(1, part);
    assert_eq!(next(&observed, 10), Decision::SendRelease(vec!["pod-1".into()]));
    observed.cache.released.insert("pod-1".into());
    assert_eq!(next(&observed, 10), Decision::ReportProgress(Phase::Running, COLLECT_INTERVAL));
}

#[test]
fn load_lasts_until_something_ends_it() {
    assert_eq!(under_load().load_duration(), Duration::from_secs(120));
    let mut cancelled = under_load();
    cancelled.test.spec.cancel = true;
    let mut stopping = under_load();
    stopping.cache.stop_sent_at = Some(at(10));
    for ended in [cancelled, stopping] {
        assert_eq!(ended.load_duration(), Duration::ZERO);
    }
}

#[test]
fn a_silent_runner_is_given_up_a_minute_after_the_end() {
    let mut observed = under_load();
    done(&mut observed, 0);
    observed.cache.last_seen.insert(1, at(150));
    assert!(matches!(next(&observed, 200), Decision::ReportProgress(..)));
    assert_eq!(next(&observed, 210), Decision::Conclude { cancelled: false, failed: None });
}

#[test]
fn cancelling_stops_runners_that_run_and_removes_those_that_do_not() {
    let mut early = observed(Phase::Starting);
    early.test.spec.cancel = true;
    assert_eq!(next(&early, 1), Decision::CancelUnstarted);
    let mut late = under_load();
    late.test.spec.cancel = true;
    assert_eq!(next(&late, 1), Decision::SendStop(record().pods));
    late.cache.stop_accepted = record().pods.into_iter().collect();
    assert!(matches!(next(&late, 1), Decision::ReportProgress(Phase::Stopping, _)));
}

#[test]
fn an_abort_is_durable_before_anyone_is_stopped() {
    let aborted = Aborted {
        row: 0,
        threshold: "errorRate".into(),
        observed: "12%".into(),
        bound: "> 5%".parse().unwrap(),
        elapsed: Duration::from_secs(9),
        samples: 100,
    };
    let mut breached = under_load();
    breached.cache.aborted = Some(aborted.clone());
    assert_eq!(next(&breached, 10), Decision::ReportAbort(aborted.clone()));
    breached.test.status.as_mut().unwrap().aborted = Some(aborted);
    assert_eq!(next(&breached, 10), Decision::SendStop(record().pods));
    breached.cache.stop_accepted = record().pods.into_iter().collect();
    assert!(matches!(next(&breached, 11), Decision::ReportProgress(Phase::Stopping, _)));
}

#[test]
fn runners_that_missed_their_start_end_the_test_and_pass_nothing() {
    let mut missed = started(Phase::Running);
    for index in 0..2 {
        missed.cache.snapshots.insert(index, RunnerNumbers::default());
        missed.cache.last_seen.insert(index, at(119));
    }
    assert!(matches!(next(&missed, 119), Decision::SendStart(..)));
    assert_eq!(next(&missed, 121), Decision::Conclude { cancelled: false, failed: None });
    assert_eq!(missed.run_context(false).runners_lost, 2);
}

#[test]
fn a_cancelled_test_stops_all_it_can_reach_and_waits_for_no_dead_node() {
    let mut cancelled = started(Phase::Running);
    cancelled.test.spec.cancel = true;
    cancelled.cache.start_accepted.insert("pod-0".into());
    assert_eq!(next(&cancelled, 10), Decision::SendStop(record().pods));
    cancelled.cache.stop_accepted.insert("pod-0".into());
    cancelled.cache.stop_sent_at = Some(at(10));
    done(&mut cancelled, 0);
    cancelled.cache.last_seen = BTreeMap::from([(0, at(12)), (1, at(9))]);
    assert_eq!(next(&cancelled, 20), Decision::SendStop(vec!["pod-1".into()]));
    let end = Decision::Conclude { cancelled: true, failed: None };
    assert_eq!(next(&cancelled, 70), end);
}

#[test]
fn runners_that_nobody_reaches_end_the_test_with_what_to_look_at() {
    let unheard = started(Phase::Running);
    assert!(matches!(next(&unheard, 40), Decision::SendStart(..)));
    let Decision::Conclude { failed: Some((reason, why)), .. } = next(&unheard, 46) else {
        panic!()
    };
    assert_eq!(reason, Reason::Unreachable);
    assert!(why.contains("9464") && why.contains("network policies"), "{why}");
}

#[test]
fn a_runner_evicted_before_the_start_is_waited_for_and_never_started() {
    let mut evicted = observed(Phase::Starting);
    evicted.runners[1].disrupted = true;
    assert_eq!(next(&evicted, 1), Decision::Wait(STARTUP_POLL_INTERVAL));
    evicted.runners[1].termination =
        Some(Termination { exit_code: Some(76), message: String::new() });
    assert_eq!(next(&evicted, 1), Decision::Wait(STARTUP_POLL_INTERVAL));
    evicted.runners.push(Runner { uid: "pod-2".into(), ..ready_runner(1) });
    let Decision::PersistStart(start) = next(&evicted, 2) else { panic!() };
    assert_eq!(start.pods, ["pod-0", "pod-2"]);
}

#[test]
fn what_the_api_server_refuses_for_good_fails_and_the_rest_is_tried_again() {
    for code in [400, 403, 409, 422] {
        let refused = decide_refused(Some(code), "quota");
        assert_eq!(refused, Some(Decision::Fail(Reason::Refused, "quota".into())));
    }
    for code in [Some(429), Some(500), Some(503), None] {
        assert_eq!(decide_refused(code, "later"), None);
    }
}

#[test]
fn a_test_that_could_not_run_loses_its_job_once_its_status_says_why() {
    assert_eq!(next(&observed(Phase::Error), 1), Decision::DeleteJob);
    assert_eq!(next(&observed(Phase::Cancelled), 1), Decision::DeleteJob);
    assert_eq!(next(&started(Phase::Error), 1), Decision::DeleteJob);
    assert!(matches!(next(&started(Phase::Cancelled), 1), Decision::SendRelease(_)));
}

#[test]
fn passes_come_at_the_boundaries_of_stages() {
    let mut staged = under_load();
    staged.test.spec.load = serde_json::from_str(
        r#"{"stages": [{"duration": "10s", "users": 1}, {"duration": "10s", "users": 2}]}"#,
    )
    .unwrap();
    let Decision::ReportProgress(Phase::Running, wait) = next(&staged, 9) else { panic!() };
    assert_eq!(wait, Duration::from_millis(1050));
    let Decision::ReportProgress(Phase::Running, wait) = next(&staged, 11) else { panic!() };
    assert_eq!(wait, COLLECT_INTERVAL);
}

#[test]
fn a_finished_test_releases_its_runners_once_and_settles() {
    let mut over = started(Phase::Finished);
    assert_eq!(next(&over, 130), Decision::SendRelease(record().pods));
    over.cache.released = record().pods.into_iter().collect();
    assert_eq!(next(&over, 130), Decision::NothingToDo);
}

#[test]
fn a_finished_test_is_removed_when_its_time_to_live_is_over() {
    let mut over = started(Phase::Finished);
    over.job = None;
    over.test.spec.ttl_seconds_after_finished = Some(10);
    over.test.status.as_mut().unwrap().finish_time = Some(Time(at(130)));
    assert!(matches!(next(&over, 135), Decision::Wait(_)));
    assert_eq!(next(&over, 140), Decision::DeleteTest);
}

#[test]
fn a_rejected_test_is_looked_at_again_once_it_is_edited() {
    let mut rejected = observed(Phase::Error);
    rejected.job = None;
    rejected.runners.clear();
    rejected.test.status.as_mut().unwrap().plan = None;
    assert_eq!(next(&rejected, 1), Decision::NothingToDo);
    rejected.test.metadata.generation = Some(2);
    assert_eq!(next(&rejected, 1), Decision::Admit(sizing()));
}
