//! `loadtest`: runs load tests on this machine, and watches those on a cluster.

mod file;
mod render;
mod result;
mod run;
mod watch;

use std::{io::Write, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use loadtest_core::resource::Verdict;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs load tests on this machine, and watches those on a cluster.
///
/// Exit codes: 0 Pass, Warning or not judged; 1 Fail or Critical; 2 bad input;
/// 3 Inconclusive; 4 could not run.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a LoadTest on this machine, no cluster needed.
    Run(RunArguments),
    /// Shows a LoadTest on a cluster from now to its verdict.
    Watch(WatchArguments),
}

#[derive(Debug, Args)]
struct RunArguments {
    /// The file with the LoadTest.
    file: String,
    /// Starts a stand-in for Cell 0 in this process and sends the load there.
    #[arg(long)]
    simulator: bool,
    /// Users, instead of the file's spec.load.users.
    #[arg(short, long)]
    users: Option<i64>,
    /// Users started per second, instead of the file's spec.load.spawnRate.
    #[arg(short = 'r', long)]
    spawn_rate: Option<f64>,
    /// Length of the test such as 20s or 5m, instead of the file's spec.load.duration.
    #[arg(short = 't', long)]
    duration: Option<String>,
    /// Base URL, instead of the file's spec.target.http.
    #[arg(long, value_name = "URL")]
    host: Option<String>,
    /// WebSocket base URL, instead of the file's spec.target.webSocket.
    #[arg(long, value_name = "URL")]
    ws_host: Option<String>,
    /// Writes the whole result as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes every request with its moments as CSV.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct WatchArguments {
    /// The LoadTest's name.
    name: String,
    /// Its namespace; the current context's when absent.
    #[arg(short, long)]
    namespace: Option<String>,
}

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    Good = 0,
    Missed = 1,
    BadInput = 2,
    Inconclusive = 3,
    CouldNotRun = 4,
}

impl Exit {
    const fn of(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Pass | Verdict::Warning | Verdict::NotJudged => Self::Good,
            Verdict::Fail | Verdict::Critical => Self::Missed,
            Verdict::Inconclusive => Self::Inconclusive,
        }
    }
}

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    // Two providers in one build would otherwise make this a panic, later.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut out = std::io::stdout().lock();
    let exit = match Arguments::parse().command {
        Command::Run(arguments) => run::run(&arguments, &mut out),
        Command::Watch(arguments) => watch::watch(&arguments, &mut out),
    };
    let exit = exit.unwrap_or_else(|error| {
        let _ = writeln!(std::io::stderr(), "loadtest: {error:#}");
        Exit::CouldNotRun
    });
    ExitCode::from(exit as u8)
}
