//! One virtual user: its state between requests, and one request from its plan to its record.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::BytesMut;
use loadtest_core::{load::UserRng, metrics::Outcome};

use crate::{
    failure::{ErrorKind, Failure},
    load::state::ThreadState,
    measure::{in_flight::InFlightRequest, recorder::Traffic},
    prepare::plan::{PreparedKind, PreparedTask},
    protocol::{
        chat::ChatResponse,
        connection_pool::{ConnectionPool, ConnectionSlot},
        http::{perform_chat, perform_http},
        websocket::{SessionSlot, perform_websocket},
    },
};

/// Users that wait for an arrival. The user that was used last is the next one, because its
/// connection is the warmest.
pub(super) type IdleUsers = Rc<RefCell<Vec<User>>>;

/// Maximum time to write the close frames of a user's sessions.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(100);

/// The state of a user between its requests.
#[derive(Debug)]
pub(crate) struct User {
    pub(crate) rng: UserRng,
    in_flight: Rc<InFlightRequest>,
    /// The user's own HTTP connection. Used with `connections: PerUser`.
    connection: ConnectionSlot,
    /// WebSocket sessions that stay open from task to task, by the index of the task.
    sessions: Vec<(usize, SessionSlot)>,
}

/// The connection or session that a request uses.
enum Transport {
    Http(ConnectionSlot),
    WebSocket(SessionSlot),
}

impl Transport {
    /// Returns the address of the open connection.
    fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Http(slot) => slot.address(),
            Self::WebSocket(session) => session.address(),
        }
    }
}

impl User {
    pub(super) fn new(state: &ThreadState, number: u64, in_flight: Rc<InFlightRequest>) -> Self {
        let rng = state.prepared.task_picker.rng_of_user(number);
        Self { rng, in_flight, connection: ConnectionSlot::default(), sessions: Vec::new() }
    }

    fn checkout_transport(
        &mut self,
        pool: Option<&ConnectionPool>,
        task: usize,
        kind: &PreparedKind,
    ) -> Transport {
        match kind {
            PreparedKind::WebSocket(_) => {
                let kept = self.sessions.iter().position(|(of_task, _)| *of_task == task);
                Transport::WebSocket(
                    kept.map_or_else(SessionSlot::default, |i| self.sessions.swap_remove(i).1),
                )
            }
            _ => {
                Transport::Http(pool.map_or_else(ConnectionSlot::default, |pool| {
                    pool.checkout(&mut self.connection)
                }))
            }
        }
    }

    fn checkin_transport(
        &mut self,
        pool: Option<&ConnectionPool>,
        task: usize,
        kind: &PreparedKind,
        transport: Transport,
    ) {
        match (transport, kind, pool) {
            (Transport::WebSocket(session), PreparedKind::WebSocket(prepared), _)
                if prepared.keep_open =>
            {
                self.sessions.push((task, session));
            }
            (Transport::Http(slot), _, Some(pool)) => pool.checkin(slot, &mut self.connection),
            _ => {}
        }
    }

    /// Returns true when a session of the user is open. Its pings have to be answered.
    pub(super) fn has_open_session(&self) -> bool {
        self.sessions.iter().any(|(_, session)| session.is_open())
    }

    /// Waits until `until`, and answers pings on the user's sessions meanwhile. Returns false when
    /// the load ends before `until`.
    pub(super) async fn wait_until(&mut self, state: &ThreadState, until: Instant) -> bool {
        loop {
            if !self.has_open_session() {
                return state.sleep_until(until).await;
            }
            let ping = self.next_ping(state).filter(|(at, _)| *at < until);
            let wake = ping.map_or(until, |(at, _)| at);
            let sessions = &mut self.sessions;
            let session_ended = poll_fn(|context| poll_sessions(sessions, state, context));
            tokio::select! {
                reached = state.sleep_until(wake) => match ping {
                    Some((_, index)) if reached => {
                        if let Some((_, session)) = self.sessions.get_mut(index) {
                            session.send_ping().await;
                        }
                    }
                    _ => return reached,
                },
                () = session_ended => {}
            }
        }
    }

    /// Returns when the next ping is due, and on which of the sessions.
    fn next_ping(&self, state: &ThreadState) -> Option<(Instant, usize)> {
        let due = |(index, (task, session)): (usize, &(usize, SessionSlot))| {
            let PreparedKind::WebSocket(task) = &state.prepared.tasks.get(*task)?.kind else {
                return None;
            };
            Some((session.next_ping(task.ping_interval)?, index))
        };
        self.sessions.iter().enumerate().filter_map(due).min()
    }

