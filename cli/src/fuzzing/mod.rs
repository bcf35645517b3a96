//! The readers of texts and files, for `fuzz/`. Each function does what a command does with a text, and
//! writes nothing.

use loadtest_core::{
    plan::warnings,
    resource::LoadTest,
    result::{RunResult, compare},
};
use serde_json::Value;

use crate::{
    arguments::OutputFormat,
    manifest::{self, Change, Manifest, ManifestError},
    plan::{format_objects, format_plan},
    render,
    report::{format_comparison, format_markdown, parse_result},
    run::threshold::parse_threshold,
};

/// Reads a LoadTest from YAML, validates and plans it, as `loadtest validate` and `loadtest plan` do.
/// Returns the texts that they print.
///
/// # Errors
/// The problems of the text, as `loadtest validate` prints them.
pub fn plan_manifest(yaml: &str) -> Result<String, String> {
    let manifest = parse_manifest(yaml, &[])?;
    let objects = format_objects(&manifest, "runner").map_err(|error| error.to_string())?;
    Ok(format!("{}{}{objects}", warnings(&manifest.test.spec).concat(), format_plan(&manifest)))
}

/// Reads a change of `--set`, and makes it to a LoadTest.
///
/// # Errors
/// When the text is no change, or when the changed LoadTest is not valid.
pub fn change_manifest(yaml: &str, change: &str) -> Result<(), String> {
    parse_manifest(yaml, &[Change::parse(change)?]).map(drop)
}

fn parse_manifest(yaml: &str, changes: &[Change]) -> Result<Manifest, String> {
    manifest::parse_manifest(yaml, None, changes).map_err(|problems| {
        ManifestError::Invalid { path: "fuzz.yaml".to_owned(), problems }.message()
    })
}

/// Reads a threshold of the option `--threshold`.
///
/// # Errors
/// When the text is no threshold.
pub fn read_threshold(text: &str) -> Result<Value, String> {
    parse_threshold(text)
}

/// Reads a file that `loadtest run --json` has written, as `loadtest report` does.
///
/// # Errors
/// When the text is no result.
pub fn read_result(text: &str) -> Result<RunResult, String> {
    parse_result(text).map_err(|error| format!("{error:#}"))
}

/// Prints a result in every form of `loadtest report`, and compares it with another one, as
/// `loadtest diff` does.
pub fn print_result(result: &RunResult, other: &RunResult) -> String {
    let test = LoadTest::new(result.name.as_deref().unwrap_or("loadtest"), result.spec.clone());
    let table = || render::format_result(&test, &result.status, None);
    let formats = [
        OutputFormat::Table,
        OutputFormat::Wide,
        OutputFormat::Json,
        OutputFormat::Yaml,
        OutputFormat::Markdown,
    ];
    let mut out = String::new();
    for format in formats {
        // An error is one of YAML or JSON, which can't hold every number.
        out.push_str(&format.render(result, table).unwrap_or_default());
    }
    if let Ok(comparison) = compare(result, other) {
        out.push_str(&format_comparison(result, other, &comparison));
        out.push_str(&format_markdown(result, other, &comparison));
    }
    out
}
