//! `loadtest run` rejects the same inputs as the API server, with the same messages.

#![allow(clippy::unwrap_used, reason = "a test that can't be set up has failed")]

use std::process::Command;

use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Cases {
    base: Value,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    patch: Value,
    says: Vec<String>,
}

/// Runs `loadtest run` and returns its exit code and standard error.
fn run_loadtest(file: &std::path::Path) -> (Option<i32>, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_loadtest")).arg("run").arg(file).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn every_bad_input_is_rejected_with_line_and_column() {
    let text = include_str!("../../e2e/bad-input.yaml").replace("%1MB%", &"x".repeat(1 << 20));
    let Cases { base, cases } = serde_saphyr::from_str(&text).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut failures = Vec::new();
    for Case { name, patch, says } in &cases {
        let mut object = base.clone();
        json_patch::merge(&mut object, patch);
        let file = folder.path().join("bad.yaml");
        std::fs::write(&file, serde_saphyr::to_string(&object).unwrap()).unwrap();
        let (code, stderr) = run_loadtest(&file);
        let message =
            stderr.lines().find_map(|line| line.split_once("bad.yaml:")).map(|(_, rest)| rest);
        let parts: Vec<_> = message.unwrap_or_default().splitn(3, ':').collect();
        let has_position = matches!(parts[..], [line, column, _]
            if line.parse::<u32>().is_ok() && column.parse::<u32>().is_ok());
        let missing: Vec<_> = says.iter().filter(|word| !stderr.contains(*word)).collect();
        if code != Some(2) || !has_position || !missing.is_empty() {
            let stderr: String = stderr.chars().take(600).collect();
            failures.push(format!(
                "{name}: exit code {code:?}, position {has_position}, missing {missing:?}: {stderr}"
            ));
        }
    }
    assert!(cases.len() > 40, "only {} cases were read", cases.len());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn error_names_a_missing_file() {
    let (code, stderr) = run_loadtest(std::path::Path::new("no/such/file.yaml"));
    assert_eq!(code, Some(2));
    assert!(stderr.contains("no/such/file.yaml can't be read"), "{stderr}");
}
