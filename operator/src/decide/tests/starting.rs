//! From the plan to the start of the load.

use super::*;
use crate::observe::state::RefusedPods;

#[test]
fn start_waits_for_every_runner() {
    let mut one_unready = observed_in(Phase::Starting);
    one_unready.runners[1].ready = false;
    // A runner that runs is asked often whether it is ready, for a while.
    assert_eq!(decision_at(&one_unready, 1), Decision::Wait(Duration::from_millis(100)));
    assert_eq!(decision_at(&one_unready, 31), Decision::Wait(STARTUP_POLL_INTERVAL));
    let Decision::PersistStart(start) = decision_at(&observed_in(Phase::Starting), 1) else {
        panic!()
    };
    assert_eq!(start.pods, start_record().pods);
    assert!(start.at > time_after_start(1));
}

#[test]
fn exit_codes_of_runners_name_the_reason() {
    for (code, message, expected) in [
        (77, "2000 users need 2100 open files", Reason::RunnerTooSmall),
        (78, "no connection to target.http", Reason::TargetUnreachable),
        (2, "the plan can't be read", Reason::RunnerCrash),
    ] {
        let mut observed = observed_in(Phase::Starting);
        let end = Termination { exit_code: Some(code), message: message.to_owned() };
        observed.runners[1].termination = Some(end);
        let Decision::Fail(reason, told) = decision_at(&observed, 1) else { panic!() };
        assert_eq!(reason, expected);
        assert!(told.contains(message), "{told}");
    }
}

#[test]
fn persisted_start_is_not_decided_again() {
    assert_eq!(
        decision_at(&observed_after_start(Phase::Starting), 1),
        Decision::ReportStarted(start_record())
    );
}

#[test]
fn deleted_job_is_never_created_again() {
    let mut lost = observed_in(Phase::Starting);
    lost.job = None;
    assert!(matches!(decision_at(&lost, 1), Decision::Fail(Reason::JobLost, _)));
    let mut lost = observed_in(Phase::Running);
    lost.job = None;
    let decision = decision_at(&lost, 1);
    assert!(
        matches!(decision, Decision::Conclude { failed: Some((Reason::JobLost, _)), .. }),
        "{decision:?}"
    );
}

#[test]
fn missing_secret_fails_the_test_within_30_seconds() {
    let mut blocked = observed_in(Phase::Starting);
    blocked.runners[0].ready = false;
    blocked.runners[0].waiting = Some(Waiting {
        reason: "CreateContainerConfigError".into(),
        message: "secret \"api\" not found".into(),
    });
    assert_eq!(decision_at(&blocked, 5), Decision::Wait(STARTUP_POLL_INTERVAL));
    let Decision::Fail(Reason::ContainerConfig, message) = decision_at(&blocked, 12) else {
        panic!()
    };
    assert!(message.contains("secret \"api\" not found"), "{message}");
}

#[test]
fn failed_image_pull_fails_the_test() {
    let mut blocked = observed_in(Phase::Starting);
    blocked.runners[0].ready = false;
    blocked.runners[0].waiting =
        Some(Waiting { reason: "ImagePullBackOff".into(), message: "no such image".into() });
    assert_eq!(decision_at(&blocked, 60), Decision::Wait(STARTUP_POLL_INTERVAL));
    assert!(matches!(decision_at(&blocked, 100), Decision::Fail(Reason::ImagePull, _)));
}

#[test]
fn unschedulable_runner_gets_the_whole_start_timeout() {
    let mut stuck = observed_in(Phase::Starting);
    stuck.runners[1].ready = false;
    stuck.runners[1].unschedulable = Some("0/1 nodes are available".into());
    assert_eq!(decision_at(&stuck, 299), Decision::Wait(STARTUP_POLL_INTERVAL));
    assert!(matches!(decision_at(&stuck, 300), Decision::Fail(Reason::Unschedulable, _)));
}

#[test]
fn suspended_job_is_the_cause_of_a_late_start() {
    let mut queued = observed_in(Phase::Starting);
    queued.runners.clear();
    let job = queued.job.as_mut().unwrap();
    job.spec.get_or_insert_default().suspend = Some(true);
    assert_eq!(decision_at(&queued, 299), Decision::Wait(STARTUP_POLL_INTERVAL));
    let Decision::Fail(Reason::StartTimeout, message) = decision_at(&queued, 300) else {
        panic!("no start timeout");
    };
    assert!(message.contains("is suspended"), "{message}");
}

#[test]
fn refused_pods_and_memory_have_reasons_of_their_own() {
    let mut refused = observed_in(Phase::Starting);
    refused.runners.pop();
    let message = "pods \"burst-1\" is forbidden: exceeded quota: small".to_owned();
    refused.cache.refused_pods = Some(RefusedPods { message });
    assert_eq!(decision_at(&refused, 299), Decision::Wait(STARTUP_POLL_INTERVAL));
    let Decision::Fail(reason, message) = decision_at(&refused, 300) else { panic!() };
    assert_eq!(reason, Reason::QuotaExceeded);
    assert!(message.contains("exceeded quota: small"), "{message}");
    refused.cache.refused_pods = Some(RefusedPods { message: "violates PodSecurity".into() });
    assert!(matches!(decision_at(&refused, 300), Decision::Fail(Reason::Refused, _)));

    let mut killed = observed_in(Phase::Starting);
    let message = "OOMKilled".to_owned();
    killed.runners[0].termination = Some(Termination { exit_code: Some(137), message });
    let Decision::Fail(reason, message) = decision_at(&killed, 1) else { panic!() };
    assert_eq!(reason, Reason::OutOfMemory);
    assert!(message.contains("exit code 137: OOMKilled"), "{message}");
}
