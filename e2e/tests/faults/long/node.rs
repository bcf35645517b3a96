//! The node is not ready, or has no image.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, api::ListParams};
use loadtest_e2e::{
    fault::Fault,
    node::{FrozenProcess, find_component},
    test_namespace::{TestNamespace, wait_for},
};
use serde_json::json;

use crate::checks::{check_whole_run, has_requests, short, wait_for_error, watched_spec};

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
async fn image_that_does_not_exist_ends_the_test() -> Result<()> {
    let fault = Fault {
        fault: "image of the runners does not exist",
        expected: "ImagePull with the name of the image, without load",
        seconds: 120,
    };
    fault
        .check("no-image", async |namespace, row| {
            let mut spec = watched_spec(2, "3s");
            spec["runners"] = json!({"image": "registry.invalid/none:1"});
            row.begin();
            namespace.create_test("no-image", spec).await?;
            let message = wait_for_error(namespace, "no-image", 120, "ImagePull").await?;
            ensure!(message.contains("registry.invalid/none:1"), "{message}");
            row.settle(format!("ImagePull: {}", short(&message)));
            Ok(())
        })
        .await
}
