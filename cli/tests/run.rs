//! `loadtest run` as a person runs it: a file, a simulator, an exit code.

#![allow(clippy::unwrap_used, reason = "a test that can't be set up has failed")]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{Mutex, PoisonError},
};

use serde_json::Value;

/// Runs one load test at a time: another one's work would make it late.
fn loadtest(arguments: &[&str]) -> Output {
    static MACHINE: Mutex<()> = Mutex::new(());
    let _alone = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    Command::new(env!("CARGO_BIN_EXE_loadtest")).arg("run").args(arguments).output().unwrap()
}

/// The same, and again, a few times, where the machine had no time for the load generator.
fn conclusive(arguments: &[&str]) -> Output {
    for _ in 1..5 {
        let output = loadtest(arguments);
        let text = String::from_utf8_lossy(&output.stdout);
        if !text.contains("load generator was itself late") {
            return output;
        }
    }
    loadtest(arguments)
}

fn example(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    root.join("examples").join(name).display().to_string()
}

/// A file with an HTTP test of ten users for a second, judged by one threshold.
fn judged(folder: &Path, threshold: &str) -> String {
    let file: PathBuf = folder.join("test.yaml");
    let text = format!(
        r#"
apiVersion: loadtest.cell0.io/v1alpha1
kind: LoadTest
metadata: {{name: judged}}
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
fn an_example_runs_to_a_verdict_with_the_lines_that_people_know() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("result.json");
    let json = json.to_str().unwrap();
    let burst = example("loadtest-burst.yaml");
    let output = conclusive(&[&burst, "--simulator", "-t", "12s", "--json", json]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{text}");
    for part in [
        "burst: 200 users at 50/s for 12s against http://127.0.0.1:",
        "chat_latency_avg_ms: ",
        "chat_latency_p95_ms: ",
        "chat_latency_p99_ms: ",
        "ws_connect_avg_ms: ",
        "total_errors: 0",
        "error_types: none",
        "chat timeToFirstResponse p95",
        "VERDICT  Pass",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let result: Value = serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap();
    assert_eq!(result["status"]["verdict"], "Pass");
    assert_eq!(result["status"]["summary"]["requests"], result["total"]["requests"]);
}

#[test]
fn exit_codes_tell_what_came_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let cases = [
        (r#"{metric: errorRate, target: "< 1%"}"#, 0),
        (r#"{metric: throughput, target: "> 1000000/s", critical: "< 1000/s"}"#, 1),
        (r#"{metric: errorRate, target: "1%"}"#, 2),
        (r#"{metric: responseTime, statistic: p99.9, target: "< 1s"}"#, 3),
    ];
    for (threshold, code) in cases {
        let file = judged(folder.path(), threshold);
        let output = conclusive(&[&file, "--simulator"]);
        assert_eq!(output.status.code(), Some(code), "{threshold}: {output:?}");
    }
    // A result that can't be written is no verdict.
    let file = judged(folder.path(), cases[0].0);
    let nowhere = folder.path().join("no/such/folder.json");
    let output = loadtest(&[&file, "--simulator", "--json", nowhere.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
}

#[test]
fn a_target_that_is_not_there_fails_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = judged(folder.path(), r#"{metric: errorRate, target: "< 1%", critical: "> 5%"}"#);
    let output = loadtest(&[&file]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("connect") && text.contains("127.0.0.1:9"), "{text}");
}

#[test]
fn a_critical_window_ends_the_run_early() {
    let folder = tempfile::tempdir().unwrap();
    let threshold = r#"{metric: responseTime, statistic: p50, window: 5s, target: "< 1ms", critical: "> 2ms", abort: {}}"#;
    let file = judged(folder.path(), threshold);
    let began = std::time::Instant::now();
    let output = loadtest(&[&file, "--simulator", "-t", "60s"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("load was stopped"), "{text}");
    assert!(began.elapsed().as_secs() < 45, "{text}");
}

#[test]
fn unknown_fields_are_warned_about_and_a_file_too_large_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = judged(folder.path(), r#"{metric: errorRate, target: "< 1%", wheight: 3}"#);
    let output = loadtest(&[&file, "--simulator"]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{told}");
    assert!(told.contains("warning: ") && told.contains("spec.thresholds[0].wheight"), "{told}");
    let tasks: Vec<String> = (0..20)
        .map(|i| format!("{{name: t{i}, http: {{path: /, body: {}}}}}", "x".repeat(60_000)))
        .collect();
    let text = std::fs::read_to_string(&file)
        .unwrap()
        .replace("{name: health, http: {path: /health}}", &tasks.join(", "));
    std::fs::write(&file, text).unwrap();
    let output = loadtest(&[&file, "--simulator"]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains("900 KiB that fit into a ConfigMap"), "{told}");
}
