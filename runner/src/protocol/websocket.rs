//! WebSocket sessions: connect, send messages, await replies, close. A session may stay open from
//! task to task.

pub(crate) mod frames;
pub(crate) mod stream;

use std::{
    net::SocketAddr,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use crate::{
    failure::{ErrorKind, Failure},
    measure::{
        in_flight::{InFlightRequest, RequestPhase},
        recorder::{OpenedConnection, Traffic},
    },
    net::{
        connector::{ConnectStep, Connector},
        timestamped_socket::ConnectionStats,
    },
    prepare::{reply::ReplyMatcher, websocket_task::PreparedWebSocket},
    protocol::{
        target_words::shorten,
        upgrade::upgrade_connection,
        websocket::frames::OutgoingMessage,
        websocket::stream::{SocketEvent, WebSocket},
    },
};

/// Maximum time to wait for the reply to a close frame, and to the ping before it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Number of close frames in a row without a reply after which the target is not waited for any more.
const MAX_MISSED_CLOSES: u32 = 3;
/// A shorter wait says nothing about the target: the deadline of the task was near.
const MIN_CLOSE_WAIT: Duration = Duration::from_millis(100);

/// Returns how long the reply to a close frame or to a ping is awaited. The wait must not use up the
/// timeout of the task: the target may never reply, and that is no failure.
fn close_timeout(in_flight: &InFlightRequest) -> Duration {
    CLOSE_TIMEOUT.min(in_flight.time_left() / 3)
}

/// The code of a connection that ended without a close frame (RFC 6455, 7.1.5).
const NO_CLOSE_FRAME: u16 = 1006;

/// A session that is open or being opened.
#[derive(Debug)]
struct Session {
    stats: Rc<ConnectionStats>,
    /// `None` until the upgrade.
    stream: Option<Box<WebSocket>>,
    /// True once the target has replied to a message.
    has_replied: bool,
    /// When the session was opened, or when the last ping was sent.
    last_ping: Instant,
}

/// A slot for one session, which may be empty. It keeps counts of the session, so that a timeout
/// loses none of them.
#[derive(Debug, Default)]
pub(crate) struct SessionSlot {
    session: Option<Session>,
    /// True when the last session in the slot ended by the target or a failure, so that the next
    /// one is a reconnect.
    is_lost: bool,
    /// What is not counted yet. The bytes are those of sessions that have ended.
    uncounted: Traffic,
}

/// A message that waits for replies.
struct SentMessage<'a> {
    message: &'a OutgoingMessage,
    at: Instant,
}

