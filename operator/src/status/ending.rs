//! The Event about the end of a test. Pure.

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use loadtest_core::resource::{LoadTest, LoadTestStatus, Named, Phase, Verdict};

use super::conditions::{EventDraft, draft_event};

/// How long after the end of a test its Event is published. The API server keeps Events for an hour.
const MAX_AGE: SignedDuration = SignedDuration::from_mins(10);

/// An Event and its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NamedEvent {
    /// Its name.
    pub(crate) name: String,
    /// Its content.
    pub(crate) draft: EventDraft,
}

/// Drafts the Event about the end of a test with this status. Returns `None` for a test that has not ended or that ended
/// long ago.
///
/// Name and content follow from the test and its status. So the next leader drafts the same Event if this process ends
/// before the Event is published, and the API server has it only once.
pub(crate) fn draft_ending(
    test: &LoadTest,
    status: &LoadTestStatus,
    now: Timestamp,
) -> Option<NamedEvent> {
    let phase = status.known_phase().filter(|phase| phase.is_final())?;
    let at = status.finish_time.as_ref()?.0;
    if now.duration_since(at) > MAX_AGE {
        return None;
    }
    let finished = status.condition("Finished")?;
    let refused = status.condition("Accepted").filter(|accepted| accepted.status == "False");
    let draft = match (refused, phase) {
        (Some(accepted), _) => draft_event("Rejected", &accepted.message, true),
        (None, Phase::Error) => draft_event(&finished.reason, &finished.message, true),
        (None, _) => {
            let verdict = status.known_verdict()?;
            let warning = !matches!(verdict, Verdict::Pass | Verdict::NotJudged);
            let note = format!("{}: {}", verdict.name(), finished.message);
            draft_event(phase.name(), note, warning)
        }
    };
    // A rejected test can be edited, so it can end more than once.
    let name = format!("loadtest-{}.{:x}", test.uid()?, at.as_second());
    Some(NamedEvent { name, draft })
}
