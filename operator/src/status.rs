//! From a decision to the next status and the Event that tells of it. Pure.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time},
    jiff::Timestamp,
};
use loadtest_core::{
    Duration,
    metrics::Numbers,
    report::{self, Report, truncated},
    resource::{Aborted, LoadTestStatus, Phase, Progress, Sizing, Verdict},
    summary::summarise,
};

use crate::{
    decide::{Decision, Reason},
    state::{Observed, StartRecord},
};

/// Between two writes of progress alone.
const PROGRESS_WRITE_INTERVAL: Duration = Duration::from_secs(5);
/// Events and conditions are cut here; the API takes 1,024 bytes of an Event's note.
const MAX_MESSAGE_BYTES: usize = 1000;

/// Something to tell about a test, once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventDraft {
    /// One word for programs.
    pub reason: String,
    /// A sentence for people.
    pub note: String,
    /// Shown as a warning.
    pub warning: bool,
}

/// The next status of a test, and what to tell. The old status when nothing changes.
pub fn next_status(
    observed: &Observed,
    decision: &Decision,
    now: Timestamp,
) -> (LoadTestStatus, Option<EventDraft>) {
    let old = observed.test.status.clone().unwrap_or_default();
    let mut status = old.clone();
    let news = match decision {
        Decision::NothingToDo
        | Decision::PersistStart(_)
        | Decision::SendStop(_)
        | Decision::DeleteJob
        | Decision::SendRelease(_)
        | Decision::DeleteTest => return (old, None),
        // Any other wait is for a test that is over.
        Decision::Wait(_) if old.phase != Some(Phase::Starting) => return (old, None),
        Decision::Wait(_) => apply_ready_runners(&mut status, observed),
        Decision::Reject(problems) => Some(apply_reject(&mut status, problems, now)),
        Decision::Admit(sizing) => Some(apply_admit(&mut status, sizing, now)),
        Decision::Launch(sizing) => Some(apply_launch(&mut status, sizing)),
        Decision::ReportAbort(aborted) => Some(apply_abort(&mut status, aborted)),
        // A runner that does not take its order must not hide what the others do.
        Decision::SendStart(..) => apply_progress(&mut status, Phase::Running, observed, now),
        Decision::ReportStarted(start) => Some(apply_started(&mut status, start, observed, now)),
        Decision::ReportProgress(phase, _) => apply_progress(&mut status, *phase, observed, now),
        Decision::Conclude { cancelled, failed } => {
            Some(apply_conclude(&mut status, *cancelled, failed.as_ref(), observed, now))
        }
        Decision::Fail(reason, message) => Some(apply_fail(&mut status, *reason, message, now)),
        Decision::CancelUnstarted => Some(apply_cancel_unstarted(&mut status, now)),
    };
    status.observed_generation = observed.test.metadata.generation;
    (status, news)
}

/// True when a status differs only in how far the test is, and that was told just now.
pub fn is_throttled(
    old: &LoadTestStatus,
    new: &LoadTestStatus,
    reported: Option<Timestamp>,
    now: Timestamp,
) -> bool {
    let recent = reported.is_some_and(|at| {
        now.duration_since(at) < crate::decide::signed_duration(PROGRESS_WRITE_INTERVAL)
    });
    // The first numbers are what people wait for.
    let first = old.summary.is_none() && new.summary.is_some();
    let same_stages = old.stages.len() == new.stages.len() && old.aborted == new.aborted;
    recent && !first && same_stages && old.phase == new.phase && old.conditions == new.conditions
}

fn draft_event(reason: &str, note: impl Into<String>, warning: bool) -> EventDraft {
    EventDraft { reason: reason.into(), note: truncated(&note.into(), MAX_MESSAGE_BYTES), warning }
}

/// Sets a condition. Its time changes only when its status does.
fn set_condition(
    status: &mut LoadTestStatus,
    kind: &str,
    value: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let before = status.conditions.iter().find(|c| c.type_ == kind);
    let since =
        before.filter(|c| c.status == value).map_or(Time(now), |c| c.last_transition_time.clone());
    let next = Condition {
        type_: kind.into(),
        status: value.into(),
        reason: reason.into(),
        message: truncated(message, MAX_MESSAGE_BYTES),
        last_transition_time: since,
        observed_generation: None,
    };
    match status.conditions.iter_mut().find(|c| c.type_ == kind) {
        Some(place) => *place = next,
        None => status.conditions.push(next),
    }
}

