//! Nothing runs twice, and nothing runs on, also when the operator could not see everything.

use k8s_openapi::api::batch::v1::JobSpec;
use loadtest_core::resource::Summary;

use super::*;

#[test]
fn test_that_lost_parts_of_its_status_never_runs_again() {
    let mut wiped = observed_in(Phase::Error);
    wiped.job = None;
    wiped.runners.clear();
    wiped.test.metadata.generation = Some(2);
    for phase in [Phase::Pending, Phase::Starting, Phase::Running, Phase::Error, Phase::Finished] {
        wiped.test.status =
            Some(LoadTestStatus { phase: Some(phase.into()), ..LoadTestStatus::default() });
        assert_eq!(decision_at(&wiped, 1_000_000), Decision::NothingToDo, "{phase:?}");
    }
}

#[test]
fn runner_that_takes_no_orders_is_stopped_by_force() {
    let mut cancelled = observed_under_load();
    cancelled.test.spec.cancel = true;
    cancelled.cache.stop_accepted.insert("pod-0".into());
    cancelled.cache.stop_sent_at = Some(time_after_start(10));
    assert!(matches!(decision_at(&cancelled, 15), Decision::SendStop(_)));
    assert_eq!(decision_at(&cancelled, 20), Decision::ForceStop(vec!["pod-1".into()]));
    force_stop(&mut cancelled);
    assert_eq!(decision_at(&cancelled, 20), Decision::DeleteStoppedJob);
    // The Job and its pods are gone, and the test still ends as cancelled.
    cancelled.job = None;
    cancelled.runners.clear();
    let end = Decision::Conclude { cancelled: true, failed: None };
    assert_eq!(decision_at(&cancelled, 25), end);
    // A finished test whose runner takes no release order.
    let mut over = observed_after_start(Phase::Finished);
    over.test.status.as_mut().unwrap().finish_time = Some(Time(time_after_start(130)));
    assert!(matches!(decision_at(&over, 140), Decision::SendRelease(_)));
    // An earlier process may have released the runners, which stay for a while.
    assert!(matches!(decision_at(&over, 162), Decision::SendRelease(_)));
    over.cache.release_sent_at = Some(time_after_start(162));
    assert!(matches!(decision_at(&over, 191), Decision::SendRelease(_)));
    assert_eq!(decision_at(&over, 192), Decision::DeleteJob);
}

#[test]
fn changed_token_ends_in_a_forced_stop() {
    let mut changed = observed_in(Phase::Starting);
    changed.cache.token_has_changed = true;
    assert!(matches!(decision_at(&changed, 1), Decision::Fail(Reason::TokenChanged, _)));
    let mut changed = observed_under_load();
    changed.cache.token_has_changed = true;
    assert!(matches!(decision_at(&changed, 10), Decision::ReportProgress(Phase::Running, _)));
    changed.test.spec.cancel = true;
    assert_eq!(decision_at(&changed, 10), Decision::ForceStop(start_record().pods));
}

#[test]
fn patience_counts_from_the_scheduling_of_a_pod() {
    let mut late = observed_in(Phase::Starting);
    late.runners[1].ready = false;
    late.runners[1].scheduled_at = Some(time_after_start(195));
    for reason in ["ErrImagePull", "CreateContainerConfigError"] {
        late.runners[1].waiting =
            Some(Waiting { reason: reason.into(), message: "try later".into() });
        assert_eq!(decision_at(&late, 200), Decision::Wait(STARTUP_POLL_INTERVAL), "{reason}");
        assert!(matches!(decision_at(&late, 290), Decision::Fail(..)), "{reason}");
    }
}

#[test]
fn runner_deleted_before_the_start_fails_the_test_at_once() {
    let mut deleted = observed_in(Phase::Starting);
    deleted.runners.pop();
    deleted.job.as_mut().unwrap().status.as_mut().unwrap().failed_indexes = Some("1".into());
    let Decision::Fail(Reason::RunnerDeleted, message) = decision_at(&deleted, 3) else { panic!() };
    assert!(message.contains("runner 1 was deleted"), "{message}");
}

#[test]
fn operator_that_was_away_starts_no_late_test() {
    let ready = observed_in(Phase::Starting);
    assert!(matches!(decision_at(&ready, 305), Decision::PersistStart(_)));
    assert!(matches!(decision_at(&ready, 1200), Decision::Fail(Reason::StartTimeout, _)));
    let mut patient = ready;
    patient.test.spec.start_timeout = Some(Duration::from_secs(3600));
    assert!(matches!(decision_at(&patient, 1200), Decision::PersistStart(_)));
}

