//! Every output of stored results, byte by byte.
//!
//! After a wanted change, `UPDATE_EXPECT=1 cargo test -p loadtest --test golden` writes the files in
//! `tests/golden` again. `result.json` is a run of `loadtest.yaml` against the simulator; `before.json`
//! and `after.json` are runs of a minute with 20 requests/s, against a `/health` that takes 5 to 15 ms and 5 to 20 ms.

#![allow(clippy::unwrap_used, reason = "a test that can't be set up has failed")]

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    process::Command,
};

use base64::prelude::*;
use expect_test::expect_file;
use flate2::read::ZlibDecoder;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn assert_golden(name: &str, text: &str) {
    expect_file![golden(name)].assert_eq(text);
}

/// Runs `loadtest` on stored results and returns its exit code and its standard output.
fn run_loadtest(command: &str, results: &[&str], options: &[&str]) -> (Option<i32>, String) {
    let paths = results.iter().map(|name| golden(name));
    let run = Command::new(env!("CARGO_BIN_EXE_loadtest"))
        .arg(command)
        .args(paths)
        .args(options)
        .env("NO_COLOR", "1")
        .output()
        .unwrap();
    (run.status.code(), String::from_utf8(run.stdout).unwrap())
}

#[test]
fn result_on_the_terminal() {
    for (format, name) in [
        ("table", "table.txt"),
        ("wide", "wide.txt"),
        ("json", "result.json"),
        ("yaml", "result.yaml"),
        ("markdown", "report.md"),
    ] {
        let (code, text) = run_loadtest("report", &["result.json"], &["-o", format]);
        assert_eq!(code, Some(1), "{format}");
        assert_golden(name, &text);
    }
}

#[test]
fn files_of_a_result() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let files = [
        ("--csv", "locust"),
        ("--junit", "junit.xml"),
        ("--markdown", "report.md"),
        ("--summary-export", "k6.json"),
        ("--hdr", "latency.hlog"),
        ("--html", "report.html"),
    ];
    let options: Vec<String> =
        files.iter().flat_map(|(option, name)| [(*option).to_owned(), path(name)]).collect();
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let (code, _) = run_loadtest("report", &["result.json"], &options);
    assert_eq!(code, Some(1));
    let csv = ["stats", "stats_history", "failures", "exceptions"];
    let names = csv.map(|table| format!("locust_{table}.csv"));
    let names = names.iter().map(String::as_str);
    for name in names.chain(["junit.xml", "report.md", "k6.json"]) {
        assert_golden(name, &fs::read_to_string(folder.path().join(name)).unwrap());
    }
    let log = fs::read_to_string(folder.path().join("latency.hlog")).unwrap();
    if uncompressed(&log) != uncompressed(&fs::read_to_string(golden("latency.hlog")).unwrap()) {
        assert_golden("latency.hlog", &log);
    }
    let page = fs::read_to_string(folder.path().join("report.html")).unwrap();
    assert_golden("report.body.html", &without_assets(&page));
}

/// The lines of a histogram log, each with its histogram uncompressed. Compressed bytes may differ between processors.
fn uncompressed(log: &str) -> Vec<(&str, Vec<u8>)> {
    /// Number of bytes before the compressed ones.
    const PREFIX: usize = 8;

    let read = |line| {
        let Some((start, encoded)) = str::rsplit_once(line, ",HIST") else { return (line, vec![]) };
        let bytes = BASE64_STANDARD.decode(format!("HIST{encoded}")).unwrap();
        let mut histogram = Vec::new();
        ZlibDecoder::new(&bytes[PREFIX..]).read_to_end(&mut histogram).unwrap();
        (start, histogram)
    };
    log.lines().map(read).collect()
}

/// The page without the contents of its `style` and `script` elements, which are files of the crate
/// `loadtest-report` and the data of the result.
fn without_assets(page: &str) -> String {
    let mut rest = page;
    let mut body = String::new();
    while let Some(start) = ["<style", "<script"].iter().filter_map(|tag| rest.find(tag)).min() {
        let content = start + rest[start..].find('>').unwrap() + 1;
        body.push_str(&rest[..content]);
        rest = &rest[content..];
        rest = &rest
            [["</style>", "</script>"].iter().filter_map(|tag| rest.find(tag)).min().unwrap()..];
    }
    body + rest
}

#[test]
fn two_results_side_by_side() {
    for (format, name) in [("table", "diff.txt"), ("markdown", "diff.md")] {
        let (code, text) = run_loadtest("diff", &["before.json", "after.json"], &["-o", format]);
        assert_eq!(code, Some(0), "{format}");
        assert_golden(name, &text);
    }
}