fn apply_reject(status: &mut LoadTestStatus, problems: &str, now: Timestamp) -> EventDraft {
    let reason = Reason::InvalidSpec.as_str();
    status.phase = Some(Phase::Error);
    status.finish_time = Some(Time(now));
    set_condition(status, "Accepted", "False", reason, problems, now);
    set_condition(status, "Finished", "True", reason, "the spec can't be carried out", now);
    set_condition(status, "Passed", "Unknown", reason, "the test did not run", now);
    draft_event("Rejected", problems, true)
}

fn apply_admit(status: &mut LoadTestStatus, sizing: &Sizing, now: Timestamp) -> EventDraft {
    *status = LoadTestStatus::default();
    status.phase = Some(Phase::Pending);
    status.plan = Some(sizing.clone());
    let Sizing { runners, users_per_runner, rate_per_runner, workers: _, cpu, memory } = sizing;
    let plan = format!(
        "{runners} runners with up to {users_per_runner} users and {rate_per_runner} each, {cpu} CPU and {memory} memory requested"
    );
    set_condition(status, "Accepted", "True", "Valid", &plan, now);
    set_condition(status, "Started", "False", "Pending", "runners are not started yet", now);
    set_condition(status, "Finished", "False", "Pending", "the test has not run yet", now);
    set_condition(status, "Passed", "Unknown", "Pending", "the test has not run yet", now);
    draft_event("Accepted", plan, false)
}

fn apply_launch(status: &mut LoadTestStatus, sizing: &Sizing) -> EventDraft {
    status.phase = Some(Phase::Starting);
    status.progress = Some(Progress::default());
    draft_event("RunnersCreated", format!("created a Job with {} runners", sizing.runners), false)
}

fn apply_started(
    status: &mut LoadTestStatus,
    start: &StartRecord,
    observed: &Observed,
    now: Timestamp,
) -> EventDraft {
    status.phase = Some(Phase::Running);
    status.start_time = Some(MicroTime(start.at));
    let note = format!(
        "{} on {} runners, from {} on",
        observed.test.spec.load,
        start.pods.len(),
        start.at.strftime("%H:%M:%S%.3f"),
    );
    set_condition(status, "Started", "True", "AllRunnersReady", &note, now);
    set_condition(status, "Finished", "False", "Running", "load is on", now);
    set_condition(status, "Passed", "Unknown", "Running", "judged when the test is over", now);
    draft_event("LoadStarted", note, false)
}

/// How many runners are ready, for who waits for the start.
fn apply_ready_runners(status: &mut LoadTestStatus, observed: &Observed) -> Option<EventDraft> {
    let ready = observed.runners.iter().filter(|runner| runner.ready && !runner.disrupted).count();
    let runners = i64::try_from(ready).unwrap_or(i64::MAX);
    status.progress = Some(Progress { runners, ..Progress::default() });
    None
}

fn progress_of(observed: &Observed, numbers: &Numbers, users: u64) -> Progress {
    report::progress(&observed.test.spec, numbers, observed.cache.snapshots.len(), users)
}

fn apply_progress(
    status: &mut LoadTestStatus,
    phase: Phase,
    observed: &Observed,
    now: Timestamp,
) -> Option<EventDraft> {
    let entered = status.phase != Some(phase);
    status.phase = Some(phase);
    let numbers = observed.merge_snapshots();
    status.progress = Some(progress_of(observed, &numbers, numbers.users));
    if let Some(timeline) = &observed.cache.timeline {
        status.stages = timeline.stages().to_vec();
        // What windows have shown so far outlives this process.
        if observed.test.spec.thresholds.iter().any(|threshold| threshold.window.is_some()) {
            status.thresholds = timeline.rows(&observed.test.spec, &numbers, None);
        }
    }
    if numbers.elapsed_seconds > 0.0 {
        status.summary = Some(summarise(&numbers.total(), numbers.elapsed_seconds));
    }
    if !(entered && phase == Phase::Stopping) {
        return None;
    }
    let note = "load has ended; waiting for open requests and last numbers";
    set_condition(status, "Finished", "False", "Stopping", note, now);
    Some(draft_event("LoadEnded", note, false))
}

