//! HTTP/2, by the `h2` library: requests at once on one connection.

use std::{cell::Cell, rc::Rc, time::Instant};

use bytes::Bytes;
use h2::{Reason, RecvStream, client::SendRequest};
use http::{Request, header};
use tokio::task::AbortHandle;

use crate::{
    check::Field,
    failure::{ErrorKind, Failure},
    http1,
    wire::{Stamps, Wire},
};

/// What the target may send before it is read, on one stream and on all: so much that it never
/// waits for a load generator that is on time.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// A connection, for one user or for many.
#[derive(Debug)]
pub(crate) struct Http2 {
    send: SendRequest<Bytes>,
    pub(crate) stamps: Rc<Stamps>,
    /// True when it can't be used any more.
    ended: Rc<Cell<bool>>,
    driver: AbortHandle,
}

impl Drop for Http2 {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// An answer whose body is still to come.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) gzip: bool,
    /// All fields, if they were asked for.
    pub(crate) fields: Vec<Field>,
    body: RecvStream,
    stamps: Rc<Stamps>,
}

fn failed(error: h2::Error) -> Failure {
    let kind = match error.get_io() {
        Some(io) => Failure::kind_of_io(io),
        None if error.is_reset() || error.is_go_away() => ErrorKind::Reset,
        None => ErrorKind::Protocol,
    };
    Failure::new(kind, error)
}

impl Http2 {
    /// Begins HTTP/2 on an open connection.
    pub(crate) async fn open(wire: Wire, stamps: Rc<Stamps>) -> Result<Self, Failure> {
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .enable_push(false);
        let (send, connection) = builder.handshake(wire).await.map_err(failed)?;
        let ended = Rc::new(Cell::new(false));
        let told = Rc::clone(&ended);
        let driver = tokio::task::spawn_local(async move {
            // How it ends each of its requests is told by itself.
            let _ = connection.await;
            told.set(true);
        });
        Ok(Self { send, stamps, ended, driver: driver.abort_handle() })
    }

    /// True as long as requests can be sent.
    pub(crate) fn is_open(&self) -> bool {
        !self.ended.get()
    }

    /// Waits for room for one more request, as the target allows so many at once.
    pub(crate) async fn ready(&self) -> Result<SendRequest<Bytes>, Failure> {
        self.send.clone().ready().await.map_err(failed)
    }

    /// Sends a request and reads the head of its answer. `began` is told when that is there.
    pub(crate) async fn send(
        &self,
        mut ready: SendRequest<Bytes>,
        request: &Request<Bytes>,
        keep: bool,
        began: impl Fn(Instant),
    ) -> Result<Answer, Failure> {
        let mut head = Request::new(());
        *head.method_mut() = request.method().clone();
        *head.uri_mut() = request.uri().clone();
        *head.headers_mut() = request.headers().clone();
        let body = request.body();
        let (answer, mut sending) = ready.send_request(head, body.is_empty()).map_err(failed)?;
        if !body.is_empty() {
            sending.send_data(body.clone(), true).map_err(failed)?;
        }
        let (head, body) = answer.await.map_err(failed)?.into_parts();
        began(self.stamps.last_read.get());
        let encoding = head.headers.get(header::CONTENT_ENCODING);
        let kept =
            || head.headers.iter().map(|(n, v)| (n.as_str().to_owned(), v.as_bytes().to_vec()));
        Ok(Answer {
            status: head.status.as_u16(),
            gzip: encoding.is_some_and(|value| http1::is_gzip(value.as_bytes())),
            fields: if keep { kept().collect() } else { Vec::new() },
            body,
            stamps: Rc::clone(&self.stamps),
        })
    }
}

impl Answer {
    /// Reads the body to its end; the moment its last byte was read.
    pub(crate) async fn drain(
        mut self,
        mut take: impl FnMut(&[u8], Instant) -> Result<(), Failure>,
    ) -> Result<Instant, Failure> {
        while let Some(data) = self.body.data().await {
            let data = match data {
                Ok(data) => data,
                // It answered before it had read all of the request: that is an answer.
                Err(error) if error.reason() == Some(Reason::NO_ERROR) => break,
                Err(error) => return Err(failed(error)),
            };
            take(&data, self.stamps.last_read.get())?;
            self.body.flow_control().release_capacity(data.len()).map_err(failed)?;
        }
        Ok(self.stamps.last_read.get())
    }
}
