//! Memory and CPU time of the operator.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Pod};
use kube::{Api, Client};
use loadtest_e2e::{node::find_process, test_namespace::OPERATOR_NAMESPACE};

/// Ticks of the CPU time in `/proc` in a second: the same on every Linux machine.
const TICKS: f64 = 100.0;

/// What the leader used during a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// The largest resident memory, in MiB.
    pub(crate) memory: f64,
    /// CPU time as a share of a core.
    pub(crate) cores: f64,
}

/// Returns the process of the operator that leads.
pub(crate) async fn find_leader(client: &Client) -> Result<u32> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), OPERATOR_NAMESPACE);
    let lease = leases.get("loadtest-operator").await?;
    let holder = lease.spec.and_then(|spec| spec.holder_identity).context("nobody leads")?;
    let (name, _) = holder.rsplit_once('_').context("the Lease has no pod")?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), OPERATOR_NAMESPACE);
    find_process(&pods.get(name).await?, "loadtest-operator")
}

/// Watches a process for a time.
pub(crate) async fn watch(process: u32, time: Duration) -> Result<Usage> {
    let (began, before) = (Instant::now(), cpu_seconds(process)?);
    let mut memory: f64 = 0.0;
    while began.elapsed() < time {
        memory = memory.max(resident_memory(process)?);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let cores = (cpu_seconds(process)? - before) / began.elapsed().as_secs_f64();
    Ok(Usage { memory, cores })
}

fn resident_memory(process: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()).context("no VmRSS")?;
    Ok(kibibytes.parse::<f64>()? / 1024.0)
}

fn cpu_seconds(process: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name of the program, which may have spaces, is in brackets.
    let (_, fields) = stat.rsplit_once(')').context("no name")?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut ticks = || fields.next().context("no CPU time")?.parse::<f64>().context("CPU time");
    Ok((ticks()? + ticks()?) / TICKS)
}
