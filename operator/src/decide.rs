//! Chooses the next step of a test. Pure: time comes in as `now`.

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use loadtest_core::{
    Duration, plan,
    report::truncated,
    resource::{LoadTest, Phase, Sizing},
    validate,
};

use crate::{
    observed::{Observed, Runner, StartRecord},
    resources::Settings,
};

/// Why a test could not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The spec can't be carried out.
    InvalidSpec,
    /// A Secret, key or other configuration of the container is missing.
    ContainerConfig,
    /// The runner's image can't be had.
    ImagePull,
    /// No node takes a runner.
    Unschedulable,
    /// A runner ended before the start.
    RunnerFailed,
    /// Not all runners were ready in time.
    StartTimeout,
    /// The Job is gone.
    JobLost,
}

impl Reason {
    /// The word in conditions and Events.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidSpec => "InvalidSpec",
            Self::ContainerConfig => "ContainerConfig",
            Self::ImagePull => "ImagePull",
            Self::Unschedulable => "Unschedulable",
            Self::RunnerFailed => "RunnerFailed",
            Self::StartTimeout => "StartTimeout",
            Self::JobLost => "JobLost",
        }
    }
}

/// The next step of a test.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Nothing to do until something changes.
    Settled,
    /// Nothing to do for a while.
    Wait(Duration),
    /// Say that the spec can't be carried out.
    Reject(String),
    /// Take the test on and say how it is sized.
    Admit(Sizing),
    /// Create the ConfigMap and the Job.
    Launch(Sizing),
    /// Make the start durable.
    Start(StartRecord),
    /// The start is durable: say that the test runs.
    Started(StartRecord),
    /// Order these pods, by UID, to start.
    Order(StartRecord, Vec<String>),
    /// Order these pods to stop.
    Stop(Vec<String>),
    /// Show how far it is, and look again after a while.
    Progress(Phase, Duration),
    /// It ran: judge it. `cancelled` when the user ended it.
    Conclude {
        /// The user ended it.
        cancelled: bool,
        /// What went wrong meanwhile, if it did not run to its end.
        failed: Option<(Reason, String)>,
    },
    /// It could not run: say why, and remove its pods.
    Fail(Reason, String),
    /// It was cancelled before any load: say so, and remove its pods.
    CancelUnstarted,
    /// Let these pods go.
    Release(Vec<String>),
    /// Remove the test: its time to live is over.
    Delete,
}

/// Between looks at runners that come up.
const STARTING: Duration = Duration::from_secs(1);
/// Between collections while load is on.
pub const COLLECT: Duration = Duration::from_secs(2);
/// Between collections at the end.
const STOPPING: Duration = Duration::from_millis(500);
/// A missing Secret may be on its way: this long after the pod was created it counts.
const CONFIG_PATIENCE: Duration = Duration::from_secs(10);
/// A registry may be slow to answer, or down for a moment.
const PULL_PATIENCE: Duration = Duration::from_secs(90);
/// A runner unheard for so long after the test's end counts as lost.
const COLLECT_PATIENCE: Duration = Duration::from_secs(60);
/// Open requests of a cancelled test may take this long yet.
pub const CANCEL_GRACE: Duration = Duration::from_secs(5);

/// Chooses the next step of a test.
pub fn decide(seen: &Observed, settings: &Settings, now: Timestamp) -> Decision {
    let test = &seen.test;
    let status = test.status.clone().unwrap_or_default();
    match (status.phase, status.plan) {
        (Some(phase), plan) if phase.is_final() => {
            let edited = test.metadata.generation > status.observed_generation;
            if plan.is_none() && edited { admit(test) } else { settle(seen, now) }
        }
        (None | Some(Phase::Pending), None) => admit(test),
        (None | Some(Phase::Pending), Some(_)) if test.spec.cancel => Decision::CancelUnstarted,
        (None | Some(Phase::Pending), Some(sizing)) => Decision::Launch(sizing),
        (Some(Phase::Starting), Some(sizing)) => starting(seen, &sizing, settings, now),
        // Without a plan nothing was created: take it on anew.
        (Some(Phase::Starting), None) => admit(test),
        (Some(_), _) => running(seen, now),
    }
}

