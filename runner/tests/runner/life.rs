//! A runner's process: its exit codes, and its last words.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use loadtest_core::{
    metrics::{Outcome, RunnerNumbers, RunnerState, decode},
    plan::Plan,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::load::{plan, simulator};

struct Process {
    child: Child,
    log: BufReader<std::process::ChildStdout>,
    address: SocketAddr,
    /// Keeps the plan while the process may read it.
    _folder: tempfile::TempDir,
}

fn start(plan: &Plan) -> Process {
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
    let ready = until(&mut log, "ready");
    let address = ready["fields"]["listen"].as_str().unwrap().parse().unwrap();
    Process { child, log, address, _folder: folder }
}

/// Reads the log up to a message.
fn until(log: &mut impl BufRead, message: &str) -> Value {
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

async fn order(process: &Process, path: &str, body: &str) {
    let head = format!(
        "POST {path} HTTP/1.1\r\nauthorization: Bearer secret\r\n\
         content-type: application/json\r\ncontent-length: {}",
        body.len()
    );
    let answer = ask(process, &head, body).await;
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
}

/// The answer to a request with this head, but for what all heads have.
async fn ask(process: &Process, head: &str, body: &str) -> String {
    let mut socket = TcpStream::connect(process.address).await.unwrap();
    let text = format!("{head}\r\nhost: r\r\nconnection: close\r\n\r\n{body}");
    socket.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    answer
}

fn kill(process: &Process) {
    let pid = rustix::process::Pid::from_child(&process.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
}

/// The exit code and the last metrics in the log, if there are any.
fn end(mut process: Process) -> (Option<i32>, Option<RunnerNumbers>) {
    let mut text = String::new();
    for line in process.log.lines() {
        let value: Value = serde_json::from_str(&line.unwrap()).unwrap();
        if value["fields"]["message"] == "last metrics" {
            text.push_str(value["fields"]["data"].as_str().unwrap());
        }
    }
    let code = process.child.wait().unwrap().code();
    let numbers = (!text.is_empty()).then(|| decode(&STANDARD.decode(text).unwrap()).unwrap());
    (code, numbers)
}

async fn health(duration: &str) -> (cell0_simulator::Simulator, Plan) {
    let simulator = simulator("{}").await;
    let plan =
        plan(&simulator, 2, duration, &json!([{"name": "health", "http": {"path": "/health"}}]));
    (simulator, plan)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_released_runner_exits_0() {
    let (_simulator, plan) = health("1s").await;
    let mut process = start(&plan);
    order(&process, "/start", r#"{"inSeconds": 0}"#).await;
    until(&mut process.log, "numbers are final");
    order(&process, "/release", "{}").await;
    let (code, last) = end(process);
    assert_eq!((code, last), (Some(0), None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_nobody_releases_leaves_its_numbers_in_its_log() {
    let (simulator, mut plan) = health("1s").await;
    plan.release_grace = loadtest_core::Duration::from_millis(200);
    let process = start(&plan);
    order(&process, "/start", r#"{"inSeconds": 0}"#).await;
    let (code, last) = end(process);
    let last = last.unwrap();
    assert_eq!((code, last.state), (Some(0), RunnerState::Done));
    let truth = crate::load::truth(&simulator).await;
    assert_eq!(last.numbers.total().completed(), truth.received);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_killed_under_load_says_so_and_keeps_its_numbers() {
    let (simulator, plan) = health("60s").await;
    let mut process = start(&plan);
    order(&process, "/start", r#"{"inSeconds": 0}"#).await;
    until(&mut process.log, "start ordered");
    while simulator.truth(crate::load::RUN).totals.counts.received == 0 {
        tokio::task::yield_now().await;
    }
    kill(&process);
    // Its log may be gone with its pod: it answers until it is released.
    while !ask(&process, "GET /metrics HTTP/1.1", "")
        .await
        .contains("loadtest_runner_state{loadtest=\"burst\"} 4")
    {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    order(&process, "/release", "{}").await;
    let (code, last) = end(process);
    let last = last.unwrap();
    assert_eq!((code, last.state), (Some(75), RunnerState::CutShort));
    let total = last.numbers.total();
    // A request that was cut off while its user was connecting never came to the server.
    let (completed, cut) = (total.completed(), total.of(Outcome::Interrupted));
    assert!(total.failures() == 0 && cut <= 2, "{total:?}");
    let received = crate::load::truth(&simulator).await.received;
    assert!((completed..=completed + cut).contains(&received), "{received}: {completed} + {cut}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_released_under_load_makes_no_more() {
    let (simulator, mut plan) = health("60s").await;
    plan.metrics_linger = loadtest_core::Duration::from_secs(60);
    let mut process = start(&plan);
    order(&process, "/start", r#"{"inSeconds": 0}"#).await;
    until(&mut process.log, "start ordered");
    while simulator.truth(crate::load::RUN).totals.counts.received == 0 {
        tokio::task::yield_now().await;
    }
    order(&process, "/release", "{}").await;
    // While it lingers.
    while !ask(&process, "GET /metrics HTTP/1.1", "")
        .await
        .contains("loadtest_users{loadtest=\"burst\"} 0")
    {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    kill(&process);
    assert_eq!(end(process), (Some(0), None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_killed_after_its_load_has_made_all_of_it() {
    let (_simulator, plan) = health("1s").await;
    let mut process = start(&plan);
    order(&process, "/start", r#"{"inSeconds": 0}"#).await;
    until(&mut process.log, "numbers are final");
    kill(&process);
    // Nobody releases this one; it goes by itself.
    let (code, last) = end(process);
    assert_eq!((code, last.unwrap().state), (Some(75), RunnerState::Done));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_killed_before_its_start_may_be_replaced() {
    let (_simulator, plan) = health("60s").await;
    let process = start(&plan);
    kill(&process);
    assert_eq!(end(process), (Some(76), None));
}

#[test]
fn a_plan_that_is_none_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plan.json");
    for (text, told) in [("{", "is not a plan"), (r#"{"version": 1}"#, "is not a plan")] {
        std::fs::write(&file, text).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_loadtest-runner"))
            .args(["run", "--index", "0", "--plan"])
            .arg(&file)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2));
        let log = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(log.contains(told) && log.contains("plan.json"), "{log}");
    }
}
