//! The in-flight request of a user: its phase, its times and its deadline.
//!
//! The load thread sees it from outside, so that a timeout knows the phase of the request, and an
//! interrupted request is still counted.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    pin::pin,
    task::{Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use loadtest_core::resource::Timeouts;

use crate::{
    failure::ErrorKind,
    measure::recorder::{OpenedConnection, RequestEvents, RequestTimes},
    net::connector::{ConnectState, ConnectStep},
    prepare::plan::PreparedKind,
    protocol::{
        http1::BodyFraming,
        target_words::{MAX_ERROR_BODY, shorten},
    },
};

/// A request that begins later than this after its planned time was sent late.
const LATE: Duration = Duration::from_millis(5);

/// A phase of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestPhase {
    /// Resolving the name, connecting, TLS handshake.
    Connecting,
    /// Waiting until the HTTP/2 connection accepts another stream.
    AwaitingStream,
    /// The request is sent and the response has not begun.
    AwaitingResponse,
    /// The response has begun.
    ReadingBody,
}

impl RequestPhase {
    /// Returns the kind of a timeout in this phase.
    pub(crate) const fn timeout_kind(self) -> ErrorKind {
        match self {
            Self::Connecting => ErrorKind::TimeoutConnect,
            Self::AwaitingStream | Self::AwaitingResponse => ErrorKind::TimeoutResponse,
            Self::ReadingBody => ErrorKind::TimeoutBody,
        }
    }
}

/// What has come of a response that is not complete.
#[derive(Clone, Debug)]
enum Progress {
    /// The head, and with HTTP/1.1 how the body ends.
    Head(Option<BodyFraming>),
    /// A WebSocket message that is not the awaited reply.
    OtherMessage(Bytes),
    /// The finish reason of a chat.
    Finished,
}

impl Progress {
    fn describe(&self) -> String {
        match self {
            Self::Head(Some(BodyFraming::Length(length))) => {
                format!("fewer bytes of the body came than the content-length {length} promises")
            }
            Self::Head(Some(BodyFraming::UntilClose)) => {
                "the response has no content-length, and the target has not closed the connection"
                    .to_owned()
            }
            Self::Head(_) => "the body has not ended".to_owned(),
            Self::OtherMessage(message) => {
                let start = &message[..message.len().min(MAX_ERROR_BODY)];
                let words = shorten(&String::from_utf8_lossy(start));
                format!(
                    "a message arrived that does not count as a reply (webSocket.reply says which messages do): {words}"
                )
            }
            Self::Finished => {
                "the finish_reason came, but neither data: [DONE] nor the end of the body"
                    .to_owned()
            }
        }
    }
}

/// The in-flight request of one user, if the user has one.
#[derive(Debug)]
pub(crate) struct InFlightRequest {
    /// Timeouts of single phases.
    timeouts: Timeouts,
    /// The index of the task, and when the request was planned. `None` between requests.
    current: Cell<Option<(usize, Instant)>>,
    /// True when the request began over [`LATE`] after it was planned.
    is_late: Cell<bool>,
    sent: Cell<Option<Instant>>,
    /// When the first byte of the response was read.
    first_byte: Cell<Option<Instant>>,
    /// When the first token of any kind and of content was read; chat only.
    first_token: Cell<Option<Instant>>,
    first_content: Cell<Option<Instant>>,
    /// The status of the response; 0 before it has come.
    status: Cell<u16>,
    /// How often the request was sent again after a kept connection had ended.
    resends: Cell<u32>,
    /// When the message was sent that waits for replies; WebSocket only.
    message_sent: Cell<Option<Instant>>,
    /// When the WebSocket began to connect, and when it was upgraded.
    connect_and_upgrade: Cell<(Option<Instant>, Option<Instant>)>,
    phase: Cell<RequestPhase>,
    /// The parts of the response that have come, for the message of a timeout.
    progress: RefCell<Option<Progress>>,
    /// Deadline of the whole request.
    request_deadline: Cell<Instant>,
    /// The earlier of the deadlines of the request and of its phase. `None` after it has passed.
    deadline: Cell<Option<Instant>>,
    waker: RefCell<Waker>,
    /// Connections that were opened for the request.
    opened_connections: RefCell<Vec<OpenedConnection>>,
    /// The state of the user that its connections share.
    connect_state: ConnectState,
}

impl InFlightRequest {
    pub(crate) fn new(timeouts: Timeouts) -> Self {
        Self {
            timeouts,
            current: Cell::new(None),
            is_late: Cell::new(false),
            sent: Cell::new(None),
            first_byte: Cell::new(None),
            first_token: Cell::new(None),
            first_content: Cell::new(None),
            status: Cell::new(0),
            resends: Cell::new(0),
            message_sent: Cell::new(None),
            connect_and_upgrade: Cell::new((None, None)),
            phase: Cell::new(RequestPhase::Connecting),
            progress: RefCell::default(),
            request_deadline: Cell::new(Instant::now()),
            deadline: Cell::new(None),
            waker: RefCell::new(Waker::noop().clone()),
            opened_connections: RefCell::default(),
            connect_state: ConnectState::default(),
        }
    }

