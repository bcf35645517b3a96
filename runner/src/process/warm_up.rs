//! The warm-up before a load, so that the first requests are not slower than later ones.

use std::{io, thread, time::Duration};

use crate::{
    loopback::{
        run::{LoopbackError, run_on_loopback},
        target::ResponseTiming,
    },
    machine::{limits, memory},
};

/// Gets this process ready for load: raises the limit of open files, turns huge pages off, reads the
/// program into memory and makes a little load on loopback.
pub fn warm_up() {
    limits::raise_file_limit();
    memory::avoid_huge_pages();
    memory::preload_program();
    if let Err(error) = run_warm_up_load() {
        tracing::warn!(%error, "warm-up failed: the first requests may be slow");
    }
}

/// Makes load against a target in this process for 0.1 s.
///
/// Code that runs for the first time may wait for page faults. In a virtual machine the very first
/// request takes 10 to 40 ms longer than the next.
fn run_warm_up_load() -> Result<(), LoopbackError> {
    let load = serde_json::json!({"arrivals": {"rate": 500, "maxUsers": 10, "duration": "100ms"}});
    // The load runs on a thread of its own, because the caller may be inside a runtime.
    let thread = thread::Builder::new().name("warm-up".into()).spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let run = run_on_loopback(load, Duration::ZERO, |_| ResponseTiming::Immediate);
        runtime.block_on(run).map(drop)
    })?;
    thread.join().map_err(|_| io::Error::other("the warm-up panicked"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_warm_up_works_inside_a_runtime() {
        run_warm_up_load().unwrap();
    }
}
