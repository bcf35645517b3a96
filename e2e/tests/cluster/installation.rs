//! What the values of the chart change: the namespaces that the operator watches, and who may reach the runners.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use loadtest_core::resource::{LoadTest, Verdict};
use loadtest_e2e::{
    leftovers::wait_until_nothing_left,
    operator_pods::with_values,
    test_namespace::{Target, TestNamespace, health_spec},
};
use serde_json::{Value, json};

#[tokio::test]
async fn operator_of_one_namespace_runs_tests_behind_a_policy() -> Result<()> {
    TestNamespace::run_alone("namespaced", async |namespace| {
        let target = namespace.deploy_simulator(json!({})).await?;
        let watched = format!("watchNamespaces={{{}}}", namespace.name);
        // The test in another namespace is created while no operator sees all namespaces.
        let others: Api<LoadTest> = Api::namespaced(namespace.client.clone(), "default");
        let values = [watched.as_str(), "networkPolicy.runners=true"];
        with_values(&namespace, &values, async || {
            let test = create_other(&others).await?;
            let result = check_watched(&namespace, &target).await;
            let unseen = others.get(&test.name_any()).await?.status.is_none();
            others.delete(&test.name_any(), &DeleteParams::default()).await?;
            result?;
            ensure!(unseen, "the operator has seen a test of another namespace");
            Ok(())
        })
        .await
    })
    .await
}

async fn create_other(others: &Api<LoadTest>) -> Result<LoadTest> {
    let object = json!({
        "apiVersion": "loadtest.cell0.io/v1alpha1", "kind": "LoadTest",
        "metadata": {"generateName": "not-watched-"},
        "spec": health_spec(1, "5s", &json!([])),
    });
    Ok(others.create(&PostParams::default(), &serde_json::from_value(object)?).await?)
}

/// Runs a test to its verdict, and checks its NetworkPolicy.
async fn check_watched(namespace: &TestNamespace, target: &Target<'_>) -> Result<()> {
    let spec = health_spec(5, "8s", &json!([{"metric": "errorRate", "target": "< 1%"}]));
    let (test, status) = namespace.run_until_judged("namespaced", spec, 60).await?;
    let uid = test.uid().context("no UID")?;
    ensure!(status.known_verdict() == Some(Verdict::Pass), "{status:#?}");
    let received = target.count_received(&uid).await?;
    ensure!(status.summary.is_some_and(|summary| summary.requests == received), "{received}");
    let policies: Api<NetworkPolicy> = Api::namespaced(namespace.client.clone(), &namespace.name);
    let label = format!("loadtest.cell0.io/uid={uid}");
    let found = policies.list(&ListParams::default().labels(&label)).await?.items;
    let [policy] = &found[..] else { anyhow::bail!("{} NetworkPolicies", found.len()) };
    let spec = serde_json::to_value(&policy.spec)?;
    let port = json!([{"port": 9464, "protocol": "TCP"}]);
    ensure!(spec["ingress"][0]["ports"] == port, "{spec:#}");
    let peers = spec["ingress"][0]["from"].as_array().context("no peers")?;
    let name_of =
        |peer: &Value| peer["podSelector"]["matchLabels"]["app.kubernetes.io/name"].clone();
    let is_operator = |peer: &Value| name_of(peer) == "loadtest-operator";
    ensure!(peers.iter().any(is_operator), "{spec:#}");
    namespace.delete_test("namespaced").await?;
    wait_until_nothing_left(namespace, &label).await
}