    /// Begins a request, `lag` after it was planned. Its timeout counts from `planned`.
    pub(crate) fn begin_request(
        &self,
        task: usize,
        planned: Instant,
        lag: Duration,
        timeout: Duration,
    ) {
        self.current.set(Some((task, planned)));
        self.is_late.set(lag > LATE);
        self.request_deadline.set(planned + timeout);
        self.deadline.set(Some(planned + timeout));
        self.sent.set(None);
        self.first_byte.set(None);
        self.first_token.set(None);
        self.first_content.set(None);
        self.status.set(0);
        self.resends.set(0);
        self.message_sent.set(None);
        self.connect_and_upgrade.set((None, None));
        self.phase.set(RequestPhase::Connecting);
        self.progress.take();
        self.connect_state.step.set(ConnectStep::Wait);
    }

    /// Enters a phase, which may have a timeout of its own.
    pub(crate) fn enter_phase(&self, phase: RequestPhase) {
        self.phase.set(phase);
        let timeout = match phase {
            RequestPhase::Connecting => self.timeouts.connect,
            RequestPhase::AwaitingResponse => self.timeouts.first_byte,
            RequestPhase::AwaitingStream | RequestPhase::ReadingBody => None,
        };
        // A deadline that has passed stays passed.
        if self.deadline.get().is_some() {
            let request_deadline = self.request_deadline.get();
            let phase_deadline =
                timeout.map_or(request_deadline, |timeout| Instant::now() + timeout.to_std());
            self.deadline.set(Some(request_deadline.min(phase_deadline)));
        }
    }

    /// Marks the request as sent now, unless a part of it was sent before.
    pub(crate) fn mark_sent(&self) {
        if self.sent.get().is_none() {
            self.sent.set(Some(Instant::now()));
        }
        self.enter_phase(RequestPhase::AwaitingResponse);
    }

    /// Marks the request as not sent. It will be sent on another connection.
    pub(crate) fn clear_sent(&self) {
        self.sent.set(None);
    }

    /// Marks the first byte of the response. Only the first call counts.
    pub(crate) fn mark_first_byte(&self, at: Instant) {
        if self.first_byte.get().is_none() {
            self.first_byte.set(Some(at));
        }
    }

    /// Forgets the first byte and the status of a redirect: those of the final response count.
    pub(crate) fn restart_first_byte(&self) {
        self.first_byte.set(None);
        self.progress.take();
        self.status.set(0);
    }

    /// Marks the first token of any kind. Only the first call counts.
    pub(crate) fn mark_first_token(&self, at: Instant) {
        if self.first_token.get().is_none() {
            self.first_token.set(Some(at));
        }
    }

    /// Marks the first token of content. Only the first call counts.
    pub(crate) fn mark_first_content(&self, at: Instant) {
        if self.first_content.get().is_none() {
            self.first_content.set(Some(at));
        }
    }

    /// Notes the status of the response, and with HTTP/1.1 how its body ends. With redirects, the last call counts.
    pub(crate) fn note_head(&self, status: u16, framing: Option<BodyFraming>) {
        self.status.set(status);
        *self.progress.borrow_mut() = Some(Progress::Head(framing));
    }

    /// Returns the status of the response, if it has come.
    pub(crate) fn status(&self) -> Option<u16> {
        Some(self.status.get()).filter(|status| *status > 0)
    }

    /// Counts that the request is sent again.
    pub(crate) fn count_resend(&self) {
        self.resends.set(self.resends.get() + 1);
    }

    /// Returns how often the request was sent again.
    pub(crate) fn resends(&self) -> u32 {
        self.resends.get()
    }

    /// Marks that a message with replies is sent now. Returns the time.
    pub(crate) fn begin_round_trip(&self) -> Instant {
        let now = Instant::now();
        self.message_sent.set(Some(now));
        now
    }

    /// Marks that all replies have arrived.
    pub(crate) fn end_round_trip(&self) {
        self.message_sent.set(None);
    }

    /// Notes a message that is no reply to the one that was sent.
    pub(crate) fn note_other_message(&self, message: &Bytes) {
        self.progress.borrow_mut().get_or_insert_with(|| Progress::OtherMessage(message.clone()));
    }

    /// Notes that the model has finished, while the stream has not ended.
    pub(crate) fn note_finish_reason(&self) {
        *self.progress.borrow_mut() = Some(Progress::Finished);
    }

    /// Returns how long replies have been awaited at `now`.
    pub(crate) fn round_trip_age(&self, now: Instant) -> Option<Duration> {
        self.message_sent.get().map(|sent| now.saturating_duration_since(sent))
    }