#[test]
fn operator_without_a_route_keeps_a_run_that_was_heard() {
    let mut back = observed_under_load();
    back.cache.start_accepted.clear();
    back.cache.first_seen = Some(time_after_start(60));
    back.test.status.as_mut().unwrap().summary =
        Some(Summary { requests: 5_000_000, ..Summary::default() });
    assert!(matches!(decision_at(&back, 110), Decision::ReportProgress(Phase::Running, _)));
    // After the end and a minute of silence nothing more will come.
    assert!(matches!(decision_at(&back, 160), Decision::Conclude { failed: None, .. }));
}

#[test]
fn launch_that_keeps_failing_is_told_and_ends() {
    assert_eq!(decide_retry(2, "webhook down"), None);
    assert_eq!(decide_retry(3, "webhook down"), Some(Decision::ReportRetry("webhook down".into())));
    let mut failing = observed_in(Phase::Pending);
    failing.test.status.as_mut().unwrap().conditions = vec![
        condition("Accepted", "True", "Valid"),
        condition("Started", "False", "RetryingLaunch"),
    ];
    // A new leader tries at least once, however late it comes.
    assert!(matches!(decision_at(&failing, 300), Decision::Launch(_)));
    failing.cache.failed_launches = 1;
    assert!(matches!(decision_at(&failing, 299), Decision::Launch(_)));
    assert!(matches!(decision_at(&failing, 300), Decision::Fail(Reason::Refused, _)));
}

#[test]
fn job_gets_its_time_to_live_after_the_end() {
    let mut over = observed_after_start(Phase::Finished);
    over.cache.released = start_record().pods.into_iter().collect();
    over.job.as_mut().unwrap().spec = Some(JobSpec::default());
    assert_eq!(decision_at(&over, 130), Decision::SetJobTtl);
    let spec = over.job.as_mut().unwrap().spec.as_mut().unwrap();
    spec.ttl_seconds_after_finished = Some(600);
    assert_eq!(decision_at(&over, 130), Decision::NothingToDo);
}

#[test]
fn job_that_only_sidecars_keep_open_is_deleted() {
    let mut over = observed_after_start(Phase::Finished);
    over.test.status.as_mut().unwrap().finish_time = Some(Time(time_after_start(130)));
    let spec = JobSpec { ttl_seconds_after_finished: Some(600), ..JobSpec::default() };
    over.job.as_mut().unwrap().spec = Some(spec);
    for runner in &mut over.runners {
        let (exit_code, message) = (Some(0), String::new());
        runner.termination = Some(Termination { exit_code, message });
    }
    assert!(matches!(decision_at(&over, 130), Decision::Wait(_)));
    assert_eq!(decision_at(&over, 730), Decision::DeleteJob);
}

#[test]
fn rejected_test_is_validated_again_after_an_edit() {
    let mut rejected = observed_in(Phase::Error);
    rejected.job = None;
    rejected.runners.clear();
    let status = rejected.test.status.as_mut().unwrap();
    status.plan = None;
    status.conditions = vec![condition("Accepted", "False", "InvalidSpec")];
    assert_eq!(decision_at(&rejected, 1), Decision::NothingToDo);
    rejected.test.metadata.generation = Some(2);
    assert_eq!(decision_at(&rejected, 1), Decision::Admit(example_sizing()));
}

#[test]
fn job_that_cannot_be_deleted_is_looked_at_seldom() {
    let mut over = observed_after_start(Phase::Finished);
    over.job.as_mut().unwrap().metadata.deletion_timestamp = Some(Time(time_after_start(130)));
    over.test.status.as_mut().unwrap().finish_time = Some(Time(time_after_start(130)));
    assert_eq!(decision_at(&over, 170), Decision::Wait(Duration::from_secs(30)));
    over.test.spec.ttl_seconds_after_finished = Some(60);
    assert!(matches!(decision_at(&over, 170), Decision::Wait(_)));
    assert_eq!(decision_at(&over, 190), Decision::DeleteTest);
}

