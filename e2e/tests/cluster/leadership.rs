//! Two replicas of the operator: one leads, and the other one takes over.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt;
use loadtest_core::resource::{LoadTest, LoadTestStatus, Verdict};
use serde_json::json;

use crate::{
    operator_pods::{
        FrozenProcess, kill_pod, kill_process, list_ready, pods, read_lease, transitions,
        wait_for_leader,
    },
    test_namespace::{Target, TestNamespace, health_spec, pod_ip, wait_for},
};

/// Promised time until another replica leads.
const MAX_FAILOVER: Duration = Duration::from_secs(15);

async fn wait_for_both_replicas(namespace: &TestNamespace) -> Result<()> {
    wait_for(90, "two ready replicas", async || {
        Ok((list_ready(namespace).await?.len() == 2).then_some(()))
    })
    .await
}

/// Starts a test of two runners and waits until it has numbers. Its windows show any gap.
async fn start_test(
    namespace: &TestNamespace,
    name: &str,
    duration: &str,
) -> Result<(LoadTest, LoadTestStatus)> {
    let thresholds = json!([
        {"metric": "errorRate", "target": "< 1%"},
        {"metric": "responseTime", "statistic": "p50", "target": "< 1s", "window": "5s"},
    ]);
    let mut spec = health_spec(20, duration, &thresholds);
    spec["runners"] = json!({"usersPerRunner": 10});
    let test = namespace.create_test(name, spec).await?;
    let has_requests =
        |status: &LoadTestStatus| status.summary.as_ref().is_some_and(|s| s.requests > 0);
    let status = namespace.wait_for_status(name, 60, has_requests).await?;
    Ok((test, status))
}

/// Checks that a test has run once, with every number.
async fn check_run(
    namespace: &TestNamespace,
    target: &Target<'_>,
    (test, before): (&LoadTest, &LoadTestStatus),
) -> Result<()> {
    let status = namespace.wait_until_finished(&test.name_any(), 120).await?;
    ensure!(status.known_verdict() == Some(Verdict::Pass), "{status:#?}");
    ensure!(status.start_time == before.start_time, "started again: {status:#?}");
    let truth = target.get_truth(&test.uid().context("no UID")?).await?;
    let summary = status.summary.context("no summary")?;
    ensure!(summary.requests == truth.totals.counts.received, "{summary:?}");
    let measured = status.measurement.context("no measurement")?;
    ensure!(measured.runners_lost == 0 && measured.unobserved.is_none(), "{measured:?}");
    Ok(())
}

/// Waits until another pod than `leader` leads, and checks the time that it took.
async fn wait_for_failover(
    namespace: &TestNamespace,
    leader: &Pod,
    from: i32,
    began: Instant,
) -> Result<Pod> {
    wait_for(60, "another leader", async || {
        let lease = read_lease(namespace).await?;
        Ok((transitions(&lease) > from).then_some(()))
    })
    .await?;
    ensure!(began.elapsed() < MAX_FAILOVER, "failover took {:?}", began.elapsed());
    let next = wait_for_leader(namespace).await?;
    ensure!(next.uid() != leader.uid(), "{} leads again", next.name_any());
    Ok(next)
}

/// Returns the value of `loadtest_operator_leader` of each ready pod, and how many pods show verdicts.
async fn read_leader_metrics(namespace: &TestNamespace) -> Result<(Vec<String>, usize)> {
    let (mut leaders, mut with_tests) = (Vec::new(), 0);
    for pod in list_ready(namespace).await? {
        let url = format!("http://{}:8080/metrics", pod_ip(&pod).context("no address")?);
        let text = namespace.http.get(url).send().await?.error_for_status()?.text().await?;
        let value = text.lines().find_map(|line| line.strip_prefix("loadtest_operator_leader "));
        leaders.push(value.context("no metric loadtest_operator_leader")?.to_owned());
        with_tests += usize::from(text.contains("\nloadtest_operator_running_tests "));
    }
    leaders.sort();
    Ok((leaders, with_tests))
}

