//! Runs `loadtest` without a file, with changes on the command line, and with wrong options.

#![allow(clippy::unwrap_used, reason = "a test that can't be set up has failed")]

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

fn run_loadtest(arguments: &[&str], input: &str) -> (Option<i32>, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_loadtest"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that refuses its options does not read its input.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (status.code(), text(&stdout), text(&stderr))
}

fn example(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    root.join("examples").join(name).display().to_string()
}

#[test]
fn a_test_can_be_run_without_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("r.json").display().to_string();
    let arguments = [
        "run",
        "--url",
        "http://localhost/health",
        "--simulator",
        "--rate",
        "50/s",
        "-t",
        "2",
        "--threshold",
        "errors<1%",
        "--threshold",
        "p(50)<5000",
        "--json",
        &json,
    ];
    let (code, stdout, stderr) = run_loadtest(&arguments, "");
    assert!(matches!(code, Some(0 | 3)), "{stdout}{stderr}");
    let result: Value = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    assert_eq!(result["total"]["requests"], 100, "{stdout}");
    assert_eq!(result["total"]["failures"], 0, "{stdout}");
    assert_eq!(result["thresholds"][0]["verdict"], "Pass", "{stdout}");
    assert_eq!(result["thresholds"][1]["target"]["value"], 5.0);
}

#[test]
fn a_file_can_come_from_the_standard_input() {
    let file = fs::read_to_string(example("loadtest-burst.yaml")).unwrap();
    let both = format!("{file}\n---\n{}", file.replace("name: burst", "name: other"));
    let plan = |arguments: &[&str]| run_loadtest(&[&["plan", "-"], arguments].concat(), &both);
    let (code, stdout, _) = plan(&["--name", "other", "--set", "load.users=1000"]);
    assert_eq!(code, Some(0));
    assert!(stdout.starts_with("other\n"), "{stdout}");
    assert!(stdout.contains("1000 users at 50/s"), "{stdout}");
    let (code, _, stderr) = plan(&[]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("choose one with --name (burst, other)"), "{stderr}");
}

#[test]
fn validate_checks_every_file() {
    let (burst, stress) = (example("loadtest-burst.yaml"), example("loadtest-stress.yaml"));
    let (code, stdout, stderr) = run_loadtest(&["validate", &burst, &stress], "");
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(stdout.lines().filter(|line| line.ends_with(": valid")).count(), 2, "{stdout}");
    let text = fs::read_to_string(&burst).unwrap().replace("users: 200", "users: 0");
    let (code, _, stderr) = run_loadtest(&["validate", "-"], &text);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("-:13:") && stderr.contains("spec.load.users"), "{stderr}");
}

#[test]
fn wrong_options_are_bad_input() {
    let burst = example("loadtest-burst.yaml");
    let cases: [(&[&str], &str); 15] = [
        (&["run"], "give a FILE, or --url"),
        (&["run", "--url", "localhost:80"], "is not http, https, ws or wss"),
        (&["run", "--url", "http://a", "-d", "@/no/such/file"], "/no/such/file"),
        (&["run", "--url", "http://a", "--rate", "fast"], "such as 200/s"),
        (&["run", "--url", "http://a", "--set", "load.users=0"], "spec.load.users"),
        (&["run", &burst, "--threshold", "p95"], "write for example p95<500ms"),
        (&["run", &burst, "--set", "load.usres=5"], "spec.load.usres: unknown field"),
        (&["run", &burst, "--name", "no-such-test"], "only: burst"),
        // Options of a request have no effect on a file, so they are refused.
        (&["run", &burst, "--rate", "5"], "--rate"),
        (&["run", "-f", &burst, "-X", "POST"], "--request"),
        (&["run", &burst, "-d", "x"], "--data"),
        (&["run", &burst, "-H", "a: b"], "--header"),
        (&["run", "-f", &burst, "--message", "x"], "--message"),
        (&["run", &burst, "--chat", "m"], "--chat"),
        (&["run", &burst, "--csv", ""], "--csv"),
    ];
    for (arguments, message) in cases {
        let (code, stdout, stderr) = run_loadtest(arguments, "");
        assert_eq!(code, Some(2), "{arguments:?}: {stdout}{stderr}");
        assert!(stderr.contains(message), "{arguments:?}: {stderr}");
    }
}

#[test]
fn completions_and_manual_name_every_command() {
    let commands = ["run", "watch", "report", "validate", "plan", "schema", "completions", "man"];
    for arguments in [&["completions", "bash"][..], &["completions", "fish"], &["man"]] {
        let (code, stdout, stderr) = run_loadtest(arguments, "");
        assert_eq!(code, Some(0), "{stderr}");
        for name in commands {
            assert!(stdout.contains(name), "{arguments:?}: {name}");
        }
        assert!(stdout.contains("summary\\-export") || stdout.contains("summary-export"));
    }
}
