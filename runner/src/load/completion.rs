//! The end of a runner's load: all load threads have ended, completely or not.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Instant,
};

use tokio::sync::watch;

/// Held by a load thread until its load has ended. The last guard to be dropped reports the end.
///
/// A guard that is dropped without [`CompletionGuard::complete`] marks the load as cut short.
#[derive(Debug)]
pub(crate) struct CompletionGuard {
    remaining_threads: Arc<AtomicU32>,
    finished_at: watch::Sender<Option<Instant>>,
    cut_short: Arc<AtomicBool>,
    is_complete: bool,
}

impl CompletionGuard {
    pub(crate) fn new(
        remaining_threads: &Arc<AtomicU32>,
        finished_at: &watch::Sender<Option<Instant>>,
        cut_short: &Arc<AtomicBool>,
    ) -> Self {
        Self {
            remaining_threads: Arc::clone(remaining_threads),
            finished_at: finished_at.clone(),
            cut_short: Arc::clone(cut_short),
            is_complete: false,
        }
    }

    /// Reports that the thread has made its load to the end.
    pub(crate) fn complete(mut self) {
        self.is_complete = true;
    }
}

impl Drop for CompletionGuard {
    fn drop(&mut self) {
        self.cut_short.fetch_or(!self.is_complete, Ordering::AcqRel);
        if self.remaining_threads.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.finished_at.send_replace(Some(Instant::now()));
        }
    }
}
