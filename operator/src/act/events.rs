//! Publishes Kubernetes Events. The module writes Events only; [`crate::status`] drafts them.

use std::hash::{DefaultHasher, Hash, Hasher};

use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Resource, ResourceExt,
    api::{ObjectMeta, PostParams},
    runtime::events::Reporter,
};
use loadtest_core::resource::{LoadTest, LoadTestStatus};

use crate::{
    clock::now,
    context::{Context, is_transient},
    error::{Error, format_error_chain},
    status::{EventDraft, NamedEvent, draft_ending},
};

/// Time within which the same Event about an object is published once, in seconds.
const REPEAT_SECONDS: i64 = 600;

/// Publishes an Event about an object. A failure is logged and changes nothing else.
pub(crate) async fn publish_event(context: &Context, about: &ObjectReference, draft: EventDraft) {
    let now = now();
    let name = event_name(about, &draft, now);
    if let Err(error) = create_event(context, about, NamedEvent { name, draft }, now).await {
        tracing::warn!(error = %format_error_chain(&error), "failed to publish Event");
    }
}

/// Publishes the Event about the end of a test with this status, if it has ended and the API server has no such Event.
///
/// # Errors
/// Fails if the API server may accept the Event later. An Event that it will never accept is logged and given up.
pub(crate) async fn publish_ending(
    context: &Context,
    test: &LoadTest,
    status: &LoadTestStatus,
    now: Timestamp,
) -> Result<(), Error> {
    let Some(ending) = draft_ending(test, status, now) else { return Ok(()) };
    let run_uid = test.uid().unwrap_or_default();
    if context.is_ending_settled(&run_uid, &ending.name) {
        return Ok(());
    }
    let name = ending.name.clone();
    match create_event(context, &test.object_ref(&()), ending, now).await {
        Ok(()) => {}
        Err(error) if is_transient(&error) => {
            return Err(Error::api("publish the Event about the end of", &test.name_any(), error));
        }
        Err(error) => {
            tracing::warn!(error = %format_error_chain(&error), "failed to publish Event");
        }
    }
    context.mark_ending_settled(run_uid, name);
    Ok(())
}

/// Returns the name of an Event about an object. It is the same for the same Event within some minutes, so that the API
/// server has it only once.
fn event_name(about: &ObjectReference, draft: &EventDraft, now: Timestamp) -> String {
    let mut hasher = DefaultHasher::new();
    (&draft.reason, &draft.note, now.as_second() / REPEAT_SECONDS).hash(&mut hasher);
    let uid = about.uid.as_deref().unwrap_or_default();
    format!("loadtest-{uid}.{:x}", hasher.finish())
}

/// Creates an Event, unless the API server has one of this name.
async fn create_event(
    context: &Context,
    about: &ObjectReference,
    event: NamedEvent,
    now: Timestamp,
) -> kube::Result<()> {
    let NamedEvent { name, draft: EventDraft { reason, note, warning } } = event;
    let Reporter { controller, instance } = context.reporter.clone();
    let namespace = about.namespace.clone().unwrap_or_default();
    let events: Api<Event> = Api::namespaced(context.client.clone(), &namespace);
    let event = Event {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(namespace),
            ..ObjectMeta::default()
        },
        action: Some(reason.clone()),
        reason: Some(reason),
        note: Some(note),
        type_: Some(if warning { "Warning" } else { "Normal" }.to_owned()),
        event_time: Some(MicroTime(now)),
        regarding: Some(about.clone()),
        reporting_instance: Some(instance.unwrap_or_else(|| controller.clone())),
        reporting_controller: Some(controller),
        ..Event::default()
    };
    match events.create(&PostParams::default(), &event).await {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        created => created.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::noon;

    #[test]
    fn events_of_one_reason_with_other_words_are_other_events() {
        let about = ObjectReference { uid: Some("0a1b".into()), ..ObjectReference::default() };
        let name = |note: &str, seconds: i64| {
            let draft =
                EventDraft { reason: "RunnersLost".into(), note: note.into(), warning: true };
            let later = std::time::Duration::from_secs(seconds.unsigned_abs());
            event_name(&about, &draft, noon() + later)
        };
        let first = name("lost 1 runner, the test goes on", 0);
        assert_eq!(first, name("lost 1 runner, the test goes on", 5));
        assert_ne!(first, name("lost 2 runners, stopping the test", 5));
        assert_ne!(first, name("lost 1 runner, the test goes on", 700));
        assert!(first.starts_with("loadtest-0a1b."), "{first}");
    }
}
