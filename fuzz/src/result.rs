//! Results: the document of `loadtest run --json`, and the objects of a cluster that hold one.

use std::io::Write;

use flate2::{Compression, write::GzEncoder};
use k8s_openapi::ByteString;
use loadtest::fuzzing::{print_result, read_result};
use loadtest_core::result::{
    LoadTestResult, RunResult, Series, StoredResult, TestReference, compare,
};
use loadtest_report::{
    csv_files, hdr_log, html_report, junit_report, k6_summary, live_update, markdown_report,
};
use serde_json::{Value, json};

/// Reads a document, makes every report of it, and stores it. Reads objects as well.
pub fn result(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(result) = read_result(text)
    {
        check_reports(&result);
        check_storage(&result);
        check_stored_document(text, &result);
    }
    if let Ok(objects) = serde_json::from_slice::<Vec<LoadTestResult>>(data)
        && let Some(first) = objects.first()
        && let Ok(stored) = StoredResult::from_objects(first, &objects)
    {
        check_reports(&stored.result);
    }
}

/// Makes every report. The reports of a damaged document may be errors.
fn check_reports(result: &RunResult) {
    let _ = html_report(result);
    let _ = live_update(result, &result.series, 0, false);
    let _ = csv_files(result);
    let _ = junit_report(result);
    let _ = k6_summary(result);
    let _ = hdr_log(result);
    let markdown = markdown_report(result);
    assert!(markdown.lines().count() <= 60, "{markdown}");
    let mut shorter = result.clone();
    while shorter.series.points.len() > 1 && halve(&mut shorter.series) {
        let _ = html_report(&shorter);
    }
    print_result(result, &shorter);
    let _ = compare(&shorter, result);
}

/// Halves a series. Returns false if it is damaged.
fn halve(series: &mut Series) -> bool {
    let before = series.points.len();
    let is_halved = series.halve().is_ok();
    assert!(!is_halved || series.points.len() == before.div_ceil(2), "{before} points");
    is_halved
}

/// A result is the same after it was stored in the objects of a cluster, and read from them.
fn check_storage(result: &RunResult) {
    let stored = StoredResult { result: result.clone(), resume: None };
    let parts = stored.into_parts().expect("a result has a JSON form");
    let objects = objects_of(result, parts);
    let Some(first) = objects.first() else { return };
    let read = StoredResult::from_objects(first, &objects).expect("a stored result can be read");
    assert_eq!(read.result.status, result.status);
    assert_eq!(read.result.spec, result.spec);
}

/// A document with a result is read, whatever stands beside the result.
fn check_stored_document(text: &str, result: &RunResult) {
    let value: Value = serde_json::from_str(text).expect("the text was read before");
    let json = json!({"result": value, "resume": value}).to_string();
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(json.as_bytes()).expect("a vector takes every byte");
    let bytes = encoder.finish().expect("a vector takes every byte");
    let objects = objects_of(result, vec![bytes]);
    let Some(first) = objects.first() else { return };
    let read = StoredResult::from_objects(first, &[]).expect("the document is a result");
    assert_eq!(read.result.status, result.status);
}

fn objects_of(result: &RunResult, parts: Vec<Vec<u8>>) -> Vec<LoadTestResult> {
    let count = u32::try_from(parts.len()).unwrap_or(u32::MAX);
    let object = |(part, data): (u32, Vec<u8>)| LoadTestResult {
        part,
        parts: count,
        data: ByteString(data),
        ..LoadTestResult::new("fuzz", TestReference::default(), result)
    };
    (0..).zip(parts).map(object).collect()
}
