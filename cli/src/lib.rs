//! `loadtest`: runs load tests on this machine, checks and plans them, makes reports, and watches load
//! tests on a cluster.
//!
//! [`run_command`] starts a command and maps its result to an exit code. The feature `fuzzing` adds the
//! module `fuzzing`, which only `fuzz/` uses.

mod arguments;
mod cluster;
mod exit;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod live;
mod manifest;
mod manual;
mod output;
mod outputs;
mod plan;
mod render;
mod report;
mod run;

use std::{
    io::{self, ErrorKind, IsTerminal},
    process::ExitCode,
};

use clap::Parser;

use crate::{
    arguments::{Arguments, Command},
    exit::Exit,
    output::{PatientWriter, allows_color, eprint_line},
};

/// Runs the command that the command line names, and returns the exit code of the process.
pub fn run_command() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal() && allows_color())
        .without_time()
        .with_target(false)
        .init();
    // If a build contains two TLS providers, rustls panics on first use unless one is chosen here.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut out = std::io::stdout().lock();
    let result = match Arguments::parse().command {
        Command::Run(arguments) => run::run_test(&arguments, &mut PatientWriter(out)),
        Command::Report(arguments) => report::report_result(&arguments, &mut PatientWriter(out)),
        Command::Diff(arguments) => report::print_difference(&arguments, &mut PatientWriter(out)),
        Command::Schema(arguments) => report::print_schema(&arguments, &mut out),
        Command::Init(arguments) => run::print_file(&arguments, &mut out),
        Command::Validate(arguments) => plan::validate_files(&arguments, &mut PatientWriter(out)),
        Command::Plan(arguments) => plan::print_plan(&arguments, &mut out),
        Command::Completions(arguments) => manual::print_completions(&arguments, &mut out),
        Command::Man => manual::print_manual(&mut out),
        Command::Apply(arguments) => cluster::apply_test(&arguments, &mut PatientWriter(out)),
        Command::Watch(arguments) => cluster::watch_test(&arguments, &mut PatientWriter(out)),
        Command::Ui(arguments) => cluster::show_page(&arguments),
        Command::List(arguments) => cluster::list_tests(&arguments, &mut out),
        Command::Logs(arguments) => cluster::print_logs(&arguments, &mut out),
        Command::Cancel(arguments) => cluster::cancel_test(&arguments, &mut out),
    };
    let exit = result.unwrap_or_else(|error| match error.downcast_ref::<io::Error>() {
        // The reader has seen enough, as in `loadtest list | head -1`.
        Some(cause) if cause.kind() == ErrorKind::BrokenPipe => Exit::Passed,
        _ => {
            eprint_line(&format!("loadtest: {error:#}"));
            Exit::CouldNotRun
        }
    });
    exit.into()
}
