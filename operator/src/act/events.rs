//! Publishes Kubernetes Events. The module writes Events only; [`crate::status`] drafts them.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType};

use crate::{context::Context, error::format_error_chain, status::EventDraft};

/// Publishes an Event about an object. A failure is logged and changes nothing else.
pub(crate) async fn publish_event(context: &Context, about: &ObjectReference, draft: EventDraft) {
    let EventDraft { reason, note, warning } = draft;
    let event = Event {
        type_: if warning { EventType::Warning } else { EventType::Normal },
        action: reason.clone(),
        reason,
        note: Some(note),
        secondary: None,
    };
    if let Err(error) = context.recorder.publish(&event, about).await {
        tracing::warn!(error = %format_error_chain(&error), "failed to publish Event");
    }
}
