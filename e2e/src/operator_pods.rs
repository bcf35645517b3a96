//! The pods of the operator that all tests share: which one leads, and what can happen to them.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{
    apps::v1::Deployment,
    coordination::v1::Lease,
    core::v1::{ContainerStatus, Pod},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::json;
use tokio::process::Command;

use crate::{
    node::{FrozenProcess, find_process, kill},
    test_namespace::{OPERATOR_NAMESPACE, TestNamespace, is_ready, wait_for},
};

/// The program of the operator.
const PROGRAM: &str = "loadtest-operator";
/// Number of replicas that the chart installs.
const REPLICAS: u32 = 2;

fn selector() -> ListParams {
    ListParams::default().labels("app.kubernetes.io/name=loadtest-operator")
}

/// The pods in the namespace of the operator.
pub fn pods(namespace: &TestNamespace) -> Api<Pod> {
    Api::namespaced(namespace.client.clone(), OPERATOR_NAMESPACE)
}

/// Returns the ready pods of the operator that are not being deleted.
pub async fn list_ready(namespace: &TestNamespace) -> Result<Vec<Pod>> {
    let found = pods(namespace).list(&selector()).await?.items;
    let is_there = |pod: &Pod| is_ready(pod) && pod.metadata.deletion_timestamp.is_none();
    Ok(found.into_iter().filter(is_there).collect())
}

/// The containers of a pod.
pub fn containers(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    statuses.into_iter().flatten()
}

/// Returns how often the containers of a pod were restarted.
pub fn restarts_of(pod: &Pod) -> i32 {
    containers(pod).map(|status| status.restart_count).sum()
}

/// Reads the Lease of the operator.
pub async fn read_lease(namespace: &TestNamespace) -> Result<Lease> {
    let leases: Api<Lease> = Api::namespaced(namespace.client.clone(), OPERATOR_NAMESPACE);
    Ok(leases.get("loadtest-operator").await?)
}

/// Returns the number of times that the Lease was taken.
pub fn transitions(lease: &Lease) -> i32 {
    lease.spec.as_ref().and_then(|spec| spec.lease_transitions).unwrap_or_default()
}

/// Gives the Lease to a holder that does not exist.
pub async fn take_lease_away(namespace: &TestNamespace) -> Result<()> {
    let leases: Api<Lease> = Api::namespaced(namespace.client.clone(), OPERATOR_NAMESPACE);
    let taken = transitions(&read_lease(namespace).await?) + 1;
    let spec = json!({"holderIdentity": "nobody_0", "leaseTransitions": taken});
    let patch = Patch::Merge(json!({"spec": spec}));
    leases.patch("loadtest-operator", &PatchParams::default(), &patch).await?;
    Ok(())
}

/// Waits until a ready pod holds the Lease, and returns it.
pub async fn wait_for_leader(namespace: &TestNamespace) -> Result<Pod> {
    wait_for(90, "a ready pod that leads", async || {
        let lease = read_lease(namespace).await?;
        let holder = lease.spec.and_then(|spec| spec.holder_identity).unwrap_or_default();
        let found = list_ready(namespace).await?;
        let leads = |pod: &Pod| holder.ends_with(&format!("_{}", pod.uid().unwrap_or_default()));
        Ok(found.into_iter().find(leads))
    })
    .await
}

/// Deletes all pods of the operator at once. Each has a moment to give the Lease up.
pub async fn replace_operator(namespace: &TestNamespace) -> Result<()> {
    let operators = pods(namespace).list(&selector()).await?.items;
    ensure!(!operators.is_empty(), "no operator in {OPERATOR_NAMESPACE}");
    for pod in operators {
        delete_now(namespace, &pod).await?;
    }
    Ok(())
}

/// Kills a pod of the operator, which has no time to give the Lease up: it is frozen until it is gone.
pub async fn kill_pod(namespace: &TestNamespace, pod: &Pod) -> Result<()> {
    let frozen = freeze(pod)?;
    delete_frozen(namespace, pod, frozen).await
}

/// Deletes a pod of the operator that is frozen, and waits until its process is gone.
pub async fn delete_frozen(
    namespace: &TestNamespace,
    pod: &Pod,
    frozen: FrozenProcess,
) -> Result<()> {
    delete_now(namespace, pod).await?;
    wait_for(60, "the end of a killed operator", async || Ok(frozen.has_ended().then_some(())))
        .await
}

