//! The request a user has open: visible from outside, so that a timeout knows its phase
//! and an interruption is still counted.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    pin::pin,
    task::{Poll, Waker},
    time::{Duration, Instant},
};

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
    /// When it has taken too long, and who is to be told.
    deadline: Cell<Option<Instant>>,
    waker: RefCell<Waker>,
}

impl Flight {
    pub(crate) fn new() -> Self {
        Self {
            open: Cell::new(None),
            sent: Cell::new(None),
            first: Cell::new(None),
            upgraded: Cell::new(None),
            part: Cell::new(Part::Connect),
            deadline: Cell::new(None),
            waker: RefCell::new(Waker::noop().clone()),
        }
    }

    /// A request begins, and may take so long from when it was planned.
    pub(crate) fn begin(&self, task: usize, planned: Instant, timeout: Duration) {
        self.open.set(Some((task, planned)));
        self.deadline.set(Some(planned + timeout));
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

    /// Awaits a part of it, unless it takes too long.
    ///
    /// A timer for each request would cost more than the request's own bookkeeping, and hardly
    /// one ever fires: a look at all open requests now and then finds those that are late.
    pub(crate) async fn in_time<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        poll_fn(|context| {
            if let Poll::Ready(value) = future.as_mut().poll(context) {
                return Poll::Ready(Some(value));
            }
            if self.deadline.get().is_none() {
                return Poll::Ready(None);
            }
            self.waker.borrow_mut().clone_from(context.waker());
            Poll::Pending
        })
        .await
    }

    /// Tells who awaits it that it takes too long, if it does.
    pub(crate) fn look(&self, now: Instant) {
        if self.open.get().is_some() && self.deadline.get().is_some_and(|at| at <= now) {
            self.deadline.set(None);
            self.waker.borrow().wake_by_ref();
        }
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
