//! `loadtest-runner`: the process of one runner pod. Maps arguments to calls, and errors to exit
//! codes.

use std::{
    net::{Ipv6Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand};
use loadtest_core::control::{self, exit_code, variable};
use loadtest_runner::{
    RunError, RunOptions, run_plan,
    selftest::{SelftestResult, print_selftest},
    warm_up, write_termination_message,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Generates one runner's part of a load test.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Checks the measurements of the load generator on this machine and prints a table.
    Selftest,
    /// Carries out a plan: waits for the start order, makes load and serves its metrics.
    Run(RunArguments),
}

#[derive(Debug, Args)]
struct RunArguments {
    /// Path of the plan that the operator wrote.
    #[arg(long, default_value = control::PLAN_PATH)]
    plan: PathBuf,
    /// Address for metrics and orders.
    #[arg(long, default_value_t = SocketAddr::from((Ipv6Addr::UNSPECIFIED, control::PORT)))]
    listen: SocketAddr,
    /// Index of this runner in the plan.
    #[arg(long, env = variable::INDEX)]
    index: u32,
    /// UID of the pod. The operator detects by it that another pod reuses the address.
    #[arg(long, env = variable::POD_UID, default_value = "")]
    pod_uid: String,
}

fn main() -> ExitCode {
    // The kernel fills gaps in the memory with huge pages, long after the start. A runner of 10 MiB then takes up to 2 MiB more.
    // A kernel without huge pages refuses this, which is fine.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    tracing_subscriber::fmt().json().with_writer(std::io::stdout).init();
    match Arguments::parse().command {
        Command::Run(arguments) => run(arguments),
        Command::Selftest => selftest(),
    }
}

fn run(RunArguments { plan, listen, index, pod_uid }: RunArguments) -> ExitCode {
    match run_plan(RunOptions { plan, listen, index, pod_uid }) {
        Ok(code) => code,
        Err(error) => {
            let code = match &error {
                RunError::LimitsTooLow(_) => exit_code::LIMITS_TOO_LOW,
                RunError::TargetUnreachable(_) => exit_code::TARGET_UNREACHABLE,
                _ => exit_code::CANNOT_RUN,
            };
            fail(error.into(), code)
        }
    }
}

/// Exits 1 when a check failed, and 3 when other work on the machine disturbed it.
fn selftest() -> ExitCode {
    warm_up();
    match print_selftest(&mut std::io::stdout().lock()) {
        Ok(SelftestResult::Passed) => ExitCode::SUCCESS,
        Ok(SelftestResult::Failed) => ExitCode::FAILURE,
        Ok(SelftestResult::NotJudged) => ExitCode::from(exit_code::NOT_JUDGED),
        Err(error) => fail(error.into(), exit_code::CANNOT_RUN),
    }
}

/// Reports an error with its causes.
#[expect(clippy::needless_pass_by_value, reason = "callers convert their error for it")]
fn fail(error: anyhow::Error, code: u8) -> ExitCode {
    let text = format!("{error:#}");
    tracing::error!(error = text, code, "runner could not run");
    write_termination_message(&text);
    ExitCode::from(code)
}
