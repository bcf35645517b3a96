//! Runners that the kernel kills, or that the operator can't reach.

use std::time::Duration;

use anyhow::{Context, Result};
use kube::ResourceExt;
use loadtest_e2e::{
    fault::Fault,
    node::{NetworkRule, exhaust_memory, find_process},
    operator_pods::wait_for_leader,
    test_namespace::pod_ip,
};

use crate::{
    checks::check_whole_run,
    quick::runners::{PROGRAM, check_loss, start_pair},
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
            let (target, test) = start_pair(namespace, "memory").await?;
            let runner = namespace.list_runners("memory").await?.pop().context("no runner")?;
            row.begin();
            exhaust_memory(find_process(&runner, PROGRAM)?)?;
            check_loss(namespace, (&target, &test), &[&runner.name_any(), "OOMKilled"], row).await
        })
        .await
}

#[tokio::test]
async fn operator_cut_off_from_a_runner_misses_nothing() -> Result<()> {
    let fault = Fault {
        fault: "operator cut off from a runner for 20 s under load",
        expected: "the run is whole",
        seconds: 60,
    };
    fault
        .check_alone("cut", async |namespace, row| {
            let (target, test) = start_pair(namespace, "cut").await?;
            let operator = pod_ip(&wait_for_leader(namespace).await?).context("no address")?;
            let runner = namespace.list_runners("cut").await?.pop().context("no runner")?;
            row.begin();
            let cut =
                NetworkRule::drop_packets(&operator, &pod_ip(&runner).context("no address")?)?;
            tokio::time::sleep(Duration::from_secs(20)).await;
            drop(cut);
            row.settle(check_whole_run(namespace, &target, &test, 90).await?);
            Ok(())
        })
        .await
}
