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
const PROGRESS_EVERY: Duration = Duration::from_secs(5);
/// Events and conditions are cut here; the API takes 1,024 bytes of an Event's note.
const MAX_MESSAGE: usize = 1000;

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
pub fn next(
    seen: &Observed,
    decision: &Decision,
    now: Timestamp,
) -> (LoadTestStatus, Option<EventDraft>) {
    let old = seen.test.status.clone().unwrap_or_default();
    let mut status = old.clone();
    let news = match decision {
        Decision::Settled
        | Decision::Start(_)
        | Decision::Stop(_)
        | Decision::RemoveJob
        | Decision::Release(_)
        | Decision::Delete => return (old, None),
        // Any other wait is for a test that is over.
        Decision::Wait(_) if old.phase != Some(Phase::Starting) => return (old, None),
        Decision::Wait(_) => ready(&mut status, seen),
        Decision::Reject(problems) => Some(reject(&mut status, problems, now)),
        Decision::Admit(sizing) => Some(admit(&mut status, sizing, now)),
        Decision::Launch(sizing) => Some(launch(&mut status, sizing)),
        Decision::Abort(aborted) => Some(abort(&mut status, aborted)),
        // A runner that does not take its order must not hide what the others do.
        Decision::Order(..) => progress(&mut status, Phase::Running, seen, now),
        Decision::Started(start) => Some(started(&mut status, start, seen, now)),
        Decision::Progress(phase, _) => progress(&mut status, *phase, seen, now),
        Decision::Conclude { cancelled, failed } => {
            Some(conclude(&mut status, *cancelled, failed.as_ref(), seen, now))
        }
        Decision::Fail(reason, message) => Some(fail(&mut status, *reason, message, now)),
        Decision::CancelUnstarted => Some(cancel_unstarted(&mut status, now)),
    };
    status.observed_generation = seen.test.metadata.generation;
    (status, news)
}

/// True when a status differs only in how far the test is, and that was told just now.
pub fn can_wait(
    old: &LoadTestStatus,
    new: &LoadTestStatus,
    reported: Option<Timestamp>,
    now: Timestamp,
) -> bool {
    let recent =
        reported.is_some_and(|at| now.duration_since(at) < crate::decide::signed(PROGRESS_EVERY));
    // The first numbers are what people wait for.
    let first = old.summary.is_none() && new.summary.is_some();
    let same_stages = old.stages.len() == new.stages.len() && old.aborted == new.aborted;
    recent && !first && same_stages && old.phase == new.phase && old.conditions == new.conditions
}

fn news(reason: &str, note: impl Into<String>, warning: bool) -> EventDraft {
    EventDraft { reason: reason.into(), note: truncated(&note.into(), MAX_MESSAGE), warning }
}

/// Sets a condition. Its time changes only when its status does.
fn condition(
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
        message: truncated(message, MAX_MESSAGE),
        last_transition_time: since,
        observed_generation: None,
    };
    match status.conditions.iter_mut().find(|c| c.type_ == kind) {
        Some(place) => *place = next,
        None => status.conditions.push(next),
    }
}

fn reject(status: &mut LoadTestStatus, problems: &str, now: Timestamp) -> EventDraft {
    let reason = Reason::InvalidSpec.as_str();
    status.phase = Some(Phase::Error);
    status.finish_time = Some(Time(now));
    condition(status, "Accepted", "False", reason, problems, now);
    condition(status, "Finished", "True", reason, "the spec can't be carried out", now);
    condition(status, "Passed", "Unknown", reason, "the test did not run", now);
    news("Rejected", problems, true)
}

fn admit(status: &mut LoadTestStatus, sizing: &Sizing, now: Timestamp) -> EventDraft {
    *status = LoadTestStatus::default();
    status.phase = Some(Phase::Pending);
    status.plan = Some(sizing.clone());
    let Sizing { runners, users_per_runner, rate_per_runner, workers: _, cpu, memory } = sizing;
    let plan = format!(
        "{runners} runners with up to {users_per_runner} users and {rate_per_runner} each, {cpu} CPU and {memory} memory requested"
    );
    condition(status, "Accepted", "True", "Valid", &plan, now);
    condition(status, "Started", "False", "Pending", "runners are not started yet", now);
    condition(status, "Finished", "False", "Pending", "the test has not run yet", now);
    condition(status, "Passed", "Unknown", "Pending", "the test has not run yet", now);
    news("Accepted", plan, false)
}