fn apply_abort(status: &mut LoadTestStatus, aborted: &Aborted) -> EventDraft {
    let Aborted { threshold, observed, bound, .. } = aborted;
    let note = format!("{threshold} is {observed}, critical {bound}: stopping all runners");
    status.aborted = Some(aborted.clone());
    draft_event("Aborted", note, true)
}

fn apply_conclude(
    status: &mut LoadTestStatus,
    cancelled: bool,
    failed: Option<&(Reason, String)>,
    observed: &Observed,
    now: Timestamp,
) -> EventDraft {
    let numbers = observed.merge_snapshots();
    let timeline = observed.timeline();
    let Report {
        verdict,
        reason,
        message,
        summary,
        tasks,
        thresholds,
        stages,
        breaking_point,
        errors,
        measurement,
    } = report::report(&observed.test.spec, &numbers, &timeline, &observed.run_context(cancelled));
    status.stages = stages;
    status.breaking_point = breaking_point;
    status.progress = Some(progress_of(observed, &numbers, numbers.users_peak));
    status.summary = Some(summary);
    status.tasks = tasks;
    status.thresholds = thresholds;
    status.errors = errors;
    status.measurement = Some(measurement);
    let (phase, verdict, reason, message) = match failed {
        Some((why, text)) => (Phase::Error, Verdict::Inconclusive, why.as_str(), text.clone()),
        None if cancelled => (Phase::Cancelled, verdict, reason, message),
        None => (Phase::Finished, verdict, reason, message),
    };
    set_finished(status, phase, now, reason, &message);
    status.verdict = Some(verdict);
    set_condition(status, "Passed", verdict.passed(), reason, &message, now);
    let bad = !matches!(verdict, Verdict::Pass | Verdict::NotJudged);
    draft_event(phase.as_str(), format!("{}: {message}", verdict.as_str()), bad)
}

fn set_finished(
    status: &mut LoadTestStatus,
    phase: Phase,
    now: Timestamp,
    reason: &str,
    message: &str,
) {
    status.phase = Some(phase);
    status.finish_time = Some(Time(now));
    set_condition(status, "Finished", "True", reason, message, now);
}

fn apply_fail(
    status: &mut LoadTestStatus,
    reason: Reason,
    message: &str,
    now: Timestamp,
) -> EventDraft {
    set_finished(status, Phase::Error, now, reason.as_str(), message);
    status.verdict = Some(Verdict::Inconclusive);
    set_condition(status, "Started", "False", reason.as_str(), message, now);
    set_condition(status, "Passed", "Unknown", reason.as_str(), "the test did not run", now);
    draft_event(reason.as_str(), message, true)
}