impl SessionSlot {
    /// Returns true when a session is open.
    pub(crate) fn is_open(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.stream.is_some())
    }

    /// Returns the address of the open session.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.session.as_ref().map(|session| session.stats.address)
    }

    /// Drops a session that has ended, or that has an unknown state.
    pub(crate) fn discard(&mut self) {
        self.uncounted.bytes = self.take_bytes();
        // A connection that was never upgraded does not make the next one a reconnect.
        self.is_lost |= self.session.take().is_some_and(|session| session.stream.is_some());
    }

    /// Returns the traffic since the last call.
    pub(crate) fn take_traffic(&mut self) -> Traffic {
        let bytes = self.take_bytes();
        Traffic { bytes, ..std::mem::take(&mut self.uncounted) }
    }

    /// Returns the bytes sent and received since the last call.
    fn take_bytes(&mut self) -> (u64, u64) {
        let before = std::mem::take(&mut self.uncounted.bytes);
        let now = self.session.as_ref().map_or((0, 0), |session| session.stats.take_bytes());
        (before.0 + now.0, before.1 + now.1)
    }

    /// Reads events between tasks: answers pings and counts messages. Ready once the session has
    /// ended, or if the slot is empty.
    pub(crate) fn poll_idle(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let stream = self.session.as_mut().and_then(|session| session.stream.as_mut());
            let Some(stream) = stream else { return Poll::Ready(()) };
            match stream.poll_event(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(SocketEvent::Message(_))) => self.uncounted.messages.1 += 1,
                Poll::Ready(Ok(SocketEvent::Ping | SocketEvent::Pong)) => {}
                Poll::Ready(event) => {
                    self.uncounted.closes.extend(code_of_end(&event));
                    self.discard();
                    return Poll::Ready(());
                }
            }
        }
    }

    /// Returns the next time for a ping, if the session is open and its task wants pings.
    pub(crate) fn next_ping(&self, interval: Option<Duration>) -> Option<Instant> {
        let session = self.session.as_ref().filter(|session| session.stream.is_some())?;
        Some(session.last_ping + interval?)
    }

    /// Sends a ping. A session that can't take it has ended.
    pub(crate) async fn send_ping(&mut self) {
        let Some(session) = &mut self.session else { return };
        session.last_ping = Instant::now();
        let Some(stream) = &mut session.stream else { return };
        if stream.send_ping().await.is_err() {
            self.uncounted.closes.push(NO_CLOSE_FRAME);
            self.discard();
        }
    }

    /// Ends a session that was kept open, with a close frame if the task says so. Errors are
    /// ignored, because the load is over.
    pub(crate) async fn close_kept_session(&mut self, prepared: &PreparedWebSocket) {
        let stream = self.session.as_mut().and_then(|session| session.stream.as_mut());
        if let Some(stream) = stream.filter(|_| prepared.send_close) {
            let _ = stream.send_close().await;
        }
        self.discard();
    }

    /// Connects and upgrades.
    async fn open_session(
        &mut self,
        connector: &Connector,
        prepared: &PreparedWebSocket,
        in_flight: &InFlightRequest,
    ) -> Result<(), Failure> {
        in_flight.begin_websocket_connect();
        let (stream, stats, mut steps) = connector.connect(in_flight.connect_state()).await?;
        let session = self.session.insert(Session {
            stats,
            stream: None,
            has_replied: false,
            last_ping: Instant::now(),
        });
        let began = Instant::now();
        in_flight.connect_state().step.set(ConnectStep::Upgrade);
        match upgrade_connection(stream, prepared).await {
            Ok(stream) => session.stream = Some(Box::new(stream)),
            Err(failure) => {
                self.discard();
                return Err(connector.explain_failure(failure));
            }
        }
        connector.note_response();
        let upgraded = session.stats.last_read.get();
        steps.upgrade = Some(upgraded.saturating_duration_since(began));
        in_flight.mark_upgraded(upgraded);
        in_flight.add_opened_connection(OpenedConnection {
            is_reconnect: std::mem::take(&mut self.is_lost),
            steps,
        });
        Ok(())
    }

    /// Awaits one reply to a message.
    async fn await_reply(
        &mut self,
        sent: &SentMessage<'_>,
        matcher: &ReplyMatcher,
        in_flight: &InFlightRequest,
    ) -> Result<(), Failure> {
        let mut other_message = None;
        loop {
            match self.next_event().await? {
                SocketEvent::Message(message) => {
                    let session = self.session.as_ref();
                    // A message that arrived before the sending can't be a reply.
                    let is_late = session.is_none_or(|s| s.stats.last_read.get() >= sent.at);
                    let may_be_greeting = session.is_none_or(|session| !session.has_replied);
                    let sent = sent.message.content();
                    if is_late && matcher.is_reply(&message, sent, may_be_greeting) {
                        if let Some(session) = &mut self.session {
                            session.has_replied = true;
                        }
                        return Ok(());
                    }
                    in_flight.note_other_message(&message);
                    other_message.get_or_insert(message);
                }
                SocketEvent::Ping | SocketEvent::Pong => {}
                SocketEvent::Ended => return Err(no_close_frame()),
                SocketEvent::Closed(code, reason) => {
                    let mut failure = close_failure(code, &reason, " before the reply");
                    if let Some(other) = other_message.filter(|_| reason.is_empty()) {
                        let other = shorten(&String::from_utf8_lossy(&other));
                        failure.message += &format!(", after a message that is no reply: {other}");
                    }
                    return Err(failure);
                }
            }
        }
    }

    async fn next_event(&mut self) -> Result<SocketEvent, Failure> {
        let stream = self.session.as_mut().and_then(|session| session.stream.as_mut());
        let Some(stream) = stream else {
            return Ok(SocketEvent::Ended);
        };
        let event = stream.next_event().await;
        self.uncounted.closes.extend(code_of_end(&event));
        let event = event?;
        self.uncounted.messages.1 += u64::from(matches!(event, SocketEvent::Message(_)));
        Ok(event)
    }

    async fn send_message(&mut self, message: &OutgoingMessage) -> Result<(), Failure> {
        let stream = self.session.as_mut().and_then(|session| session.stream.as_mut());
        let ended = || Failure::new(ErrorKind::WebSocketClose(NO_CLOSE_FRAME), "connection ended");
        if let Err(failure) = stream.ok_or_else(ended)?.send(message).await {
            let closed = self.read_close().await;
            return Err(closed.map_or(failure, |(code, reason)| close_failure(code, &reason, "")));
        }
        self.uncounted.messages.0 += 1;
        Ok(())
    }

    /// Reads on after the sending failed. Returns the close code and the reason of the target, if it
    /// has closed the session.
    async fn read_close(&mut self) -> Option<(u16, String)> {
        loop {
            match self.next_event().await {
                Ok(SocketEvent::Closed(code, reason)) => return Some((code, reason)),
                Ok(SocketEvent::Message(_) | SocketEvent::Ping | SocketEvent::Pong) => {}
                Ok(SocketEvent::Ended) | Err(_) => return None,
            }
        }
    }

    /// Returns how a session ended that took all messages and then could not take a ping or a close
    /// frame: the close frame of the target, if it has sent one, otherwise the failure of the sending.
    async fn end_of_session(&mut self, failure: Failure) -> Result<(), Failure> {
        let closed = self.read_close().await;
        self.discard();
        match closed {
            Some((code, _)) if is_normal_end(code) => Ok(()),
            Some((code, reason)) => Err(close_failure(code, &reason, "")),
            None => Err(failure),
        }
    }

    /// Waits until the target has read all messages: a ping asks, and the pong says so, because frames
    /// are read in order. It is a failure if the session ends before, except for a normal end. Returns
    /// true when it is sure that the target has read them.
    ///
    /// A target that has never answered a ping is asked only once, for [`close_timeout`].
    async fn confirm_messages(
        &mut self,
        prepared: &PreparedWebSocket,
        in_flight: &InFlightRequest,
    ) -> Result<bool, Failure> {
        let stream = self.session.as_mut().and_then(|session| session.stream.as_mut());
        let Some(stream) = stream.filter(|_| !prepared.ignores_pings()) else { return Ok(false) };
        if let Err(failure) = stream.send_ping().await {
            return self.end_of_session(failure).await.map(|()| true);
        }
        let limit = close_timeout(in_flight);
        let pong = tokio::time::timeout(limit, self.await_pong(prepared)).await;
        let Ok(result) = pong else {
            if limit >= MIN_CLOSE_WAIT {
                prepared.note_missing_pong();
            }
            return Ok(false);
        };
        result.map(|()| true)
    }

    /// Awaits a pong, or a normal end of the session, with which the target has read all it wanted.
    async fn await_pong(&mut self, prepared: &PreparedWebSocket) -> Result<(), Failure> {
        loop {
            match self.next_event().await? {
                SocketEvent::Message(_) | SocketEvent::Ping => {}
                SocketEvent::Pong => {
                    prepared.note_pong();
                    return Ok(());
                }
                SocketEvent::Closed(code, _) if is_normal_end(code) => {
                    self.discard();
                    return Ok(());
                }
                SocketEvent::Closed(code, reason) => return Err(close_failure(code, &reason, "")),
                SocketEvent::Ended => return Err(no_close_frame()),
            }
        }
    }

    /// Runs the close handshake. Messages that arrive before the reply of the target are ignored. If
    /// `is_judged`, it is a failure when the target closes with the code of an error.
    ///
    /// A target that never replies is waited for only some times, for [`close_timeout`].
    async fn close_session(
        &mut self,
        connector: &Connector,
        in_flight: &InFlightRequest,
        is_judged: bool,
    ) -> Result<(), Failure> {
        let stream = self.session.as_mut().and_then(|session| session.stream.as_mut());
        let Some(stream) = stream else { return Ok(()) };
        match stream.send_close().await {
            Ok(()) if connector.missed_closes.get() < MAX_MISSED_CLOSES => {}
            Err(failure) if is_judged => return self.end_of_session(failure).await,
            // The target has closed first, or is not waited for.
            _ => {
                self.discard();
                return Ok(());
            }
        }
        let limit = close_timeout(in_flight);
        let reply = tokio::time::timeout(limit, await_close(stream)).await;
        if reply.is_ok() {
            connector.missed_closes.set(0);
        }
        match reply {
            Ok(Ok(Some((code, reason)))) if !is_normal_end(code) => {
                self.uncounted.closes.push(code);
                if is_judged { Err(close_failure(code, &reason, "")) } else { Ok(()) }
            }
            Ok(result) => result.map(drop),
            Err(_) => {
                let missed = connector.missed_closes.get() + u32::from(limit >= MIN_CLOSE_WAIT);
                connector.missed_closes.set(missed);
                self.discard();
                Ok(())
            }
        }
    }
}