#[test]
fn job_that_is_not_checked_is_told_and_ends() {
    let mut waiting = observed_in(Phase::Pending);
    let status = waiting.test.status.as_mut().unwrap();
    status.plan = None;
    status.conditions = vec![
        condition("Accepted", "Unknown", "RetryingLaunch"),
        condition("Started", "False", "RetryingLaunch"),
    ];
    assert_eq!(decision_at(&waiting, 299), Decision::Admit(example_sizing()));
    // A new leader tries at least once, however late it comes.
    assert_eq!(decision_at(&waiting, 300), Decision::Admit(example_sizing()));
    waiting.cache.failed_launches = 1;
    assert!(matches!(decision_at(&waiting, 300), Decision::Reject(Reason::Refused, _)));
    waiting.test.spec.cancel = true;
    assert_eq!(decision_at(&waiting, 10), Decision::CancelUnstarted);
}

#[test]
fn forced_stop_of_an_earlier_process_ends_in_time() {
    let mut cancelled = observed_under_load();
    cancelled.test.spec.cancel = true;
    cancelled.cache.first_seen = Some(time_after_start(3));
    collection_of(&mut cancelled).note_answer(1, time_after_start(3));
    finish_runner(&mut cancelled, 0);
    // The pod of runner 1 hangs on a node that is gone.
    force_stop(&mut cancelled);
    cancelled.job.as_mut().unwrap().metadata.deletion_timestamp = Some(Time(noon()));
    assert!(matches!(decision_at(&cancelled, 30), Decision::ReportProgress(Phase::Stopping, _)));
    let end = Decision::Conclude { cancelled: true, failed: None };
    assert_eq!(decision_at(&cancelled, 64), end);
}

#[test]
fn losses_that_cannot_be_reported_hold_up_no_stop() {
    let decision = |observed: &Observed| {
        let start = start_record();
        decide_in_outage(
            observed,
            &start,
            &crate::testing::example_settings(),
            time_after_start(15),
        )
    };
    let mut unseen = observed_under_load();
    assert_eq!(decision(&unseen), None);
    // A runner is gone, and the status can't say so.
    unseen.runners.pop();
    assert!(matches!(decision_at(&unseen, 15), Decision::ReportLoss(_)));
    assert_eq!(decision(&unseen), Some(Decision::SendStop(start_record().pods)));
    // The loss is still reported as soon as the status can be written.
    unseen.cache.stop_sent_at = Some(time_after_start(15));
    assert!(matches!(decision_at(&unseen, 15), Decision::ReportLoss(_)));
    unseen.test.spec.on_runner_loss = OnRunnerLoss::Continue;
    assert_eq!(decision(&unseen), None);
    unseen.test.spec.cancel = true;
    assert_eq!(decision(&unseen), Some(Decision::SendStop(start_record().pods)));
    unseen.cache.stop_accepted.extend(start_record().pods);
    assert_eq!(decision(&unseen), None);
}

#[test]
fn restored_test_does_not_run_again() {
    let mut restored = observed_in(Phase::Pending);
    restored.test.status = None;
    let annotations = restored.test.annotations_mut();
    annotations.insert(RUN_UID_ANNOTATION.into(), "of-the-first-run".into());
    let Decision::Reject(reason, message) = decision_at(&restored, 0) else { panic!() };
    assert_eq!(reason, Reason::AlreadyRan);
    assert!(message.contains("of-the-first-run"), "{message}");
}

#[test]
fn suspended_job_of_a_finished_test_is_deleted() {
    let mut over = observed_after_start(Phase::Finished);
    over.job.as_mut().unwrap().spec = Some(JobSpec { suspend: Some(true), ..JobSpec::default() });
    assert_eq!(decision_at(&over, 140), Decision::DeleteJob);
}

#[test]
fn loss_of_all_runners_is_reported_before_the_end() {
    let mut observed = observed_under_load();
    for index in 0..2 {
        let partial = RunnerMetrics { state: RunnerState::CutShort, ..RunnerMetrics::default() };
        set_runner(&mut observed, index, partial);
    }
    let Decision::ReportLoss(losses) = decision_at(&observed, 10) else { panic!("no loss") };
    assert_eq!(losses.len(), 2);
    let mut status = observed.status();
    status.measurement.get_or_insert_default().runners_lost = 2;
    observed.test.status = Some(status);
    assert_eq!(decision_at(&observed, 10), Decision::Conclude { cancelled: false, failed: None });
}
