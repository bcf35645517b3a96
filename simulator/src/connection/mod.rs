//! One connection: its request tracker, its socket and its random choices.
//!
//! This module knows no protocol: the `http` and `web_socket` modules speak on the connection.

mod observed_socket;
mod request_tracker;

use std::sync::{Arc, Mutex};

use rand::{SeedableRng, rngs::SmallRng};
use tokio::sync::watch;

pub(crate) use self::{observed_socket::ObservedSocket, request_tracker::RequestTracker};
use crate::{clock::Clock, lock::lock_mutex, server::Server, settings::Settings};

/// The state of one connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) tracker: Arc<RequestTracker>,
    choices: Mutex<RandomChoices>,
}

/// The random number generator of a connection, and the settings in force.
#[derive(Debug)]
struct RandomChoices {
    rng: SmallRng,
    settings: Arc<Settings>,
    updates: watch::Receiver<Arc<Settings>>,
}

impl Connection {
    pub(crate) fn new(server: &Arc<Server>) -> Self {
        let number = server.next_connection_number();
        let updates = server.subscribe_settings();
        let settings = updates.borrow().clone();
        // The seed moves to the upper bits, so nearby seeds don't share generators.
        let rng = SmallRng::seed_from_u64(settings.seed.rotate_left(32) ^ number);
        Self {
            tracker: Arc::new(RequestTracker::new(server.clone(), number)),
            choices: Mutex::new(RandomChoices { rng, settings, updates }),
        }
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.tracker.server.clock
    }

    /// Calls `choose` with the settings in force and the connection's random number generator.
    pub(crate) fn choose_response<T>(
        &self,
        choose: impl FnOnce(&Settings, &mut SmallRng) -> T,
    ) -> T {
        let mut choices = lock_mutex(&self.choices);
        let RandomChoices { rng, settings, updates } = &mut *choices;
        // `has_changed` only compares versions; `borrow_and_update` takes a lock.
        if updates.has_changed().unwrap_or(false) {
            *settings = updates.borrow_and_update().clone();
        }
        choose(settings, rng)
    }
}