fn admit(test: &LoadTest) -> Decision {
    let problems = validate::problems(&test.spec);
    if problems.is_empty() {
        return Decision::Admit(plan::size(&test.spec));
    }
    let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
    Decision::Reject(texts.join("; "))
}

fn passed(from: Timestamp, now: Timestamp, patience: Duration) -> bool {
    now.duration_since(from) >= signed(patience)
}

/// A duration in the calendar library's type.
pub fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration.std()).unwrap_or(SignedDuration::MAX)
}

fn starting(seen: &Observed, sizing: &Sizing, settings: &Settings, now: Timestamp) -> Decision {
    if let Some(start) = seen.start() {
        return Decision::Started(start);
    }
    if seen.test.spec.cancel {
        return Decision::CancelUnstarted;
    }
    let Some(job) = &seen.job else {
        return Decision::Fail(Reason::JobLost, "the Job was deleted before the start".into());
    };
    if let Some((reason, message)) = seen.runners.iter().find_map(|r| blocked(r, now)) {
        return Decision::Fail(reason, message);
    }
    let wanted = usize::try_from(sizing.runners).unwrap_or(usize::MAX);
    let mut pods: Vec<(u32, &str)> = seen
        .runners
        .iter()
        .filter(|runner| runner.ready && runner.ip.is_some())
        .map(|runner| (runner.index, runner.uid.as_str()))
        .collect();
    pods.sort_unstable();
    pods.dedup_by_key(|(index, _)| *index);
    if pods.len() == wanted {
        // Long enough for every order to arrive before the moment it names.
        let lead = Duration::from_millis(1000 + 10 * wanted as u64);
        let at = now.saturating_add(signed(lead)).unwrap_or(now);
        let pods = pods.into_iter().map(|(_, uid)| uid.to_owned()).collect();
        return Decision::Start(StartRecord { at, pods });
    }
    let created = job.creation_timestamp().map_or(now, |time| time.0);
    if passed(created, now, settings.start_timeout) {
        return timed_out(seen, wanted, pods.len(), settings);
    }
    Decision::Wait(STARTING)
}

/// What keeps a runner from ever coming up.
fn blocked(runner: &Runner, now: Timestamp) -> Option<(Reason, String)> {
    let named = |message: &str| format!("runner {}: {}", runner.name, truncated(message, 700));
    if let Some(ended) = &runner.ended {
        let code = ended.code.map_or_else(String::new, |code| format!(" with exit code {code}"));
        let message = format!("ended before the start{code}: {}", ended.message);
        return Some((Reason::RunnerFailed, named(&message)));
    }
    let waiting = runner.waiting.as_ref()?;
    let (reason, patience) = match waiting.reason.as_str() {
        "CreateContainerConfigError" => (Reason::ContainerConfig, CONFIG_PATIENCE),
        "InvalidImageName" | "ErrImageNeverPull" => (Reason::ImagePull, Duration::ZERO),
        "ErrImagePull" | "ImagePullBackOff" => (Reason::ImagePull, PULL_PATIENCE),
        "CreateContainerError" | "RunContainerError" => (Reason::RunnerFailed, PULL_PATIENCE),
        _ => return None,
    };
    let message = format!("{}: {}", waiting.reason, waiting.message);
    passed(runner.created?, now, patience).then(|| (reason, named(&message)))
}

fn timed_out(seen: &Observed, wanted: usize, ready: usize, settings: &Settings) -> Decision {
    let after = settings.start_timeout;
    let stuck = seen.runners.iter().find_map(|runner| runner.unschedulable.as_ref());
    let (reason, why) = match stuck {
        Some(message) => (Reason::Unschedulable, truncated(message, 700)),
        None if seen.runners.len() < wanted => {
            let why = format!(
                "only {} of {wanted} pods exist; see the Job's events (kubectl describe job {}) for a quota or admission that stops them",
                seen.runners.len(),
                seen.job.as_ref().map(ResourceExt::name_any).unwrap_or_default(),
            );
            (Reason::StartTimeout, why)
        }
        None => (Reason::StartTimeout, "see the pods' events for what keeps them".into()),
    };
    Decision::Fail(reason, format!("{ready} of {wanted} runners were ready after {after}: {why}"))
}