/// Freezes the operator in a pod.
pub fn freeze(pod: &Pod) -> Result<FrozenProcess> {
    FrozenProcess::freeze(find_process(pod, PROGRAM)?)
}

async fn delete_now(namespace: &TestNamespace, pod: &Pod) -> Result<()> {
    let parameters = DeleteParams::default().grace_period(0);
    pods(namespace).delete(&pod.name_any(), &parameters).await?;
    Ok(())
}

/// Folder of the chart of this checkout.
pub const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/loadtest-operator");

/// Runs `helm upgrade` with the chart of this checkout and its default values, but for these arguments.
pub async fn upgrade(arguments: &[&str]) -> Result<()> {
    upgrade_to(Path::new(CHART), arguments).await
}

/// Runs `helm upgrade` with a chart and its default values, but for these arguments.
pub async fn upgrade_to(chart: &Path, arguments: &[&str]) -> Result<()> {
    let chart = chart.to_str().context("the path of the chart is no text")?;
    let upgrade = ["upgrade", "loadtest-operator", chart, "--reset-values"];
    helm(&[&upgrade[..], arguments, &["--wait", "--timeout", "90s"]].concat()).await.map(drop)
}

/// Does `work` with these values of the chart, in addition to the values of the installed release.
pub async fn with_values<T>(
    namespace: &TestNamespace,
    values: &[&str],
    work: impl AsyncFnOnce() -> Result<T>,
) -> Result<T> {
    let status = helm(&["status", "loadtest-operator", "-o", "json"]).await?;
    let status: serde_json::Value = serde_json::from_str(&status)?;
    let revision = status["version"].as_u64().context("helm status has no version")?.to_string();
    let set = values.iter().flat_map(|value| ["--set", value]);
    let upgrade = ["upgrade", "loadtest-operator", CHART, "--reuse-values"].into_iter().chain(set);
    let upgrade: Vec<&str> = upgrade.collect();
    let done = match replace_release(namespace, &upgrade).await {
        // The future of a test is large.
        Ok(()) => Box::pin(work()).await,
        Err(error) => Err(error),
    };
    // The other tests need the operator as it was, also if this one fails.
    replace_release(namespace, &["rollback", "loadtest-operator", &revision]).await?;
    done
}

/// Runs helm while no operator runs, because the API server would refuse requests of one that has lost its rights.
async fn replace_release(namespace: &TestNamespace, arguments: &[&str]) -> Result<()> {
    scale_operator(namespace, 0).await?;
    // The number of replicas was set without helm.
    let options = ["--force-conflicts", "--wait", "--timeout", "90s"];
    helm(&[arguments, &options].concat()).await?;
    wait_for_leader(namespace).await.map(drop)
}

/// Runs helm in the namespace of the operator. Returns its output.
pub async fn helm(arguments: &[&str]) -> Result<String> {
    let mut helm = Command::new("helm");
    helm.args(arguments).args(["--namespace", OPERATOR_NAMESPACE]);
    let output = helm.output().await.context("helm can't be run")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "helm {}: {error}", arguments.join(" "));
    Ok(String::from_utf8(output.stdout)?)
}

/// Does `work` while no operator runs.
pub async fn without_operator<T>(
    namespace: &TestNamespace,
    work: impl AsyncFnOnce() -> Result<T>,
) -> Result<T> {
    scale_operator(namespace, 0).await?;
    let done = work().await;
    // The other tests need the operator, also if this one fails.
    scale_operator(namespace, REPLICAS).await?;
    done
}

/// Sets the number of replicas and waits until no other pod is left.
async fn scale_operator(namespace: &TestNamespace, replicas: u32) -> Result<()> {
    let deployments: Api<Deployment> =
        Api::namespaced(namespace.client.clone(), OPERATOR_NAMESPACE);
    for deployment in deployments.list(&selector()).await?.items {
        let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        deployments.patch_scale(&deployment.name_any(), &PatchParams::default(), &patch).await?;
    }
    wait_for(60, "the number of operators", async || {
        let found = pods(namespace).list(&selector()).await?.items.len();
        Ok((found == replicas as usize).then_some(()))
    })
    .await
}

/// Kills the process of the operator in a pod. The kubelet starts another one in the same pod. This test must
/// run on the node of the pod.
pub fn kill_process(pod: &Pod) -> Result<()> {
    kill(find_process(pod, PROGRAM)?)
}
