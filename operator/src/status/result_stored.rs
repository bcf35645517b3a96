//! The condition that says whether the result of a test is stored.

use k8s_openapi::jiff::Timestamp;
use loadtest_core::resource::LoadTestStatus;

use super::conditions::{EventDraft, draft_event, set_condition};

/// Says whether the result is stored: in the object of this name, or why it can't be. Returns an Event
/// about a failure that is news.
pub(crate) fn set_result_stored(
    status: &mut LoadTestStatus,
    stored: Result<&str, &str>,
    now: Timestamp,
) -> Option<EventDraft> {
    const KIND: &str = "ResultStored";
    match stored {
        Ok(name) => {
            let message = format!("LoadTestResult {name} holds the result");
            set_condition(status, KIND, "True", "Stored", &message, now);
            None
        }
        Err(error) => {
            const REASON: &str = "ResultNotStored";
            let is_reported = status.condition(KIND).is_some_and(|c| c.reason == REASON);
            let message = format!("no reports can be made of this test: {error}");
            set_condition(status, KIND, "False", REASON, &message, now);
            (!is_reported).then(|| draft_event(REASON, message, true))
        }
    }
}