fn running(seen: &Observed, now: Timestamp) -> Decision {
    let cancelled = seen.test.spec.cancel;
    let Some(start) = seen.start() else {
        let why = "the Job was deleted while load was on".to_owned();
        return Decision::Conclude { cancelled, failed: Some((Reason::JobLost, why)) };
    };
    let indices = 0..start.pods.len();
    if indices.clone().all(|index| seen.is_final(index) || seen.is_lost(&start, index)) {
        return Decision::Conclude { cancelled, failed: None };
    }
    let load = &seen.test.spec.load;
    let end = start.at.saturating_add(signed(load.duration)).unwrap_or(Timestamp::MAX);
    let latest = load.duration.plus(load.graceful_stop);
    let silent = |index: usize| {
        seen.is_final(index)
            || seen.is_lost(&start, index)
            || passed(seen.last_heard(index).unwrap_or(now), now, COLLECT_PATIENCE)
    };
    // A runner that answers ends by itself, even when it was ordered late.
    if passed(start.at, now, latest) && indices.clone().all(silent) {
        return Decision::Conclude { cancelled, failed: None };
    }
    let alive = |uid: &&String| {
        let pod = seen.runners.iter().find(|runner| runner.uid == **uid);
        pod.is_some_and(|pod| pod.ended.is_none() && pod.ip.is_some())
    };
    let unordered: Vec<String> = start
        .pods
        .iter()
        .filter(alive)
        .filter(|uid| !seen.memory.ordered.contains(*uid))
        .cloned()
        .collect();
    if !unordered.is_empty() {
        return Decision::Order(start, unordered);
    }
    let unstopped: Vec<String> = start
        .pods
        .iter()
        .filter(alive)
        .filter(|uid| !seen.memory.stopped.contains(*uid))
        .cloned()
        .collect();
    if cancelled && !unstopped.is_empty() {
        return Decision::Stop(unstopped);
    }
    if cancelled || now >= end {
        return Decision::Progress(Phase::Stopping, STOPPING);
    }
    let left = Duration::from_secs_f64(end.duration_since(now).as_secs_f64());
    Decision::Progress(Phase::Running, COLLECT.min(left.plus(Duration::from_millis(50))))
}

/// A test that is over: let its runners go, and remove it when its time has come.
fn settle(seen: &Observed, now: Timestamp) -> Decision {
    let held: Vec<String> = seen
        .runners
        .iter()
        .filter(|runner| runner.ended.is_none() && runner.ip.is_some())
        .filter(|runner| !seen.memory.released.contains(&runner.uid))
        .map(|runner| runner.uid.clone())
        .collect();
    if seen.job_is_active() && !held.is_empty() {
        return Decision::Release(held);
    }
    let finished = seen.test.status.as_ref().and_then(|status| status.finish_time.clone());
    let (Some(ttl), Some(finished)) = (seen.test.spec.ttl_seconds_after_finished, finished) else {
        return Decision::Settled;
    };
    let ttl = Duration::from_secs(u64::try_from(ttl).unwrap_or(0));
    if passed(finished.0, now, ttl) {
        return Decision::Delete;
    }
    let since = Duration::from_secs_f64(now.duration_since(finished.0).as_secs_f64());
    Decision::Wait(ttl.minus(since).plus(Duration::from_millis(10)))
}

