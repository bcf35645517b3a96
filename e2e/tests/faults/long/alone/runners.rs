//! Runners that the operator can't reach, or that answer rubbish.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use loadtest_core::{
    control::{self, HISTORY_HEADER, HistoryReply},
    metrics::Identity,
    resource::{LoadTest, LoadTestStatus},
};
use loadtest_e2e::{
    fault::Fault,
    node::NetworkRule,
    operator_pods::{list_ready, restarts_of, wait_for_leader},
    test_namespace::pod_ip,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{checks::check_whole_run, quick::runners::start_pair};

#[tokio::test]
async fn operator_cut_off_from_a_runner_misses_nothing() -> Result<()> {
    let fault = Fault {
        fault: "operator cut off from a runner under load until its status says so",
        expected: "RunnersSilent names the runner meanwhile; the run is whole",
        seconds: 80,
    };
    fault
        .check_alone("cut", async |namespace, row| {
            let (target, test) = start_pair(namespace, "cut", "60s").await?;
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
    // The operator reads all of the longer answer, which is below its limit.
    check_answers(fault, "rubbish", [300, READABLE], |taken| taken == READABLE).await
}

#[tokio::test]
async fn runner_that_answers_100_megabytes_costs_nothing() -> Result<()> {
    let fault = Fault {
        fault: "a runner answers questions for its metrics with 100 MB for 15 s under load",
        expected: "the run is whole; the operator lives",
        seconds: 75,
    };
    let length = 100_000_000;
    check_answers(fault, "flood", [length; 2], |taken| taken < length).await
}

/// Length of an answer that the operator reads to its end.
const READABLE: usize = control::MAX_RESPONSE_BYTES - (1 << 20);

/// Lets something else answer for one of two runners: rubbish of these lengths in turn, with the header of the runner.
/// `is_expected` checks how many bytes of an answer the operator took at most.
async fn check_answers(
    fault: Fault,
    name: &str,
    lengths: [usize; 2],
    is_expected: impl Fn(usize) -> bool,
) -> Result<()> {
    fault
        .check_alone(name, async |namespace, row| {
            let (target, test) = start_pair(namespace, name, "60s").await?;
            let before = list_ready(namespace).await?;
            let operator = pod_ip(&wait_for_leader(namespace).await?).context("no address")?;
            let runner = namespace.list_runners(name).await?.pop().context("no runner")?;
            let header = header_of(&test, &runner)?;
            let runner = pod_ip(&runner).context("no address")?;
            let listener = TcpListener::bind("0.0.0.0:0").await?;
            let port = listener.local_addr()?.port();
            let (answered, mut answers) = tokio::sync::mpsc::unbounded_channel();
            let serving = tokio::spawn(async move {
                for length in lengths.into_iter().cycle() {
                    let Ok((socket, _)) = listener.accept().await else { return };
                    let (answered, header) = (answered.clone(), header.clone());
                    tokio::spawn(async move {
                        let taken = answer_rubbish(socket, &header, length).await;
                        answered.send(taken.unwrap_or_default())
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
            let taken = std::iter::from_fn(|| answers.try_recv().ok()).max();
            let taken = taken.context("the operator asked nobody")?;
            ensure!(is_expected(taken), "the operator took {taken} bytes");
            row.settle(check_whole_run(namespace, &target, &test, 90).await?);
            let after = list_ready(namespace).await?;
            let restarts = |pods: &[Pod]| pods.iter().map(restarts_of).sum::<i32>();
            ensure!(restarts(&before) == restarts(&after), "the operator has restarted");
            Ok(())
        })
        .await
}

/// The header with which a runner begins its answers.
fn header_of(test: &LoadTest, runner: &Pod) -> Result<String> {
    let index = runner.labels().get(control::INDEX_LABEL).context("no index")?;
    let identity = Identity {
        run_uid: test.uid().context("no UID")?,
        index: index.parse()?,
        pod_uid: runner.uid().context("no UID")?,
    };
    let about = HistoryReply { identity, elapsed_seconds: 5.0, work_seconds: 0.0 };
    Ok(format!("{HISTORY_HEADER}: {about}"))
}

/// Answers one request. Returns the number of bytes that were taken.
async fn answer_rubbish(mut socket: TcpStream, header: &str, length: usize) -> Result<usize> {
    let mut request = [0; 4096];
    let _ = socket.read(&mut request).await?;
    let head = format!("HTTP/1.1 200 OK\r\n{header}\r\ncontent-length: {length}\r\n\r\n");
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
