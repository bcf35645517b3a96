//! WebSocket sessions: connect, send, await replies, close; or go on from task to task.

use std::{
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use futures::{SinkExt, StreamExt};
use loadtest_core::metrics::ConnectStep;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, Message},
};

use crate::{
    failure::{ErrorKind, Failure},
    measure::{
        in_flight::{Flight, Part},
        recorder::Opened,
    },
    net::{connector::Connector, stream::Wire, timestamped_socket::Stamps},
    prepare::PreparedWebSocket,
    protocol::upgrade::upgrade,
};

/// An open session, or one that is being opened.
#[derive(Debug)]
struct Link {
    stamps: Rc<Stamps>,
    /// Absent until it is upgraded.
    stream: Option<Box<WebSocketStream<Wire>>>,
}

/// The place of one session, which may be open; and what was counted on it, so that a timeout
/// loses none of it.
#[derive(Debug, Default)]
pub(crate) struct Place {
    link: Option<Link>,
    /// There was one, and it ended without us: the next one is in its place.
    lost: bool,
    /// Messages sent and received that were not counted yet, and bytes of sessions that have ended.
    messages: (u64, u64),
    bytes: (u64, u64),
}

/// What came for a session.
enum Came {
    Message,
    Other,
    /// It is over: the close code, 1006 for a connection that just ended.
    End(u16),
}

impl Place {
    /// True when a session is open.
    pub(crate) fn is_open(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.stream.is_some())
    }

    /// Lets go of a session that has ended, or whose state nobody knows.
    pub(crate) fn lose(&mut self) {
        self.bytes = self.take_bytes();
        // One that never was upgraded was none.
        self.lost |= self.link.take().is_some_and(|link| link.stream.is_some());
    }

    /// Bytes sent and received since this was last asked.
    pub(crate) fn take_bytes(&mut self) -> (u64, u64) {
        let before = std::mem::take(&mut self.bytes);
        let now = self.link.as_ref().map_or((0, 0), |link| link.stamps.take_bytes());
        (before.0 + now.0, before.1 + now.1)
    }

    /// Messages sent and received since this was last asked.
    pub(crate) fn take_messages(&mut self) -> (u64, u64) {
        std::mem::take(&mut self.messages)
    }

    /// Takes what has come while nobody waited for it: pings are answered, messages counted.
    /// Ready once the session has ended, or when there is none.
    pub(crate) fn poll_idle(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let stream = self.link.as_mut().and_then(|link| link.stream.as_mut());
            let Some(stream) = stream else { return Poll::Ready(()) };
            match stream.poll_next_unpin(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(Message::Text(_) | Message::Binary(_)))) => {
                    self.messages.1 += 1;
                }
                Poll::Ready(Some(Ok(Message::Close(_)) | Err(_)) | None) => {
                    // The answer to a close frame waits to be written.
                    let _ = stream.poll_flush_unpin(context);
                    self.lose();
                    return Poll::Ready(());
                }
                Poll::Ready(Some(Ok(_))) => {}
            }
        }
    }

    /// Ends a session that was kept, with a close frame if that is how it should end. Whoever is
    /// on the other side may take it or not: the load is over.
    pub(crate) async fn leave(&mut self, prepared: &PreparedWebSocket) {
        let stream = self.link.as_mut().and_then(|link| link.stream.as_mut());
        if let Some(stream) = stream.filter(|_| prepared.close) {
            let _ = WebSocketStream::close(stream, None).await;
        }
        self.lose();
    }

    /// Connects and upgrades.
    async fn open(
        &mut self,
        connector: &Connector,
        prepared: &PreparedWebSocket,
        flight: &Flight,
    ) -> Result<(), Failure> {
        flight.connects();
        let (wire, stamps, mut steps) = connector.connect().await?;
        let link = self.link.insert(Link { stamps, stream: None });
        let began = Instant::now();
        match upgrade(wire, prepared).await {
            Ok(stream) => link.stream = Some(Box::new(stream)),
            Err(error) => {
                self.lose();
                return Err(failed(error));
            }
        }
        let upgraded = link.stamps.last_read.get();
        steps[ConnectStep::Upgrade.index()] = Some(upgraded.saturating_duration_since(began));
        flight.upgraded(upgraded);
        flight.opened(Opened { again: std::mem::take(&mut self.lost), steps });
        Ok(())
    }

    /// Awaits one text or binary message.
    async fn reply(&mut self) -> Result<(), Failure> {
        loop {
            match self.next().await? {
                Came::Message => return Ok(()),
                Came::Other => {}
                Came::End(1006) => {
                    let message = "connection ended before it had replied";
                    return Err(Failure::new(ErrorKind::WebSocketClose(1006), message));
                }
                Came::End(code) => {
                    let message = format!("target closed with code {code} before it had replied");
                    return Err(Failure::new(ErrorKind::WebSocketClose(code), message));
                }
            }
        }
    }

    async fn next(&mut self) -> Result<Came, Failure> {
        let stream = self.link.as_mut().and_then(|link| link.stream.as_mut());
        let Some(stream) = stream else { return Ok(Came::End(1006)) };
        Ok(match stream.next().await {
            Some(Ok(Message::Text(_) | Message::Binary(_))) => {
                self.messages.1 += 1;
                Came::Message
            }
            Some(Ok(Message::Close(frame))) => {
                // The answer to it waits to be written; the target may be gone by now.
                let _ = stream.flush().await;
                Came::End(frame.map_or(1005, |frame| u16::from(frame.code)))
            }
            Some(Ok(_)) => Came::Other,
            Some(Err(error)) => return Err(failed(error)),
            None => Came::End(1006),
        })
    }

    async fn send(&mut self, text: &tungstenite::Utf8Bytes) -> Result<(), Failure> {
        let stream = self.link.as_mut().and_then(|link| link.stream.as_mut());
        let ended = || Failure::new(ErrorKind::WebSocketClose(1006), "connection ended");
        stream.ok_or_else(ended)?.send(Message::Text(text.clone())).await.map_err(failed)?;
        self.messages.0 += 1;
        Ok(())
    }

    /// The close handshake: ours sent, theirs awaited. What they still send is passed over.
    async fn close(&mut self) -> Result<(), Failure> {
        let stream = self.link.as_mut().and_then(|link| link.stream.as_mut());
        let Some(stream) = stream else { return Ok(()) };
        WebSocketStream::close(stream, None).await.map_err(failed)?;
        loop {
            match stream.next().await {
                None | Some(Ok(Message::Close(_)) | Err(tungstenite::Error::ConnectionClosed)) => {
                    return Ok(());
                }
                Some(Ok(_)) => {}
                // Servers that drop the connection in place of an answer have closed it too.
                Some(Err(error)) => match failed(error) {
                    Failure { kind: ErrorKind::Reset, .. } => return Ok(()),
                    failure => return Err(failure),
                },
            }
        }
    }
}