#[cfg(test)]
mod tests {
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
        observed::{Ended, Memory, START, Waiting},
        testing::{noon, settings, test},
    };

    fn at(seconds: i64) -> Timestamp {
        noon() + SignedDuration::from_secs(seconds)
    }

    fn sizing() -> Sizing {
        plan::size(&test().spec)
    }

    fn runner(index: u32) -> Runner {
        Runner {
            index,
            name: format!("burst-{index}"),
            uid: format!("pod-{index}"),
            ip: Some(format!("10.0.0.{index}")),
            ready: true,
            created: Some(noon()),
            unschedulable: None,
            waiting: None,
            ended: None,
        }
    }

    fn seen(phase: Phase) -> Observed {
        let mut test = test();
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
            runners: vec![runner(0), runner(1)],
            memory: Memory { since: Some(noon()), ..Memory::default() },
        }
    }

    fn record() -> StartRecord {
        StartRecord { at: noon(), pods: vec!["pod-0".into(), "pod-1".into()] }
    }

    fn started(phase: Phase) -> Observed {
        let mut seen = seen(phase);
        let text = serde_json::to_string(&record()).unwrap();
        let annotations = BTreeMap::from([(START.to_owned(), text)]);
        seen.job.as_mut().unwrap().metadata.annotations = Some(annotations);
        seen
    }

    fn under_load() -> Observed {
        let mut seen = started(Phase::Running);
        seen.memory.ordered = record().pods.into_iter().collect();
        seen
    }

    fn done(seen: &mut Observed, index: u32) {
        let state = RunnerState::Done;
        seen.memory.numbers.insert(index, RunnerNumbers { state, ..RunnerNumbers::default() });
    }

    fn next(seen: &Observed, seconds: i64) -> Decision {
        decide(seen, &settings(), at(seconds))
    }

    #[test]
    fn a_new_test_is_admitted_with_its_sizing() {
        let mut new = seen(Phase::Pending);
        new.test.status = None;
        assert_eq!(next(&new, 0), Decision::Admit(sizing()));
    }

    #[test]
    fn an_admitted_test_is_launched_even_if_the_job_exists_already() {
        assert_eq!(next(&seen(Phase::Pending), 0), Decision::Launch(sizing()));
    }

    #[test]
    fn the_start_waits_for_every_runner() {
        let mut one_unready = seen(Phase::Starting);
        one_unready.runners[1].ready = false;
        assert_eq!(next(&one_unready, 1), Decision::Wait(STARTING));
        let Decision::Start(start) = next(&seen(Phase::Starting), 1) else { panic!() };
        assert_eq!(start.pods, record().pods);
        assert!(start.at > at(1));
    }

    #[test]
    fn a_durable_start_is_never_decided_again() {
        assert_eq!(next(&started(Phase::Starting), 1), Decision::Started(record()));
    }

    #[test]
    fn a_job_that_is_gone_is_never_made_again() {
        let mut lost = seen(Phase::Starting);
        lost.job = None;
        assert!(matches!(next(&lost, 1), Decision::Fail(Reason::JobLost, _)));
        let mut lost = seen(Phase::Running);
        lost.job = None;
        let decision = next(&lost, 1);
        assert!(
            matches!(decision, Decision::Conclude { failed: Some((Reason::JobLost, _)), .. }),
            "{decision:?}"
        );
    }

    #[test]
    fn a_missing_secret_ends_the_run_within_thirty_seconds() {
        let mut blocked = seen(Phase::Starting);
        blocked.runners[0].ready = false;
        blocked.runners[0].waiting = Some(Waiting {
            reason: "CreateContainerConfigError".into(),
            message: "secret \"api\" not found".into(),
        });
        assert_eq!(next(&blocked, 5), Decision::Wait(STARTING));
        let Decision::Fail(Reason::ContainerConfig, message) = next(&blocked, 12) else { panic!() };
        assert!(message.contains("secret \"api\" not found"), "{message}");
    }

    #[test]
    fn an_image_that_never_comes_ends_the_run() {
        let mut blocked = seen(Phase::Starting);
        blocked.runners[0].ready = false;
        blocked.runners[0].waiting =
            Some(Waiting { reason: "ImagePullBackOff".into(), message: "no such image".into() });
        assert_eq!(next(&blocked, 60), Decision::Wait(STARTING));
        assert!(matches!(next(&blocked, 100), Decision::Fail(Reason::ImagePull, _)));
    }

    #[test]
    fn an_unschedulable_runner_gets_the_whole_start_timeout() {
        let mut stuck = seen(Phase::Starting);
        stuck.runners[1].ready = false;
        stuck.runners[1].unschedulable = Some("0/1 nodes are available".into());
        assert_eq!(next(&stuck, 299), Decision::Wait(STARTING));
        assert!(matches!(next(&stuck, 300), Decision::Fail(Reason::Unschedulable, _)));
    }

    #[test]
    fn only_the_pods_of_the_start_are_ordered() {
        let mut replaced = started(Phase::Running);
        replaced.runners[1].uid = "replacement".into();
        assert_eq!(next(&replaced, 1), Decision::Order(record(), vec!["pod-0".into()]));
    }

    #[test]
    fn orders_are_sent_until_taken_and_then_no_more() {
        let mut half = started(Phase::Running);
        half.memory.ordered.insert("pod-0".into());
        assert_eq!(next(&half, 1), Decision::Order(record(), vec!["pod-1".into()]));
        assert_eq!(next(&under_load(), 1), Decision::Progress(Phase::Running, COLLECT));
    }

    #[test]
    fn the_test_stops_at_its_duration_and_ends_with_its_last_runner() {
        let mut seen = under_load();
        assert!(matches!(next(&seen, 120), Decision::Progress(Phase::Stopping, _)));
        done(&mut seen, 0);
        assert!(matches!(next(&seen, 121), Decision::Progress(Phase::Stopping, _)));
        done(&mut seen, 1);
        assert_eq!(next(&seen, 121), Decision::Conclude { cancelled: false, failed: None });
        assert_eq!(seen.circumstances(false).runners_lost, 0);
    }

    #[test]
    fn a_killed_runner_is_lost_and_the_others_run_on() {
        let mut seen = under_load();
        seen.runners[1].ended = Some(Ended { code: Some(137), message: "OOMKilled".into() });
        assert_eq!(next(&seen, 10), Decision::Progress(Phase::Running, COLLECT));
        done(&mut seen, 0);
        assert_eq!(next(&seen, 121), Decision::Conclude { cancelled: false, failed: None });
        assert_eq!(seen.circumstances(false).runners_lost, 1);
    }

    #[test]
    fn a_silent_runner_is_given_up_a_minute_after_the_end() {
        let mut seen = under_load();
        done(&mut seen, 0);
        seen.memory.heard.insert(1, at(150));
        assert!(matches!(next(&seen, 200), Decision::Progress(..)));
        assert_eq!(next(&seen, 210), Decision::Conclude { cancelled: false, failed: None });
    }

    #[test]
    fn cancelling_stops_runners_that_run_and_removes_those_that_do_not() {
        let mut early = seen(Phase::Starting);
        early.test.spec.cancel = true;
        assert_eq!(next(&early, 1), Decision::CancelUnstarted);
        let mut late = under_load();
        late.test.spec.cancel = true;
        assert_eq!(next(&late, 1), Decision::Stop(record().pods));
        late.memory.stopped = record().pods.into_iter().collect();
        assert!(matches!(next(&late, 1), Decision::Progress(Phase::Stopping, _)));
    }

    #[test]
    fn a_finished_test_releases_its_runners_once_and_settles() {
        let mut over = started(Phase::Finished);
        assert_eq!(next(&over, 130), Decision::Release(record().pods));
        over.memory.released = record().pods.into_iter().collect();
        assert_eq!(next(&over, 130), Decision::Settled);
    }

    #[test]
    fn a_finished_test_is_removed_when_its_time_to_live_is_over() {
        let mut over = started(Phase::Finished);
        over.job = None;
        over.test.spec.ttl_seconds_after_finished = Some(10);
        over.test.status.as_mut().unwrap().finish_time = Some(Time(at(130)));
        assert!(matches!(next(&over, 135), Decision::Wait(_)));
        assert_eq!(next(&over, 140), Decision::Delete);
    }

    #[test]
    fn a_rejected_test_is_looked_at_again_once_it_is_edited() {
        let mut rejected = seen(Phase::Error);
        rejected.job = None;
        rejected.runners.clear();
        rejected.test.status.as_mut().unwrap().plan = None;
        assert_eq!(next(&rejected, 1), Decision::Settled);
        rejected.test.metadata.generation = Some(2);
        assert_eq!(next(&rejected, 1), Decision::Admit(sizing()));
    }
}
