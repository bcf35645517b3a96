//! What all connections share, and what each draws its answers' fates from.

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use rand::{SeedableRng, rngs::SmallRng};
use tokio::sync::watch;

use crate::{
    clock::Clock,
    limits::Gate,
    line::Line,
    settings::Settings,
    tap,
    truth::{Endpoints, Ledger, lock},
};

/// The state of one simulator.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) clock: Clock,
    pub(crate) ledger: Ledger,
    pub(crate) gates: Endpoints<Gate>,
    settings: watch::Sender<Arc<Settings>>,
    connections: AtomicU64,
    /// Has the kernel stamp packets from the first connection on.
    _stamps: Option<OwnedFd>,
}

/// One connection: its line, and what its next answers will be like.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) line: Arc<Line>,
    script: Mutex<Script>,
}

#[derive(Debug)]
struct Script {
    rng: SmallRng,
    settings: Arc<Settings>,
    newer: watch::Receiver<Arc<Settings>>,
}

impl Server {
    pub(crate) fn new(settings: Settings, max_records: usize) -> Self {
        let clock = Clock::start();
        Self {
            clock,
            ledger: Ledger::new(clock, max_records),
            gates: Endpoints::default(),
            settings: watch::Sender::new(Arc::new(settings)),
            connections: AtomicU64::new(0),
            _stamps: tap::wanted(),
        }
    }

    pub(crate) fn settings(&self) -> Arc<Settings> {
        self.settings.borrow().clone()
    }

    /// New settings, from each connection's next request (or message) on.
    pub(crate) fn set(&self, settings: Settings) {
        self.settings.send_replace(Arc::new(settings));
    }

    pub(crate) fn connect(self: &Arc<Self>) -> Arc<Connection> {
        let number = self.connections.fetch_add(1, Ordering::Relaxed);
        let newer = self.settings.subscribe();
        let settings = newer.borrow().clone();
        // The seed's upper bits keep the generators of two nearby seeds apart.
        let rng = SmallRng::seed_from_u64(settings.seed.rotate_left(32) ^ number);
        Arc::new(Connection {
            line: Arc::new(Line::new(self.clone(), number)),
            script: Mutex::new(Script { rng, settings, newer }),
        })
    }
}

impl Connection {
    /// Draws from the settings in force, without copying them.
    pub(crate) fn draw<T>(&self, choose: impl FnOnce(&Settings, &mut SmallRng) -> T) -> T {
        let mut script = lock(&self.script);
        let Script { rng, settings, newer } = &mut *script;
        // A version check: the lock inside is taken only when there is something new.
        if newer.has_changed().unwrap_or(false) {
            *settings = newer.borrow_and_update().clone();
        }
        choose(settings, rng)
    }
}