/// Awaits the reply to a close frame. Returns its code and reason; `None` from a target that drops
/// the connection instead of a reply. The session is closed too then.
async fn await_close(stream: &mut WebSocket) -> Result<Option<(u16, String)>, Failure> {
    loop {
        match stream.next_event().await {
            Ok(SocketEvent::Message(_) | SocketEvent::Ping | SocketEvent::Pong) => {}
            Ok(SocketEvent::Closed(code, reason)) => return Ok(Some((code, reason))),
            Ok(SocketEvent::Ended) | Err(Failure { kind: ErrorKind::Reset, .. }) => {
                return Ok(None);
            }
            Err(failure) => return Err(failure),
        }
    }
}

/// Returns the close code of a session that the target has ended. `None` for an event of an open
/// session, and for an end that is not the target's.
const fn code_of_end(event: &Result<SocketEvent, Failure>) -> Option<u16> {
    match event {
        Ok(SocketEvent::Closed(code, _)) => Some(*code),
        Ok(SocketEvent::Ended) | Err(Failure { kind: ErrorKind::Reset, .. }) => {
            Some(NO_CLOSE_FRAME)
        }
        _ => None,
    }
}

/// Returns true for close codes of a normal end (RFC 6455, 7.4.1): done, going away, and no code.
const fn is_normal_end(code: u16) -> bool {
    matches!(code, 1000 | 1001 | 1005)
}