fn apply_cancel_unstarted(status: &mut LoadTestStatus, now: Timestamp) -> EventDraft {
    let message = "cancelled before any load";
    set_finished(status, Phase::Cancelled, now, "Cancelled", message);
    status.verdict = Some(Verdict::Inconclusive);
    set_condition(status, "Passed", "Unknown", "Cancelled", message, now);
    draft_event("Cancelled", message, true)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::SignedDuration;
    use loadtest_core::sizing::size;

    use super::*;
    use crate::{
        state::RunCache,
        testing::{example_test, noon},
    };

    fn observed(status: LoadTestStatus) -> Observed {
        let mut test = example_test();
        test.status = Some(status);
        Observed { test, job: None, runners: vec![], cache: RunCache::default() }
    }

    fn admitted() -> LoadTestStatus {
        let decision = Decision::Admit(size(&example_test().spec));
        next_status(&observed(LoadTestStatus::default()), &decision, noon()).0
    }

    fn is(status: &LoadTestStatus, kind: &str) -> String {
        status.condition(kind).unwrap().status.clone()
    }

    #[test]
    fn waiting_changes_nothing_and_tells_nothing() {
        let old = admitted();
        let decision = Decision::Wait(Duration::from_secs(1));
        assert_eq!(next_status(&observed(old.clone()), &decision, noon()), (old, None));
    }

    #[test]
    fn who_waits_for_the_start_sees_how_many_runners_are_ready() {
        let mut starting = admitted();
        starting.phase = Some(Phase::Starting);
        let mut observed = observed(starting);
        observed.runners = vec![crate::testing::ready_runner(0), crate::testing::ready_runner(1)];
        observed.runners[1].ready = false;
        let (status, news) =
            next_status(&observed, &Decision::Wait(Duration::from_secs(1)), noon());
        assert_eq!((status.progress.unwrap().runners, news), (1, None));
    }

    #[test]
    fn finished_is_true_in_all_three_ends() {
        let ends = [
            Decision::Conclude { cancelled: false, failed: None },
            Decision::Conclude { cancelled: true, failed: None },
            Decision::Fail(Reason::ImagePull, "no image".into()),
            Decision::CancelUnstarted,
            Decision::Reject("spec.scenario: too large".into()),
        ];
        for end in ends {
            let (status, news) = next_status(&observed(admitted()), &end, noon());
            assert_eq!(is(&status, "Finished"), "True", "{end:?}");
            assert!(status.phase.unwrap().is_final() && news.is_some());
        }
    }

    #[test]
    fn a_run_without_traffic_is_inconclusive() {
        let decision = Decision::Conclude { cancelled: false, failed: None };
        let (status, _) = next_status(&observed(admitted()), &decision, noon());
        assert_eq!(
            (status.phase, status.verdict),
            (Some(Phase::Finished), Some(Verdict::Inconclusive))
        );
        assert_eq!(is(&status, "Passed"), "Unknown");
    }

    #[test]
    fn stages_that_another_process_judged_outlive_it_also_when_a_runner_was_lost_with_it() {
        use loadtest_core::resource::StageRow;
        let stage = |load: &str, missed: Option<&str>| StageRow {
            load: load.into(),
            requests: 100,
            error_rate: "0%".into(),
            throughput: "10/s".into(),
            p95: None,
            verdict: if missed.is_some() { Verdict::Fail } else { Verdict::Pass },
            missed: missed.map(Into::into),
            observed: None,
        };
        let mut status = admitted();
        status.phase = Some(Phase::Running);
        status.stages = vec![stage("5 users", None), stage("10 users", Some("errorRate"))];
        let mut observed = observed(status.clone());
        observed.test.spec.load = serde_json::from_value(serde_json::json!({"stages": [
            {"duration": "10s", "users": 5},
            {"duration": "10s", "users": 10},
            {"duration": "10s", "users": 20},
        ]}))
        .unwrap();
        let decision = Decision::Conclude { cancelled: false, failed: None };
        let (concluded, _) = next_status(&observed, &decision, noon());
        assert_eq!(concluded.stages, status.stages);
        let point = concluded.breaking_point.unwrap();
        assert_eq!(
            (point.held.as_deref(), point.broke.as_deref()),
            (Some("5 users"), Some("10 users"))
        );
    }

    #[test]
    fn a_conditions_time_changes_only_when_its_status_does() {
        let later = noon() + SignedDuration::from_secs(60);
        let decision = Decision::Fail(Reason::StartTimeout, "slow".into());
        let (status, _) = next_status(&observed(admitted()), &decision, later);
        let time = |kind: &str| status.condition(kind).unwrap().last_transition_time.0;
        assert_eq!(time("Started"), noon());
        assert_eq!(time("Finished"), later);
    }

    #[test]
    fn progress_is_written_every_five_seconds_but_transitions_at_once() {
        let mut running = admitted();
        running.phase = Some(Phase::Running);
        let decision = Decision::ReportProgress(Phase::Running, Duration::from_secs(2));
        running.summary = Some(summarise(&loadtest_core::metrics::TaskNumbers::default(), 1.0));
        let (progressed, _) = next_status(&observed(running.clone()), &decision, noon());
        let at = |s| Some(noon() - SignedDuration::from_secs(s));
        assert!(is_throttled(&running, &progressed, at(4), noon()));
        assert!(!is_throttled(&running, &progressed, at(5), noon()));
        assert!(!is_throttled(&running, &progressed, None, noon()));
        let decision = Decision::ReportProgress(Phase::Stopping, Duration::from_secs(2));
        let (stopping, _) = next_status(&observed(running.clone()), &decision, noon());
        assert!(!is_throttled(&running, &stopping, at(1), noon()));
    }
}
