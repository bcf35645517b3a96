//! WebSocket sessions: connect, send messages, await replies, close. A session may stay open from
//! task to task.

pub(crate) mod frames;
pub(super) mod stream;

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
        recorder::OpenedConnection,
    },
    net::{connector::Connector, timestamped_socket::ConnectionStats},
    prepare::{reply::ReplyMatcher, websocket_task::PreparedWebSocket},
    protocol::{
        target_words::shorten,
        upgrade::upgrade_connection,
        websocket::frames::OutgoingMessage,
        websocket::stream::{SocketEvent, WebSocket},
    },
};

/// Maximum time to wait for the reply to a close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

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
    /// Messages (sent, received) that are not counted yet, and bytes of sessions that have ended.
    uncounted_messages: (u64, u64),
    uncounted_bytes: (u64, u64),
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
        self.uncounted_bytes = self.take_bytes();
        // A connection that was never upgraded does not make the next one a reconnect.
        self.is_lost |= self.session.take().is_some_and(|session| session.stream.is_some());
    }

    /// Returns the bytes sent and received since the last call.
    pub(crate) fn take_bytes(&mut self) -> (u64, u64) {
        let before = std::mem::take(&mut self.uncounted_bytes);
        let now = self.session.as_ref().map_or((0, 0), |session| session.stats.take_bytes());
        (before.0 + now.0, before.1 + now.1)
    }

    /// Returns the messages sent and received since the last call.
    pub(crate) fn take_messages(&mut self) -> (u64, u64) {
        std::mem::take(&mut self.uncounted_messages)
    }

    /// Reads events between tasks: answers pings and counts messages. Ready once the session has
    /// ended, or if the slot is empty.
    pub(crate) fn poll_idle(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let stream = self.session.as_mut().and_then(|session| session.stream.as_mut());
            let Some(stream) = stream else { return Poll::Ready(()) };
            match stream.poll_event(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(SocketEvent::Message(_))) => self.uncounted_messages.1 += 1,
                Poll::Ready(Ok(SocketEvent::Control)) => {}
                Poll::Ready(Ok(SocketEvent::Closed(..)) | Err(_)) => {
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
        let (stream, stats, mut steps) = connector.connect(in_flight.user_tls()).await?;
        let session = self.session.insert(Session {
            stats,
            stream: None,
            has_replied: false,
            last_ping: Instant::now(),
        });
        let began = Instant::now();
        match upgrade_connection(stream, prepared).await {
            Ok(stream) => session.stream = Some(Box::new(stream)),
            Err(failure) => {
                self.discard();
                return Err(failure);
            }
        }
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
    ) -> Result<(), Failure> {
        let mut other_message = None;
        loop {
            match self.next_event().await? {
                SocketEvent::Message(message) => {
                    let session = self.session.as_ref();
                    // A message that arrived before the sending can't be a reply.
                    let is_late = session.is_none_or(|s| s.stats.last_read.get() >= sent.at);
                    let is_first = session.is_none_or(|session| !session.has_replied);
                    let sent = sent.message.content();
                    if is_late && matcher.is_reply(&message, sent, is_first) {
                        if let Some(session) = &mut self.session {
                            session.has_replied = true;
                        }
                        return Ok(());
                    }
                    other_message.get_or_insert(message);
                }
                SocketEvent::Control => {}
                SocketEvent::Closed(code, reason) => {
                    let mut message = match code {
                        NO_CLOSE_FRAME => "connection ended before the reply".to_owned(),
                        code => format!("target closed with code {code} before the reply"),
                    };
                    if !reason.is_empty() {
                        message = format!("{message}: {reason}");
                    } else if let Some(other) = other_message {
                        let other = shorten(&String::from_utf8_lossy(&other));
                        message = format!("{message}, after a message that is no reply: {other}");
                    }
                    return Err(Failure::new(ErrorKind::WebSocketClose(code), message));
                }
            }
        }
    }

    async fn next_event(&mut self) -> Result<SocketEvent, Failure> {
        let stream = self.session.as_mut().and_then(|session| session.stream.as_mut());
        let Some(stream) = stream else {
            return Ok(SocketEvent::Closed(NO_CLOSE_FRAME, String::new()));
        };
        let event = stream.next_event().await?;
        self.uncounted_messages.1 += u64::from(matches!(event, SocketEvent::Message(_)));
        Ok(event)
    }

    async fn send_message(&mut self, message: &OutgoingMessage) -> Result<(), Failure> {
        let stream = self.session.as_mut().and_then(|session| session.stream.as_mut());
        let ended = || Failure::new(ErrorKind::WebSocketClose(NO_CLOSE_FRAME), "connection ended");
        stream.ok_or_else(ended)?.send(message).await?;
        self.uncounted_messages.0 += 1;
        Ok(())
    }

    /// Runs the close handshake. Messages that arrive before the reply of the target are ignored.
    ///
    /// A target that never replies is waited for only once, for [`CLOSE_TIMEOUT`].
    async fn close_session(&mut self, connector: &Connector) -> Result<(), Failure> {
        let stream = self.session.as_mut().and_then(|session| session.stream.as_mut());
        let Some(stream) = stream else { return Ok(()) };
        stream.send_close().await?;
        if connector.ignores_close.get() {
            self.discard();
            return Ok(());
        }
        let closed = tokio::time::timeout(CLOSE_TIMEOUT, await_close(stream)).await;
        closed.unwrap_or_else(|_| {
            connector.ignores_close.set(true);
            self.discard();
            Ok(())
        })
    }
}

/// Awaits the reply to a close frame.
async fn await_close(stream: &mut WebSocket) -> Result<(), Failure> {
    loop {
        match stream.next_event().await {
            Ok(SocketEvent::Message(_) | SocketEvent::Control) => {}
            // Some servers drop the connection instead of a reply. The session is closed too then.
            Ok(SocketEvent::Closed(..)) | Err(Failure { kind: ErrorKind::Reset, .. }) => {
                return Ok(());
            }
            Err(failure) => return Err(failure),
        }
    }
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
            slot.await_reply(&sent, &prepared.reply).await?;
        }
        in_flight.end_round_trip();
        last_reply = Some(last_read());
        on_round_trip(last_read().saturating_duration_since(sent.at));
    }
    in_flight.enter_phase(RequestPhase::ReadingBody);
    let closes = prepared.send_close && !prepared.keep_open;
    if closes {
        slot.close_session(connector).await?;
        // Without a reply to the close frame, the last message was the end.
        return Ok(last_read());
    }
    Ok(last_reply.unwrap_or_else(Instant::now))
}
