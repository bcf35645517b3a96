//! WebSocket sessions: connect, send messages, await replies, close. A session may stay open from
//! task to task.

use std::{
    net::SocketAddr,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, Message},
};

use crate::{
    failure::{ErrorKind, Failure},
    measure::{
        in_flight::{InFlightRequest, RequestPhase},
        recorder::OpenedConnection,
    },
    net::{connector::Connector, stream::MeteredStream, timestamped_socket::ConnectionStats},
    prepare::websocket_task::PreparedWebSocket,
    protocol::upgrade::upgrade_connection,
};

/// A session that is open or being opened.
#[derive(Debug)]
struct Session {
    stats: Rc<ConnectionStats>,
    /// `None` until the upgrade.
    stream: Option<Box<WebSocketStream<MeteredStream>>>,
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

/// An event of a session.
enum SessionEvent {
    Message,
    Other,
    /// The session has ended: its close code, or 1006 when the connection ended without a close
    /// frame.
    Closed(u16),
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
            match stream.poll_next_unpin(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(Message::Text(_) | Message::Binary(_)))) => {
                    self.uncounted_messages.1 += 1;
                }
                Poll::Ready(Some(Ok(Message::Close(_)) | Err(_)) | None) => {
                    // Writes the reply to the close frame.
                    let _ = stream.poll_flush_unpin(context);
                    self.discard();
                    return Poll::Ready(());
                }
                Poll::Ready(Some(Ok(_))) => {}
            }
        }
    }

    /// Ends a session that was kept open, with a close frame if the task says so. Errors are
    /// ignored, because the load is over.
    pub(crate) async fn close_kept_session(&mut self, prepared: &PreparedWebSocket) {
        let stream = self.session.as_mut().and_then(|session| session.stream.as_mut());
        if let Some(stream) = stream.filter(|_| prepared.send_close) {
            let _ = WebSocketStream::close(stream, None).await;
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
        let (stream, stats, mut steps) = connector.connect(in_flight).await?;
        let session = self.session.insert(Session { stats, stream: None });
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

    /// Awaits one text or binary message.
    async fn await_reply(&mut self) -> Result<(), Failure> {
        loop {
            match self.next_event().await? {
                SessionEvent::Message => return Ok(()),
                SessionEvent::Other => {}
                SessionEvent::Closed(1006) => {
                    let message = "connection ended before the reply";
                    return Err(Failure::new(ErrorKind::WebSocketClose(1006), message));
                }
                SessionEvent::Closed(code) => {
                    let message = format!("target closed with code {code} before the reply");
                    return Err(Failure::new(ErrorKind::WebSocketClose(code), message));
                }
            }
        }
    }

    async fn next_event(&mut self) -> Result<SessionEvent, Failure> {
        let stream = self.session.as_mut().and_then(|session| session.stream.as_mut());
        let Some(stream) = stream else { return Ok(SessionEvent::Closed(1006)) };
        Ok(match stream.next().await {
            Some(Ok(Message::Text(_) | Message::Binary(_))) => {
                self.uncounted_messages.1 += 1;
                SessionEvent::Message
            }
            Some(Ok(Message::Close(frame))) => {
                // Writes the reply to the close frame. The target may be gone, so errors are
                // ignored.
                let _ = stream.flush().await;
                SessionEvent::Closed(frame.map_or(1005, |frame| u16::from(frame.code)))
            }
            Some(Ok(_)) => SessionEvent::Other,
            Some(Err(error)) => return Err(websocket_failure(error)),
            None => SessionEvent::Closed(1006),
        })
    }

    async fn send_text(&mut self, text: &tungstenite::Utf8Bytes) -> Result<(), Failure> {
        let stream = self.session.as_mut().and_then(|session| session.stream.as_mut());
        let ended = || Failure::new(ErrorKind::WebSocketClose(1006), "connection ended");
        stream
            .ok_or_else(ended)?
            .send(Message::Text(text.clone()))
            .await
            .map_err(websocket_failure)?;
        self.uncounted_messages.0 += 1;
        Ok(())
    }

    /// Runs the close handshake. Messages that arrive before the reply of the target are ignored.
    async fn close_session(&mut self) -> Result<(), Failure> {
        let stream = self.session.as_mut().and_then(|session| session.stream.as_mut());
        let Some(stream) = stream else { return Ok(()) };
        WebSocketStream::close(stream, None).await.map_err(websocket_failure)?;
        loop {
            match stream.next().await {
                None | Some(Ok(Message::Close(_)) | Err(tungstenite::Error::ConnectionClosed)) => {
                    return Ok(());
                }
                Some(Ok(_)) => {}
                // Some servers drop the connection instead of a reply. The session is closed too
                // then.
                Some(Err(error)) => match websocket_failure(error) {
                    Failure { kind: ErrorKind::Reset, .. } => return Ok(()),
                    failure => return Err(failure),
                },
            }
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
    // Messages that arrived between tasks are not replies to the next message.
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
    for text in &prepared.messages {
        in_flight.enter_phase(RequestPhase::AwaitingResponse);
        if prepared.replies == 0 {
            slot.send_text(text).await?;
            continue;
        }
        let sent = in_flight.begin_round_trip();
        slot.send_text(text).await?;
        for _ in 0..prepared.replies {
            slot.await_reply().await?;
        }
        in_flight.end_round_trip();
        on_round_trip(last_read().saturating_duration_since(sent));
    }
    in_flight.enter_phase(RequestPhase::ReadingBody);
    let closes = prepared.send_close && !prepared.keep_open;
    if closes {
        slot.close_session().await?;
    }
    let got_replies = prepared.replies > 0 && !prepared.messages.is_empty();
    Ok(if got_replies || closes { last_read() } else { Instant::now() })
}

fn websocket_failure(error: tungstenite::Error) -> Failure {
    let kind = match &error {
        tungstenite::Error::Io(io) => ErrorKind::from_io_error(io),
        tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed => {
            ErrorKind::WebSocketClose(1006)
        }
        tungstenite::Error::Protocol(
            tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
        ) => ErrorKind::Reset,
        _ => ErrorKind::Protocol,
    };
    Failure::new(kind, error)
}
