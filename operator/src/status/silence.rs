//! The condition that tells which runners do not answer under load. Pure.

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use loadtest_core::{control, resource::LoadTestStatus, text::count_of};

use super::conditions::{EventDraft, draft_event, set_condition};
use crate::observe::{
    start::StartRecord,
    state::{Observed, index_of},
};

/// Type of the condition.
pub(super) const RUNNERS_SILENT: &str = "RunnersSilent";
/// Time without an answer after which a runner counts as silent, in seconds.
const LIMIT_SECONDS: i64 = 20;
/// Maximum number of runners that a message names.
const MAX_NAMES: usize = 5;

/// Sets the condition while runners do not answer, and clears it as soon as all of them do.
///
/// The time of silence ends with the last complete round of scrapes, because an operator that was itself held up has not
/// asked the runners since then.
pub(super) fn set_silence(
    status: &mut LoadTestStatus,
    observed: &Observed,
    now: Timestamp,
) -> Option<EventDraft> {
    let start = observed.known_start()?;
    let asked_at = observed.cache.collection.round_ended_at()?;
    let limit = SignedDuration::from_secs(LIMIT_SECONDS);
    let unfinished = unfinished_runners(observed, &start);
    let silent: Vec<usize> = unfinished
        .iter()
        .copied()
        .filter(|index| observed.silence(&start, *index, asked_at) >= limit)
        .collect();
    let was_silent = is_reported(status);
    if silent.is_empty() {
        // A process that has just begun does not know yet who is silent.
        if was_silent && unfinished.iter().all(|index| observed.has_answered(*index)) {
            clear_silence(status, now);
        }
        return None;
    }
    let note = format!(
        "{} did not answer the operator for {LIMIT_SECONDS} s ({}); their measurements count as soon as they answer again; check network policies on port {} and the nodes of the runners",
        describe_count(&silent, &start),
        list_names(observed, &silent),
        control::PORT,
    );
    set_condition(status, RUNNERS_SILENT, "True", "NoAnswer", &note, now);
    (!was_silent).then(|| draft_event(RUNNERS_SILENT, note, true))
}

/// Sets the condition for the last time, at the end of the test.
pub(super) fn end_silence(status: &mut LoadTestStatus, observed: &Observed, now: Timestamp) {
    let Some(start) = observed.known_start().filter(|_| is_reported(status)) else { return };
    let unfinished = unfinished_runners(observed, &start);
    if unfinished.is_empty() {
        clear_silence(status, now);
        return;
    }
    let note = format!(
        "{} did not answer the operator until the end ({}); their last measurements are missing",
        describe_count(&unfinished, &start),
        list_names(observed, &unfinished),
    );
    set_condition(status, RUNNERS_SILENT, "True", "NoAnswer", &note, now);
}

fn clear_silence(status: &mut LoadTestStatus, now: Timestamp) {
    let note = "no runner is silent any more";
    set_condition(status, RUNNERS_SILENT, "False", "Answering", note, now);
}

fn is_reported(status: &LoadTestStatus) -> bool {
    status.condition(RUNNERS_SILENT).is_some_and(|condition| condition.status == "True")
}

/// Returns the runners that are not lost and have not sent their final metrics.
fn unfinished_runners(observed: &Observed, start: &StartRecord) -> Vec<usize> {
    (0..start.pods.len())
        .filter(|index| !observed.is_final(*index) && !observed.is_lost(start, *index))
        .collect()
}

fn describe_count(runners: &[usize], start: &StartRecord) -> String {
    format!("{} of {}", runners.len(), count_of(start.pods.len() as u64, "runner"))
}

fn list_names(observed: &Observed, runners: &[usize]) -> String {
    let first = runners.iter().take(MAX_NAMES);
    let first: Vec<String> = first.map(|index| observed.runner_name(index_of(*index))).collect();
    let text = first.join(", ");
    match runners.len() - first.len() {
        0 => text,
        more => format!("{text} and {more} more"),
    }
}
