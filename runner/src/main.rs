//! `loadtest-runner`: one runner pod's process.

use std::{fs, io::Write, net::SocketAddr, path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use loadtest_core::{
    metrics::Identity,
    plan::{Plan, VERSION},
};
use loadtest_runner::{
    Engine, Prepared, lifecycle, preflight,
    selftest::{Check, selftest},
    server::{self, Control},
    step_back,
};
use tokio::sync::watch;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The exit code of a runner whose machine does not let it make its load.
const EXIT_PREFLIGHT: u8 = 77;
/// The file whose content becomes the message of a container that has ended.
const TERMINATION_LOG: &str = "/dev/termination-log";

/// Generates one runner's share of a load test.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Checks on this machine that what is measured is what happens, and prints a table.
    Selftest,
    /// Carries out a plan: waits for the order to start, makes load, serves its metrics.
    Run(Run),
}

#[derive(Debug, Args)]
struct Run {
    /// The plan, as the operator wrote it.
    #[arg(long, default_value = "/etc/loadtest/plan.json")]
    plan: PathBuf,
    /// Where to serve metrics and take orders.
    #[arg(long, default_value = "[::]:9464")]
    listen: SocketAddr,
    /// Which runner of the plan this is.
    #[arg(long, env = "JOB_COMPLETION_INDEX")]
    index: u32,
    /// UID of the pod, so that a reused address is noticed.
    #[arg(long, env = "LOADTEST_POD_UID", default_value = "")]
    pod_uid: String,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt().json().with_writer(std::io::stdout).init();
    let command = Arguments::parse().command;
    let ended = match command {
        Command::Run(arguments) => run(arguments),
        Command::Selftest => check(),
    };
    ended.unwrap_or_else(|error| {
        let text = format!("{error:#}");
        tracing::error!(error = text, "runner could not run");
        last_words(&text);
        ExitCode::from(2)
    })
}

/// Tells the kubelet, and with it whoever reads the pod's status, why this runner ends. It has
/// put a file there; elsewhere there is none.
fn last_words(text: &str) {
    let file = fs::OpenOptions::new().write(true).truncate(true).open(TERMINATION_LOG);
    // The log has it too.
    let _ = file.and_then(|mut file| file.write_all(text.as_bytes()));
}

/// Prints the table of the selftest; exits 1 when a check is out of its bound.
fn check() -> anyhow::Result<ExitCode> {
    preflight::make_ready();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{:<4}  {:<58}  {:<24}  found", "", "check", "should be")?;
    let mut broken = Ok(());
    let good = runtime.block_on(selftest(|Check { name, wanted, found, good }| {
        let mark = if *good { "ok" } else { "BAD" };
        broken = writeln!(out, "{mark:<4}  {name:<58}  {wanted:<24}  {found}");
    }))?;
    broken?;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run(arguments: Run) -> anyhow::Result<ExitCode> {
    let Run { plan: path, listen, index, pod_uid } = arguments;
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("plan {} can't be read", path.display()))?;
    let plan: Plan = serde_json::from_str(&text)
        .with_context(|| format!("plan {} is not a plan", path.display()))?;
    anyhow::ensure!(
        plan.version == VERSION,
        "plan has version {}, this runner speaks {VERSION}: use the operator's own runner image",
        plan.version
    );
    anyhow::ensure!(
        index < plan.runners,
        "index {index} is not below the plan's {} runners",
        plan.runners
    );
    let identity = Identity { run: plan.run.clone(), index, pod: pod_uid };
    let prepared = Prepared::new(plan, |variable| std::env::var(variable).ok())?;
    preflight::make_ready();
    let limits = preflight::Limits::of_this_machine();
    let problems = preflight::problems(&prepared, index, &limits, false);
    if !problems.is_empty() {
        let text = problems.join("; ");
        tracing::error!(error = text, "preflight failed: no load was made");
        last_words(&text);
        return Ok(ExitCode::from(EXIT_PREFLIGHT));
    }
    let engine = Engine::new(prepared, index)?;
    step_back();
    let control = Control { engine, identity, released: watch::Sender::new(false) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let listener =
            server::listen(listen).await.with_context(|| format!("{listen} can't be bound"))?;
        Ok(lifecycle::live(control, listener).await?)
    })
}
