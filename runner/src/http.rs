//! One user's HTTP connection and the exchanges on it.

use std::{rc::Rc, time::Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;

use crate::{
    chat::Chat,
    connect::Connector,
    failure::{ErrorKind, Failure},
    flight::{Flight, Part},
    prepare::{PreparedChat, PreparedHttp},
    wire::Stamps,
};

/// A user's connection, kept alive between its tasks.
#[derive(Debug)]
pub(crate) struct HttpConnection {
    sender: SendRequest<Full<Bytes>>,
    stamps: Rc<Stamps>,
    /// What of the stamps has been counted already.
    counted: (u64, u64),
}

impl HttpConnection {
    async fn open(connector: &Connector) -> Result<Self, Failure> {
        let (wire, stamps) = connector.connect().await?;
        let (sender, connection) = http1::Builder::new()
            .handshake(TokioIo::new(wire))
            .await
            .map_err(|error| Failure::of_hyper(&error))?;
        // Its errors reach the exchange that is under way.
        tokio::task::spawn_local(async move {
            let _ = connection.await;
        });
        Ok(Self { sender, stamps, counted: (0, 0) })
    }

    /// Bytes sent and received since this was last asked.
    pub(crate) fn take_bytes(&mut self) -> (u64, u64) {
        let now = (self.stamps.sent.get(), self.stamps.received.get());
        let before = std::mem::replace(&mut self.counted, now);
        (now.0 - before.0, now.1 - before.1)
    }
}

/// Sends a request on the user's connection, or on a new one, and awaits the head of the answer.
///
/// A kept connection that the target has closed meanwhile is replaced once, if nothing of the
/// request was sent on it: that is no failure of the target.
async fn send(
    connection: &mut Option<HttpConnection>,
    connector: &Connector,
    prepared: &PreparedHttp,
    body: &Bytes,
    flight: &Flight,
) -> Result<Response<Incoming>, Failure> {
    let mut kept = match connection {
        Some(open) => open.sender.ready().await.is_ok(),
        None => false,
    };
    loop {
        if !kept {
            flight.enter(Part::Connect);
            *connection = Some(HttpConnection::open(connector).await?);
        }
        let Some(open) = connection.as_mut() else {
            return Err(Failure::new(ErrorKind::Connect, "no connection"));
        };
        let mut request = Request::new(Full::new(body.clone()));
        *request.method_mut() = prepared.method.clone();
        *request.uri_mut() = prepared.uri.clone();
        *request.headers_mut() = prepared.headers.clone();
        flight.send();
        match open.sender.try_send_request(request).await {
            Ok(response) => return Ok(response),
            Err(mut error) => {
                let unsent = error.take_message().is_some();
                if !(kept && unsent) {
                    return Err(Failure::of_hyper(error.error()));
                }
                kept = false;
            }
        }
    }
}

fn expected(prepared: &PreparedHttp, status: u16) -> bool {
    if prepared.expect.is_empty() { status < 400 } else { prepared.expect.contains(&status) }
}

/// Reads a body to its end, handing each piece to `take`.
async fn drain(
    body: Incoming,
    mut take: impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut body = body;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Failure::of_hyper(&error))?;
        if let Some(data) = frame.data_ref() {
            take(data)?;
        }
    }
    Ok(())
}

/// One HTTP request, to the last byte of its answer.
pub(crate) async fn request(
    connection: &mut Option<HttpConnection>,
    connector: &Connector,
    prepared: &PreparedHttp,
    flight: &Flight,
) -> Result<Instant, Failure> {
    let response = send(connection, connector, prepared, &prepared.body, flight).await?;
    flight.enter(Part::Body);
    let status = response.status().as_u16();
    drain(response.into_body(), |_| Ok(())).await?;
    let last = connection.as_ref().map_or_else(Instant::now, |c| c.stamps.last_read.get());
    if !expected(prepared, status) {
        return Err(unexpected(prepared, status));
    }
    Ok(last)
}

fn unexpected(prepared: &PreparedHttp, status: u16) -> Failure {
    let message = format!("{} {} answered {status}", prepared.method, prepared.uri.path());
    Failure::new(ErrorKind::Http(status), message)
}

/// One chat completion, to the last byte of its answer.
pub(crate) async fn chat(
    connection: &mut Option<HttpConnection>,
    connector: &Connector,
    prepared: &PreparedChat,
    body: usize,
    flight: &Flight,
) -> Result<Instant, Failure> {
    let bytes = prepared.bodies.get(body).unwrap_or(&prepared.request.body);
    let response = send(connection, connector, &prepared.request, bytes, flight).await?;
    flight.enter(Part::Body);
    let status = response.status().as_u16();
    let Some(stamps) = connection.as_ref().map(|c| Rc::clone(&c.stamps)) else {
        return Err(Failure::new(ErrorKind::Reset, "connection is gone"));
    };
    if !expected(&prepared.request, status) {
        drain(response.into_body(), |_| Ok(())).await?;
        return Err(unexpected(&prepared.request, status));
    }
    let mut chat = Chat::new(prepared.stream);
    let read = drain(response.into_body(), |data| {
        chat.read(data, stamps.last_read.get())?;
        chat.first().into_iter().for_each(|at| flight.first(at));
        Ok(())
    })
    .await;
    read.map_err(|failure| match failure.kind {
        // Whether its chunks or its events break off, a stream that has begun was cut short.
        ErrorKind::Reset if prepared.stream => Failure { kind: ErrorKind::StreamCut, ..failure },
        _ => failure,
    })?;
    let last = stamps.last_read.get();
    flight.first(chat.finish(last)?);
    Ok(last)
}
