//! Watches whether the target keeps connections open after a response.

use std::{
    cell::{Cell, RefCell},
    time::{Duration, Instant},
};

use crate::protocol::http1::Http1Connection;

/// Number of kept connections in a row that ended before a response, after which the target seems to close each of them.
const MAX_ENDED: u32 = 3;

/// A target that leaves a connection open for this time after a response keeps connections.
const WATCH_TIME: Duration = Duration::from_millis(100);

/// What a load thread has seen of connections that were kept for another request.
#[derive(Debug, Default)]
pub(super) struct KeepAlive {
    /// Number of kept connections in a row that ended before a response.
    ended: Cell<u32>,
    /// A connection that is left unused, to see whether the target closes it.
    watched: RefCell<Option<WatchedConnection>>,
}

#[derive(Debug)]
struct WatchedConnection {
    connection: Box<Http1Connection>,
    since: Instant,
}

impl KeepAlive {
    /// Notes that a kept connection ended before a response.
    pub(super) fn note_end(&self) {
        self.ended.set(self.ended.get().saturating_add(1));
    }

    /// Notes a response on a kept connection.
    pub(super) fn note_response(&self) {
        self.ended.set(0);
    }

    /// Returns true if the target seems to close each connection shortly after a response.
    pub(super) fn is_doubtful(&self) -> bool {
        if self.ended.get() < MAX_ENDED {
            return false;
        }
        let is_due = |watched: &mut WatchedConnection| watched.since.elapsed() >= WATCH_TIME;
        let watched = self.watched.borrow_mut().take_if(is_due);
        if watched.is_some_and(|mut watched| watched.connection.is_open()) {
            self.ended.set(0);
        }
        self.ended.get() >= MAX_ENDED
    }

    /// Watches a connection after a response. Returns it if another one is watched.
    pub(super) fn watch(&self, connection: Box<Http1Connection>) -> Option<Box<Http1Connection>> {
        let mut watched = self.watched.borrow_mut();
        if watched.is_some() {
            return Some(connection);
        }
        *watched = Some(WatchedConnection { connection, since: Instant::now() });
        None
    }
}
