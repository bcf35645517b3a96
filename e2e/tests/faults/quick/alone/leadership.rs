//! Two replicas of the operator: one leads, and the other one takes over.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::{ResourceExt, api::DeleteParams};
use loadtest_core::resource::{LoadTest, LoadTestStatus};
use loadtest_e2e::{
    fault::Fault,
    operator_pods::{
        containers, kill_pod, kill_process, list_ready, pods, read_lease, restarts_of,
        take_lease_away, transitions, wait_for_leader,
    },
    test_namespace::{TestNamespace, pod_ip, wait_for},
};
use serde_json::json;

use super::kill_points::{create_stopped, freeze_at};
use crate::checks::{check_whole_run, has_requests, watched_spec};

/// Promised time until another replica leads.
const MAX_FAILOVER: Duration = Duration::from_secs(15);
/// The same if the leader gives the Lease up: work under way has 3 s to end.
const MAX_HANDOVER: Duration = Duration::from_secs(6);

async fn wait_for_both_replicas(namespace: &TestNamespace) -> Result<()> {
    wait_for(90, "two ready replicas", async || {
        Ok((list_ready(namespace).await?.len() == 2).then_some(()))
    })
    .await
}

/// Starts a test of two runners and waits until it has numbers.
async fn start_test(namespace: &TestNamespace, name: &str, duration: &str) -> Result<LoadTest> {
    let mut spec = watched_spec(20, duration);
    spec["runners"] = json!({"usersPerRunner": 10});
    let test = namespace.create_test(name, spec).await?;
    namespace.wait_for_status(name, 60, has_requests).await?;
    Ok(test)
}

/// Waits until another pod than `leader` leads. Returns the seconds since `began`, at most `limit`.
async fn wait_for_failover(
    namespace: &TestNamespace,
    leader: &Pod,
    from: i32,
    began: Instant,
    limit: Duration,
) -> Result<f64> {
    wait_for(60, "another leader", async || {
        let lease = read_lease(namespace).await?;
        Ok((transitions(&lease) > from).then_some(()))
    })
    .await?;
    let elapsed = began.elapsed();
    ensure!(elapsed < limit, "failover took {elapsed:?}");
    let next = wait_for_leader(namespace).await?;
    ensure!(next.uid() != leader.uid(), "{} leads again", next.name_any());
    Ok(elapsed.as_secs_f64())
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
    let fault = Fault {
        fault: "leader killed under load",
        expected: "another one leads within 15 s; the run is whole",
        seconds: 45,
    };
    check_failover(fault, "failover", MAX_FAILOVER, async |namespace, leader| {
        kill_pod(namespace, leader).await
    })
    .await
}

#[tokio::test]
async fn another_replica_takes_over_from_a_deleted_leader() -> Result<()> {
    let fault = Fault {
        fault: "leader deleted under load, with its time to end",
        expected: "another one leads within 6 s; the run is whole",
        seconds: 45,
    };
    check_failover(fault, "drained", MAX_HANDOVER, async |namespace, leader| {
        pods(namespace).delete(&leader.name_any(), &DeleteParams::default()).await?;
        Ok(())
    })
    .await
}

/// Lets the leader end under load, and checks that another replica leads in time and finishes the run.
async fn check_failover(
    fault: Fault,
    name: &str,
    limit: Duration,
    end: impl AsyncFn(&TestNamespace, &Pod) -> Result<()>,
) -> Result<()> {
    fault
        .check_alone(name, async |namespace, row| {
            wait_for_both_replicas(namespace).await?;
            let leader = wait_for_leader(namespace).await?;
            wait_for(30, "metrics of one leader", async || {
                let metrics = read_leader_metrics(namespace).await?;
                Ok((metrics == (vec!["0.0".into(), "1.0".into()], 1)).then_some(()))
            })
            .await?;
            let target = namespace.deploy_simulator(json!({"health": {"latency": "50ms"}})).await?;
            let test = start_test(namespace, name, "25s").await?;
            let number = transitions(&read_lease(namespace).await?);
            row.begin();
            let began = Instant::now();
            end(namespace, &leader).await?;
            let seconds = wait_for_failover(namespace, &leader, number, began, limit).await?;
            let seen = check_whole_run(namespace, &target, &test, 120).await?;
            row.settle(format!("next leader after {seconds:.1} s; {seen}"));
            Ok(())
        })
        .await
}

