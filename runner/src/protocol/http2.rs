//! HTTP/2, by the `h2` library: requests at once on one connection.

use std::{cell::Cell, rc::Rc, time::Instant};

use bytes::Bytes;
use h2::{Reason, RecvStream, client::SendRequest};
use http::{Request, header};
use tokio::{sync::Notify, task::AbortHandle};

use crate::{
    failure::{ErrorKind, Failure},
    net::{stream::Wire, timestamped_socket::Stamps},
    prepare::check::Field,
    protocol::http1,
};

/// What the target may send before it is read, on one stream and on all: so much that it never
/// waits for a load generator that is on time.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Requests at once before the target has said how many it takes.
const FIRST_STREAMS: usize = 100;

/// A connection, for one user or for many.
#[derive(Debug)]
pub(crate) struct Http2 {
    send: SendRequest<Bytes>,
    pub(crate) stamps: Rc<Stamps>,
    /// True when no request can be sent on it any more.
    ended: Rc<Cell<bool>>,
    /// Requests that are open, and who waits for one of them to end.
    open: Rc<Cell<usize>>,
    freed: Rc<Notify>,
    driver: AbortHandle,
}

impl Drop for Http2 {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// The right to have one request open, as the target allows so many at once.
#[derive(Debug)]
pub(crate) struct Turn {
    open: Rc<Cell<usize>>,
    freed: Rc<Notify>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.open.set(self.open.get() - 1);
        self.freed.notify_one();
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
    _turn: Turn,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The target has not acted on the request, and takes it on another connection.
    Unsent(Failure),
    /// The target has not acted on the request, as it had too many: until its settings came, we
    /// did not know.
    Refused(Failure),
    /// It may have.
    Failed(Failure),
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
            .initial_max_send_streams(FIRST_STREAMS)
            .enable_push(false);
        let (send, connection) = builder.handshake(wire).await.map_err(failed)?;
        let ended = Rc::new(Cell::new(false));
        let told = Rc::clone(&ended);
        let driver = tokio::task::spawn_local(async move {
            // How it ends each of its requests is told by itself.
            let _ = connection.await;
            told.set(true);
        });
        let driver = driver.abort_handle();
        Ok(Self { send, stamps, ended, open: Rc::default(), freed: Rc::default(), driver })
    }

    /// True as long as requests can be sent.
    pub(crate) fn is_open(&self) -> bool {
        !self.ended.get()
    }

    /// Nothing more is to be sent on it; what is open goes on.
    pub(crate) fn end(&self) {
        self.ended.set(true);
    }

    /// Waits for a turn. What users wait for it is no service time.
    pub(crate) async fn turn(&self) -> Turn {
        while self.open.get() >= self.send.current_max_send_streams().max(1) {
            self.freed.notified().await;
        }
        self.open.set(self.open.get() + 1);
        Turn { open: Rc::clone(&self.open), freed: Rc::clone(&self.freed) }
    }

    /// Sends a request and reads the head of its answer. `began` is told when that is there.
    pub(crate) async fn send(
        &self,
        turn: Turn,
        request: &Request<Bytes>,
        keep: bool,
        began: impl Fn(Instant),
    ) -> Result<Answer, Refusal> {
        let unsent = |error| Refusal::Unsent(failed(error));
        let mut head = Request::new(());
        *head.method_mut() = request.method().clone();
        *head.uri_mut() = request.uri().clone();
        *head.headers_mut() = request.headers().clone();
        let body = request.body();
        let mut send = self.send.clone().ready().await.map_err(unsent)?;
        let (answer, mut sending) = send.send_request(head, body.is_empty()).map_err(unsent)?;
        if !body.is_empty() {
            let whole = sending.send_data(body.clone(), true);
            whole.map_err(|error| Refusal::Failed(failed(error)))?;
        }
        let (head, body) = match answer.await {
            Ok(answer) => answer.into_parts(),
            // So the target says that it has not looked at it (RFC 9113, 8.7).
            Err(error) if error.reason() == Some(Reason::REFUSED_STREAM) => {
                return Err(Refusal::Refused(failed(error)));
            }
            // Of a connection that goes away, requests beyond the last one it answers.
            Err(error) if error.is_go_away() && error.is_remote() => return Err(unsent(error)),
            Err(error) => return Err(Refusal::Failed(failed(error))),
        };
        began(self.stamps.last_read.get());
        let encoding = head.headers.get(header::CONTENT_ENCODING);
        let fields = head.headers.iter();
        let kept = || fields.map(|(n, v)| (n.as_str().to_owned(), v.as_bytes().to_vec()));
        Ok(Answer {
            status: head.status.as_u16(),
            gzip: encoding.is_some_and(|value| http1::is_gzip(value.as_bytes())),
            fields: if keep { kept().collect() } else { Vec::new() },
            body,
            stamps: Rc::clone(&self.stamps),
            _turn: turn,
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
                Err(error) if error.reason() == Some(Reason::NO_ERROR) && error.is_reset() => break,
                Err(error) => return Err(failed(error)),
            };
            take(&data, self.stamps.last_read.get())?;
            self.body.flow_control().release_capacity(data.len()).map_err(failed)?;
        }
        Ok(self.stamps.last_read.get())
    }
}
