//! Derives the next status of a test and its Event from a [`Decision`].
//!
//! Pure: this module has no client and takes the time as `now`. The module `reconcile` writes the
//! status, and `events` publishes the Event.

mod conditions;
mod ending;
mod result_stored;
mod silence;
mod size;
mod throttle;

pub(crate) use self::{
    conditions::EventDraft,
    ending::{NamedEvent, draft_ending},
    result_stored::set_result_stored,
    size::limit_size,
    throttle::{can_skip_status, is_recent, is_throttled},
};
use self::{
    conditions::{MAX_MESSAGE_BYTES, draft_event, set_condition},
    silence::{end_silence, set_silence},
};
use crate::{
    decide::{Decision, RETRYING, Reason, refusal_reason},
    observe::runner::{Runner, Waiting},
    observe::start::StartRecord,
    observe::state::Observed,
};
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{MicroTime, Time},
    jiff::Timestamp,
};
use loadtest_core::{
    Duration,
    judge::{Report, progress_of, report, summarize},
    metrics::Metrics,
    plan::ValidTest,
    resource::{Aborted, LoadTestStatus, Phase, Progress, Sizing, Summary, Verdict},
    text::{count_of, truncate},
};

/// Returns the next status of a test and an Event to publish. For the end of a test, [`draft_ending`] drafts the Event.
///
/// Returns the old status and no Event if the decision changes nothing.
pub(crate) fn next_status(
    observed: &Observed,
    decision: &Decision,
    now: Timestamp,
) -> (LoadTestStatus, Option<EventDraft>) {
    let old = observed.status();
    if old.unknown_value().is_some() {
        return (old, None);
    }
    let mut status = old.clone();
    let event = match decision {
        Decision::NothingToDo
        | Decision::PersistStart(_)
        | Decision::SendStop(_)
        | Decision::DeleteJob
        | Decision::DeleteStoppedJob
        | Decision::SendRelease(_)
        | Decision::SetJobTtl => None,
        Decision::DeleteTest => return (old, None),
        // In all other phases, the test is over and `Wait` changes nothing.
        Decision::Wait(_) if old.known_phase() != Some(Phase::Starting) => None,
        Decision::Wait(_) => set_waiting(&mut status, observed, now),
        Decision::ReportRetry(cause) => set_retrying(&mut status, cause, now),
        Decision::ReportLoss(losses) => Some(set_lost(&mut status, losses, observed, now)),
        Decision::ForceStop(pods) => Some(set_stop_forced(&mut status, pods, observed, now)),
        Decision::Reject(reason, problems) => {
            set_rejected(&mut status, *reason, problems, now);
            None
        }
        Decision::Admit(sizing) => Some(set_admitted(&mut status, sizing, now)),
        Decision::ReportSuspended(sizing) => set_suspended(&mut status, sizing, now),
        Decision::Launch(sizing) => Some(set_launched(&mut status, sizing)),
        Decision::ReportAbort(aborted) => Some(set_aborted(&mut status, aborted)),
        Decision::SendStart(..)
        | Decision::ReportStarted(_)
        | Decision::ReportProgress(..)
        | Decision::Conclude { .. } => match &observed.valid {
            Ok(valid) => set_running(&mut status, decision, observed, valid, now),
            // `decide` makes these decisions for valid specs only.
            Err(_) => return (old, None),
        },
        Decision::Fail(reason, message) => {
            set_failed(&mut status, *reason, message, now);
            None
        }
        Decision::CancelUnstarted => {
            set_cancelled_unstarted(&mut status, now);
            None
        }
    };
    // It catches up even where a decision changes nothing else.
    status.observed_generation = observed.test.metadata.generation;
    for condition in &mut status.conditions {
        condition.observed_generation = observed.test.metadata.generation;
    }
    (status, event)
}

/// Applies a decision about a test with load.
fn set_running(
    status: &mut LoadTestStatus,
    decision: &Decision,
    observed: &Observed,
    valid: &ValidTest,
    now: Timestamp,
) -> Option<EventDraft> {
    match decision {
        // A runner that does not accept its order must not hide the progress of the others.
        Decision::SendStart(..) => set_progress(status, Phase::Running, observed, valid, now),
        Decision::ReportStarted(start) => Some(set_started(status, start, valid, now)),
        Decision::ReportProgress(phase, _) => set_progress(status, *phase, observed, valid, now),
        Decision::Conclude { cancelled, failed } => {
            set_concluded(status, *cancelled, failed.as_ref(), observed, valid, now);
            None
        }
        _ => None,
    }
}

