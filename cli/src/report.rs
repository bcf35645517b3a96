//! `loadtest report` and `loadtest schema`: read a result that was written before, and describe its
//! format.

mod diff;

use std::{io::Write, path::Path};

use anyhow::Context;
use loadtest_core::{
    resource::{LoadTest, Phase, Verdict},
    result::{FORMAT_VERSION, result_schema},
};
use loadtest_report::RunResult;

pub(crate) use self::diff::print_difference;
#[cfg(feature = "fuzzing")]
pub(crate) use self::diff::{format_comparison, format_markdown};
use crate::{
    arguments::{ClusterArguments, ReportArguments, SchemaArguments, SchemaDocument},
    cluster::read_stored_result,
    exit::Exit,
    output::eprint_line,
    outputs::{check_outputs, write_outputs},
    render,
};

/// Prints a result that a file or the cluster holds, and writes reports of it. The exit code follows
/// its verdict.
pub(crate) fn report_result(
    arguments: &ReportArguments,
    out: &mut impl Write,
) -> anyhow::Result<Exit> {
    let ReportArguments { source, cluster, strict, outputs } = arguments;
    let result = match read_source(source, cluster)? {
        Ok(result) => result,
        Err(message) => {
            eprint_line(&format!("loadtest: {message}"));
            return Ok(Exit::BadInput);
        }
    };
    check_outputs(outputs)?;
    let mut test = LoadTest::new(result.name.as_deref().unwrap_or("loadtest"), result.spec.clone());
    test.metadata.namespace.clone_from(&result.namespace);
    let table = || render::format_result(&test, &result.status, None);
    // A file that can't be written does not lose the others, or the result on the terminal.
    let written = write_outputs(outputs, &result);
    write!(out, "{}", outputs.format.render(&result, table)?)?;
    out.flush()?;
    written?;
    let is_running = result.status.known_phase().is_some_and(|phase| !phase.is_final());
    if is_running {
        eprint_line(
            "the result is that of a test without an end: it still runs, or its end was not stored",
        );
        return Ok(Exit::Inconclusive);
    }
    if result.status.known_phase() == Some(Phase::Error) {
        return Ok(Exit::CouldNotRun);
    }
    let verdict = result.status.known_verdict().unwrap_or(Verdict::Inconclusive);
    Ok(Exit::from_verdict(verdict, *strict))
}

/// Reads a result from a file, or from the cluster. The inner error says what is wrong with a file.
///
/// # Errors
/// When the cluster has no such result, or can't be asked.
fn read_source(
    source: &str,
    cluster: &ClusterArguments,
) -> anyhow::Result<Result<RunResult, String>> {
    if is_file(source, cluster.is_given()) {
        return Ok(read_result(Path::new(source)).map_err(|error| format!("{source}: {error:#}")));
    }
    read_stored_result(source, cluster).map(Ok)
}

/// Returns true if the user means a file: it exists, or it has the form of a path. If options name a cluster, a file must
/// have the form of a path: others are names of LoadTests.
fn is_file(source: &str, names_cluster: bool) -> bool {
    let path = Path::new(source);
    let is_json = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
    let is_path = source.contains(std::path::MAIN_SEPARATOR);
    is_path || if names_cluster { is_json && path.is_file() } else { is_json || path.is_file() }
}

fn read_result(file: &Path) -> anyhow::Result<RunResult> {
    parse_result(&std::fs::read_to_string(file).context("the file can't be read")?)
}

/// Reads the text of a file that `loadtest run --json` has written.
pub(crate) fn parse_result(text: &str) -> anyhow::Result<RunResult> {
    let value: serde_json::Value =
        serde_json::from_str(text).context("the file is not the JSON of a result")?;
    let version = value["version"].as_u64();
    anyhow::ensure!(
        version == Some(u64::from(FORMAT_VERSION)),
        "{}, and this program reads version {FORMAT_VERSION}",
        version.map_or_else(
            || "the file is not a result of loadtest run --json".to_owned(),
            |version| format!("the result has version {version}")
        )
    );
    serde_path_to_error::deserialize(&value)
        .map_err(|error| anyhow::anyhow!("{}: {}", error.path(), error.inner()))
}

/// Prints the JSON Schema of a document.
pub(crate) fn print_schema(
    arguments: &SchemaArguments,
    out: &mut impl Write,
) -> anyhow::Result<Exit> {
    let schema = match arguments.document {
        SchemaDocument::Loadtest => loadtest_core::resource::schema(),
        SchemaDocument::Result => result_schema(),
    };
    writeln!(out, "{schema:#}")?;
    Ok(Exit::Passed)
}
