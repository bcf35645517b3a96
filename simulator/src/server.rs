//! The state that all connections of one simulator share.

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use kernel_timestamps::keep_timestamps_enabled;
use tokio::sync::watch;

use crate::{
    clock::Clock,
    limiter::Limiter,
    settings::Settings,
    truth::{Endpoints, RunStore},
};

/// The state of one simulator.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) clock: Clock,
    pub(crate) runs: RunStore,
    pub(crate) limiters: Endpoints<Limiter>,
    settings: watch::Sender<Arc<Settings>>,
    connections: AtomicU64,
    /// Keeps kernel timestamps enabled; see [`keep_timestamps_enabled`].
    _timestamps: Option<OwnedFd>,
}

impl Server {
    pub(crate) fn new(settings: Settings, max_records: usize) -> Self {
        let clock = Clock::start();
        Self {
            clock,
            runs: RunStore::new(clock, max_records),
            limiters: Endpoints::default(),
            settings: watch::Sender::new(Arc::new(settings)),
            connections: AtomicU64::new(0),
            _timestamps: keep_timestamps_enabled(),
        }
    }

    pub(crate) fn current_settings(&self) -> Arc<Settings> {
        self.settings.borrow().clone()
    }

    /// Replaces the settings; each connection uses them from its next request or message on.
    pub(crate) fn replace_settings(&self, settings: Settings) {
        self.settings.send_replace(Arc::new(settings));
    }

    /// Subscribes to the settings; the receiver tells when they change.
    pub(crate) fn subscribe_settings(&self) -> watch::Receiver<Arc<Settings>> {
        self.settings.subscribe()
    }

    /// Returns a number that no other connection has.
    pub(crate) fn next_connection_number(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed)
    }
}