fn set_rejected(status: &mut LoadTestStatus, reason: Reason, problems: &str, now: Timestamp) {
    let reason = reason.as_str();
    status.phase = Some(Phase::Error.into());
    status.finish_time = Some(Time(now));
    set_condition(status, "Accepted", "False", reason, problems, now);
    set_condition(
        status,
        "Finished",
        "True",
        reason,
        "the test was not accepted; see the condition Accepted",
        now,
    );
    // A suspended test that was edited has the reason Suspended in this condition.
    set_condition(status, "Started", "False", reason, "the test did not run", now);
    set_condition(status, "Passed", "Unknown", reason, "the test did not run", now);
}

/// Describes the plan of a test: `2 runners, each with up to 100 users …`.
fn describe_plan(sizing: &Sizing) -> String {
    let Sizing { runners, users_per_runner, rate_per_runner, threads_per_runner: _, cpu, memory } =
        sizing;
    let plural = if *runners == 1 { "" } else { "s, each" };
    format!(
        "{runners} runner{plural} with up to {users_per_runner} users and {rate_per_runner}, requesting {cpu} CPU and {memory} memory"
    )
}

/// Reports that `spec.suspend` holds the test back. The test has no plan yet, so that its spec can
/// still change.
fn set_suspended(
    status: &mut LoadTestStatus,
    sizing: &Sizing,
    now: Timestamp,
) -> Option<EventDraft> {
    const NOTE: &str = "spec.suspend is true; set it to false to start the test";
    let is_reported = status.condition("Started").is_some_and(|c| c.reason == "Suspended");
    status.phase = Some(Phase::Pending.into());
    status.finish_time = None;
    set_condition(status, "Accepted", "True", "Valid", &describe_plan(sizing), now);
    set_condition(status, "Started", "False", "Suspended", NOTE, now);
    set_condition(status, "Finished", "False", "Suspended", "the test has not run yet", now);
    set_condition(status, "Passed", "Unknown", "Suspended", "the test has not run yet", now);
    (!is_reported).then(|| draft_event("Suspended", NOTE, false))
}

fn set_admitted(status: &mut LoadTestStatus, sizing: &Sizing, now: Timestamp) -> EventDraft {
    *status = LoadTestStatus::default();
    status.phase = Some(Phase::Pending.into());
    status.plan = Some(sizing.clone());
    let plan = describe_plan(sizing);
    set_condition(status, "Accepted", "True", "Valid", &plan, now);
    set_condition(status, "Started", "False", "Pending", "the runners have not started yet", now);
    set_condition(status, "Finished", "False", "Pending", "the test has not run yet", now);
    set_condition(status, "Passed", "Unknown", "Pending", "the test has not run yet", now);
    draft_event("Accepted", plan, false)
}

fn set_launched(status: &mut LoadTestStatus, sizing: &Sizing) -> EventDraft {
    status.phase = Some(Phase::Starting.into());
    status.progress = Some(Progress::default());
    let runners = count_of(u64::from(sizing.runners), "runner");
    draft_event("RunnersCreated", format!("created a Job with {runners}"), false)
}

fn set_started(
    status: &mut LoadTestStatus,
    start: &StartRecord,
    valid: &ValidTest,
    now: Timestamp,
) -> EventDraft {
    status.phase = Some(Phase::Running.into());
    status.start_time = Some(MicroTime(start.at));
    let note = format!(
        "{} on {}, starting at {} UTC",
        valid.load,
        count_of(start.pods.len() as u64, "runner"),
        start.at.strftime("%H:%M:%S%.3f"),
    );
    set_condition(status, "Started", "True", "AllRunnersReady", &note, now);
    set_condition(status, "Finished", "False", "Running", "the load is running", now);
    set_condition(
        status,
        "Passed",
        "Unknown",
        "Running",
        "the verdict follows when the test is over",
        now,
    );
    draft_event("LoadStarted", note, false)
}

