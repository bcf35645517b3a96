//! Runs the `loadtest run` program with a file and the simulator, and checks output and exit code.

#![allow(clippy::unwrap_used, reason = "a test that can't be set up has failed")]

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Mutex, PoisonError},
};

use serde_json::Value;

/// Held while a load test runs.
static RUNNING: Mutex<()> = Mutex::new(());

/// Runs `loadtest run`. Runs only one load test at a time: two at once would delay each other.
fn run_loadtest(arguments: &[&str]) -> Output {
    let _guard = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    Command::new(env!("CARGO_BIN_EXE_loadtest")).arg("run").args(arguments).output().unwrap()
}

/// Runs `loadtest run` up to five times, until the load generator was not late. A busy machine makes
/// it late now and then.
fn run_until_conclusive(arguments: &[&str]) -> Output {
    for _ in 1..5 {
        let output = run_loadtest(arguments);
        let text = String::from_utf8_lossy(&output.stdout);
        if !text.contains("load generator was itself late") {
            return output;
        }
    }
    run_loadtest(arguments)
}

fn example_path(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    root.join("examples").join(name).display().to_string()
}

/// Writes a LoadTest with ten users for one second and one threshold. Returns the file's path.
fn write_test(folder: &Path, threshold: &str) -> String {
    let file: PathBuf = folder.join("test.yaml");
    let text = format!(
        r#"
apiVersion: loadtest.cell0.io/v1alpha1
kind: LoadTest
metadata: {{name: local}}
spec:
  target: {{http: "http://127.0.0.1:9"}}
  load: {{users: 10, spawnRate: 100, duration: 1s, gracefulStop: 2s}}
  scenario:
    pause: {{min: 10ms, max: 20ms}}
    tasks: [{{name: health, http: {{path: /health}}}}]
  thresholds: [{threshold}]
"#
    );
    std::fs::write(&file, text).unwrap();
    file.display().to_string()
}

#[test]
fn example_runs_to_a_verdict_with_the_legacy_summary() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("result.json");
    let json = json.to_str().unwrap();
    let burst = example_path("loadtest-burst.yaml");
    let output = run_until_conclusive(&[&burst, "--simulator", "-t", "12s", "--json", json]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{text}");
    let progress = String::from_utf8_lossy(&output.stderr).into_owned();
    let title = "burst: 200 users at 50/s for 12s against http://127.0.0.1:";
    assert!(progress.contains(title), "{progress}");
    for part in [
        "chat_latency_avg_ms: ",
        "chat_latency_p95_ms: ",
        "chat_latency_p99_ms: ",
        "ws_connect_avg_ms: ",
        "total_errors: 0",
        "error_types: none",
        "chat timeToFirstResponse p95",
        "VERDICT  Pass",
    ] {
        assert!(text.contains(part), "{part:?} is missing in {text}");
    }
    let result: Value = serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap();
    assert_eq!(result["status"]["verdict"], "Pass");
    assert_eq!(result["status"]["summary"]["requests"], result["total"]["requests"]);
}

