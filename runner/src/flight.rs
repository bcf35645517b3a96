//! The request a user has open: visible from outside, so that a timeout knows its phase
//! and an interruption is still counted.

use std::{cell::Cell, time::Instant};

use crate::failure::ErrorKind;

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
    part: Cell<Part>,
}

impl Flight {
    pub(crate) const fn new() -> Self {
        Self { open: Cell::new(None), sent: Cell::new(None), part: Cell::new(Part::Connect) }
    }

    /// A request begins.
    pub(crate) fn begin(&self, task: usize, planned: Instant) {
        self.open.set(Some((task, planned)));
        self.sent.set(None);
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

    /// It is over.
    pub(crate) fn end(&self) {
        self.open.set(None);
    }

    /// The open request's task and when it was planned.
    pub(crate) fn open(&self) -> Option<(usize, Instant)> {
        self.open.get()
    }

    /// When it was sent.
    pub(crate) fn sent(&self) -> Option<Instant> {
        self.sent.get()
    }

    /// The part it is in.
    pub(crate) fn part(&self) -> Part {
        self.part.get()
    }
}
