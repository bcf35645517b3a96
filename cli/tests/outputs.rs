//! Runs `loadtest run` with every file of the result, and `loadtest report` on its JSON.

#![allow(clippy::unwrap_used, reason = "a test that can't be set up has failed")]

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

const TEST: &str = r#"
apiVersion: loadtest.cell0.io/v1alpha1
kind: LoadTest
metadata: {name: outputs}
spec:
  target: {http: "http://127.0.0.1:9", webSocket: "ws://127.0.0.1:9"}
  load: {users: 20, spawnRate: 20, duration: 4s, gracefulStop: 2s}
  scenario:
    pause: {min: 10ms, max: 20ms}
    tasks:
      - {name: chat, chat: {models: [cell0-small], messages: ["Hello"], stream: true}}
      - {name: health, http: {path: /health}}
      - {name: missing, http: {path: /no/such/page}}
      - {name: ws, webSocket: {send: ['{"type":"ping"}'], replies: 1}}
  thresholds:
    - {task: health, metric: responseTime, statistic: p50, target: "< 10s"}
    - {metric: errorRate, target: "< 1%", warning: "< 5%"}
"#;

fn run_loadtest(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_loadtest")).args(arguments).output().unwrap()
}

fn read(folder: &Path, name: &str) -> String {
    fs::read_to_string(folder.join(name)).unwrap_or_else(|error| format!("{name}: {error}"))
}

/// The arguments for all files of a result, with names that start with a prefix.
fn output_arguments(folder: &Path, prefix: &str) -> Vec<String> {
    let path = |name: &str| folder.join(format!("{prefix}{name}")).display().to_string();
    let files = [
        ("--html", "r.html"),
        ("--junit", "r.xml"),
        ("--markdown", "r.md"),
        ("--summary-export", "k6.json"),
        ("--hdr", "r.hlog"),
        ("--csv", "locust"),
    ];
    files.iter().flat_map(|(option, name)| [(*option).to_owned(), path(name)]).collect()
}

#[test]
fn every_output_holds_the_numbers_of_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let file = folder.join("test.yaml").display().to_string();
    fs::write(&file, TEST).unwrap();
    let json = folder.join("r.json").display().to_string();
    let outputs = output_arguments(folder, "run-");
    let mut arguments = vec!["run", &file, "--simulator", "--json", &json];
    arguments.extend(outputs.iter().map(String::as_str));
    let run = run_loadtest(&arguments);
    assert_eq!(run.status.code(), Some(1), "{run:?}");

    let result: Value = serde_json::from_str(&read(folder, "r.json")).unwrap();
    let schema: Value =
        serde_json::from_slice(&run_loadtest(&["schema", "result"]).stdout).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let problems: Vec<String> =
        validator.iter_errors(&result).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(problems.is_empty(), "{problems:?}");

    // The series has everything that the totals have.
    let points = result["series"]["points"].as_array().unwrap();
    assert!((3..=5).contains(&points.len()), "{} points", points.len());
    let mut sums = BTreeMap::<&str, u64>::new();
    for task in points.iter().flat_map(|point| point["tasks"].as_object().unwrap().values()) {
        for key in ["requests", "failures", "receivedBytes", "sentBytes"] {
            *sums.entry(key).or_default() += task[key].as_u64().unwrap_or(0);
        }
        let count = task["latencies"]["responseTime"]["count"].as_u64().unwrap_or(0);
        *sums.entry("samples").or_default() += count;
    }
    let total = &result["total"];
    for key in ["requests", "failures", "receivedBytes", "sentBytes"] {
        assert_eq!(total[key], sums[key], "{key}");
    }
    assert_eq!(total["responseTime"]["count"], sums["samples"]);

    let requests = total["requests"].as_u64().unwrap();
    let stats = read(folder, "run-locust_stats.csv");
    let last = stats.lines().last().unwrap();
    assert!(last.starts_with(&format!(",Aggregated,{requests},")), "{last}");
    let failures = read(folder, "run-locust_failures.csv");
    assert!(failures.lines().nth(1).unwrap().starts_with("GET,missing,http_404"), "{failures}");
    let k6: Value = serde_json::from_str(&read(folder, "run-k6.json")).unwrap();
    assert_eq!(k6["metrics"]["http_reqs"]["count"], requests);
    assert!(read(folder, "run-r.xml").contains("tests=\"2\" failures=\"1\" errors=\"0\""));
    assert!(read(folder, "run-r.md").contains("### ❌ Load test outputs: Fail"));
    assert!(read(folder, "run-r.html").contains("<title>outputs · Fail</title>"));
    assert!(read(folder, "run-r.hlog").contains("Tag=chat,"));

    // A report of the result is the report of the run.
    let outputs = output_arguments(folder, "report-");
    let mut arguments = vec!["report", &json];
    arguments.extend(outputs.iter().map(String::as_str));
    let report = run_loadtest(&arguments);
    assert_eq!(report.status.code(), Some(1), "{report:?}");
    let text = String::from_utf8_lossy(&report.stdout).into_owned();
    assert!(text.contains("VERDICT  Fail"), "{text}");
    for (format, start) in
        [("json", "{\"version\":3,"), ("yaml", "version: 3"), ("markdown", "### ❌")]
    {
        let report = run_loadtest(&["report", &json, "-o", format]);
        let text = String::from_utf8_lossy(&report.stdout).into_owned();
        assert!(text.starts_with(start), "{format}: {}", text.lines().next().unwrap_or_default());
    }
    for name in ["r.html", "r.xml", "r.md", "k6.json", "r.hlog", "locust_stats.csv"] {
        let (first, second) =
            (read(folder, &format!("run-{name}")), read(folder, &format!("report-{name}")));
        assert!(first == second, "{name} differs");
    }
}

