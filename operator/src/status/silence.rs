//! The condition that tells which runners do not answer under load. Pure.

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use loadtest_core::{control, resource::LoadTestStatus, text::count_of};

use super::{EventDraft, draft_event, set_condition};
use crate::observe::state::{Observed, index_of};

/// Type of the condition.
const KIND: &str = "RunnersSilent";
/// Time without an answer after which a runner counts as silent, in seconds.
const SILENCE_SECONDS: i64 = 20;
/// Maximum number of runners that a message names.
const MAX_NAMES: usize = 5;

/// Sets the condition while runners do not answer, and clears it as soon as all of them answer again.
pub(super) fn set_silence(
    status: &mut LoadTestStatus,
    observed: &Observed,
    now: Timestamp,
) -> Option<EventDraft> {
    let start = observed.known_start()?;
    let is_silent = |index: &usize| {
        let is_over = observed.is_final(*index) || observed.is_lost(&start, *index);
        !is_over
            && observed.is_silent(&start, *index, SignedDuration::from_secs(SILENCE_SECONDS), now)
    };
    let silent: Vec<usize> = (0..start.pods.len()).filter(is_silent).collect();
    let was_silent = status.condition(KIND).is_some_and(|condition| condition.status == "True");
    if silent.is_empty() {
        if was_silent {
            set_condition(status, KIND, "False", "Answering", "all runners answer again", now);
        }
        return None;
    }
    let names = silent.iter().take(MAX_NAMES);
    let names: Vec<String> = names.map(|index| observed.runner_name(index_of(*index))).collect();
    let more = silent.len() - names.len();
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    let note = format!(
        "{} of {} did not answer the operator for {SILENCE_SECONDS} s ({}{more}); what they measure meanwhile counts when they answer again; check network policies on port {} and the nodes of the runners",
        silent.len(),
        count_of(start.pods.len() as u64, "runner"),
        names.join(", "),
        control::PORT,
    );
    set_condition(status, KIND, "True", "NoAnswer", &note, now);
    (!was_silent).then(|| draft_event(KIND, note, true))
}
