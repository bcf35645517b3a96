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
    fault::{Fault, Observation},
    leftovers::check_ends,
    node::NetworkRule,
    operator_pods::{list_ready, restarts_of, wait_for_leader},
    test_namespace::{TestNamespace, pod_ip},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc::{self, UnboundedReceiver},
    task::JoinHandle,
};

use crate::{
    checks::{check_whole_run, has_requests, watched_spec},
    quick::runners::start_pair,
};

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
            let operator = leader_address(namespace).await?;
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
        fault: "a runner answers requests for its metrics with invalid data for 15 s under load",
        expected: "the run is whole; the operator lives",
        seconds: 75,
    };
    // The operator reads all of the longer answer, which is below its limit.
    check_answers(fault, "rubbish", [300, READABLE], |taken| taken == READABLE).await
}

#[tokio::test]
async fn runner_that_answers_100_megabytes_costs_nothing() -> Result<()> {
    let fault = Fault {
        fault: "a runner answers requests for its metrics with 100 MB for 15 s under load",
        expected: "the run is whole; the operator lives",
        seconds: 75,
    };
    let length = 100_000_000;
    check_answers(fault, "flood", [length; 2], |taken| taken < length).await
}

/// Length of an answer that the operator reads to its end.
const READABLE: usize = control::MAX_RESPONSE_BYTES - (1 << 20);

/// How long something else answers for a runner.
const RUBBISH_TIME: Duration = Duration::from_secs(15);

/// Lets something else answer for one of two runners, with rubbish of these lengths in turn. `is_expected` checks how many
/// bytes of an answer the operator took at most.
async fn check_answers(
    fault: Fault,
    name: &str,
    lengths: [usize; 2],
    is_expected: impl Fn(usize) -> bool,
) -> Result<()> {
    fault
        .check_alone(name, async |namespace, row| {
            let (target, test) = start_pair(namespace, name, "60s").await?;
            let before = count_restarts(namespace).await?;
            let operator = leader_address(namespace).await?;
            let runner = namespace.list_runners(name).await?.pop().context("no runner")?;
            row.begin();
            let impostor = Impostor::replace(&runner, &test, &operator, lengths).await?;
            tokio::time::sleep(RUBBISH_TIME).await;
            let taken = impostor.leave()?;
            ensure!(is_expected(taken), "the operator took {taken} bytes");
            row.settle(check_whole_run(namespace, &target, &test, 90).await?);
            ensure!(before == count_restarts(namespace).await?, "the operator has restarted");
            Ok(())
        })
        .await
}

#[tokio::test]
async fn runners_of_one_namespace_hold_up_no_other() -> Result<()> {
    let fault = Fault {
        fault: "four runners of a namespace answer with 15 MiB of rubbish for 15 s under load",
        expected: "the status of a test in another namespace goes on; both runs are whole",
        seconds: 75,
    };
    let check = async |namespace: &TestNamespace, row: &mut Observation| {
        let check_beside = async |beside| check_neighbour(namespace, &beside, row).await;
        TestNamespace::run_beside("honest", check_beside).await
    };
    fault.check_alone("hostile", check).await
}

/// Lets all four runners of a test in one namespace be hostile, and watches a test in another namespace.
async fn check_neighbour(
    hostile: &TestNamespace,
    honest: &TestNamespace,
    row: &mut Observation,
) -> Result<()> {
    let target = hostile.deploy_simulator(json!({"health": {"latency": "20ms"}})).await?;
    let honest_target = honest.deploy_simulator(json!({"health": {"latency": "20ms"}})).await?;
    let mut spec = watched_spec(20, "60s");
    spec["runners"] = json!({"usersPerRunner": 5});
    let test = hostile.create_test("hostile", spec).await?;
    let honest_test = honest.create_test("honest", watched_spec(5, "60s")).await?;
    hostile.wait_for_status("hostile", 60, has_requests).await?;
    honest.wait_for_status("honest", 60, has_requests).await?;
    let restarts = count_restarts(hostile).await?;
    let operator = leader_address(hostile).await?;
    let runners = hostile.list_runners("hostile").await?;
    ensure!(runners.len() == 4, "{} runners", runners.len());
    row.begin();
    let mut impostors = Vec::new();
    for runner in &runners {
        impostors.push(Impostor::replace(runner, &test, &operator, [READABLE; 2]).await?);
    }
    let before = elapsed_seconds(honest, "honest").await?;
    tokio::time::sleep(RUBBISH_TIME).await;
    let progress = elapsed_seconds(honest, "honest").await? - before;
    for impostor in impostors {
        impostor.leave()?;
    }
    // A status is at most 5 s old.
    let expected = RUBBISH_TIME.as_secs_f64() - 6.0;
    ensure!(progress >= expected, "the status of the other test went on by {progress} s only");
    check_whole_run(hostile, &target, &test, 90).await?;
    row.settle(check_whole_run(honest, &honest_target, &honest_test, 90).await?);
    ensure!(restarts == count_restarts(hostile).await?, "the operator has restarted");
    check_ends(honest).await
}

/// The seconds of load in the status of a test.
async fn elapsed_seconds(namespace: &TestNamespace, name: &str) -> Result<f64> {
    let progress = namespace.get_status(name).await?.progress.context("no progress")?;
    Ok(progress.elapsed.as_secs_f64())
}

async fn leader_address(namespace: &TestNamespace) -> Result<String> {
    pod_ip(&wait_for_leader(namespace).await?).context("no address")
}

async fn count_restarts(namespace: &TestNamespace) -> Result<i32> {
    Ok(list_ready(namespace).await?.iter().map(restarts_of).sum())
}

/// Something that answers the operator in the place of a runner.
struct Impostor {
    serving: JoinHandle<()>,
    answers: UnboundedReceiver<usize>,
    /// The connections that were open end, and new ones lead to the impostor.
    _rules: [NetworkRule; 2],
}

impl Impostor {
    /// Answers in the place of a runner of a test with rubbish of these lengths in turn, after the header of the runner.
    async fn replace(
        runner: &Pod,
        test: &LoadTest,
        operator: &str,
        lengths: [usize; 2],
    ) -> Result<Self> {
        let header = header_of(test, runner)?;
        let listener = TcpListener::bind("0.0.0.0:0").await?;
        let port = listener.local_addr()?.port();
        let (answered, answers) = mpsc::unbounded_channel();
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
        let runner = pod_ip(runner).context("no address")?;
        let redirect = NetworkRule::redirect(operator, &runner, control::PORT, port)?;
        let cut = NetworkRule::drop_packets(operator, &runner)?;
        Ok(Self { serving, answers, _rules: [cut, redirect] })
    }

    /// Lets the runner answer again. Returns how many bytes of an answer the operator took at most.
    fn leave(mut self) -> Result<usize> {
        self.serving.abort();
        let taken = std::iter::from_fn(|| self.answers.try_recv().ok()).max();
        taken.context("the operator asked nobody")
    }
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
