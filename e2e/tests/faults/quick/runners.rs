//! Runners are lost, or can't start.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::batch::v1::Job;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, EvictParams, ListParams, Patch, PatchParams},
};
use loadtest_core::resource::{LoadTest, LoadTestStatus, Phase, Verdict};
use loadtest_e2e::{
    fault::{Fault, Observation},
    leftovers::wait_until_no_runner,
    node::{find_process, kill},
    test_namespace::{Target, TestNamespace, wait_for},
};
use serde_json::{Value, json};

use crate::checks::{
    check_counts, check_no_load, has_requests, short, wait_for_error, watched_spec,
};

pub(crate) const PROGRAM: &str = "loadtest-runner";
/// Requests of the 10 users of a runner in the seconds since it was last read.
const UNREAD: u64 = 1000;

/// Starts a test of two runners with ten users each, and waits until they are under load.
pub(crate) async fn start_pair<'a>(
    namespace: &'a TestNamespace,
    name: &str,
    duration: &str,
) -> Result<(Target<'a>, LoadTest)> {
    let target = namespace.deploy_simulator(json!({"health": {"latency": "20ms"}})).await?;
    let mut spec = watched_spec(20, duration);
    spec["runners"] = json!({"usersPerRunner": 10});
    let test = namespace.create_test(name, spec).await?;
    namespace.wait_for_status(name, 60, has_requests).await?;
    Ok((target, test))
}

/// Waits until a test has stopped because of a lost runner, and checks what it says.
pub(crate) async fn check_loss(
    namespace: &TestNamespace,
    (target, test): (&Target<'_>, &LoadTest),
    words: &[&str],
    row: &mut Observation,
) -> Result<()> {
    let name = test.name_any();
    let status = namespace.wait_until_finished(&name, 60).await?;
    ensure!(status.known_phase() == Some(Phase::Finished), "{status:#?}");
    ensure!(status.known_verdict() == Some(Verdict::Inconclusive), "{status:#?}");
    let lost = status.condition("RunnersLost").context("no condition RunnersLost")?;
    for word in words {
        ensure!(lost.message.contains(word), "{word}: {lost:?}");
    }
    row.settle(format!("Inconclusive: {}", short(&lost.message)));
    check_counts(target, test, &status, UNREAD).await?;
    wait_until_no_runner(namespace, &name).await
}

#[tokio::test]
async fn killed_runner_stops_the_test() -> Result<()> {
    let fault = Fault {
        fault: "runner killed by SIGKILL under load",
        expected: "Inconclusive with exit code 137; its numbers are kept",
        seconds: 30,
    };
    fault
        .check("killed", async |namespace, row| {
            let (target, test) = start_pair(namespace, "killed", "60s").await?;
            let runner = namespace.list_runners("killed").await?.pop().context("no runner")?;
            row.begin();
            kill(find_process(&runner, PROGRAM)?)?;
            check_loss(namespace, (&target, &test), &[&runner.name_any(), "137"], row).await
        })
        .await
}

#[tokio::test]
async fn evicted_runner_stops_the_test() -> Result<()> {
    let fault = Fault {
        fault: "runner evicted under load",
        expected: "Inconclusive, and the loss names the eviction; its numbers are kept",
        seconds: 30,
    };
    fault
        .check("evicted", async |namespace, row| {
            let (target, test) = start_pair(namespace, "evicted", "60s").await?;
            let runner = namespace.list_runners("evicted").await?.pop().context("no runner")?;
            row.begin();
            namespace.pods.evict(&runner.name_any(), &EvictParams::default()).await?;
            check_loss(namespace, (&target, &test), &[&runner.name_any(), "evict"], row).await
        })
        .await
}

#[tokio::test]
async fn deleted_runner_stops_the_test() -> Result<()> {
    let fault = Fault {
        fault: "runner deleted by hand under load",
        expected: "Inconclusive, and the loss names the pod; its numbers are kept",
        seconds: 30,
    };
    fault
        .check("by-hand", async |namespace, row| {
            let (target, test) = start_pair(namespace, "by-hand", "60s").await?;
            let runner = namespace.list_runners("by-hand").await?.pop().context("no runner")?;
            row.begin();
            namespace.pods.delete(&runner.name_any(), &DeleteParams::default()).await?;
            check_loss(namespace, (&target, &test), &[&runner.name_any()], row).await
        })
        .await
}

/// Returns the Jobs of a namespace, and the name of that of a test.
pub(crate) async fn find_job(
    namespace: &TestNamespace,
    test: &LoadTest,
) -> Result<(Api<Job>, String)> {
    let uid = test.uid().context("no UID")?;
    let jobs: Api<Job> = Api::namespaced(namespace.client.clone(), &namespace.name);
    let selector = ListParams::default().labels(&format!("loadtest.cell0.io/uid={uid}"));
    let job = jobs.list(&selector).await?.items.pop().context("no Job")?.name_any();
    Ok((jobs, job))
}

/// Suspends or resumes a Job.
pub(crate) async fn set_suspend(jobs: &Api<Job>, job: &str, suspend: bool) -> kube::Result<()> {
    let patch = Patch::Merge(json!({"spec": {"suspend": suspend}}));
    jobs.patch(job, &PatchParams::default(), &patch).await.map(drop)
}

#[tokio::test]
async fn suspended_job_stops_the_test_for_good() -> Result<()> {
    let fault = Fault {
        fault: "Job suspended under load, as Kueue does to evict it, and resumed after the end",
        expected: "Inconclusive, and the loss names the suspension; no new pod and no more load",
        seconds: 45,
    };
    fault
        .check("kueue", async |namespace, row| {
            let (target, test) = start_pair(namespace, "kueue", "60s").await?;
            let (jobs, job) = find_job(namespace, &test).await?;
            row.begin();
            set_suspend(&jobs, &job, true).await?;
            check_loss(namespace, (&target, &test), &["suspended the Job"], row).await?;
            match set_suspend(&jobs, &job, false).await {
                // The operator has deleted it.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                patched => patched?,
            }
            wait_for(20, "the end of the Job", async || {
                Ok(jobs.get_opt(&job).await?.is_none().then_some(()))
            })
            .await?;
            wait_until_no_runner(namespace, "kueue").await?;
            let status = namespace.get_status("kueue").await?;
            check_counts(&target, &test, &status, UNREAD).await.map(drop)
        })
        .await
}

/// Checks that a test whose pods can't start ends with a reason, without load.
async fn check_no_start(
    fault: Fault,
    name: &str,
    runners: Value,
    (reason, words): (&str, &str),
) -> Result<()> {
    fault
        .check(name, async |namespace, row| {
            let target = namespace.deploy_simulator(json!({})).await?;
            // For the simulator and one runner.
            let quota = "{apiVersion: v1, kind: ResourceQuota, metadata: {name: small}, spec: {hard: {pods: 2}}}";
            if reason == "QuotaExceeded" {
                namespace.apply(quota).await?;
            }
            let mut spec = watched_spec(2, "5s");
            spec["runners"] = runners;
            spec["startTimeout"] = "20s".into();
            row.begin();
            let test = namespace.create_test(name, spec).await?;
            let is_told = |status: &LoadTestStatus| {
                let started = status.condition("Started");
                status.known_phase() == Some(Phase::Starting)
                    && started.is_some_and(|started| started.reason == reason)
            };
            namespace.wait_for_status(name, 20, is_told).await?;
            let message = wait_for_error(namespace, name, fault.seconds, reason).await?;
            ensure!(message.contains(words), "{message}");
            row.settle(format!("{reason}: {}", short(&message)));
            wait_until_no_runner(namespace, name).await?;
            check_no_load(&target, &test).await
        })
        .await
}

#[tokio::test]
async fn one_runner_of_two_that_has_no_node_ends_the_test() -> Result<()> {
    let fault = Fault {
        fault: "one runner of two is never scheduled",
        expected: "Unschedulable with the words of the scheduler, without load",
        seconds: 40,
    };
    let apart = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{
        "topologyKey": "kubernetes.io/hostname",
        "labelSelector": {"matchLabels": {"app.kubernetes.io/name": "loadtest-runner"}},
    }]}});
    let runners = json!({"count": 2, "podTemplate": {"spec": {"affinity": apart}}});
    check_no_start(fault, "apart", runners, ("Unschedulable", "anti-affinity")).await
}