fn launch(status: &mut LoadTestStatus, sizing: &Sizing) -> EventDraft {
    status.phase = Some(Phase::Starting);
    status.progress = Some(Progress::default());
    news("RunnersCreated", format!("created a Job with {} runners", sizing.runners), false)
}

fn started(
    status: &mut LoadTestStatus,
    start: &StartRecord,
    seen: &Observed,
    now: Timestamp,
) -> EventDraft {
    status.phase = Some(Phase::Running);
    status.start_time = Some(MicroTime(start.at));
    let note = format!(
        "{} on {} runners, from {} on",
        seen.test.spec.load,
        start.pods.len(),
        start.at.strftime("%H:%M:%S%.3f"),
    );
    condition(status, "Started", "True", "AllRunnersReady", &note, now);
    condition(status, "Finished", "False", "Running", "load is on", now);
    condition(status, "Passed", "Unknown", "Running", "judged when the test is over", now);
    news("LoadStarted", note, false)
}

/// How many runners are ready, for who waits for the start.
fn ready(status: &mut LoadTestStatus, seen: &Observed) -> Option<EventDraft> {
    let ready = seen.runners.iter().filter(|runner| runner.ready && !runner.leaving).count();
    let runners = i64::try_from(ready).unwrap_or(i64::MAX);
    status.progress = Some(Progress { runners, ..Progress::default() });
    None
}

fn far(seen: &Observed, numbers: &Numbers, users: u64) -> Progress {
    report::progress(&seen.test.spec, numbers, seen.memory.numbers.len(), users)
}

fn progress(
    status: &mut LoadTestStatus,
    phase: Phase,
    seen: &Observed,
    now: Timestamp,
) -> Option<EventDraft> {
    let entered = status.phase != Some(phase);
    status.phase = Some(phase);
    let numbers = seen.merged();
    status.progress = Some(far(seen, &numbers, numbers.users));
    if let Some(timeline) = &seen.memory.timeline {
        status.stages = timeline.stages().to_vec();
        // What windows have shown so far outlives this process.
        if seen.test.spec.thresholds.iter().any(|threshold| threshold.window.is_some()) {
            status.thresholds = timeline.rows(&seen.test.spec, &numbers, None);
        }
    }
    if numbers.elapsed_seconds > 0.0 {
        status.summary = Some(summarise(&numbers.total(), numbers.elapsed_seconds));
    }
    if !(entered && phase == Phase::Stopping) {
        return None;
    }
    let note = "load has ended; waiting for open requests and last numbers";
    condition(status, "Finished", "False", "Stopping", note, now);
    Some(news("LoadEnded", note, false))
}

fn abort(status: &mut LoadTestStatus, aborted: &Aborted) -> EventDraft {
    let Aborted { threshold, observed, bound, .. } = aborted;
    let note = format!("{threshold} is {observed}, critical {bound}: stopping all runners");
    status.aborted = Some(aborted.clone());
    news("Aborted", note, true)
}

fn conclude(
    status: &mut LoadTestStatus,
    cancelled: bool,
    failed: Option<&(Reason, String)>,
    seen: &Observed,
    now: Timestamp,
) -> EventDraft {
    let numbers = seen.merged();
    let timeline = seen.timeline();
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
    } = report::report(&seen.test.spec, &numbers, &timeline, &seen.circumstances(cancelled));
    status.stages = stages;
    status.breaking_point = breaking_point;
    status.progress = Some(far(seen, &numbers, numbers.users_peak));
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
    finish(status, phase, now, reason, &message);
    status.verdict = Some(verdict);
    condition(status, "Passed", verdict.passed(), reason, &message, now);
    let bad = !matches!(verdict, Verdict::Pass | Verdict::NotJudged);
    news(phase.as_str(), format!("{}: {message}", verdict.as_str()), bad)
}

fn finish(status: &mut LoadTestStatus, phase: Phase, now: Timestamp, reason: &str, message: &str) {
    status.phase = Some(phase);
    status.finish_time = Some(Time(now));
    condition(status, "Finished", "True", reason, message, now);
}

