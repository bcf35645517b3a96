//! Writes the result of a test in a reconciliation, before the status that it belongs to.

use k8s_openapi::jiff::Timestamp;
use kube::{Resource, ResourceExt};
use loadtest_core::resource::{LoadTestStatus, Phase};

use loadtest_children::child_name;

use crate::{
    act::{
        events::publish_event,
        results::{delete_parts, store_result},
    },
    context::Context,
    decide::Decision,
    error::{Error, format_error_chain},
    observe::state::Observed,
    status::set_result_stored,
    stored_result::{
        MAX_TURN_WAIT, WhenBusy, begin_last_write, build, is_due, note_failure, note_write,
        stale_names, when_busy,
    },
};

/// Outcome of a write of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ResultWrite {
    /// The result is stored.
    Stored,
    /// No write was due now, or the write failed as the status says.
    NotStored,
    /// The result waits for those of other tests, and the status waits with it.
    Postponed,
}

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
) -> Result<ResultWrite, Error> {
    if !is_due(observed, decision, next, now) {
        return Ok(ResultWrite::NotStored);
    }
    let mut permit = context.result_writes.try_acquire().ok();
    if permit.is_none() {
        let waiting_since = &mut observed.cache.written_result.waiting_since;
        waiting_since.get_or_insert(now);
        match when_busy(observed, decision, next, now) {
            WhenBusy::Write => {}
            WhenBusy::Wait => {
                let turn = context.result_writes.acquire();
                let turn = tokio::time::timeout(MAX_TURN_WAIT.to_std(), turn).await;
                permit = turn.ok().and_then(Result::ok);
            }
            WhenBusy::Skip => return Ok(ResultWrite::NotStored),
            WhenBusy::Postpone => return Ok(ResultWrite::Postponed),
        }
    }
    let stored = write_now(context, observed, next, now).await;
    drop(permit);
    stored
}

/// Builds and stores the result. The rest is as in [`write_result`].
async fn write_now(
    context: &Context,
    observed: &mut Observed,
    next: &mut LoadTestStatus,
    now: Timestamp,
) -> Result<ResultWrite, Error> {
    // The status in the result says already that the result is stored.
    let before = next.clone();
    let name = child_name(&observed.test);
    set_result_stored(next, Ok(&name), now);
    let Some(result) = build(observed, next) else { return Ok(ResultWrite::NotStored) };
    let requests = result.document.result.total.requests;
    let revision = observed.cache.written_result.revision + 1;
    let is_last = next.known_phase().is_some_and(Phase::is_final);
    // Before the attempt, because a slow API server may end the reconciliation.
    let is_retried = is_last && begin_last_write(&mut observed.cache, now);
    let version = observed.cache.written_result.head_version.clone();
    let is_versioned = version.is_some();
    let error =
        match store_result(context, &observed.test, result, revision, version.as_deref()).await {
            Ok(objects) => {
                let parts = objects.parts;
                note_write(&mut observed.cache, requests, objects, next, now);
                if is_last {
                    let most = observed.cache.written_result.most_parts;
                    let stale = stale_names(&name, revision, parts, most);
                    delete_parts(context, &observed.test, &stale).await;
                }
                return Ok(ResultWrite::Stored);
            }
            Err(error) => error,
        };
    note_failure(&mut observed.cache, next, now);
    *next = before;
    let (namespace, name) = (observed.test.namespace(), observed.test.name_any());
    // Somebody has changed or deleted the object. The next attempt replaces it.
    let is_outdated = is_versioned && error.is_outdated();
    if is_outdated {
        observed.cache.written_result.head_version = None;
    }
    let error = if is_outdated { error.into_api() } else { error.into_transient() };
    let text = match error {
        Ok(error) if is_retried => return Err(error),
        Ok(error) if !is_last => {
            let error = format_error_chain(&error);
            tracing::warn!(namespace, name, error, "the result can't be stored; trying again");
            return Ok(ResultWrite::NotStored);
        }
        Ok(error) => format_error_chain(&error),
        Err(error) => format_error_chain(&error),
    };
    tracing::warn!(namespace, name, error = text, "the result can't be stored");
    if let Some(event) = set_result_stored(next, Err(&text), now) {
        publish_event(context, &observed.test.object_ref(&()), event).await;
    }
    Ok(ResultWrite::NotStored)
}
