//! The node: the processes of its pods, their memory, and the traffic between them. The tests must run on the
//! node, as root.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::test_namespace::wait_for;

/// Returns the process of a pod whose name begins with `program`.
pub fn find_process(pod: &Pod, program: &str) -> Result<u32> {
    let uid = pod.uid().context("no UID")?;
    find(|id| {
        // systemd writes the UID with underscores.
        let groups = read_process(id, "cgroup").replace('_', "-");
        groups.contains(&uid) && is_program(id, program)
    })
    .with_context(|| format!("no process {program} of pod {uid} on this machine"))
}

/// Returns the process of a part of the cluster, such as `kube-apiserver`. The parts run in the network
/// namespace of the node, as the tests do.
pub fn find_component(program: &str) -> Result<u32> {
    let network = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).ok();
    let own = network("self").context("this process has no network namespace")?;
    find(|id| is_program(id, program) && network(&id.to_string()).as_ref() == Some(&own))
        .with_context(|| format!("no process {program} of this cluster"))
}

fn find(is_wanted: impl Fn(u32) -> bool) -> Option<u32> {
    let entries = fs::read_dir("/proc").ok()?.flatten();
    let mut ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.find(|id| is_wanted(*id))
}

fn read_process(id: u32, file: &str) -> String {
    fs::read_to_string(format!("/proc/{id}/{file}")).unwrap_or_default()
}

/// The kernel keeps the first 15 letters of the name of a program.
fn is_program(id: u32, program: &str) -> bool {
    let program: String = program.chars().take(15).collect();
    read_process(id, "comm").trim_end() == program
}

/// Kills a process.
pub fn kill(id: u32) -> Result<()> {
    send_signal(id, "KILL")
}

fn send_signal(id: u32, signal: &str) -> Result<()> {
    let status = Command::new("kill").args([&format!("-{signal}"), &id.to_string()]).status()?;
    ensure!(status.success(), "kill -{signal} {id}: {status}");
    Ok(())
}

/// A process that is frozen with `SIGSTOP` until this value is dropped.
#[derive(Debug)]
pub struct FrozenProcess(u32);

impl FrozenProcess {
    /// Freezes a process.
    pub fn freeze(id: u32) -> Result<Self> {
        send_signal(id, "STOP")?;
        Ok(Self(id))
    }