    /// Closes the user's sessions, within [`CLOSE_TIMEOUT`].
    pub(super) async fn close_sessions(&mut self, state: &ThreadState) {
        if self.sessions.is_empty() {
            return;
        }
        let closed = async {
            for (task, mut session) in std::mem::take(&mut self.sessions) {
                if let Some(PreparedTask { kind: PreparedKind::WebSocket(prepared), .. }) =
                    state.prepared.tasks.get(task)
                {
                    session.close_kept_session(prepared).await;
                    state.count_traffic(task, &session.take_traffic());
                }
            }
        };
        tokio::select! {
            () = closed => {}
            // A target that reads nothing must not delay the user's next interval.
            () = state.timer.sleep_until(Instant::now() + CLOSE_TIMEOUT) => {}
        }
    }
}

/// Reads what has come on open sessions, and answers pings. Ready when one of them has ended.
fn poll_sessions(
    sessions: &mut [(usize, SessionSlot)],
    state: &ThreadState,
    context: &mut Context<'_>,
) -> Poll<()> {
    let mut open = sessions.iter_mut().filter(|(_, session)| session.is_open());
    let has_ended = open.any(|(task, session)| {
        let has_ended = session.poll_idle(context).is_ready();
        state.count_traffic(*task, &session.take_traffic());
        has_ended
    });
    if has_ended { Poll::Ready(()) } else { Poll::Pending }
}

/// Awaits a request, and answers pings on the sessions of other tasks meanwhile.
async fn run_beside_sessions<T>(
    request: impl Future<Output = T>,
    sessions: &mut [(usize, SessionSlot)],
    state: &ThreadState,
) -> T {
    let mut request = pin!(request);
    poll_fn(|context| {
        while poll_sessions(sessions, state, context).is_ready() {}
        request.as_mut().poll(context)
    })
    .await
}

/// The condition of a transport after a request.
#[derive(Clone, Copy, Debug, Default)]
struct TransportCondition {
    /// The state of the protocol on the connection is unknown.
    is_broken: bool,
    /// The request timed out, and the target sent nothing after the request.
    is_silent: bool,
}

impl TransportCondition {
    fn after_failure(
        failure: &Failure,
        transport: &Transport,
        in_flight: &InFlightRequest,
    ) -> Self {
        // After a complete but unwanted response the connection is good. After any other failure
        // it is not. The connection itself knows whether a response was read to its end.
        let is_broken = !matches!(
            failure.kind,
            ErrorKind::Http(_)
                | ErrorKind::Redirect
                | ErrorKind::CheckBody
                | ErrorKind::CheckHeader
                | ErrorKind::CheckJson
                | ErrorKind::StreamError
                | ErrorKind::StreamMalformed
        );
        let timed_out = matches!(failure.kind, ErrorKind::TimeoutResponse | ErrorKind::TimeoutBody);
        let last_read = match transport {
            Transport::Http(slot) => slot.last_read(),
            Transport::WebSocket(_) => None,
        };
        let read_nothing =
            last_read.zip(in_flight.sent_at()).is_some_and(|(read, sent)| read < sent);
        Self { is_broken, is_silent: timed_out && read_nothing }
    }
}

/// The transport of a request while the request runs. The guard counts the traffic even when the
/// load ends before the request.
struct TransportGuard<'a> {
    state: &'a ThreadState,
    task: usize,
    transport: Transport,
}

impl TransportGuard<'_> {
    fn count_traffic(&mut self) {
        let traffic = match &mut self.transport {
            Transport::Http(slot) => Traffic { bytes: slot.take_bytes(), ..Traffic::default() },
            Transport::WebSocket(session) => session.take_traffic(),
        };
        self.state.count_traffic(self.task, &traffic);
    }

    /// Counts the traffic of a request that has ended, and drops a transport that can't be used
    /// again.
    fn release(&mut self, condition: TransportCondition) {
        self.count_traffic();
        match &mut self.transport {
            Transport::Http(slot) => {
                if let Some(pool) = self.state.connection_pool().filter(|_| !condition.is_broken) {
                    pool.retire(slot);
                }
                slot.finish_request(condition.is_broken, condition.is_silent);
            }
            Transport::WebSocket(session) => {
                if condition.is_broken {
                    session.discard();
                }
            }
        }
    }
}

impl Drop for TransportGuard<'_> {
    fn drop(&mut self) {
        self.count_traffic();
    }
}

