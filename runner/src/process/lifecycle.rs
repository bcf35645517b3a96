//! The lifecycle of a runner: connect to the target, wait for the start order, make load, wait for the release order,
//! linger, exit.

use std::{
    io,
    process::ExitCode,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use loadtest_core::{
    control::{self, DRAIN_TIMEOUT, LastMetricsPart, exit_code},
    metrics::{Format, RunnerState},
};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    time::Instant,
};

use crate::process::{
    preflight::connect_to_target,
    server::{Control, record_history, serve_control},
};

/// Maximum time for the load threads of a killed runner to count requests in flight.
const COUNT_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the lifecycle ended.
#[derive(Clone, Debug, PartialEq, Eq)]
enum EndReason {
    /// The target did not accept a connection; what was tried, in words.
    TargetUnreachable(String),
    Released,
    GracePassed,
    Killed,
}

/// The end of a lifecycle.
#[derive(Debug)]
pub(crate) enum End {
    /// The process exits with this code.
    Exit(ExitCode),
    /// The target did not accept a connection; what was tried, in words. No load was made.
    TargetUnreachable(String),
}

/// Runs the lifecycle on the current runtime.
///
/// # Errors
/// When the signal handlers or the listener fail.
pub(crate) async fn run_until_exit(control: Control, listener: TcpListener) -> io::Result<End> {
    let control = Arc::new(control);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // Logged after the handlers are installed: an earlier signal would end the process without its
    // cleanup.
    tracing::info!(listen = %listener.local_addr()?, index = control.identity.index, "serving");
    let serving = tokio::spawn(serve_control(listener, Arc::clone(&control)));
    let recording = tokio::spawn(record_history(Arc::clone(&control)));

    let reason = tokio::select! {
        reason = wait_for_end(&control) => reason,
        () = wait_for_signal(&mut terminate, &mut interrupt) => EndReason::Killed,
    };
    let code = match &reason {
        EndReason::TargetUnreachable(tried) => return Ok(End::TargetUnreachable(tried.clone())),
        EndReason::Killed if control.state() == RunnerState::Waiting => {
            exit_code::KILLED_BEFORE_START
        }
        EndReason::Killed if *control.released.borrow() => 0,
        EndReason::Killed => {
            let deadline = Instant::now() + DRAIN_TIMEOUT.to_std();
            control.engine.kill();
            // A load thread that hangs must not outlast the grace period of the pod.
            let _ = tokio::time::timeout(COUNT_TIMEOUT, control.engine.wait_until_finished()).await;
            let mut released = control.released.subscribe();
            let drained = async {
                log_final_metrics(&control).await;
                let _ = released.wait_for(|released| *released).await;
            };
            tokio::select! {
                () = drained => {}
                () = tokio::time::sleep_until(deadline) => {}
                // A second signal ends the wait.
                () = wait_for_signal(&mut terminate, &mut interrupt) => {}
            }
            exit_code::KILLED_AFTER_START
        }
        EndReason::GracePassed => {
            tracing::warn!("no release order within the grace period");
            log_final_metrics(&control).await;
            0
        }
        EndReason::Released => {
            // A release order ends the test, even while this runner makes load.
            if control.state() == RunnerState::Running {
                control.engine.stop(Duration::ZERO);
            }
            let linger = control.engine.prepared().plan().metrics_linger.to_std();
            tokio::select! {
                () = tokio::time::sleep(linger) => {}
                () = wait_for_signal(&mut terminate, &mut interrupt) => {}
            }
            0
        }
    };
    serving.abort();
    recording.abort();
    tracing::info!(code, end = ?reason, "runner ends");
    Ok(End::Exit(ExitCode::from(code)))
}

async fn wait_for_signal(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

async fn wait_for_end(control: &Control) -> EndReason {
    let mut released = control.released.subscribe();
    let grace = control.engine.prepared().plan().release_grace.to_std();
    let load = async {
        connect_to_target(control.engine.prepared()).await?;
        control.ready.store(true, Ordering::Relaxed);
        tracing::info!("ready");
        control.engine.wait_until_finished().await;
        Ok(())
    };
    tokio::select! {
        // The test may end without this runner: a release order can come even before a start order.
        _ = released.wait_for(|released| *released) => return EndReason::Released,
        result = load => if let Err(tried) = result {
            return EndReason::TargetUnreachable(tried);
        },
    }
    tracing::info!("numbers are final");
    tokio::select! {
        _ = released.wait_for(|released| *released) => EndReason::Released,
        () = tokio::time::sleep(grace) => EndReason::GracePassed,
    }
}

/// Writes the final metrics to the log, in numbered lines that the operator joins.
async fn log_final_metrics(control: &Control) {
    let bytes = match control.encode_metrics(Format::Protobuf).await {
        Ok(bytes) => bytes,
        Err(error) => {
            tracing::error!(%error, "last metrics could not be encoded");
            return;
        }
    };
    for LastMetricsPart { part, parts, data } in control::split_last_metrics(&bytes) {
        tracing::info!(part, parts, data, "{}", control::LAST_METRICS);
    }
}
