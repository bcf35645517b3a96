//! One user's HTTP connection and the exchanges on it.

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Waker},
    time::{Duration, Instant},
};

use bytes::BytesMut;
use tokio::io::{AsyncRead, ReadBuf};

use crate::{
    chat::{Answer, Chat},
    connect::Connector,
    failure::{ErrorKind, Failure},
    flight::{Flight, Part},
    http1::{self, Head},
    prepare::{PreparedChat, PreparedHttp, Request},
    wire::{Stamps, Wire},
};

/// A user's connection, kept alive between its tasks.
#[derive(Debug)]
pub(crate) struct HttpConnection {
    wire: Wire,
    stamps: Rc<Stamps>,
    /// What of the stamps has been counted already.
    counted: (u64, u64),
    /// True when it can't be used again: the target said so, or an answer ended with it.
    spent: bool,
}

impl HttpConnection {
    async fn open(connector: &Connector) -> Result<Self, Failure> {
        let (wire, stamps) = connector.connect().await?;
        Ok(Self { wire, stamps, counted: (0, 0), spent: false })
    }

    /// Bytes sent and received since this was last asked.
    pub(crate) fn take_bytes(&mut self) -> (u64, u64) {
        let now = (self.stamps.sent.get(), self.stamps.received.get());
        let before = std::mem::replace(&mut self.counted, now);
        (now.0 - before.0, now.1 - before.1)
    }

    /// True when it can't be used again.
    pub(crate) const fn is_spent(&self) -> bool {
        self.spent
    }

    /// True unless the target has closed it, or said something nobody asked for. Between
    /// requests there is nothing to read, so asking costs no system call.
    fn is_open(&mut self) -> bool {
        let mut byte = [0];
        let mut buffer = ReadBuf::new(&mut byte);
        let mut context = Context::from_waker(Waker::noop());
        Pin::new(&mut self.wire).poll_read(&mut context, &mut buffer).is_pending()
    }
}

/// Sends a request on the user's connection, or on a new one, and reads the head of the answer.
///
/// A kept connection that the target has closed meanwhile is replaced, if the request could
/// not be written to it: that is no failure of the target.
async fn send<'a>(
    connection: &'a mut Option<HttpConnection>,
    connector: &Connector,
    request: &Request,
    buffer: &mut BytesMut,
    flight: &Flight,
) -> Result<(&'a mut HttpConnection, Head), Failure> {
    if connection.as_mut().is_some_and(|open| open.is_spent() || !open.is_open()) {
        *connection = None;
    }
    let mut wrote = None;
    if let Some(open) = connection.as_mut() {
        flight.send();
        let before = open.stamps.sent.get();
        let written = http1::write(&mut open.wire, &request.bytes).await;
        // Once a byte of it is out, the target may act on it: it is not sent again.
        wrote = Some(written).filter(|w| w.is_ok() || open.stamps.sent.get() > before);
    }
    let written = if let Some(written) = wrote {
        written
    } else {
        flight.enter(Part::Connect);
        let open = connection.insert(HttpConnection::open(connector).await?);
        flight.send();
        http1::write(&mut open.wire, &request.bytes).await
    };
    let Some(open) = connection.as_mut() else {
        return Err(Failure::new(ErrorKind::Connect, "no connection"));
    };
    let read = http1::read_head(&mut open.wire, buffer, request.is_head).await;
    let head = match written {
        Ok(()) => read?,
        // A target that answers before it has read all, and closes, has answered.
        Err(failure) => {
            open.spent = true;
            let mut head = read.map_err(|_| failure)?;
            head.keep_alive = false;
            head
        }
    };
    flight.enter(Part::Body);
    open.spent = !head.keep_alive;
    Ok((open, head))
}

/// Reads the body of an answer; the moment its last byte was read.
async fn drain(
    open: &mut HttpConnection,
    head: &Head,
    buffer: &mut BytesMut,
    mut take: impl FnMut(&[u8], Instant) -> Result<(), Failure>,
) -> Result<Instant, Failure> {
    let HttpConnection { wire, stamps, spent, .. } = open;
    let read = |data: &[u8]| take(data, stamps.last_read.get());
    let surplus = http1::read_body(wire, buffer, head, read).await?;
    *spent |= surplus;
    Ok(stamps.last_read.get())
}

fn expected(prepared: &PreparedHttp, status: u16) -> bool {
    if prepared.expect.is_empty() { status < 400 } else { prepared.expect.contains(&status) }
}

fn unexpected(prepared: &PreparedHttp, status: u16) -> Failure {
    Failure::new(ErrorKind::Http(status), format!("{} answered {status}", prepared.name))
}

/// One HTTP request; the moment the last byte of its answer was read.
pub(crate) async fn request(
    connection: &mut Option<HttpConnection>,
    connector: &Connector,
    prepared: &PreparedHttp,
    buffer: &mut BytesMut,
    flight: &Flight,
) -> Result<Instant, Failure> {
    let (open, head) = send(connection, connector, &prepared.request, buffer, flight).await?;
    let last = drain(open, &head, buffer, |_, _| Ok(())).await?;
    if expected(prepared, head.status) { Ok(last) } else { Err(unexpected(prepared, head.status)) }
}

/// One chat completion: the moment the last byte of its answer was read, and what it holds.
/// Times between tokens are handed to `gap` as they come.
pub(crate) async fn chat(
    connection: &mut Option<HttpConnection>,
    connector: &Connector,
    prepared: &PreparedChat,
    body: usize,
    buffer: &mut BytesMut,
    flight: &Flight,
    mut gap: impl FnMut(Duration),
) -> Result<(Instant, Answer), Failure> {
    let request = prepared.requests.get(body).unwrap_or(&prepared.http.request);
    let (open, head) = send(connection, connector, request, buffer, flight).await?;
    if !expected(&prepared.http, head.status) {
        drain(open, &head, buffer, |_, _| Ok(())).await?;
        return Err(unexpected(&prepared.http, head.status));
    }
    let mut chat = Chat::new(prepared.stream);
    let read = drain(open, &head, buffer, |data, at| {
        chat.read(data, at, &mut gap)?;
        chat.first().into_iter().for_each(|at| flight.first(at));
        Ok(())
    });
    let last = read.await.map_err(|failure| match failure.kind {
        // Whether its chunks or its events break off, a stream that has begun was cut short.
        ErrorKind::Reset if prepared.stream => Failure { kind: ErrorKind::StreamCut, ..failure },
        _ => failure,
    })?;
    let answer = chat.finish(last)?;
    flight.first(answer.first);
    Ok((last, answer))
}
