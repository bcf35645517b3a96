//! `loadtest run` refuses what the API server refuses: the same cases, the same words.

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

fn run(file: &std::path::Path) -> (Option<i32>, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_loadtest")).arg("run").arg(file).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn every_bad_input_is_refused_with_its_place_in_the_file() {
    let text = include_str!("../../e2e/bad-input.yaml").replace("%1MB%", &"x".repeat(1 << 20));
    let Cases { base, cases } = serde_yaml::from_str(&text).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for Case { name, patch, says } in &cases {
        let mut object = base.clone();
        json_patch::merge(&mut object, patch);
        let file = folder.path().join("bad.yaml");
        std::fs::write(&file, serde_yaml::to_string(&object).unwrap()).unwrap();
        let (code, told) = run(&file);
        let place = told.lines().find_map(|line| line.split_once("bad.yaml:")).map(|(_, at)| at);
        let numbers: Vec<_> = place.unwrap_or_default().splitn(3, ':').collect();
        let placed = matches!(numbers[..], [line, column, _]
            if line.parse::<u32>().is_ok() && column.parse::<u32>().is_ok());
        let missing: Vec<_> = says.iter().filter(|word| !told.contains(*word)).collect();
        if code != Some(2) || !placed || !missing.is_empty() {
            let told: String = told.chars().take(600).collect();
            wrong
                .push(format!("{name}: exit {code:?}, placed {placed}, lacks {missing:?}: {told}"));
        }
    }
    assert!(cases.len() > 40, "only {} cases were read", cases.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let (code, told) = run(std::path::Path::new("no/such/file.yaml"));
    assert_eq!(code, Some(2));
    assert!(told.contains("no/such/file.yaml can't be read"), "{told}");
}
