//! A runner's life: wait for the start, make load, wait to be released, linger, go.

use std::{io, process::ExitCode, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use loadtest_core::metrics::{Format, RunnerState};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    time::Instant,
};

use crate::process::server::{Control, router};

/// The exit code of a runner that had started and was killed: its load must not run twice.
pub const EXIT_KILLED_AFTER_START: u8 = 75;
/// The exit code of a runner that was killed before its start.
pub const EXIT_KILLED_BEFORE_START: u8 = 76;

/// How long a killed runner waits for its workers to count what is open.
const LAST_COUNT: Duration = Duration::from_secs(2);

/// How long a killed runner answers yet, unless it is released: the pod's log goes with the pod, so
/// the operator has to have asked by then. Below the pod's grace period of 10 s.
const LAST_CALL: Duration = Duration::from_secs(7);

/// Container runtimes split lines near 16 KiB.
const LINE: usize = 8 << 10;

/// How a runner's life ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Released,
    GracePassed,
    Killed,
}

/// Lives a runner's life on the current runtime.
///
/// # Errors
/// When signals or the listener fail.
pub async fn live(control: Control, listener: TcpListener) -> io::Result<ExitCode> {
    let control = Arc::new(control);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // Only now: a signal that came before its handler would be lost, or deadly.
    tracing::info!(listen = %listener.local_addr()?, index = control.identity.index, "ready");
    let app = router(Arc::clone(&control));
    let serving = tokio::spawn(async move { axum::serve(listener, app).await });

    let end = tokio::select! {
        end = until_over(&control) => end,
        () = killed(&mut terminate, &mut interrupt) => End::Killed,
    };
    let code = match end {
        End::Killed if control.engine.state() == RunnerState::Waiting => EXIT_KILLED_BEFORE_START,
        End::Killed if *control.released.borrow() => 0,
        End::Killed => {
            let last_call = Instant::now() + LAST_CALL;
            control.engine.kill();
            // Until what was open is counted; a worker that hangs must not outlast the pod.
            let _ = tokio::time::timeout(LAST_COUNT, control.engine.finished()).await;
            let mut released = control.released.subscribe();
            let told = async {
                print_last(&control).await;
                let _ = released.wait_for(|released| *released).await;
            };
            tokio::select! {
                () = told => {}
                () = tokio::time::sleep_until(last_call) => {}
                // Whoever says it twice means it.
                () = killed(&mut terminate, &mut interrupt) => {}
            }
            EXIT_KILLED_AFTER_START
        }
        End::GracePassed => {
            tracing::warn!("nobody released this runner");
            print_last(&control).await;
            0
        }
        End::Released => {
            // The test is over, whatever this one still does.
            if control.engine.state() == RunnerState::Running {
                control.engine.stop(Duration::ZERO);
            }
            let linger = control.engine.prepared().plan().metrics_linger.std();
            tokio::select! {
                () = tokio::time::sleep(linger) => {}
                () = killed(&mut terminate, &mut interrupt) => {}
            }
            0
        }
    };
    serving.abort();
    tracing::info!(code, end = ?end, "runner ends");
    Ok(ExitCode::from(code))
}

async fn killed(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

async fn until_over(control: &Control) -> End {
    let mut released = control.released.subscribe();
    let grace = control.engine.prepared().plan().release_grace.std();
    tokio::select! {
        // Released before it ever started: the test is over without this runner.
        _ = released.wait_for(|released| *released) => return End::Released,
        () = control.engine.finished() => {}
    }
    tracing::info!("numbers are final");
    tokio::select! {
        _ = released.wait_for(|released| *released) => End::Released,
        () = tokio::time::sleep(grace) => End::GracePassed,
    }
}

/// Writes the last metrics to the log, in lines that are put together by their numbers.
async fn print_last(control: &Control) {
    let Ok(bytes) = control.exposition(Format::Protobuf).await else { return };
    let text = STANDARD.encode(bytes);
    let parts = text.len().div_ceil(LINE);
    for (part, data) in text.as_bytes().chunks(LINE).enumerate() {
        let data = std::str::from_utf8(data).unwrap_or_default();
        tracing::info!(part = part + 1, parts, data, "last metrics");
    }
}