/// Sets the number of ready runners and what the others wait for, so that users see how far the
/// startup is.
fn set_waiting(
    status: &mut LoadTestStatus,
    observed: &Observed,
    now: Timestamp,
) -> Option<EventDraft> {
    let is_ready = |runner: &&Runner| runner.ready && !runner.disrupted;
    let ready = observed.runners.iter().filter(is_ready).count();
    status.progress = Some(Progress { runners: ready as u64, ..Progress::default() });
    let wanted = status.plan.as_ref().map_or(0, |plan| plan.runners);
    let suspension = observed.suspension_cause().map(|cause| ("JobSuspended".to_owned(), cause));
    let refused = observed.cache.refused_pods.as_ref();
    let refused = refused.map(|r| (refusal_reason(r).as_str().to_owned(), r.message.clone()));
    let cause = suspension.or_else(|| observed.runners.iter().find_map(waiting_cause)).or(refused);
    let count = format!("{ready} of {} ready", count_of(u64::from(wanted), "runner"));
    let (reason, message) = match cause {
        Some((reason, cause)) => (reason, format!("{count}; {cause}")),
        None => ("Pending".to_owned(), count),
    };
    set_condition(status, "Started", "False", &reason, &message, now);
    None
}

/// Returns why a runner is not ready yet: a reason in one word, and words for people.
fn waiting_cause(runner: &Runner) -> Option<(String, String)> {
    if let Some(message) = &runner.unschedulable {
        return Some(("Unschedulable".into(), format!("runner {}: {message}", runner.name)));
    }
    let Waiting { reason, message } = runner.waiting.as_ref()?;
    // These two are on the way to a running container.
    if matches!(reason.as_str(), "ContainerCreating" | "PodInitializing" | "") {
        return None;
    }
    Some((reason.clone(), format!("runner {}: {reason}: {message}", runner.name)))
}

fn set_retrying(status: &mut LoadTestStatus, cause: &str, now: Timestamp) -> Option<EventDraft> {
    let is_reported = status.condition("Started").is_some_and(|c| c.reason == RETRYING);
    if status.plan.is_none() {
        let note = "the test has not run yet";
        status.phase = Some(Phase::Pending.into());
        status.finish_time = None;
        set_condition(status, "Accepted", "Unknown", RETRYING, cause, now);
        set_condition(status, "Finished", "False", RETRYING, note, now);
        set_condition(status, "Passed", "Unknown", RETRYING, note, now);
    }
    set_condition(status, "Started", "False", RETRYING, cause, now);
    (!is_reported).then(|| draft_event(RETRYING, cause, true))
}

fn set_lost(
    status: &mut LoadTestStatus,
    losses: &[String],
    observed: &Observed,
    now: Timestamp,
) -> EventDraft {
    let lost = losses.len() as u64;
    status.measurement.get_or_insert_default().runners_lost = lost;
    let tolerated = observed.known_start().map_or(0, |start| observed.tolerated_losses(&start));
    let next = if lost > tolerated {
        "the test stops because of spec.onRunnerLoss"
    } else {
        "the test goes on without them"
    };
    let cause = if observed.is_job_suspended() {
        " because somebody has suspended the Job, as a queue such as Kueue does to evict it"
    } else {
        ""
    };
    // A long list of losses is cut off.
    let losses = losses.join("; ");
    let note = format!("lost {}{cause}; {next}. Details: {losses}", count_of(lost, "runner"));
    set_condition(status, "RunnersLost", "True", "RunnerEnded", &note, now);
    draft_event("RunnersLost", note, true)
}

fn set_stop_forced(
    status: &mut LoadTestStatus,
    pods: &[String],
    observed: &Observed,
    now: Timestamp,
) -> EventDraft {
    let names = observed.runners.iter().filter(|runner| pods.contains(&runner.uid));
    let names: Vec<&str> = names.map(|runner| runner.name.as_str()).collect();
    let cause = if observed.cache.token_has_changed {
        "the operator's token Secret has changed since they were created"
    } else {
        "check network policies between the operator and the runners"
    };
    let note = format!(
        "{} did not take the order to stop ({}), so the Job is deleted; {cause}",
        count_of(names.len() as u64, "runner"),
        names.join(", "),
    );
    set_condition(status, "StopForced", "True", "OrdersNotTaken", &note, now);
    draft_event("StopForced", note, true)
}

/// A tenth of a second in nanoseconds.
const TENTH: u64 = 100_000_000;

/// Returns the progress of a run. `users` is the number of users to show.
fn run_progress(observed: &Observed, valid: &ValidTest, merged: &Metrics, users: u64) -> Progress {
    let progress = progress_of(valid, merged, observed.running_runners(), users);
    let judged = observed.timeline(valid).judged();
    // Tenths of a second, as in `elapsed`. The next leader judges the rest.
    let tenths = Duration::from_nanos(judged.as_nanos() / TENTH * TENTH);
    Progress { judged: (tenths < progress.elapsed).then_some(tenths), ..progress }
}