fn fail(status: &mut LoadTestStatus, reason: Reason, message: &str, now: Timestamp) -> EventDraft {
    finish(status, Phase::Error, now, reason.as_str(), message);
    status.verdict = Some(Verdict::Inconclusive);
    condition(status, "Started", "False", reason.as_str(), message, now);
    condition(status, "Passed", "Unknown", reason.as_str(), "the test did not run", now);
    news(reason.as_str(), message, true)
}

fn cancel_unstarted(status: &mut LoadTestStatus, now: Timestamp) -> EventDraft {
    let message = "cancelled before any load";
    finish(status, Phase::Cancelled, now, "Cancelled", message);
    status.verdict = Some(Verdict::Inconclusive);
    condition(status, "Passed", "Unknown", "Cancelled", message, now);
    news("Cancelled", message, true)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::SignedDuration;
    use loadtest_core::sizing::size;

    use super::*;
    use crate::{
        state::Memory,
        testing::{noon, test},
    };

    fn seen(status: LoadTestStatus) -> Observed {
        let mut test = test();
        test.status = Some(status);
        Observed { test, job: None, runners: vec![], memory: Memory::default() }
    }

    fn admitted() -> LoadTestStatus {
        let decision = Decision::Admit(size(&test().spec));
        next(&seen(LoadTestStatus::default()), &decision, noon()).0
    }

    fn is(status: &LoadTestStatus, kind: &str) -> String {
        status.condition(kind).unwrap().status.clone()
    }

    #[test]
    fn waiting_changes_nothing_and_tells_nothing() {
        let old = admitted();
        let decision = Decision::Wait(Duration::from_secs(1));
        assert_eq!(next(&seen(old.clone()), &decision, noon()), (old, None));
    }

    #[test]
    fn who_waits_for_the_start_sees_how_many_runners_are_ready() {
        let mut starting = admitted();
        starting.phase = Some(Phase::Starting);
        let mut seen = seen(starting);
        seen.runners = vec![crate::testing::runner(0), crate::testing::runner(1)];
        seen.runners[1].ready = false;
        let (status, news) = next(&seen, &Decision::Wait(Duration::from_secs(1)), noon());
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
            let (status, news) = next(&seen(admitted()), &end, noon());
            assert_eq!(is(&status, "Finished"), "True", "{end:?}");
            assert!(status.phase.unwrap().is_final() && news.is_some());
        }
    }

    #[test]
    fn a_run_without_traffic_is_inconclusive() {
        let decision = Decision::Conclude { cancelled: false, failed: None };
        let (status, _) = next(&seen(admitted()), &decision, noon());
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
        let mut seen = seen(status.clone());
        seen.test.spec.load = serde_json::from_value(serde_json::json!({"stages": [
            {"duration": "10s", "users": 5},
            {"duration": "10s", "users": 10},
            {"duration": "10s", "users": 20},
        ]}))
        .unwrap();
        let decision = Decision::Conclude { cancelled: false, failed: None };
        let (concluded, _) = next(&seen, &decision, noon());
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
        let (status, _) = next(&seen(admitted()), &decision, later);
        let time = |kind: &str| status.condition(kind).unwrap().last_transition_time.0;
        assert_eq!(time("Started"), noon());
        assert_eq!(time("Finished"), later);
    }

    #[test]
    fn progress_is_written_every_five_seconds_but_transitions_at_once() {
        let mut running = admitted();
        running.phase = Some(Phase::Running);
        let decision = Decision::Progress(Phase::Running, Duration::from_secs(2));
        running.summary = Some(summarise(&loadtest_core::metrics::TaskNumbers::default(), 1.0));
        let (next_status, _) = next(&seen(running.clone()), &decision, noon());
        let at = |s| Some(noon() - SignedDuration::from_secs(s));
        assert!(can_wait(&running, &next_status, at(4), noon()));
        assert!(!can_wait(&running, &next_status, at(5), noon()));
        assert!(!can_wait(&running, &next_status, None, noon()));
        let decision = Decision::Progress(Phase::Stopping, Duration::from_secs(2));
        let (stopping, _) = next(&seen(running.clone()), &decision, noon());
        assert!(!can_wait(&running, &stopping, at(1), noon()));
    }
}
