//! The node is not ready, or has no DNS.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, ResourceExt, api::ListParams};
use loadtest_core::resource::Verdict;
use loadtest_e2e::{
    fault::Fault,
    node::{FrozenProcess, find_component},
    test_namespace::{TestNamespace, wait_for},
};
use serde_json::json;

use crate::checks::{check_whole_run, has_requests, short, watched_spec};

async fn is_node_ready(namespace: &TestNamespace) -> Result<bool> {
    let nodes: Api<Node> = Api::all(namespace.client.clone());
    let node = nodes.list(&ListParams::default()).await?.items.pop().context("no node")?;
    let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
    Ok(conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

#[tokio::test]
async fn node_that_is_not_ready_leaves_no_gap() -> Result<()> {
    let fault = Fault {
        fault: "node not ready for a minute under load (kubelet frozen)",
        expected: "the run is whole",
        seconds: 180,
    };
    fault
        .check_alone("not-ready", async |namespace, row| {
            let target = namespace.deploy_simulator(json!({"health": {"latency": "20ms"}})).await?;
            let test = namespace.create_test("not-ready", watched_spec(5, "100s")).await?;
            namespace.wait_for_status("not-ready", 60, has_requests).await?;
            row.begin();
            let frozen = FrozenProcess::freeze(find_component("kubelet")?)?;
            wait_for(90, "a node that is not ready", async || {
                Ok((!is_node_ready(namespace).await?).then_some(()))
            })
            .await?;
            tokio::time::sleep(Duration::from_secs(10)).await;
            drop(frozen);
            wait_for(60, "a ready node", async || {
                Ok(is_node_ready(namespace).await?.then_some(()))
            })
            .await?;
            row.settle(check_whole_run(namespace, &target, &test, 150).await?);
            Ok(())
        })
        .await
}

#[tokio::test]
async fn name_service_away_is_reported_and_ends() -> Result<()> {
    let fault = Fault {
        fault: "DNS of the cluster frozen for 15 s under load",
        expected: "Fail with errors of the kind dns; every request is counted",
        seconds: 75,
    };
    fault
        .check_alone("dns", async |namespace, row| {
            let target = namespace.deploy_simulator(json!({"health": {"latency": "20ms"}})).await?;
            let mut spec = watched_spec(5, "45s");
            spec["target"]["connections"] = "PerRequest".into();
            let test = namespace.create_test("dns", spec).await?;
            namespace.wait_for_status("dns", 60, has_requests).await?;
            row.begin();
            // The runner uses a resolved name for 30 s.
            tokio::time::sleep(Duration::from_secs(20)).await;
            let frozen = FrozenProcess::freeze(find_component("coredns")?)?;
            tokio::time::sleep(Duration::from_secs(15)).await;
            drop(frozen);
            let status = namespace.wait_until_finished("dns", 60).await?;
            ensure!(status.known_verdict() == Some(Verdict::Fail), "{status:#?}");
            let error = status.errors.iter().find(|error| error.kind == "dns");
            let error = error.with_context(|| format!("no error dns: {:?}", status.errors))?;
            let example = error.example.clone().unwrap_or_default();
            row.settle(format!("Fail, {} × dns: {}", error.count, short(&example)));
            // The other requests reached the target.
            let received = target.count_received(&test.uid().context("no UID")?).await?;
            let summary = status.summary.context("no summary")?;
            ensure!(
                summary.requests - error.count == received,
                "{received} of {summary:?} received, {} without an address",
                error.count
            );
            Ok(())
        })
        .await
}
