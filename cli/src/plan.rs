//! `loadtest validate` and `loadtest plan`: check a file as an API server does, and size it as the
//! operator does.

use std::io::Write;

use loadtest_core::{
    load::LoadModel,
    plan::{size_test, warnings},
    resource::Sizing,
};

use crate::{
    arguments::{PlanArguments, ValidateArguments},
    exit::Exit,
    manifest::{Manifest, read_manifest, read_with_settings},
    output::eprint_line,
};

/// Checks files. The exit code is that of bad input if one of them is invalid.
pub(crate) fn validate_files(
    arguments: &ValidateArguments,
    out: &mut impl Write,
) -> anyhow::Result<Exit> {
    let mut exit = Exit::Passed;
    for file in &arguments.files {
        match read_manifest(file, arguments.name.as_deref(), &[]) {
            Ok(Manifest { test, .. }) => {
                for warning in warnings(&test.spec) {
                    eprint_line(&format!("warning: {file}: {warning}"));
                }
                writeln!(out, "{file}: valid")?;
            }
            Err(error) => {
                eprint_line(&format!("loadtest: {}", error.message()));
                exit = Exit::BadInput;
            }
        }
    }
    Ok(exit)
}

/// Prints the runners of a test.
pub(crate) fn print_plan(arguments: &PlanArguments, out: &mut impl Write) -> anyhow::Result<Exit> {
    let manifest = read_with_settings(&arguments.file, arguments.name.as_deref(), &arguments.set);
    match manifest {
        Ok(manifest) => {
            write!(out, "{}", format_plan(&manifest))?;
            out.flush()?;
            Ok(Exit::Passed)
        }
        Err(message) => {
            eprint_line(&format!("loadtest: {message}"));
            Ok(Exit::BadInput)
        }
    }
}

fn format_plan(manifest: &Manifest) -> String {
    let load: &LoadModel = &manifest.valid.load;
    let Sizing { runners, users_per_runner, rate_per_runner, threads_per_runner, cpu, memory } =
        size_test(&manifest.valid);
    let lines = [
        ("load", load.to_string()),
        ("runners", runners.to_string()),
        ("users of a runner at most", users_per_runner.to_string()),
        ("requests of a runner at most", rate_per_runner),
        ("load threads of a runner", threads_per_runner.to_string()),
        ("CPU request of a runner", cpu),
        ("memory request of a runner", memory),
    ];
    let name = manifest.test.metadata.name.as_deref().unwrap_or("loadtest");
    let lines: Vec<String> =
        lines.iter().map(|(what, value)| format!("  {what:<30}{value}\n")).collect();
    format!("{name}\n{}", lines.concat())
}
