//! Why a Job can't create its pods: the Job controller says it only in Events.

use k8s_openapi::{
    api::events::v1::Event,
    jiff::{SignedDuration, Timestamp},
};
use kube::{Api, ResourceExt, api::ListParams};

use super::state::{Observed, RefusedPods};
use crate::{context::Context, error::format_error_chain};

/// Minimum age of a Job before the operator reads why pods are missing.
const MIN_JOB_AGE: SignedDuration = SignedDuration::from_secs(3);
/// Minimum time between two reads of the Events.
const READ_INTERVAL: SignedDuration = SignedDuration::from_secs(5);

/// Reads why the Job of a starting test can't create its pods, if some are missing. A failure to read it is
/// logged: the test starts or fails all the same.
pub(super) async fn read_refused_pods(context: &Context, observed: &mut Observed, now: Timestamp) {
    let wanted = observed.test.status.as_ref().and_then(|status| status.plan.as_ref());
    let wanted = wanted.map_or(0, |plan| plan.runners) as usize;
    let Some(job) = observed.job.as_ref().filter(|_| observed.runners.len() < wanted) else {
        observed.cache.refused_pods = None;
        return;
    };
    let age = job.creation_timestamp().map_or(SignedDuration::ZERO, |at| now.duration_since(at.0));
    let last = observed.cache.refused_pods_read_at;
    if age < MIN_JOB_AGE || last.is_some_and(|at| now.duration_since(at) < READ_INTERVAL) {
        return;
    }
    let namespace = observed.test.namespace().unwrap_or_default();
    let events: Api<Event> = Api::namespaced(context.client.clone(), &namespace);
    let uid = job.uid().unwrap_or_default();
    let selector = format!("regarding.uid={uid},reason=FailedCreate");
    observed.cache.refused_pods_read_at = Some(now);
    match events.list(&ListParams::default().fields(&selector)).await {
        Ok(found) => observed.cache.refused_pods = latest_refusal(&found.items),
        Err(error) => {
            let (name, error) = (observed.test.name_any(), format_error_chain(&error));
            tracing::debug!(namespace, name, error, "Events of the Job can't be read");
        }
    }
}

/// Returns what the latest of these Events says.
fn latest_refusal(events: &[Event]) -> Option<RefusedPods> {
    let time_of = |event: &&Event| {
        let series = event.series.as_ref().map(|series| series.last_observed_time.0);
        let last = event.deprecated_last_timestamp.as_ref().map(|time| time.0);
        series.or(last).or(event.event_time.as_ref().map(|time| time.0))
    };
    let latest = events.iter().max_by_key(time_of)?;
    let note = latest.note.as_deref()?;
    let message =
        note.split_once("Error creating: ").map_or(note, |(_, message)| message).to_owned();
    Some(RefusedPods { message })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    #[test]
    fn the_latest_event_counts() {
        let event = |second: i64, note: &str| Event {
            deprecated_last_timestamp: Some(Time(Timestamp::from_second(second).unwrap())),
            note: Some(note.into()),
            ..Event::default()
        };
        let quota = "Error creating: pods \"burst-0\" is forbidden: exceeded quota: small";
        let events = [event(1, "Error creating: denied"), event(3, quota), event(2, "old")];
        let found = latest_refusal(&events).unwrap();
        assert!(found.is_quota() && found.message.starts_with("pods "), "{found:?}");
        assert!(latest_refusal(&[]).is_none());
    }
}
