//! Writes the result of a test in a reconciliation, before the status that it belongs to.

use k8s_openapi::jiff::Timestamp;
use kube::{Resource, ResourceExt};
use loadtest_core::resource::{LoadTestStatus, Phase};

use crate::{
    act::{events::publish_event, results::store_result},
    children::child_name,
    context::Context,
    decide::Decision,
    error::{Error, format_error_chain},
    observe::state::Observed,
    status::set_result_stored,
    stored_result::{build, is_due, is_retried, note_attempt},
};

/// Writes the result if it is due, and says in the status whether it is stored.
///
/// # Errors
/// Fails if the last result of a test can't be written now and may be later: the test ends only after
/// that. Everything else that goes wrong is in the status and in an Event, and the test goes on.
pub(super) async fn write_result(
    context: &Context,
    observed: &mut Observed,
    decision: &Decision,
    next: &mut LoadTestStatus,
    now: Timestamp,
) -> Result<(), Error> {
    if !is_due(observed, decision, next, now) {
        return Ok(());
    }
    // The status in the result says that the result is stored: who reads it, has it.
    let before = next.clone();
    let name = child_name(&observed.test);
    set_result_stored(next, Ok(&name), now);
    let Some(stored) = build(observed, next) else { return Ok(()) };
    let requests = stored.result.total.requests;
    note_attempt(&mut observed.cache, requests, next, now);
    let revision = observed.cache.written_result.revision;
    let is_last = next.known_phase().is_some_and(Phase::is_final);
    let Err(error) = store_result(context, &observed.test, stored, revision, is_last).await else {
        return Ok(());
    };
    *next = before;
    let (namespace, name) = (observed.test.namespace(), observed.test.name_any());
    let text = match error.into_transient() {
        Ok(error) if is_last && is_retried(&mut observed.cache, now) => return Err(error),
        Ok(error) if !is_last => {
            let error = format_error_chain(&error);
            tracing::warn!(namespace, name, error, "the result can't be stored; trying again");
            return Ok(());
        }
        Ok(error) => format_error_chain(&error),
        Err(error) => format_error_chain(&error),
    };
    tracing::warn!(namespace, name, error = text, "the result can't be stored");
    if let Some(event) = set_result_stored(next, Err(&text), now) {
        publish_event(context, &observed.test.object_ref(&()), event).await;
    }
    Ok(())
}