fn set_progress(
    status: &mut LoadTestStatus,
    phase: Phase,
    observed: &Observed,
    valid: &ValidTest,
    now: Timestamp,
) -> Option<EventDraft> {
    let entered = status.known_phase() != Some(phase);
    status.phase = Some(phase.into());
    let merged = observed.merged();
    status.progress = Some(run_progress(observed, valid, &merged, merged.users));
    if let Some(timeline) = observed.cache.collection.timeline() {
        status.stages = timeline.stages().to_vec();
        // The status keeps the results of windows, so that they survive a restart of the operator.
        if valid.thresholds.iter().any(|threshold| threshold.window.is_some()) {
            status.thresholds = timeline.rows_at_end(valid, &merged, None);
        }
    }
    if merged.elapsed_seconds > 0.0 {
        let summary = summarize(&merged.all_tasks(), merged.elapsed_seconds);
        keep_larger(&mut status.summary, summary);
    }
    if !(entered && phase == Phase::Stopping) {
        return set_silence(status, observed, now);
    }
    let note = "the load has ended; waiting for in-flight requests and final metrics";
    set_condition(status, "Finished", "False", "Stopping", note, now);
    Some(draft_event("LoadEnded", note, false))
}

/// Sets a summary unless the one that is there counts more requests: an operator that was restarted
/// does not know the numbers of runners that ended before.
fn keep_larger(current: &mut Option<Summary>, next: Summary) {
    if current.as_ref().is_none_or(|current| current.requests <= next.requests) {
        *current = Some(next);
    }
}

fn set_aborted(status: &mut LoadTestStatus, aborted: &Aborted) -> EventDraft {
    let Aborted { key, observed, bound, .. } = aborted;
    let note = format!("{key} is {observed}, critical {bound}; stopping all runners");
    status.aborted = Some(aborted.clone());
    draft_event("Aborted", note, true)
}

fn set_concluded(
    status: &mut LoadTestStatus,
    cancelled: bool,
    failed: Option<&(Reason, String)>,
    observed: &Observed,
    valid: &ValidTest,
    now: Timestamp,
) {
    let merged = observed.merged();
    let timeline = observed.timeline(valid);
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
    } = report(valid, &merged, &timeline, &observed.run_context(cancelled));
    status.stages = stages;
    status.breaking_point = breaking_point;
    status.progress = Some(run_progress(observed, valid, &merged, merged.users_peak));
    keep_larger(&mut status.summary, summary);
    status.tasks = tasks;
    status.thresholds = thresholds;
    status.errors = errors;
    status.measurement = Some(measurement);
    let (phase, verdict, reason, message) = match failed {
        Some((reason, message)) => {
            (Phase::Error, Verdict::Inconclusive, reason.as_str(), message.clone())
        }
        None if cancelled => (Phase::Cancelled, verdict, reason, message),
        None => (Phase::Finished, verdict, reason, message),
    };
    set_finished(status, phase, now, reason, &message);
    status.verdict = Some(verdict.into());
    set_condition(status, "Passed", verdict.passed_condition(), reason, &message, now);
    end_silence(status, observed, now);
}

fn set_finished(
    status: &mut LoadTestStatus,
    phase: Phase,
    now: Timestamp,
    reason: &str,
    message: &str,
) {
    status.phase = Some(phase.into());
    status.finish_time = Some(Time(now));
    set_condition(status, "Finished", "True", reason, message, now);
}

fn set_failed(status: &mut LoadTestStatus, reason: Reason, message: &str, now: Timestamp) {
    let advice = reason.advice().map_or_else(String::new, |advice| format!("; {advice}"));
    let message = &format!("{}{advice}", truncate(message, MAX_MESSAGE_BYTES - advice.len()));
    set_finished(status, Phase::Error, now, reason.as_str(), message);
    status.verdict = Some(Verdict::Inconclusive.into());
    let note = if status.start_time.is_some() {
        "the test could not be judged"
    } else {
        set_condition(status, "Started", "False", reason.as_str(), message, now);
        "the test did not run"
    };
    set_condition(status, "Passed", "Unknown", reason.as_str(), note, now);
}

fn set_cancelled_unstarted(status: &mut LoadTestStatus, now: Timestamp) {
    let message = "the test was cancelled before the load started";
    set_finished(status, Phase::Cancelled, now, "Cancelled", message);
    status.verdict = Some(Verdict::Inconclusive.into());
    set_condition(status, "Passed", "Unknown", "Cancelled", message, now);
}

#[cfg(test)]
mod tests;
