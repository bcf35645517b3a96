//! What must hold after each fault: an Event says how a test ended, and a deleted test leaves nothing.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{
    batch::v1::Job, core::v1::ConfigMap, events::v1::Event, networking::v1::NetworkPolicy,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams},
};
use loadtest_core::{
    resource::{LoadTest, LoadTestStatus, Phase, UID_LABEL},
    result::LoadTestResult,
};

use crate::test_namespace::{TestNamespace, wait_for};

/// Number of characters of a message that an Event must contain. An Event may cut off the rest.
const COMPARED_CHARACTERS: usize = 200;

/// Waits until no pod of a test is left that can make load.
pub async fn wait_until_no_runner(namespace: &TestNamespace, test: &str) -> Result<()> {
    wait_for(60, "no runner pod", async || {
        let runners = namespace.list_runners(test).await?;
        let ended = |phase: Option<&str>| matches!(phase, Some("Succeeded" | "Failed"));
        let all_ended = runners
            .iter()
            .all(|pod| ended(pod.status.as_ref().and_then(|status| status.phase.as_deref())));
        Ok(all_ended.then_some(()))
    })
    .await
}

/// Waits until every object of the tests that match a selector is gone.
pub async fn wait_until_nothing_left(namespace: &TestNamespace, selector: &str) -> Result<()> {
    let selector = ListParams::default().labels(selector);
    let (client, name) = (&namespace.client, &namespace.name);
    let jobs: Api<Job> = Api::namespaced(client.clone(), name);
    let plans: Api<ConfigMap> = Api::namespaced(client.clone(), name);
    let policies: Api<NetworkPolicy> = Api::namespaced(client.clone(), name);
    let results: Api<LoadTestResult> = Api::namespaced(client.clone(), name);
    wait_for(60, "no object of a deleted test", async || {
        let left = [
            ("Jobs", jobs.list(&selector).await?.items.len()),
            ("ConfigMaps", plans.list(&selector).await?.items.len()),
            ("NetworkPolicies", policies.list(&selector).await?.items.len()),
            ("LoadTestResults", results.list(&selector).await?.items.len()),
            ("pods", namespace.pods.list(&selector).await?.items.len()),
        ];
        ensure!(left.iter().all(|(_, count)| *count == 0), "{left:?}");
        Ok(Some(()))
    })
    .await
}

/// Checks that an Event says how each finished test of a namespace ended. Then deletes all tests, and waits until
/// nothing of them is left.
pub async fn check_ends(namespace: &TestNamespace) -> Result<()> {
    let tests = namespace.load_tests.list(&ListParams::default()).await?.items;
    for test in &tests {
        let phase = test.status.as_ref().and_then(LoadTestStatus::known_phase);
        if phase.is_some_and(Phase::is_final) {
            wait_for_final_event(namespace, test, 10).await?;
        }
    }
    let (parameters, all) = (DeleteParams::background(), ListParams::default());
    namespace.load_tests.delete_collection(&parameters, &all).await?;
    wait_until_nothing_left(namespace, UID_LABEL).await
}

/// Waits for the Event with the message of a finished test.
pub async fn wait_for_final_event(
    namespace: &TestNamespace,
    test: &LoadTest,
    seconds: u64,
) -> Result<()> {
    let status = test.status.as_ref().context("no status")?;
    // The condition Finished of a test that was not accepted only names the other condition.
    let refused = status.condition("Accepted").filter(|accepted| accepted.status == "False");
    let told = refused.or_else(|| status.condition("Finished"));
    let message = &told.with_context(|| format!("{}: not finished", test.name_any()))?.message;
    let beginning: String = message.chars().take(COMPARED_CHARACTERS).collect();
    let uid = test.uid().context("no UID")?;
    let events: Api<Event> = Api::namespaced(namespace.client.clone(), &namespace.name);
    wait_for(seconds, &format!("an Event with the message: {message}"), async || {
        let found = events.list(&ListParams::default()).await?.items;
        let tells = |event: &Event| {
            let about = event.regarding.as_ref().and_then(|about| about.uid.as_ref());
            let note = event.note.as_deref().unwrap_or_default();
            about == Some(&uid) && note.contains(&beginning)
        };
        Ok(found.iter().any(tells).then_some(()))
    })
    .await
}
