//! The request a user has open: visible from outside, so that a timeout knows its phase
//! and an interruption is still counted.

use std::{cell::Cell, time::Instant};

use loadtest_core::metrics::Outcome;

use crate::{failure::ErrorKind, prepare::PreparedKind, record::Sample};

/// The part of a request that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Resolving, connecting, TLS.
    Connect,
    /// Sent; the answer has not begun.
    Response,
    /// The answer has begun.
    Body,
}

impl Part {
    /// The kind of a timeout in this part.
    pub(crate) const fn timeout(self) -> ErrorKind {
        match self {
            Self::Connect => ErrorKind::TimeoutConnect,
            Self::Response => ErrorKind::TimeoutResponse,
            Self::Body => ErrorKind::TimeoutBody,
        }
    }
}

/// One user's open request, if it has one.
#[derive(Debug)]
pub(crate) struct Flight {
    /// The task's index and when it was planned.
    open: Cell<Option<(usize, Instant)>>,
    sent: Cell<Option<Instant>>,
    /// When its first content token was read; chat only.
    first: Cell<Option<Instant>>,
    /// When its WebSocket was upgraded.
    upgraded: Cell<Option<Instant>>,
    part: Cell<Part>,
}

impl Flight {
    pub(crate) const fn new() -> Self {
        Self {
            open: Cell::new(None),
            sent: Cell::new(None),
            first: Cell::new(None),
            upgraded: Cell::new(None),
            part: Cell::new(Part::Connect),
        }
    }

    /// A request begins.
    pub(crate) fn begin(&self, task: usize, planned: Instant) {
        self.open.set(Some((task, planned)));
        self.sent.set(None);
        self.first.set(None);
        self.upgraded.set(None);
        self.part.set(Part::Connect);
    }

    /// A part of it begins.
    pub(crate) fn enter(&self, part: Part) {
        self.part.set(part);
    }

    /// It is sent now. Sent anew on another connection, the last time counts.
    pub(crate) fn send(&self) {
        self.sent.set(Some(Instant::now()));
        self.part.set(Part::Response);
    }

    /// Its first content token was read at a moment; only the first call counts.
    pub(crate) fn first(&self, at: Instant) {
        if self.first.get().is_none() {
            self.first.set(Some(at));
        }
    }

    /// Its WebSocket is upgraded now.
    pub(crate) fn upgraded(&self) {
        self.upgraded.set(Some(Instant::now()));
    }

    /// The moments of a request that ended at `last`, as they are recorded.
    ///
    /// What a timeout or an interruption never saw lasted at least until then: a chat without
    /// its first token, a session without its upgrade.
    pub(crate) fn sample(
        &self,
        kind: &PreparedKind,
        outcome: Outcome,
        planned: Instant,
        last: Instant,
    ) -> Sample {
        let sent = self.sent.get();
        let unseen = matches!(outcome, Outcome::Timeout | Outcome::Interrupted).then_some(last);
        let is_chat = matches!(kind, PreparedKind::Chat(_));
        let is_session = matches!(kind, PreparedKind::WebSocket(_));
        let first = self.first.get().or(unseen).filter(|_| is_chat);
        let upgraded = self.upgraded.get().or(unseen).filter(|_| is_session);
        let connect = sent.zip(upgraded).map(|(sent, at)| at.saturating_duration_since(sent));
        Sample { planned, sent, first, last, connect }
    }

    /// It is over.
    pub(crate) fn end(&self) {
        self.open.set(None);
    }

    /// The open request's task and when it was planned.
    pub(crate) fn open(&self) -> Option<(usize, Instant)> {
        self.open.get()
    }

    /// The part it is in.
    pub(crate) fn part(&self) -> Part {
        self.part.get()
    }
}
