//! The request a user has open: visible from outside, so that a timeout knows its phase
//! and an interruption is still counted.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    pin::pin,
    task::{Poll, Waker},
    time::{Duration, Instant},
};

use loadtest_core::{metrics::Outcome, resource::Timeouts};

use crate::{
    failure::ErrorKind,
    measure::recorder::{Opened, Sample},
    prepare::PreparedKind,
};

/// The part of a request that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Resolving, connecting, TLS.
    Connect,
    /// Waiting until its connection takes one more.
    Turn,
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
            Self::Turn | Self::Response => ErrorKind::TimeoutResponse,
            Self::Body => ErrorKind::TimeoutBody,
        }
    }
}

/// One user's open request, if it has one.
#[derive(Debug)]
pub(crate) struct Flight {
    /// How long its parts may take.
    timeouts: Timeouts,
    /// The task's index and when it was planned.
    open: Cell<Option<(usize, Instant)>>,
    sent: Cell<Option<Instant>>,
    /// When the first byte of its answer was read.
    first_byte: Cell<Option<Instant>>,
    /// When its first content token was read; chat only.
    first: Cell<Option<Instant>>,
    /// When the message was sent whose replies are awaited; WebSocket only.
    awaited: Cell<Option<Instant>>,
    /// When its WebSocket began to connect, and when it was upgraded.
    upgrade: Cell<(Option<Instant>, Option<Instant>)>,
    part: Cell<Part>,
    /// When the whole of it has taken too long.
    whole: Cell<Instant>,
    /// When it, or its part, has taken too long, and who is to be told.
    deadline: Cell<Option<Instant>>,
    waker: RefCell<Waker>,
    /// Connections opened for it.
    opened: RefCell<Vec<Opened>>,
}

impl Flight {
    pub(crate) fn new(timeouts: Timeouts) -> Self {
        Self {
            timeouts,
            open: Cell::new(None),
            sent: Cell::new(None),
            first_byte: Cell::new(None),
            first: Cell::new(None),
            awaited: Cell::new(None),
            upgrade: Cell::new((None, None)),
            part: Cell::new(Part::Connect),
            whole: Cell::new(Instant::now()),
            deadline: Cell::new(None),
            waker: RefCell::new(Waker::noop().clone()),
            opened: RefCell::default(),
        }
    }

    /// A request begins, and may take so long from when it was planned.
    pub(crate) fn begin(&self, task: usize, planned: Instant, timeout: Duration) {
        self.open.set(Some((task, planned)));
        self.whole.set(planned + timeout);
        self.deadline.set(Some(planned + timeout));
        self.sent.set(None);
        self.first_byte.set(None);
        self.first.set(None);
        self.awaited.set(None);
        self.upgrade.set((None, None));
        self.part.set(Part::Connect);
    }

    /// A part of it begins.
    pub(crate) fn enter(&self, part: Part) {
        self.part.set(part);
        let limit = match part {
            Part::Connect => self.timeouts.connect,
            Part::Response => self.timeouts.first_byte,
            Part::Turn | Part::Body => None,
        };
        // What has passed already stays so.
        if self.deadline.get().is_some() {
            let whole = self.whole.get();
            let part_ends = limit.map_or(whole, |limit| Instant::now() + limit.std());
            self.deadline.set(Some(whole.min(part_ends)));
        }
    }

    /// It is sent now, unless a part of it was before.
    pub(crate) fn send(&self) {
        if self.sent.get().is_none() {
            self.sent.set(Some(Instant::now()));
        }
        self.enter(Part::Response);
    }

    /// It was not sent after all: it will be, on another connection.
    pub(crate) fn unsend(&self) {
        self.sent.set(None);
    }

    /// The first byte of its answer came at a moment; only the first call counts.
    pub(crate) fn first_byte(&self, at: Instant) {
        if self.first_byte.get().is_none() {
            self.first_byte.set(Some(at));
        }
    }

    /// Its first content token came at a moment; only the first call counts.
    pub(crate) fn first(&self, at: Instant) {
        if self.first.get().is_none() {
            self.first.set(Some(at));
        }
    }

    /// A message is sent now, whose replies are awaited.
    pub(crate) fn awaits(&self) -> Instant {
        let now = Instant::now();
        self.awaited.set(Some(now));
        now
    }

    /// The replies are there.
    pub(crate) fn replied(&self) {
        self.awaited.set(None);
    }

    /// How long replies are awaited already, if any are.
    pub(crate) fn awaiting(&self, now: Instant) -> Option<Duration> {
        self.awaited.get().map(|sent| now.saturating_duration_since(sent))
    }

    /// When it was sent, if it was.
    pub(crate) fn sent(&self) -> Option<Instant> {
        self.sent.get()
    }

    /// A connection was opened for it.
    pub(crate) fn opened(&self, opened: Opened) {
        self.opened.borrow_mut().push(opened);
    }

    /// The connections opened for it, since this was last asked.
    pub(crate) fn take_opened(&self) -> Vec<Opened> {
        self.opened.take()
    }

    /// Its WebSocket begins to connect: that is part of the service, and where sent begins.
    pub(crate) fn connects(&self) {
        self.send();
        self.enter(Part::Connect);
        self.upgrade.set((self.sent.get(), None));
    }

    /// Its WebSocket was upgraded at a moment.
    pub(crate) fn upgraded(&self, at: Instant) {
        self.upgrade.set((self.upgrade.get().0, Some(at)));
    }

    /// The moments of a request that ended at `last`, as they are recorded.
    ///
    /// What a timeout or an interruption never saw lasted at least until then: a chat without
    /// its first byte or token, a session without its upgrade.
    pub(crate) fn sample(
        &self,
        kind: &PreparedKind,
        outcome: Outcome,
        planned: Instant,
        last: Instant,
    ) -> Sample {
        let unseen = matches!(outcome, Outcome::Timeout | Outcome::Interrupted).then_some(last);
        let is_chat = matches!(kind, PreparedKind::Chat(_));
        let is_request = !matches!(kind, PreparedKind::WebSocket(_));
        let (from, upgraded) = self.upgrade.get();
        let connected = from.zip(upgraded.or(unseen));
        Sample {
            planned,
            sent: self.sent.get(),
            first_byte: self.first_byte.get().or(unseen).filter(|_| is_request),
            first: self.first.get().or(unseen).filter(|_| is_chat),
            last,
            connect: connected.map(|(from, to)| to.saturating_duration_since(from)),
        }
    }

    /// What took too long, for people.
    pub(crate) fn overdue(&self, timeout: Duration) -> String {
        let Timeouts { connect, first_byte } = self.timeouts;
        let whole = loadtest_core::Duration::from(timeout);
        // Whose deadline came first is the one that has passed.
        match (self.part.get(), connect, first_byte) {
            (Part::Connect, Some(limit), _) if Instant::now() < self.whole.get() => {
                format!("connection was not open within {limit}")
            }
            (Part::Response, _, Some(limit)) if Instant::now() < self.whole.get() => {
                format!("answer had not begun within {limit}")
            }
            _ => format!("no complete answer within {whole}"),
        }
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
