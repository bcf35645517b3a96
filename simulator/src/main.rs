//! `cell0-simulator`: runs one simulator until SIGTERM or SIGINT.

mod arguments;

use std::{io, process::ExitCode, time::Duration};

use anyhow::Context;
use cell0_simulator::{Settings, Simulator, StartError};
use clap::Parser;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::arguments::Arguments;

/// musl's allocator takes a lock for every request.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The exit code for invalid settings, the same as clap's for invalid options.
const INVALID_SETTINGS: u8 = 2;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt().json().with_writer(io::stderr).with_max_level(arguments.log).init();
    let settings = match arguments.read_settings() {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::from(INVALID_SETTINGS);
        }
    };
    match run_simulator(&arguments, settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            let is_invalid = matches!(error.downcast_ref(), Some(StartError::Settings(_)));
            if is_invalid { ExitCode::from(INVALID_SETTINGS) } else { ExitCode::FAILURE }
        }
    }
}

fn run_simulator(arguments: &Arguments, settings: Settings) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(arguments.thread_count())
        .enable_all()
        .build()
        .context("can't start threads")?;
    let result = runtime.block_on(serve_until_signal(arguments, settings));
    // A blocking thread may still sort records for a client. Don't wait for it.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

async fn serve_until_signal(arguments: &Arguments, settings: Settings) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("can't listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("can't listen for SIGINT")?;
    let simulator = Simulator::start(settings, arguments.listen_addresses()).await?;
    tracing::info!(
        http = %simulator.http_addr(),
        web_socket = %simulator.websocket_addr(),
        control = %simulator.control_addr(),
        threads = arguments.thread_count(),
        "listening"
    );
    let signal = wait_for_signal(&mut terminate, &mut interrupt).await;
    tracing::info!(signal, "stopping");
    simulator.shutdown().await;
    for run in simulator.run_summaries() {
        let totals = run.totals;
        tracing::info!(
            run = run.run_uid,
            received = totals.received,
            completed = totals.completed,
            failed = totals.failed,
            aborted = totals.aborted,
            "served"
        );
    }
    Ok(())
}

async fn wait_for_signal(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}
