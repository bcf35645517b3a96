//! Runners that the kernel kills, or that the operator can't reach.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use loadtest_core::{control, resource::LoadTestStatus};
use loadtest_e2e::{
    fault::Fault,
    node::{NetworkRule, exhaust_memory, find_process},
    operator_pods::{list_ready, restarts_of, wait_for_leader},
    test_namespace::pod_ip,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
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
            exhaust_memory(find_process(&runner, PROGRAM)?).await?;
            check_loss(namespace, (&target, &test), &[&runner.name_any(), "OOMKilled"], row).await
        })
        .await
}

#[tokio::test]
async fn operator_cut_off_from_a_runner_misses_nothing() -> Result<()> {
    let fault = Fault {
        fault: "operator cut off from a runner under load until its status says so",
        expected: "RunnersSilent names the runner meanwhile; the run is whole",
        seconds: 80,
    };
    fault
        .check_alone("cut", async |namespace, row| {
            let (target, test) = start_pair(namespace, "cut").await?;
            let operator = pod_ip(&wait_for_leader(namespace).await?).context("no address")?;
            let runner = namespace.list_runners("cut").await?.pop().context("no runner")?;
            row.begin();
            let cut =
                NetworkRule::drop_packets(&operator, &pod_ip(&runner).context("no address")?)?;
            let index = runner.labels().get(control::INDEX_LABEL).context("no index")?;
            let name = format!("(runner {index} on node");
            let is_told = |status: &LoadTestStatus| {
                let silence = status.condition("RunnersSilent");
                silence.is_some_and(|silence| {
                    silence.status == "True" && silence.message.contains(&name)
                })
            };
            namespace.wait_for_status("cut", 40, is_told).await?;
            drop(cut);
            row.settle(check_whole_run(namespace, &target, &test, 90).await?);
            let status = namespace.get_status("cut").await?;
            let silence = status.condition("RunnersSilent").context("no condition")?;
            ensure!(silence.status == "False", "{silence:?}");
            Ok(())
        })
        .await
}

#[tokio::test]
async fn runner_that_answers_rubbish_costs_nothing() -> Result<()> {
    let fault = Fault {
        fault: "a runner answers questions for its metrics with rubbish for 15 s under load",
        expected: "the run is whole; the operator lives",
        seconds: 75,
    };
    check_answers(fault, "rubbish", 300).await
}

#[tokio::test]
async fn runner_that_answers_100_megabytes_costs_nothing() -> Result<()> {
    let fault = Fault {
        fault: "a runner answers questions for its metrics with 100 MB for 15 s under load",
        expected: "the run is whole; the operator lives",
        seconds: 75,
    };
    check_answers(fault, "flood", 100_000_000).await
}

/// Lets something else answer for one of two runners: rubbish of this length.
async fn check_answers(fault: Fault, name: &str, length: usize) -> Result<()> {
    fault
        .check_alone(name, async |namespace, row| {
            let (target, test) = start_pair(namespace, name).await?;
            let before = list_ready(namespace).await?;
            let operator = pod_ip(&wait_for_leader(namespace).await?).context("no address")?;
            let runner = namespace.list_runners(name).await?.pop().context("no runner")?;
            let runner = pod_ip(&runner).context("no address")?;
            let listener = TcpListener::bind("0.0.0.0:0").await?;
            let port = listener.local_addr()?.port();
            let (answered, mut answers) = tokio::sync::mpsc::unbounded_channel();
            let serving = tokio::spawn(async move {
                while let Ok((socket, _)) = listener.accept().await {
                    let answered = answered.clone();
                    tokio::spawn(async move {
                        let sent = answer_rubbish(socket, length).await.unwrap_or_default();
                        answered.send(sent)
                    });
                }
            });
            row.begin();
            let redirect = NetworkRule::redirect(&operator, &runner, control::PORT, port)?;
            // Connections that are open end.
            let cut = NetworkRule::drop_packets(&operator, &runner)?;
            tokio::time::sleep(Duration::from_secs(15)).await;
            drop((cut, redirect));
            serving.abort();
            ensure!(answers.recv().await.is_some(), "the operator asked nobody");
            row.settle(check_whole_run(namespace, &target, &test, 90).await?);
            let after = list_ready(namespace).await?;
            let restarts = |pods: &[Pod]| pods.iter().map(restarts_of).sum::<i32>();
            ensure!(restarts(&before) == restarts(&after), "the operator has restarted");
            Ok(())
        })
        .await
}

/// Answers one request. Returns the number of bytes that were taken.
async fn answer_rubbish(mut socket: TcpStream, length: usize) -> Result<usize> {
    let mut request = [0; 4096];
    let _ = socket.read(&mut request).await?;
    let head =
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\n\r\n");
    socket.write_all(head.as_bytes()).await?;
    let block = vec![b'x'; 1 << 16];
    let mut sent = 0;
    while sent < length {
        let part = &block[..block.len().min(length - sent)];
        if socket.write_all(part).await.is_err() {
            break;
        }
        sent += part.len();
    }
    Ok(sent)
}