/// Runs one request within its timeout, records it and returns its outcome. `lag` is how late the
/// user begins.
pub(super) async fn perform_task(
    state: &ThreadState,
    user: &mut User,
    task: usize,
    planned: Instant,
    lag: Duration,
) -> Outcome {
    let Some(prepared) = state.prepared.tasks.get(task) else { return Outcome::Failure };
    let transport = user.checkout_transport(state.connection_pool(), task, &prepared.kind);
    let mut guard = TransportGuard { state, task, transport };
    let in_flight = Rc::clone(&user.in_flight);
    let has_open_session = user.has_open_session();
    let address = guard.transport.address();
    in_flight.begin_request(task, planned, lag, prepared.timeout);
    // A user that waits holds no buffer.
    let mut buffer = state.take_read_buffer();
    let exchange = run_exchange(
        state,
        task,
        prepared,
        &mut user.rng,
        &in_flight,
        &mut guard.transport,
        &mut buffer,
    );
    let request = in_flight.run_until_deadline(exchange);
    let result = if has_open_session {
        run_beside_sessions(request, &mut user.sessions, state).await
    } else {
        request.await
    };
    let (outcome, failure, last, response) = match result {
        Some(Ok((last, response))) => (Outcome::Success, None, last, response),
        Some(Err(failure)) => (Outcome::Failure, Some(failure), Instant::now(), None),
        None => {
            let kind = in_flight.phase().timeout_kind();
            let failure = Failure::new(kind, in_flight.timeout_message(prepared.timeout));
            (Outcome::Timeout, Some(failure), Instant::now(), None)
        }
    };
    let condition = failure
        .as_ref()
        .map(|failure| TransportCondition::after_failure(failure, &guard.transport, &in_flight));
    state.return_read_buffer(buffer);
    let opened = in_flight.take_opened_connections();
    let waited = in_flight.round_trip_age(last).filter(|_| outcome == Outcome::Timeout);
    let times = in_flight.request_times(&prepared.kind, planned, last);
    state.log_request(task, outcome, &times);
    let load_end = state.load_end();
    let address = guard.transport.address().or(address);
    state.with_recorder(task, |recorder| {
        opened.iter().for_each(|opened| recorder.record_connection(opened));
        recorder.record_request(outcome, &times, load_end);
        recorder.count_response(in_flight.status(), in_flight.resends());
        if let Some(address) = address {
            recorder.count_address(address);
        }
        let time_per_token = response.as_ref().and_then(|response| response.token_times.mean_gap());
        if let Some(response) = &response {
            recorder.record_chat(response, last, load_end);
        }
        if outcome == Outcome::Success && times.meets_targets(&prepared.targets, time_per_token) {
            recorder.count_good_request();
        }
        // Replies that never came took at least this long.
        if let Some(age) = waited {
            recorder.record_round_trip(outcome, age);
        }
        if let Some(failure) = failure {
            recorder.record_failure(failure);
        }
    });
    in_flight.end_request();
    guard.release(condition.unwrap_or_default());
    let transport =
        std::mem::replace(&mut guard.transport, Transport::Http(ConnectionSlot::default()));
    drop(guard);
    user.checkin_transport(state.connection_pool(), task, &prepared.kind, transport);
    outcome
}

/// Runs a request. Returns the time of its last byte and, for a chat, the response.
async fn run_exchange(
    state: &ThreadState,
    task: usize,
    prepared: &PreparedTask,
    rng: &mut UserRng,
    in_flight: &InFlightRequest,
    transport: &mut Transport,
    buffer: &mut BytesMut,
) -> Result<(Instant, Option<Box<ChatResponse>>), Failure> {
    let missing = |what| Failure::new(ErrorKind::Connect, format!("no {what}"));
    match (&prepared.kind, transport) {
        (PreparedKind::Http(request), Transport::Http(slot)) => {
            let pool = state.connection_pool().ok_or_else(|| missing("target.http"))?;
            let last = perform_http(slot, pool, request, buffer, in_flight).await?;
            Ok((last, None))
        }
        (PreparedKind::Chat(chat), Transport::Http(slot)) => {
            let pool = state.connection_pool().ok_or_else(|| missing("target.http"))?;
            let body = rng.pick_index(chat.requests.len());
            // The future is boxed because its state is large beside that of a plain request. The
            // allocation costs little beside a chat response.
            let run = perform_chat(slot, pool, chat, body, buffer, in_flight);
            let (last, response) = Box::pin(run).await?;
            Ok((last, Some(Box::new(response))))
        }
        (PreparedKind::WebSocket(prepared), Transport::WebSocket(session)) => {
            let connector =
                state.websocket_connector().ok_or_else(|| missing("target.webSocket"))?;
            let on_round_trip = |time: Duration| {
                state.with_recorder(task, |recorder| {
                    recorder.record_round_trip(Outcome::Success, time);
                });
            };
            // The future is boxed because the state of a handshake is large, and most users never
            // run one.
            let run = perform_websocket(session, connector, prepared, in_flight, on_round_trip);
            Ok((Box::pin(run).await?, None))
        }
        // `checkout_transport` returns the transport that fits the kind of task.
        (_, Transport::Http(_) | Transport::WebSocket(_)) => {
            Err(missing("connection for this task"))
        }
    }
}