#[tokio::test]
async fn another_replica_takes_over_from_a_killed_leader() -> Result<()> {
    TestNamespace::run_alone("failover", async |namespace| {
        wait_for_both_replicas(&namespace).await?;
        let leader = wait_for_leader(&namespace).await?;
        wait_for(30, "metrics of one leader", async || {
            let metrics = read_leader_metrics(&namespace).await?;
            Ok((metrics == (vec!["0.0".into(), "1.0".into()], 1)).then_some(()))
        })
        .await?;
        let target = namespace.deploy_simulator(json!({"health": {"latency": "50ms"}})).await?;
        let (test, before) = start_test(&namespace, "failover", "25s").await?;
        let number = transitions(&read_lease(&namespace).await?);
        let killed_at = Instant::now();
        kill_pod(&namespace, &leader).await?;
        wait_for_failover(&namespace, &leader, number, killed_at).await?;
        check_run(&namespace, &target, (&test, &before)).await
    })
    .await
}

#[tokio::test]
async fn a_frozen_leader_does_nothing_when_it_thaws() -> Result<()> {
    TestNamespace::run_alone("frozen", async |namespace| {
        wait_for_both_replicas(&namespace).await?;
        let target = namespace.deploy_simulator(json!({"health": {"latency": "50ms"}})).await?;
        let (test, before) = start_test(&namespace, "frozen", "40s").await?;
        let leader = wait_for_leader(&namespace).await?;
        let number = transitions(&read_lease(&namespace).await?);
        let restarts = restarts_of(&leader);
        let frozen_at = Instant::now();
        let frozen = FrozenProcess::freeze(&leader)?;
        wait_for_failover(&namespace, &leader, number, frozen_at).await?;
        drop(frozen);
        // The new leader goes on with the test.
        let percent = |status: &LoadTestStatus| status.progress.as_ref().map_or(0, |p| p.percent);
        let at_failover = percent(&namespace.get_status("frozen").await?);
        namespace.wait_for_status("frozen", 60, |status| percent(status) > at_failover).await?;
        // The frozen process ends, and the next one in its pod waits for the Lease.
        wait_for(60, "a restart of the former leader", async || {
            let pod = pods(&namespace).get(&leader.name_any()).await?;
            Ok((restarts_of(&pod) > restarts).then(|| last_message(&pod)))
        })
        .await
        .and_then(|message| {
            ensure!(message.contains("another replica has taken the Lease"), "{message}");
            Ok(())
        })?;
        check_run(&namespace, &target, (&test, &before)).await?;
        let next = wait_for_leader(&namespace).await?;
        ensure!(next.uid() != leader.uid(), "{} leads again", next.name_any());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_process_that_is_killed_leads_again_in_its_pod() -> Result<()> {
    TestNamespace::run_alone("same-pod", async |namespace| {
        let leader = wait_for_leader(&namespace).await?;
        let number = transitions(&read_lease(&namespace).await?);
        kill_process(&leader)?;
        wait_for(30, "a new process that leads", async || {
            let lease = read_lease(&namespace).await?;
            Ok((transitions(&lease) > number).then_some(()))
        })
        .await?;
        let next = wait_for_leader(&namespace).await?;
        ensure!(next.uid() == leader.uid(), "{} leads now", next.name_any());
        Ok(())
    })
    .await
}

fn containers(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    statuses.into_iter().flatten()
}

fn restarts_of(pod: &Pod) -> i32 {
    containers(pod).map(|status| status.restart_count).sum()
}

/// Returns what the last process of a pod said when it ended.
fn last_message(pod: &Pod) -> String {
    let ended =
        containers(pod).filter_map(|status| status.last_state.as_ref()?.terminated.as_ref());
    ended.filter_map(|end| end.message.clone()).collect()
}