#[tokio::test]
async fn quota_that_refuses_a_runner_ends_the_test() -> Result<()> {
    let fault = Fault {
        fault: "a quota allows one runner of two",
        expected: "QuotaExceeded with the words of the API server, without load",
        seconds: 40,
    };
    check_no_start(fault, "quota", json!({"count": 2}), ("QuotaExceeded", "exceeded quota: small"))
        .await
}

#[tokio::test]
async fn runners_without_a_node_end_the_test() -> Result<()> {
    let fault = Fault {
        fault: "no runner can be scheduled",
        expected: "Unschedulable with the words of the scheduler, without load",
        seconds: 40,
    };
    let runners = json!({"nodeSelector": {"no-such-label": "true"}});
    check_no_start(fault, "no-node", runners, ("Unschedulable", "node affinity")).await
}

#[tokio::test]
async fn runner_deleted_before_the_start_ends_the_test() -> Result<()> {
    let fault = Fault {
        fault: "runner deleted by hand before the start",
        expected: "RunnerDeleted, without load",
        seconds: 30,
    };
    fault
        .check("deleted-early", async |namespace, row| {
            let target = namespace.deploy_simulator(json!({})).await?;
            let mut spec = watched_spec(10, "20s");
            // No node has this label, so that the runners wait.
            spec["runners"] = json!({"count": 2, "nodeSelector": {"no-such-label": "true"}});
            let test = namespace.create_test("deleted-early", spec).await?;
            let runner = wait_for(30, "a runner pod", async || {
                Ok(namespace.list_runners("deleted-early").await?.pop())
            })
            .await?;
            let waiting = namespace
                .wait_for_status("deleted-early", 30, |status| {
                    status.condition("Started").is_some_and(|c| c.reason == "Unschedulable")
                })
                .await?;
            let started = waiting.condition("Started").context("no condition")?;
            ensure!(started.message.starts_with("0 of 2 runners ready"), "{started:?}");
            row.begin();
            namespace.pods.delete(&runner.name_any(), &DeleteParams::default()).await?;
            let message = wait_for_error(namespace, "deleted-early", 30, "RunnerDeleted").await?;
            ensure!(message.contains("was deleted"), "{message}");
            row.settle(format!("RunnerDeleted: {}", short(&message)));
            wait_until_no_runner(namespace, "deleted-early").await?;
            check_no_load(&target, &test).await
        })
        .await
}