    /// Returns the time until the deadline of the request.
    pub(crate) fn time_left(&self) -> Duration {
        self.request_deadline.get().saturating_duration_since(Instant::now())
    }

    /// Returns when the request was sent.
    pub(crate) fn sent_at(&self) -> Option<Instant> {
        self.sent.get()
    }

    /// Returns the state of the user that its connections share.
    pub(crate) const fn connect_state(&self) -> &ConnectState {
        &self.connect_state
    }

    /// Adds a connection that was opened for the request.
    pub(crate) fn add_opened_connection(&self, opened: OpenedConnection) {
        self.opened_connections.borrow_mut().push(opened);
    }

    /// Takes the connections that were opened since the last call.
    pub(crate) fn take_opened_connections(&self) -> Vec<OpenedConnection> {
        self.opened_connections.take()
    }

    /// Marks that a WebSocket begins to connect. The connect time is part of the service time, so
    /// the request counts as sent.
    pub(crate) fn begin_websocket_connect(&self) {
        self.mark_sent();
        self.enter_phase(RequestPhase::Connecting);
        self.connect_and_upgrade.set((self.sent.get(), None));
    }

    /// Marks that the WebSocket was upgraded.
    pub(crate) fn mark_upgraded(&self, at: Instant) {
        self.connect_and_upgrade.set((self.connect_and_upgrade.get().0, Some(at)));
    }

    /// Returns the times of a request that ended, or was given up, at `last`.
    pub(crate) fn request_times(
        &self,
        kind: &PreparedKind,
        planned: Instant,
        last: Instant,
    ) -> RequestTimes {
        let (connect_began, upgraded) = self.connect_and_upgrade.get();
        RequestTimes {
            planned,
            sent: self.sent.get(),
            first_byte: self.first_byte.get(),
            first_token: self.first_token.get(),
            first_content: self.first_content.get(),
            last,
            connect: connect_began.map(|began| (began, upgraded)),
            events: RequestEvents {
                first_byte: !matches!(kind, PreparedKind::WebSocket(_)),
                tokens: matches!(kind, PreparedKind::Chat(_)),
            },
            is_late: self.is_late.get(),
        }
    }

    /// Returns the message for a timeout.
    pub(crate) fn timeout_message(&self, timeout: Duration) -> String {
        let Timeouts { connect, first_byte } = self.timeouts;
        let timeout = loadtest_core::Duration::from(timeout);
        // The deadline of the request has not passed, so the deadline of the phase has.
        match (self.phase.get(), connect, first_byte) {
            (RequestPhase::Connecting, Some(limit), _)
                if Instant::now() < self.request_deadline.get() =>
            {
                let awaited = self.connect_state.step.get().awaited();
                format!("connection was not open within {limit}: {awaited}")
            }
            (RequestPhase::AwaitingResponse, _, Some(limit))
                if Instant::now() < self.request_deadline.get() =>
            {
                format!("response had not begun within {limit}")
            }
            (RequestPhase::Connecting, ..) => {
                let awaited = self.connect_state.step.get().awaited();
                format!("no connection within {timeout}: {awaited}")
            }
            (RequestPhase::AwaitingStream, ..) => format!(
                "not sent within {timeout}: the target allows no more requests at once on this HTTP/2 connection"
            ),
            (phase, ..) => {
                let status = self.status().map(|status| format!(", after status {status}"));
                let missing = match &*self.progress.borrow() {
                    Some(progress) => format!(": {}", progress.describe()),
                    None if phase == RequestPhase::AwaitingResponse => ": nothing came".to_owned(),
                    None => String::new(),
                };
                format!(
                    "no complete response within {timeout}{}{missing}",
                    status.unwrap_or_default()
                )
            }
        }
    }

    /// Awaits a part of the request. Returns `None` when the deadline passes first.
    ///
    /// A timer per request would cost more than the bookkeeping of the request, and almost no timer
    /// would ever fire. So [`Self::check_deadline`] is called for all requests at intervals instead.
    pub(crate) async fn run_until_deadline<T>(&self, future: impl Future<Output = T>) -> Option<T> {
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

    /// Wakes [`Self::run_until_deadline`] if the deadline has passed at `now`.
    pub(crate) fn check_deadline(&self, now: Instant) {
        if self.current.get().is_some() && self.deadline.get().is_some_and(|at| at <= now) {
            self.deadline.set(None);
            self.waker.borrow().wake_by_ref();
        }
    }

    /// Ends the request.
    pub(crate) fn end_request(&self) {
        self.current.set(None);
    }

    /// Returns the task of the request and when it was planned.
    pub(crate) fn current_request(&self) -> Option<(usize, Instant)> {
        self.current.get()
    }

    /// Returns the phase of the request.
    pub(crate) fn phase(&self) -> RequestPhase {
        self.phase.get()
    }
}
