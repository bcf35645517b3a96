//! `cell0-simulator`: runs one simulator until it is told to stop.

mod args;

use std::{io, process::ExitCode, time::Duration};

use anyhow::Context;
use cell0_simulator::{Settings, Simulator, StartError};
use clap::Parser;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::args::Args;

/// musl's own allocator takes a lock for every request.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The exit code for settings that are refused, as clap has it for options.
const BAD_SETTINGS: u8 = 2;

fn main() -> ExitCode {
    let args = Args::parse();
    tracing_subscriber::fmt().json().with_writer(io::stderr).with_max_level(args.log).init();
    let settings = match args.settings() {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::from(BAD_SETTINGS);
        }
    };
    match run(&args, settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            let refused = matches!(error.downcast_ref(), Some(StartError::Settings(_)));
            if refused { ExitCode::from(BAD_SETTINGS) } else { ExitCode::FAILURE }
        }
    }
}

fn run(args: &Args, settings: Settings) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(args.threads())
        .enable_all()
        .build()
        .context("can't start threads")?;
    let result = runtime.block_on(simulate(args, settings));
    // Truth may still be sorted for someone: that is not worth waiting for.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

async fn simulate(args: &Args, settings: Settings) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("can't listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("can't listen for SIGINT")?;
    let simulator = Simulator::start(settings, args.listen()).await?;
    tracing::info!(
        http = %simulator.http_addr(),
        web_socket = %simulator.websocket_addr(),
        control = %simulator.control_addr(),
        threads = args.threads(),
        "listening"
    );
    let name = first(&mut terminate, &mut interrupt).await;
    tracing::info!(signal = name, "stopping");
    simulator.shutdown().await;
    for run in simulator.runs() {
        let totals = run.totals;
        tracing::info!(
            run = run.run,
            received = totals.received,
            completed = totals.completed,
            failed = totals.failed,
            aborted = totals.aborted,
            "served"
        );
    }
    Ok(())
}

async fn first(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}
