//! The life of a runner process: release, SIGTERM, exit codes and the last metrics in its log.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
};

use cell0_simulator::Simulator;
use loadtest_core::{
    control::{exit_code, join_last_metrics, path},
    metrics::{Outcome, RunnerMetrics, RunnerState, decode},
    plan::Plan,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::harness::{build_plan, current_counts, final_counts, start_simulator};

struct RunnerProcess {
    child: Child,
    log: BufReader<std::process::ChildStdout>,
    address: SocketAddr,
    /// Holds the plan file until the process ends.
    _folder: tempfile::TempDir,
}

/// Starts a runner and waits until it is ready.
fn start_runner(plan: &Plan) -> RunnerProcess {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plan.json");
    std::fs::write(&file, serde_json::to_vec(plan).unwrap()).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_loadtest-runner"))
        .args(["run", "--index", "0", "--pod-uid", "pod", "--plan"])
        .arg(&file)
        .args(["--listen", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stdout.take().unwrap());
    let serving = read_log_until(&mut log, "serving");
    read_log_until(&mut log, "ready");
    let address = serving["fields"]["listen"].as_str().unwrap().parse().unwrap();
    RunnerProcess { child, log, address, _folder: folder }
}

/// Reads the log up to a message and returns its record.
fn read_log_until(log: &mut impl BufRead, message: &str) -> Value {
    let mut line = String::new();
    while log.read_line(&mut line).unwrap() > 0 {
        let value: Value = serde_json::from_str(&line).unwrap();
        if value["fields"]["message"] == message {
            return value;
        }
        line.clear();
    }
    panic!("the log ended without {message:?}");
}

/// Sends an order with the run's token. The runner must accept it.
async fn send_order(process: &RunnerProcess, path: &str, body: &str) {
    let head = format!(
        "POST {path} HTTP/1.1\r\nauthorization: Bearer secret\r\n\
         content-type: application/json\r\ncontent-length: {}",
        body.len()
    );
    let response = send(process, &head, body).await;
    assert!(response.starts_with("HTTP/1.1 204"), "{response}");
}

/// Sends a request and returns the response. `head` is the request line and all headers except
/// `host` and `connection`.
async fn send(process: &RunnerProcess, head: &str, body: &str) -> String {
    let mut socket = TcpStream::connect(process.address).await.unwrap();
    let text = format!("{head}\r\nhost: r\r\nconnection: close\r\n\r\n{body}");
    socket.write_all(text.as_bytes()).await.unwrap();
    let mut response = String::new();
    socket.read_to_string(&mut response).await.unwrap();
    response
}

/// Scrapes the text metrics until they contain `line`.
async fn wait_for_metric(process: &RunnerProcess, line: &str) {
    while !send(process, "GET /metrics HTTP/1.1", "").await.contains(line) {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// Waits until the simulator has received a request.
async fn wait_for_load(simulator: &Simulator) {
    while current_counts(simulator).received == 0 {
        tokio::task::yield_now().await;
    }
}

fn send_sigterm(process: &RunnerProcess) {
    let pid = rustix::process::Pid::from_child(&process.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
}

/// Waits until the process ends. Returns its exit code, and the last metrics if it logged them.
fn wait_for_exit(mut process: RunnerProcess) -> (Option<i32>, Option<RunnerMetrics>) {
    let log: Vec<String> = process.log.lines().map(Result::unwrap).collect();
    let code = process.child.wait().unwrap().code();
    let metrics = join_last_metrics(&log.join("\n")).map(|bytes| decode(&bytes).unwrap());
    (code, metrics)
}

/// Starts a simulator and builds a plan with two users and one task, `health`.
async fn prepare_health_task(duration: &str) -> (Simulator, Plan) {
    let simulator = start_simulator("{}").await;
    let tasks = json!([{"name": "health", "http": {"path": "/health"}}]);
    let plan = build_plan(&simulator, 2, duration, &tasks);
    (simulator, plan)
}

#[tokio::test(flavor = "multi_thread")]
async fn released_runner_exits_with_code_0() {
    let (_simulator, plan) = prepare_health_task("1s").await;
    let mut process = start_runner(&plan);
    send_order(&process, path::START, r#"{"inSeconds": 0}"#).await;
    read_log_until(&mut process.log, "numbers are final");
    send_order(&process, path::RELEASE, "{}").await;
    let (code, last) = wait_for_exit(process);
    assert_eq!((code, last), (Some(0), None));
}

#[tokio::test(flavor = "multi_thread")]
async fn unreleased_runner_logs_its_metrics_and_exits() {
    let (simulator, mut plan) = prepare_health_task("1s").await;
    plan.release_grace = loadtest_core::Duration::from_millis(200);
    let process = start_runner(&plan);
    send_order(&process, path::START, r#"{"inSeconds": 0}"#).await;
    let (code, last) = wait_for_exit(process);
    let last = last.unwrap();
    assert_eq!((code, last.state), (Some(0), RunnerState::Done));
    let received = final_counts(&simulator).await.received;
    assert_eq!(last.metrics.all_tasks().completed_requests(), received);
}

#[tokio::test(flavor = "multi_thread")]
async fn runner_terminated_under_load_exits_75_and_logs_metrics() {
    let (simulator, plan) = prepare_health_task("60s").await;
    let mut process = start_runner(&plan);
    send_order(&process, path::START, r#"{"inSeconds": 0}"#).await;
    read_log_until(&mut process.log, "start ordered");
    wait_for_load(&simulator).await;
    send_sigterm(&process);
    // The log may be deleted with the pod, so the runner serves its metrics until it is released.
    wait_for_metric(&process, "loadtest_runner_state{loadtest=\"burst\"} 4").await;
    send_order(&process, path::RELEASE, "{}").await;
    let (code, last) = wait_for_exit(process);
    let last = last.unwrap();
    assert_eq!(
        (code, last.state),
        (Some(i32::from(exit_code::KILLED_AFTER_START)), RunnerState::CutShort)
    );
    let total = last.metrics.all_tasks();
    let (completed, interrupted) =
        (total.completed_requests(), total.requests_with(Outcome::Interrupted));
    assert!(total.failed_requests() == 0 && interrupted <= 2, "{total:?}");
    // A request that was interrupted during its connect did not reach the simulator.
    let possible = completed..=completed + interrupted;
    let received = final_counts(&simulator).await.received;
    assert!(possible.contains(&received), "{received}: {completed} + {interrupted}");
}

#[tokio::test(flavor = "multi_thread")]
async fn runner_released_under_load_stops_its_load() {
    let (simulator, mut plan) = prepare_health_task("60s").await;
    plan.metrics_linger = loadtest_core::Duration::from_secs(60);
    let mut process = start_runner(&plan);
    send_order(&process, path::START, r#"{"inSeconds": 0}"#).await;
    read_log_until(&mut process.log, "start ordered");
    wait_for_load(&simulator).await;
    send_order(&process, path::RELEASE, "{}").await;
    // `metrics_linger` keeps the runner alive after its release.
    wait_for_metric(&process, "loadtest_users{loadtest=\"burst\"} 0").await;
    send_sigterm(&process);
    assert_eq!(wait_for_exit(process), (Some(0), None));
}

#[tokio::test(flavor = "multi_thread")]
async fn runner_terminated_after_its_load_reports_done() {
    let (_simulator, plan) = prepare_health_task("1s").await;
    let mut process = start_runner(&plan);
    send_order(&process, path::START, r#"{"inSeconds": 0}"#).await;
    read_log_until(&mut process.log, "numbers are final");
    send_sigterm(&process);
    // The runner exits without a release order.
    let (code, last) = wait_for_exit(process);
    assert_eq!(
        (code, last.unwrap().state),
        (Some(i32::from(exit_code::KILLED_AFTER_START)), RunnerState::Done)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn runner_terminated_before_its_start_exits_76() {
    let (_simulator, plan) = prepare_health_task("60s").await;
    let process = start_runner(&plan);
    send_sigterm(&process);
    // With exit code 76 the pod may be replaced, because no load was sent.
    assert_eq!(wait_for_exit(process), (Some(i32::from(exit_code::KILLED_BEFORE_START)), None));
}

#[test]
fn invalid_plan_file_is_named_in_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plan.json");
    for (text, problem) in [
        ("{", "plan.json can't be used: not a plan: EOF"),
        ("{}", "plan.json can't be used: not a plan: missing field `version`"),
        (
            r#"{"version": 1}"#,
            "plan.json can't be used: the plan has contract version 1: this program speaks",
        ),
    ] {
        std::fs::write(&file, text).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_loadtest-runner"))
            .args(["run", "--index", "0", "--plan"])
            .arg(&file)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2));
        let log = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(log.contains(problem), "{log}");
    }
}
