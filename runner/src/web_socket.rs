//! One WebSocket session: connect, send, await replies, close.

use std::{rc::Rc, time::Instant};

use futures::{SinkExt, StreamExt};
use http::Request;
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{self, Message, protocol::WebSocketConfig},
};

use crate::{
    connect::Connector,
    failure::{ErrorKind, Failure},
    flight::{Flight, Part},
    prepare::PreparedWebSocket,
    wire::{Stamps, Wire},
};

/// What is known of a session while it runs, so that a timeout loses none of it.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub(crate) stamps: Option<Rc<Stamps>>,
}

impl Progress {
    /// Bytes sent and received so far.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        self.stamps.as_ref().map_or((0, 0), |s| (s.sent.get(), s.received.get()))
    }
}

/// Runs one session to its end.
pub(crate) async fn session(
    connector: &Connector,
    prepared: &PreparedWebSocket,
    flight: &Flight,
    progress: &mut Progress,
) -> Result<Instant, Failure> {
    // Connecting is part of the service here: that is where sent begins.
    flight.send();
    flight.enter(Part::Connect);
    let (wire, stamps) = connector.connect().await?;
    progress.stamps = Some(Rc::clone(&stamps));
    let mut socket = upgrade(wire, prepared).await?;
    flight.upgraded();
    flight.enter(Part::Response);
    for text in &prepared.send {
        socket.send(Message::text(text.as_str())).await.map_err(failed)?;
        for _ in 0..prepared.replies {
            reply(&mut socket).await?;
        }
    }
    flight.enter(Part::Body);
    if prepared.close {
        close(&mut socket).await?;
        Ok(stamps.last_read.get())
    } else {
        Ok(Instant::now())
    }
}

async fn upgrade(
    wire: Wire,
    prepared: &PreparedWebSocket,
) -> Result<WebSocketStream<Wire>, Failure> {
    let mut request = Request::new(());
    *request.uri_mut() = prepared.uri.clone();
    *request.headers_mut() = prepared.headers.clone();
    let headers = request.headers_mut();
    for (name, value) in
        [("connection", "Upgrade"), ("upgrade", "websocket"), ("sec-websocket-version", "13")]
    {
        headers.insert(name, http::HeaderValue::from_static(value));
    }
    let key = tungstenite::handshake::client::generate_key();
    if let Ok(key) = http::HeaderValue::try_from(key) {
        headers.insert("sec-websocket-key", key);
    }
    // The library's own read buffer is 128 KiB a socket, made when it connects.
    let config = WebSocketConfig::default().read_buffer_size(4 << 10).write_buffer_size(0);
    let (socket, _) =
        client_async_with_config(request, wire, Some(config)).await.map_err(failed)?;
    Ok(socket)
}

/// Awaits one text or binary message.
async fn reply(socket: &mut WebSocketStream<Wire>) -> Result<(), Failure> {
    loop {
        match socket.next().await {
            Some(Ok(Message::Text(_) | Message::Binary(_))) => return Ok(()),
            Some(Ok(Message::Close(frame))) => {
                let code = frame.map_or(1005, |frame| u16::from(frame.code));
                let message = format!("target closed with code {code} before it had replied");
                return Err(Failure::new(ErrorKind::WebSocketClose(code), message));
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(failed(error)),
            None => return Err(Failure::new(ErrorKind::WebSocketClose(1006), "connection ended")),
        }
    }
}

/// The close handshake: ours sent, theirs awaited. What they still send is passed over.
async fn close(socket: &mut WebSocketStream<Wire>) -> Result<(), Failure> {
    socket.close(None).await.map_err(failed)?;
    loop {
        match socket.next().await {
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