#[test]
fn a_reader_that_goes_away_changes_neither_files_nor_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::write(path("test.yaml"), TEST).unwrap();
    let (test, json, stale) = (path("test.yaml"), path("r.json"), path("r.xml"));
    fs::write(&stale, "of an earlier run").unwrap();
    let run = run_loadtest(&["run", &test, "--simulator", "-t", "1s", "--json", &json]);
    assert_eq!(run.status.code(), Some(1), "{run:?}");
    let arguments = ["report", &json, "-o", "json", "--junit", &stale];
    let mut report = Command::new(env!("CARGO_BIN_EXE_loadtest"))
        .args(arguments)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(report.stdout.take());
    assert_eq!(report.wait().unwrap().code(), Some(1));
    assert!(fs::read_to_string(&stale).unwrap().starts_with("<?xml"));
    // A link such as /dev/stdout stays, and its file gets the text.
    let (link, linked) = (path("link"), path("linked.xml"));
    fs::write(&linked, "of an earlier run").unwrap();
    std::os::unix::fs::symlink(&linked, &link).unwrap();
    assert_eq!(run_loadtest(&["report", &json, "--junit", &link]).status.code(), Some(1));
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(fs::read_to_string(&linked).unwrap().starts_with("<?xml"));
    // Without a result, no empty file is left.
    let output = run_loadtest(&["report", &path("missing.json"), "--junit", &path("new.xml")]);
    assert_eq!(output.status.code(), Some(2));
    let names: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert_eq!(names.len(), 5, "{names:?}");
}

#[test]
fn files_that_are_no_results_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("r.json").display().to_string();
    let cases = [
        ("{", "not the JSON of a result"),
        ("{}", "the file is not a result of loadtest run --json"),
        (r#"{"version": 2}"#, "the result has version 2, and this program reads version 3"),
        (r#"{"version": 3, "generator": 5}"#, "generator: invalid type"),
    ];
    for (text, message) in cases {
        fs::write(&file, text).unwrap();
        let output = run_loadtest(&["report", &file]);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{text}: {stderr}");
        assert!(stderr.contains(message), "{text}: {stderr}");
    }
    let output = run_loadtest(&["report", &format!("{file}.missing")]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn files_are_checked_before_the_load() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (missing, same) = (path("no/such/folder"), path("same"));
    let cases: [&[&str]; 3] =
        [&["--html", &missing], &["--csv", &missing], &["--json", &same, "--junit", &same]];
    for outputs in cases {
        // The load would last an hour.
        let arguments = [&["run", "--url", "http://127.0.0.1:9", "-t", "1h"], outputs].concat();
        let output = run_loadtest(&arguments);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(4), "{outputs:?}: {stderr}");
        assert!(stderr.contains(outputs.last().unwrap()), "{outputs:?}: {stderr}");
    }
}