    /// Returns true if the process was killed.
    pub fn has_ended(&self) -> bool {
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

/// Kills the API server of the testbed, does `work`, and starts it again.
pub async fn without_api_server<T>(work: impl AsyncFnOnce() -> Result<T>) -> Result<T> {
    let kubeconfig = std::env::var_os("KUBECONFIG").context("no KUBECONFIG")?;
    // While this file is there, the testbed does not start the API server again.
    let mark = Path::new(&kubeconfig).with_file_name("api-server-away");
    fs::write(&mark, "").with_context(|| format!("{} can't be written", mark.display()))?;
    let done = match find_component("kube-apiserver").and_then(kill) {
        Ok(()) => work().await,
        Err(error) => Err(error),
    };
    fs::remove_file(&mark)?;
    wait_for(60, "the API server", async || {
        let get = ["get", "--raw", "/readyz", "--request-timeout=5s"];
        let status = Command::new("kubectl").args(get).output()?.status;
        Ok(status.success().then_some(()))
    })
    .await?;
    done
}

/// Lets the kernel kill a process because its container has no memory left.
pub async fn exhaust_memory(id: u32) -> Result<()> {
    /// What the container may take, beyond what it has.
    const ROOM: u64 = 4 << 20;

    let (folder, [used, limit]) = memory_group(id)?;
    let used = fs::read_to_string(format!("{folder}/{used}"))?;
    let limit = format!("{folder}/{limit}");
    fs::write(&limit, (used.trim().parse::<u64>()? + ROOM).to_string())
        .with_context(|| format!("{limit} can't be written"))?;
    // The kernel kills this process rather than the one that takes the memory.
    fs::write(format!("/proc/{id}/oom_score_adj"), "1000")?;
    // `tail` keeps everything until the end of the first line, which never comes.
    let script = format!("echo $$ > {folder}/cgroup.procs && exec tail /dev/zero");
    let mut eater =
        tokio::process::Command::new("sh").args(["-c", &script]).kill_on_drop(true).spawn()?;
    tokio::time::timeout(Duration::from_secs(20), eater.wait()).await.ok();
    let process = format!("/proc/{id}");
    wait_for(10, "the end of a process without memory", async || {
        Ok((!Path::new(&process).exists()).then_some(()))
    })
    .await
}

/// Returns the folder of the cgroup that limits the memory of a process, and its files for usage and limit.
fn memory_group(id: u32) -> Result<(String, [&'static str; 2])> {
    let groups = read_process(id, "cgroup");
    let in_version_1 = groups.lines().find_map(|line| line.split_once(":memory:"));
    if let Some((_, path)) = in_version_1 {
        let files = ["memory.usage_in_bytes", "memory.limit_in_bytes"];
        return Ok((format!("/sys/fs/cgroup/memory{path}"), files));
    }
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"));
    let path = path.with_context(|| format!("process {id} has no cgroup"))?;
    Ok((format!("/sys/fs/cgroup{path}"), ["memory.current", "memory.max"]))
}

/// A rule of iptables, which is removed when this value is dropped.
#[derive(Debug)]
pub struct NetworkRule(Vec<String>);

impl NetworkRule {
    /// Drops the packets of TCP from one address to another, as a network policy does on a cluster that
    /// enforces them.
    pub fn drop_packets(from: &str, to: &str) -> Result<Self> {
        Self::insert(&["FORWARD"], &["-s", from, "-d", to, "-p", "tcp", "-j", "DROP"])
    }

    /// Leads new connections of pods to the API server to a port of this machine.
    pub fn redirect_api_server(port: u16) -> Result<Self> {
        let service = service_address()?;
        let port = port.to_string();
        let rule =
            ["-d", &service, "-p", "tcp", "--dport", "443", "-j", "REDIRECT", "--to-ports", &port];
        Self::insert(&["PREROUTING", "-t", "nat"], &rule)
    }

    /// Leads new connections from one address to a port of another one to this machine.
    pub fn redirect(from: &str, to: &str, port: u16, own_port: u16) -> Result<Self> {
        let (port, own_port) = (port.to_string(), own_port.to_string());
        let rule = ["-s", from, "-d", to, "-p", "tcp", "--dport", &port].into_iter().chain([
            "-j",
            "REDIRECT",
            "--to-ports",
            &own_port,
        ]);
        Self::insert(&["PREROUTING", "-t", "nat"], &rule.collect::<Vec<_>>())
    }

    fn insert(chain: &[&str], rule: &[&str]) -> Result<Self> {
        let rule: Vec<String> = chain.iter().chain(rule).map(|&word| word.to_owned()).collect();
        iptables("-I", &rule)?;
        Ok(Self(rule))
    }
}

/// Returns the address that pods know the API server by.
fn service_address() -> Result<String> {
    let get = ["get", "service", "kubernetes", "-o", "jsonpath={.spec.clusterIP}"];
    let output = Command::new("kubectl").args(get).output().context("kubectl can't be run")?;
    ensure!(output.status.success(), "kubectl {get:?}: {}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

impl Drop for NetworkRule {
    fn drop(&mut self) {
        // A test that can't remove the rule has failed already.
        let _ = iptables("-D", &self.0);
    }
}

fn iptables(action: &str, rule: &[String]) -> Result<()> {
    let output = Command::new("iptables").args(["-w", action]).args(rule).output();
    let output = output.context("iptables can't be run")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "iptables {action} {rule:?}: {error}");
    Ok(())
}
