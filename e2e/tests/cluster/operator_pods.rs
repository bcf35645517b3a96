//! The pods of the operator that all tests share: which one leads, and what can happen to them.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{apps::v1::Deployment, coordination::v1::Lease, core::v1::Pod};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::json;

use crate::test_namespace::{OPERATOR_NAMESPACE, TestNamespace, is_ready, wait_for};

/// Number of replicas that the chart installs.
const REPLICAS: u32 = 2;

fn selector() -> ListParams {
    ListParams::default().labels("app.kubernetes.io/name=loadtest-operator")
}

pub(crate) fn pods(namespace: &TestNamespace) -> Api<Pod> {
    Api::namespaced(namespace.client.clone(), OPERATOR_NAMESPACE)
}

/// Returns the ready pods of the operator that are not being deleted.
pub(crate) async fn list_ready(namespace: &TestNamespace) -> Result<Vec<Pod>> {
    let found = pods(namespace).list(&selector()).await?.items;
    let is_there = |pod: &Pod| is_ready(pod) && pod.metadata.deletion_timestamp.is_none();
    Ok(found.into_iter().filter(is_there).collect())
}

pub(crate) async fn read_lease(namespace: &TestNamespace) -> Result<Lease> {
    let leases: Api<Lease> = Api::namespaced(namespace.client.clone(), OPERATOR_NAMESPACE);
    Ok(leases.get("loadtest-operator").await?)
}

/// Returns the number of times that the Lease was taken.
pub(crate) fn transitions(lease: &Lease) -> i32 {
    lease.spec.as_ref().and_then(|spec| spec.lease_transitions).unwrap_or_default()
}

/// Waits until a ready pod holds the Lease, and returns it.
pub(crate) async fn wait_for_leader(namespace: &TestNamespace) -> Result<Pod> {
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
pub(crate) async fn replace_operator(namespace: &TestNamespace) -> Result<()> {
    let operators = pods(namespace).list(&selector()).await?.items;
    ensure!(!operators.is_empty(), "no operator in {OPERATOR_NAMESPACE}");
    for pod in operators {
        delete_now(namespace, &pod).await?;
    }
    Ok(())
}

/// Kills a pod of the operator, which has no time to give the Lease up: it is frozen until it is gone.
pub(crate) async fn kill_pod(namespace: &TestNamespace, pod: &Pod) -> Result<()> {
    let frozen = FrozenProcess::freeze(pod)?;
    delete_now(namespace, pod).await?;
    wait_for(60, "the end of a killed operator", async || Ok(frozen.has_ended().then_some(())))
        .await
}

async fn delete_now(namespace: &TestNamespace, pod: &Pod) -> Result<()> {
    let parameters = DeleteParams::default().grace_period(0);
    pods(namespace).delete(&pod.name_any(), &parameters).await?;
    Ok(())
}

/// Does `work` while no operator runs.
pub(crate) async fn without_operator<T>(
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
pub(crate) fn kill_process(pod: &Pod) -> Result<()> {
    send_signal(find_process(pod)?, "KILL")
}

/// A process that is frozen with `SIGSTOP` until this value is dropped.
#[derive(Debug)]
pub(crate) struct FrozenProcess(u32);

impl FrozenProcess {
    /// Freezes the operator in a pod. This test must run on the node of the pod.
    pub(crate) fn freeze(pod: &Pod) -> Result<Self> {
        let id = find_process(pod)?;
        send_signal(id, "STOP")?;
        Ok(Self(id))
    }

    fn has_ended(&self) -> bool {
        // A process that has ended has no command line.
        fs::read(format!("/proc/{}/cmdline", self.0)).is_ok_and(|line| line.is_empty())
            || !Path::new(&format!("/proc/{}", self.0)).exists()
    }
}

impl Drop for FrozenProcess {
    fn drop(&mut self) {
        // The process may be gone already.
        let _ = send_signal(self.0, "CONT");
    }
}

fn send_signal(id: u32, signal: &str) -> Result<()> {
    let status = Command::new("kill").args([&format!("-{signal}"), &id.to_string()]).status()?;
    ensure!(status.success(), "kill -{signal} {id}: {status}");
    Ok(())
}

/// Returns the process of the operator whose cgroup is that of a pod.
fn find_process(pod: &Pod) -> Result<u32> {
    let uid = pod.uid().context("no UID")?;
    let processes = fs::read_dir("/proc")?.flatten();
    let mut ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let id = ids.find(|id| {
        let read =
            |file: &str| fs::read_to_string(format!("/proc/{id}/{file}")).unwrap_or_default();
        // systemd writes the UID with underscores.
        let groups = read("cgroup").replace('_', "-");
        groups.contains(&uid) && read("comm").starts_with("loadtest-op")
    });
    id.with_context(|| format!("no process of pod {uid} on this machine"))
}
