//! Runners that the kernel kills, runners that a queue moves, and runners with a wrong clock.

use anyhow::{Context, Result, ensure};
use kube::{ResourceExt, api::LogParams};
use loadtest_e2e::{
    fault::Fault,
    node::{exhaust_memory, find_process},
};
use serde_json::json;

use crate::{
    checks::{check_whole_run, has_requests, watched_spec},
    quick::runners::{PROGRAM, check_loss, find_job, set_suspend, start_pair},
};

#[tokio::test]
async fn runner_out_of_memory_stops_the_test() -> Result<()> {
    let fault = Fault {
        fault: "runner out of memory under load",
        expected: "Inconclusive, and the loss says OOMKilled",
        seconds: 30,
    };
    fault
        .check("memory", async |namespace, row| {
            let (target, test) = start_pair(namespace, "memory", "60s").await?;
            let runner = namespace.list_runners("memory").await?.pop().context("no runner")?;
            row.begin();
            exhaust_memory(find_process(&runner, PROGRAM)?).await?;
            check_loss(namespace, (&target, &test), &[&runner.name_any(), "OOMKilled"], row).await
        })
        .await
}

#[tokio::test]
async fn resumed_job_makes_no_more_load() -> Result<()> {
    let fault = Fault {
        fault: "Job suspended under load and resumed at once, as Kueue does to move it",
        expected: "Inconclusive, and the loss names the pod; no more load and no pod left",
        seconds: 45,
    };
    fault
        .check("moved", async |namespace, row| {
            let (target, test) = start_pair(namespace, "moved", "60s").await?;
            let runner = namespace.list_runners("moved").await?.pop().context("no runner")?;
            let (jobs, job) = find_job(namespace, &test).await?;
            row.begin();
            set_suspend(&jobs, &job, true).await?;
            set_suspend(&jobs, &job, false).await?;
            check_loss(namespace, (&target, &test), &[&runner.name_any()], row).await
        })
        .await
}

#[tokio::test]
async fn runner_with_a_fast_clock_measures_the_same() -> Result<()> {
    let fault = Fault {
        fault: "runner's clock an hour ahead of the operator and the API server",
        expected: "the run is whole; the response times are right",
        seconds: 60,
    };
    check_wrong_clock(fault, "runner-ahead", 3600).await
}

#[tokio::test]
async fn runner_with_a_slow_clock_measures_the_same() -> Result<()> {
    let fault = Fault {
        fault: "runner's clock an hour behind the operator and the API server",
        expected: "the run is whole; the response times are right",
        seconds: 60,
    };
    check_wrong_clock(fault, "runner-behind", -3600).await
}

/// Checks a run of a runner whose clock is wrong by these seconds. The kernel's timestamps of packets have the right
/// time, as after a change of the machine's clock.
async fn check_wrong_clock(fault: Fault, name: &str, seconds: i32) -> Result<()> {
    fault
        .check(name, async |namespace, row| {
            let target = namespace.deploy_simulator(json!({"health": {"latency": "20ms"}})).await?;
            let mut spec = watched_spec(5, "8s");
            let variable = json!({"name": "CLOCK_ERROR_SECONDS", "value": seconds.to_string()});
            spec["runners"] = json!({"env": [variable]});
            row.begin();
            let test = namespace.create_test(name, spec).await?;
            namespace.wait_for_status(name, 60, has_requests).await?;
            let runner = namespace.list_runners(name).await?.pop().context("no runner")?;
            let log = namespace.pods.logs(&runner.name_any(), &LogParams::default()).await?;
            ensure!(log.contains("makes the clock wrong"), "the clock is right: {log}");
            let seen = check_whole_run(namespace, &target, &test, 60).await?;
            let summary = namespace.get_status(name).await?.summary.context("no summary")?;
            let median = summary.p50.context("no median")?;
            let milliseconds = median.strip_suffix("ms").and_then(|text| text.parse::<f64>().ok());
            let milliseconds = milliseconds.with_context(|| format!("median of {median}"))?;
            ensure!((20.0..100.0).contains(&milliseconds), "median of {median}");
            row.settle(format!("{seen}, median {median}"));
            Ok(())
        })
        .await
}
