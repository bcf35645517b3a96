//! `loadtest report` and `loadtest schema`: read a result that was written before, and describe its
//! format.

use std::io::Write;

use anyhow::Context;
use loadtest_core::{
    resource::{LoadTest, Verdict},
    result::{FORMAT_VERSION, result_schema},
};
use loadtest_report::RunResult;

use crate::{
    arguments::{ReportArguments, SchemaArguments, SchemaDocument},
    exit::Exit,
    output::eprint_line,
    outputs::{check_outputs, write_outputs},
    render,
};

/// Prints the result in a file, and writes reports of it. The exit code follows its verdict.
pub(crate) fn report_result(
    arguments: &ReportArguments,
    out: &mut impl Write,
) -> anyhow::Result<Exit> {
    let result = match read_result(arguments) {
        Ok(result) => result,
        Err(error) => {
            eprint_line(&format!("loadtest: {}: {error:#}", arguments.file.display()));
            return Ok(Exit::BadInput);
        }
    };
    let mut test = LoadTest::new(result.name.as_deref().unwrap_or("loadtest"), result.spec.clone());
    test.metadata.namespace.clone_from(&result.namespace);
    check_outputs(&arguments.outputs)?;
    let table = || render::format_result(&test, &result.status, None);
    write!(out, "{}", arguments.outputs.format.render(&result, table)?)?;
    out.flush()?;
    write_outputs(&arguments.outputs, &result)?;
    let verdict = result.status.known_verdict().unwrap_or(Verdict::Inconclusive);
    Ok(Exit::from_verdict(verdict, arguments.strict))
}

fn read_result(arguments: &ReportArguments) -> anyhow::Result<RunResult> {
    let text = std::fs::read_to_string(&arguments.file).context("the file can't be read")?;
    let value: serde_json::Value =
        serde_json::from_str(&text).context("the file is not the JSON of a result")?;
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
