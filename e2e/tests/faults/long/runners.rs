//! Runners that the kernel kills.

use anyhow::{Context, Result};
use kube::ResourceExt;
use loadtest_e2e::{
    fault::Fault,
    node::{exhaust_memory, find_process},
};

use crate::quick::runners::{PROGRAM, check_loss, start_pair};

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