#[tokio::test]
async fn a_frozen_leader_does_nothing_when_it_thaws() -> Result<()> {
    let fault = Fault {
        fault: "leader frozen past its Lease, with passes under way, then thawed",
        expected: "another one leads within 15 s; the runs are whole; the frozen one does nothing more",
        seconds: 90,
    };
    fault
        .check_alone("frozen", async |namespace, row| {
            wait_for_both_replicas(namespace).await?;
            let target = namespace.deploy_simulator(json!({"health": {"latency": "50ms"}})).await?;
            let test = start_test(namespace, "frozen", "40s").await?;
            // Frozen before these steps, the leader would take them when it thaws.
            let gone = create_stopped(namespace, "AfterConfigMap", "5s").await?;
            let started = create_stopped(namespace, "BeforeStartOrders", "5s").await?;
            let number = transitions(&read_lease(namespace).await?);
            let (leader, frozen) = freeze_at(namespace, &[gone.clone(), started.clone()]).await?;
            let restarts = restarts_of(&leader);
            row.begin();
            let frozen_at = Instant::now();
            namespace.delete_test(&gone.name_any()).await?;
            let seconds =
                wait_for_failover(namespace, &leader, number, frozen_at, MAX_FAILOVER).await?;
            drop(frozen);
            // The new leader goes on with the test.
            let percent =
                |status: &LoadTestStatus| status.progress.as_ref().map_or(0, |p| p.percent);
            let at_failover = percent(&namespace.get_status("frozen").await?);
            namespace.wait_for_status("frozen", 60, |status| percent(status) > at_failover).await?;
            // The frozen process ends, and the next one in its pod waits for the Lease.
            let message = wait_for(60, "a restart of the former leader", async || {
                let pod = pods(namespace).get(&leader.name_any()).await?;
                Ok((restarts_of(&pod) > restarts).then(|| last_message(&pod)))
            })
            .await?;
            ensure!(message.contains("another replica has taken the Lease"), "{message}");
            check_whole_run(namespace, &target, &started, 60).await?;
            let seen = check_whole_run(namespace, &target, &test, 60).await?;
            let left = namespace.list_runners(&gone.name_any()).await?;
            ensure!(left.is_empty(), "runners of a deleted test");
            let next = wait_for_leader(namespace).await?;
            ensure!(next.uid() != leader.uid(), "{} leads again", next.name_any());
            row.settle(format!("next leader after {seconds:.1} s; {seen}"));
            Ok(())
        })
        .await
}

/// Replaces the pods that other rows restarted, and returns the leader.
///
/// The kubelet lets a container that ends again wait longer than the Lease lasts.
async fn replace_restarted_pods(namespace: &TestNamespace) -> Result<Pod> {
    for pod in list_ready(namespace).await? {
        if restarts_of(&pod) > 0 {
            kill_pod(namespace, &pod).await?;
        }
    }
    wait_for(90, "two ready replicas that never restarted", async || {
        let ready = list_ready(namespace).await?;
        Ok((ready.len() == 2 && ready.iter().all(|pod| restarts_of(pod) == 0)).then_some(()))
    })
    .await?;
    wait_for_leader(namespace).await
}

#[tokio::test]
async fn a_process_that_is_killed_leads_again_in_its_pod() -> Result<()> {
    let fault = Fault {
        fault: "process of the leader killed",
        expected: "the next process in its pod leads",
        seconds: 30,
    };
    fault
        .check_alone("same-pod", async |namespace, row| {
            let leader = replace_restarted_pods(namespace).await?;
            let number = transitions(&read_lease(namespace).await?);
            row.begin();
            kill_process(&leader)?;
            wait_for(30, "a new process that leads", async || {
                let lease = read_lease(namespace).await?;
                Ok((transitions(&lease) > number).then_some(()))
            })
            .await?;
            let next = wait_for_leader(namespace).await?;
            ensure!(next.uid() == leader.uid(), "{} leads now", next.name_any());
            row.settle(format!("{} leads again", next.name_any()));
            Ok(())
        })
        .await
}

#[tokio::test]
async fn a_leader_that_loses_its_lease_ends() -> Result<()> {
    let fault = Fault {
        fault: "leader loses its Lease under load",
        expected: "it ends; a replica leads when the Lease has run out; the run is whole",
        seconds: 60,
    };
    fault
        .check_alone("lost-lease", async |namespace, row| {
            wait_for_both_replicas(namespace).await?;
            let target = namespace.deploy_simulator(json!({"health": {"latency": "50ms"}})).await?;
            let test = start_test(namespace, "lost-lease", "30s").await?;
            let leader = wait_for_leader(namespace).await?;
            let restarts = restarts_of(&leader);
            row.begin();
            take_lease_away(namespace).await?;
            wait_for(30, "the end of the former leader", async || {
                let pod = pods(namespace).get(&leader.name_any()).await?;
                Ok((restarts_of(&pod) > restarts).then_some(()))
            })
            .await?;
            wait_for_leader(namespace).await?;
            row.settle(check_whole_run(namespace, &target, &test, 60).await?);
            Ok(())
        })
        .await
}

/// Returns what the last process of a pod said when it ended.
fn last_message(pod: &Pod) -> String {
    let ended =
        containers(pod).filter_map(|status| status.last_state.as_ref()?.terminated.as_ref());
    ended.filter_map(|end| end.message.clone()).collect()
}