fn no_close_frame() -> Failure {
    Failure::new(ErrorKind::Reset, "connection ended without a close frame")
}

/// The failure of a session that the target closed, `when` it did.
fn close_failure(code: u16, reason: &str, when: &str) -> Failure {
    let mut message = format!("target closed with code {code}{when}");
    if !reason.is_empty() {
        message = format!("{message}: {}", shorten(reason));
    }
    Failure::new(ErrorKind::WebSocketClose(code), message)
}

/// Runs one task, in the open session or in a new one. Calls `on_round_trip` with each time from a
/// message to its last reply.
pub(crate) async fn perform_websocket(
    slot: &mut SessionSlot,
    connector: &Connector,
    prepared: &PreparedWebSocket,
    in_flight: &InFlightRequest,
    mut on_round_trip: impl FnMut(Duration),
) -> Result<Instant, Failure> {
    if !slot.is_open() {
        slot.open_session(connector, prepared, in_flight).await?;
    }
    // Messages that arrived before this moment are not replies to the next message.
    if let Some(session) = slot.session.as_ref().filter(|session| session.stream.is_some()) {
        session.stats.force_next_read();
        let _ = slot.poll_idle(&mut Context::from_waker(Waker::noop()));
    }
    if !slot.is_open() {
        slot.open_session(connector, prepared, in_flight).await?;
    }
    let stats = slot.session.as_ref().map(|session| Rc::clone(&session.stats));
    let last_read = || stats.as_ref().map_or_else(Instant::now, |stats| stats.last_read.get());
    if prepared.messages.is_empty() {
        // A task without messages waits for nothing in an open session, so it has to yield to other
        // users.
        tokio::task::yield_now().await;
    }
    in_flight.mark_sent();
    let mut last_reply = None;
    for message in &prepared.messages {
        in_flight.enter_phase(RequestPhase::AwaitingResponse);
        if prepared.replies == 0 {
            slot.send_message(message).await?;
            continue;
        }
        let sent = SentMessage { message, at: in_flight.begin_round_trip() };
        slot.send_message(message).await?;
        for _ in 0..prepared.replies {
            slot.await_reply(&sent, &prepared.reply, in_flight).await?;
        }
        in_flight.end_round_trip();
        last_reply = Some(last_read());
        on_round_trip(last_read().saturating_duration_since(sent.at));
    }
    in_flight.enter_phase(RequestPhase::ReadingBody);
    let closes = prepared.send_close && !prepared.keep_open;
    if closes {
        // Without replies, only the end of the session shows whether the target took the messages.
        let is_judged = prepared.replies == 0 && !prepared.messages.is_empty();
        let is_confirmed = is_judged && slot.confirm_messages(prepared, in_flight).await?;
        slot.close_session(connector, in_flight, is_judged && !is_confirmed).await?;
        // Without a reply to the close frame, the last message was the end.
        return Ok(last_read());
    }
    Ok(last_reply.unwrap_or_else(Instant::now))
}
