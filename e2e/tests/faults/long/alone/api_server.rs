//! The API server is away or fails.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use loadtest_e2e::{
    api_proxy::{ApiFault, ApiProxy},
    fault::{Fault, Observation},
    leftovers::check_ends,
    node::{FrozenProcess, find_component, without_api_server},
    operator_pods::{list_ready, replace_operator, wait_for_leader},
    test_namespace::{Target, TestNamespace, wait_for},
};
use serde_json::json;

use crate::{
    checks::{check_whole_run, has_requests, watched_spec},
    quick::runners::start_pair,
};

/// Waits until one replica of the operator leads, and both are ready.
async fn wait_for_replicas(namespace: &TestNamespace) -> Result<()> {
    wait_for_leader(namespace).await?;
    wait_for(60, "two ready replicas", async || {
        Ok((list_ready(namespace).await?.len() == 2).then_some(()))
    })
    .await
}

#[tokio::test]
async fn api_server_away_for_a_minute_leaves_no_gap() -> Result<()> {
    let fault = Fault {
        fault: "API server frozen for 60 s under load",
        expected: "the run is whole; both replicas are there",
        seconds: 150,
    };
    fault
        .check_alone("outage", async |namespace, row| {
            let (target, test) = start_pair(namespace, "outage", "90s").await?;
            let uid = test.uid().context("no UID")?;
            let before = target.received(&uid).await?;
            row.begin();
            let frozen = FrozenProcess::freeze(find_component("kube-apiserver")?)?;
            tokio::time::sleep(Duration::from_mins(1)).await;
            let during = target.received(&uid).await? - before;
            drop(frozen);
            // 20 users make more than a hundred requests in a second.
            ensure!(during > 60 * 100, "{during} requests in the minute");
            let seen = check_whole_run(namespace, &target, &test, 120).await?;
            wait_for_replicas(namespace).await?;
            row.settle(seen);
            Ok(())
        })
        .await
}

#[tokio::test]
async fn killed_api_server_leaves_no_gap() -> Result<()> {
    let fault = Fault {
        fault: "API server killed, and there again after 60 s, under load",
        expected: "the run is whole; both replicas are there; a new test is taken up",
        seconds: 150,
    };
    fault
        .check_alone("killed-api", async |namespace, row| {
            let (target, test) = start_pair(namespace, "killed-api", "90s").await?;
            let uid = test.uid().context("no UID")?;
            let before = target.received(&uid).await?;
            row.begin();
            let during = without_api_server(async || {
                tokio::time::sleep(Duration::from_mins(1)).await;
                Ok(target.received(&uid).await? - before)
            })
            .await?;
            // 20 users make more than a hundred requests in a second.
            ensure!(during > 60 * 100, "{during} requests in the minute");
            let seen = check_whole_run(namespace, &target, &test, 120).await?;
            wait_for_replicas(namespace).await?;
            row.settle(seen);
            // The controllers of Kubernetes need longer, so the new test may have no pod yet.
            namespace.create_test("after", watched_spec(1, "2s")).await?;
            namespace.wait_for_status("after", 20, |status| status.plan.is_some()).await?;
            Ok(())
        })
        .await
}

#[tokio::test]
async fn api_server_away_at_the_end_delays_only_the_verdict() -> Result<()> {
    let fault = Fault {
        fault: "API server frozen for 30 s at the end of the load",
        expected: "the run is whole; load ends in time",
        seconds: 120,
    };
    fault
        .check_alone("late-outage", async |namespace, row| {
            let target = namespace.deploy_simulator(json!({"health": {"latency": "20ms"}})).await?;
            let test = namespace.create_test("late-outage", watched_spec(5, "15s")).await?;
            namespace.wait_for_status("late-outage", 60, has_requests).await?;
            let uid = test.uid().context("no UID")?;
            row.begin();
            let frozen = FrozenProcess::freeze(find_component("kube-apiserver")?)?;
            // The load ends meanwhile, without an order.
            tokio::time::sleep(Duration::from_secs(25)).await;
            let at_end = target.received(&uid).await?;
            tokio::time::sleep(Duration::from_secs(5)).await;
            ensure!(target.received(&uid).await? == at_end, "load goes on");
            drop(frozen);
            row.settle(check_whole_run(namespace, &target, &test, 90).await?);
            Ok(())
        })
        .await
}

#[tokio::test]
async fn failing_api_server_leaves_no_gap() -> Result<()> {
    TestNamespace::run_alone("failing", async |namespace| {
        let target = namespace.deploy_simulator(json!({"health": {"latency": "20ms"}})).await?;
        let proxy = ApiProxy::start().await?;
        replace_operator(&namespace).await?;
        wait_for_leader(&namespace).await?;
        let mut failed = Vec::new();
        for (name, api_fault, fault) in [
            (
                "slow",
                ApiFault::Slow(Duration::from_secs(2)),
                "API server slow by 2 s for 20 s under load",
            ),
            ("too-many", ApiFault::TooManyRequests, "API server answers 429 for 20 s under load"),
            (
                "conflicts",
                ApiFault::Conflicts,
                "API server answers changes with 409 for 20 s under load",
            ),
            ("expired", ApiFault::ExpiredWatches, "watches of the operator expire under load"),
        ] {
            let fault = Fault { fault, expected: "the run is whole", seconds: 75 };
            let test = namespace.create_test(name, watched_spec(5, "30s")).await?;
            namespace.wait_for_status(name, 60, has_requests).await?;
            let mut observation = Observation::default();
            observation.begin();
            proxy.set(api_fault);
            tokio::time::sleep(Duration::from_secs(20)).await;
            proxy.set(ApiFault::None);
            let result = check_whole_run(&namespace, &target, &test, 90).await;
            let result = result.map(|seen| observation.settle(seen));
            failed.extend(fault.report(result, observation).err());
            wait_for_leader(&namespace).await?;
        }
        let fault = Fault {
            fault: "API server slow by 1 s until the load runs",
            expected: "the load has its whole length",
            seconds: 60,
        };
        let mut observation = Observation::default();
        observation.begin();
        let result = start_slowly(&namespace, &proxy, &target).await;
        let result = result.map(|seen| observation.settle(seen));
        failed.extend(fault.report(result, observation).err());
        drop(proxy);
        replace_operator(&namespace).await?;
        wait_for_leader(&namespace).await?;
        failed.into_iter().next().map_or(Ok(()), Err)?;
        check_ends(&namespace).await
    })
    .await
}

/// Creates a test whose start order comes late, because the API server is slow. Returns what was seen.
async fn start_slowly(
    namespace: &TestNamespace,
    proxy: &ApiProxy,
    target: &Target<'_>,
) -> Result<String> {
    let name = "slow-start";
    let mut spec = watched_spec(5, "10s");
    spec["load"] = json!({"arrivalRate": "20/s", "maxUsers": 100, "duration": "10s"});
    spec["scenario"]["pause"] = json!(null);
    proxy.set(ApiFault::Slow(Duration::from_secs(1)));
    let test = namespace.create_test(name, spec).await?;
    let uid = test.uid().context("no UID")?;
    let started = wait_for(40, "load", async || {
        Ok(Some(target.received(&uid).await?).filter(|count| *count > 0))
    })
    .await;
    proxy.set(ApiFault::None);
    started?;
    let seen = check_whole_run(namespace, target, &test, 60).await?;
    let received = target.received(&uid).await?;
    ensure!(received == 200, "{received} of 200 requests");
    Ok(seen)
}