#[test]
fn exit_code_follows_the_verdict() {
    let folder = tempfile::tempdir().unwrap();
    let cases = [
        (r#"{metric: errorRate, target: "< 1%"}"#, 0),
        (r#"{metric: throughput, target: "> 1000000/s", critical: "< 1000/s"}"#, 1),
        (r#"{metric: errorRate, target: "1%"}"#, 2),
        (r#"{metric: responseTime, statistic: p99.9, target: "< 1s"}"#, 3),
    ];
    for (threshold, code) in cases {
        let file = write_test(folder.path(), threshold);
        let output = run_until_conclusive(&[&file, "--simulator"]);
        assert_eq!(output.status.code(), Some(code), "{threshold}: {output:?}");
    }
    // If the result can't be written, the exit code is not that of the verdict.
    let file = write_test(folder.path(), cases[0].0);
    let missing_folder = folder.path().join("no/such/folder.json");
    let output = run_loadtest(&[&file, "--simulator", "--json", missing_folder.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
}

#[test]
fn unreachable_target_fails_and_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file =
        write_test(folder.path(), r#"{metric: errorRate, target: "< 1%", critical: "> 5%"}"#);
    let output = run_loadtest(&[&file]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("connect") && text.contains("127.0.0.1:9"), "{text}");
}

#[test]
fn critical_window_stops_the_run_early() {
    let folder = tempfile::tempdir().unwrap();
    let threshold = r#"{metric: responseTime, statistic: p50, window: 5s, target: "< 1ms", critical: "> 2ms", abort: {}}"#;
    let file = write_test(folder.path(), threshold);
    let start = std::time::Instant::now();
    let output = run_loadtest(&[&file, "--simulator", "-t", "60s"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("load was stopped"), "{text}");
    assert!(start.elapsed().as_secs() < 45, "{text}");
}

#[test]
fn unknown_fields_and_too_large_files_are_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let file = write_test(folder.path(), r#"{metric: errorRate, target: "< 1%", wheight: 3}"#);
    let output = run_loadtest(&[&file, "--simulator"]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("spec.thresholds[0].wheight"), "{stderr}");
    let tasks: Vec<String> = (0..20)
        .map(|i| format!("{{name: t{i}, http: {{path: /, body: {}}}}}", "x".repeat(60_000)))
        .collect();
    let text = std::fs::read_to_string(&file)
        .unwrap()
        .replace("{name: health, http: {path: /health}}", &tasks.join(", "))
        .replace(", wheight: 3", "");
    std::fs::write(&file, text).unwrap();
    let output = run_loadtest(&[&file, "--simulator"]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("900 KiB that fit into a ConfigMap"), "{stderr}");
}

#[test]
fn signals_end_the_run_and_everything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let file = write_test(folder.path(), r#"{metric: errorRate, target: "< 1%"}"#);
    for signal in ["TERM", "INT"] {
        let path = |name: &str| folder.path().join(format!("{signal}.{name}"));
        let (json, log) = (path("json"), path("csv"));
        let _guard = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let mut run = Command::new(env!("CARGO_BIN_EXE_loadtest"))
            .args(["run", &file, "--simulator", "-t", "10m", "--json"])
            .arg(&json)
            .arg("--request-log")
            .arg(&log)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Title, header and the first line of progress: the load is on.
        let mut progress = BufReader::new(run.stderr.take().unwrap()).lines();
        let start: Vec<String> = progress.by_ref().take(3).map(Result::unwrap).collect();
        let id = run.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
        let lines = BufReader::new(run.stdout.take().unwrap()).lines();
        let rest: Vec<String> = lines.map(Result::unwrap).collect();
        let code = run.wait().unwrap().code();
        assert_eq!(code, Some(3), "{signal}: {start:?} {rest:?}");
        assert!(rest.iter().any(|line| line.contains("VERDICT  Inconclusive")), "{rest:?}");
        let result: Value = serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap();
        let requests = result["total"]["requests"].as_u64().unwrap();
        let logged = std::fs::read_to_string(log).unwrap().lines().count() as u64 - 1;
        assert!(requests > 0 && requests == logged, "{requests} requests, {logged} logged");
    }
}

#[test]
fn a_duration_without_a_unit_is_in_seconds() {
    let folder = tempfile::tempdir().unwrap();
    let file = write_test(folder.path(), r#"{metric: errorRate, target: "< 1%"}"#);
    let output = run_until_conclusive(&[&file, "--simulator", "-t", "2"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("for 2s against"), "{text}");
}

#[test]
fn a_second_signal_ends_the_run_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = write_test(folder.path(), r#"{metric: errorRate, target: "< 1%"}"#);
    // A target that accepts connections and never responds, so that the first signal has to wait.
    let target = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", target.local_addr().unwrap());
    let _guard = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut run = Command::new(env!("CARGO_BIN_EXE_loadtest"))
        .args(["run", &file, "--host", &url, "-t", "10m"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut progress = BufReader::new(run.stderr.take().unwrap()).lines().map(Result::unwrap);
    let interrupt = || {
        let id = run.id().to_string();
        assert!(Command::new("kill").args(["-s", "INT", &id]).status().unwrap().success());
    };
    // Title, header and the first line of progress: the load is on.
    assert_eq!(progress.by_ref().take(3).count(), 3);
    interrupt();
    assert!(progress.any(|line| line.starts_with("stopping the test")));
    interrupt();
    assert!(progress.any(|line| line.contains("the result is lost")));
    assert_eq!(run.wait().unwrap().code(), Some(130));
}
