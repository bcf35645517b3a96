//! Conditions of a status, and Events about it. Pure.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use loadtest_core::{resource::LoadTestStatus, text::truncate};

/// Maximum length of a message in conditions and Events. The API accepts 1,024 bytes in the note of
/// an Event.
pub(super) const MAX_MESSAGE_BYTES: usize = 1000;

/// An Event about a test that is not published yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EventDraft {
    /// Reason of the Event in one word, for programs.
    pub(crate) reason: String,
    /// Message for people.
    pub(crate) note: String,
    /// True if the type of the Event is `Warning`, false if it is `Normal`.
    pub(crate) warning: bool,
}

/// Creates an Event, with a note of at most [`MAX_MESSAGE_BYTES`].
pub(super) fn draft_event(reason: &str, note: impl Into<String>, warning: bool) -> EventDraft {
    EventDraft { reason: reason.into(), note: truncate(&note.into(), MAX_MESSAGE_BYTES), warning }
}

/// Sets a condition. Its transition time changes only if its status changes.
pub(super) fn set_condition(
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
        message: truncate(message, MAX_MESSAGE_BYTES),
        last_transition_time: since,
        observed_generation: status.observed_generation,
    };
    match status.conditions.iter_mut().find(|c| c.type_ == kind) {
        Some(condition) => *condition = next,
        None => status.conditions.push(next),
    }
}