/// Runs one task: in the session that is open, or in a new one. Times from messages to their
/// replies are handed to `round_trip` as they come.
pub(crate) async fn task(
    place: &mut Place,
    connector: &Connector,
    prepared: &PreparedWebSocket,
    flight: &Flight,
    mut round_trip: impl FnMut(Duration),
) -> Result<Instant, Failure> {
    // What came meanwhile answers nothing that is sent now.
    if let Some(link) = place.link.as_ref().filter(|link| link.stream.is_some()) {
        link.stamps.look();
        let _ = place.poll_idle(&mut Context::from_waker(Waker::noop()));
    }
    if !place.is_open() {
        place.open(connector, prepared, flight).await?;
    }
    let stamps = place.link.as_ref().map(|link| Rc::clone(&link.stamps));
    let last_read = || stamps.as_ref().map_or_else(Instant::now, |stamps| stamps.last_read.get());
    if prepared.send.is_empty() {
        // In an open session there is nothing to wait for: others get their turn.
        tokio::task::yield_now().await;
    }
    flight.send();
    for text in &prepared.send {
        flight.enter(Part::Response);
        if prepared.replies == 0 {
            place.send(text).await?;
            continue;
        }
        let sent = flight.awaits();
        place.send(text).await?;
        for _ in 0..prepared.replies {
            place.reply().await?;
        }
        flight.replied();
        round_trip(last_read().saturating_duration_since(sent));
    }
    flight.enter(Part::Body);
    let closes = prepared.close && !prepared.keep;
    if closes {
        place.close().await?;
    }
    let answered = prepared.replies > 0 && !prepared.send.is_empty();
    Ok(if answered || closes { last_read() } else { Instant::now() })
}

fn failed(error: tungstenite::Error) -> Failure {
    let kind = match &error {
        tungstenite::Error::Http(response) => ErrorKind::Http(response.status().as_u16()),
        tungstenite::Error::Io(io) => Failure::kind_of_io(io),
        tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed => {
            ErrorKind::WebSocketClose(1006)
        }
        tungstenite::Error::Protocol(
            tungstenite::error::ProtocolError::ResetWithoutClosingHandshake
            | tungstenite::error::ProtocolError::HandshakeIncomplete,
        ) => ErrorKind::Reset,
        _ => ErrorKind::Protocol,
    };
    Failure::new(kind, error)
}
