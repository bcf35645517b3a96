//! HTTP/2 by the `h2` library: concurrent requests on one connection.

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    io,
    pin::pin,
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::FutureExt;
use h2::{Reason, RecvStream, client::SendRequest};
use http::{Request, header};
use tokio::{sync::Notify, task::AbortHandle};

use crate::{
    failure::{ErrorKind, Failure},
    net::{stream::MeteredStream, timestamped_socket::ConnectionStats},
    prepare::check::HeaderField,
    protocol::{
        chat::event_stream::AfterEvent, content_encoding::ContentEncoding, send_error::SendError,
        target_words::STATUS_HEADERS,
    },
};

/// Flow-control windows of a stream and of the connection. They are so large that the target never
/// waits for a load generator that keeps up.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Maximum number of concurrent streams until the settings of the target arrive.
const INITIAL_MAX_STREAMS: usize = 100;
/// Maximum number of streams that the load generator has given up and whose late frames it still ignores.
const MAX_RESET_STREAMS: usize = 1000;

/// Maximum time to read the unneeded rest of a body.
const REST_TIMEOUT: Duration = Duration::from_secs(1);

/// An HTTP/2 connection, for one user or for many.
#[derive(Debug)]
pub(crate) struct Http2Connection {
    sender: SendRequest<Bytes>,
    pub(crate) stats: Rc<ConnectionStats>,
    /// True when the connection has ended.
    has_ended: Rc<Cell<bool>>,
    /// False after [`Self::stop_sending`].
    takes_requests: Cell<bool>,
    /// Number of open streams, and the signal that one of them has ended or that the target allows more.
    open_streams: Rc<Cell<usize>>,
    stream_ended: Rc<Notify>,
    driver: AbortHandle,
    /// When the connection is too old for another request.
    pub(crate) expires: Option<Instant>,
}

impl Drop for Http2Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Permission for one open stream. The target limits how many there may be.
#[derive(Debug)]
pub(crate) struct StreamPermit {
    open_streams: Rc<Cell<usize>>,
    stream_ended: Rc<Notify>,
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        self.open_streams.set(self.open_streams.get() - 1);
        self.stream_ended.notify_one();
    }
}

/// A response with a body that is not read yet.
#[derive(Debug)]
pub(crate) struct Http2Response {
    pub(crate) status: u16,
    pub(crate) encoding: ContentEncoding,
    /// All headers, if the caller asked for them. Otherwise only those of [`STATUS_HEADERS`].
    pub(crate) headers: Vec<HeaderField>,
    body: RecvStream,
    sender: SendRequest<Bytes>,
    stats: Rc<ConnectionStats>,
    _permit: StreamPermit,
}

fn h2_failure(error: h2::Error) -> Failure {
    if let Some(io) = error.get_io() {
        let mut failure = Failure::from_io_error(io);
        // The library keeps only the kind and the text of an error of TLS.
        if io.kind() == io::ErrorKind::InvalidData {
            failure.kind = ErrorKind::Tls;
        }
        return failure;
    }
    match error.reason() {
        // The library gives up a connection with very many empty frames, or with very many for streams that have ended.
        Some(Reason::ENHANCE_YOUR_CALM) if error.is_library() => {
            let message = "the load generator takes no more frames of this connection";
            Failure::new(ErrorKind::SizeLimit, format!("{message}: {error}"))
        }
        _ if error.is_library() => {
            let message = "the target violates HTTP/2 (see target.httpVersion)";
            Failure::new(ErrorKind::Protocol, format!("{message}: {error}"))
        }
        Some(Reason::NO_ERROR) if error.is_reset() => {
            let message = "the target reset the stream before the response was complete";
            Failure::new(ErrorKind::Reset, message)
        }
        _ if error.is_reset() || error.is_go_away() => Failure::new(ErrorKind::Reset, error),
        _ => Failure::new(ErrorKind::Protocol, error),
    }
}

/// Describes the failure of a stream. If the connection ended, the message has the words of the target about it (GOAWAY).
/// The error of the stream itself does not have them.
fn stream_failure(error: h2::Error, sender: &SendRequest<Bytes>) -> Failure {
    let is_end = error.is_io();
    let mut failure = h2_failure(error);
    if is_end
        && failure.kind == ErrorKind::Reset
        && let Some(Err(said)) = sender.clone().ready().now_or_never()
        && said.is_go_away()
        && said.reason() != Some(Reason::NO_ERROR)
    {
        failure.message = said.to_string();
    }
    failure
}

impl Http2Connection {
    /// Runs the HTTP/2 handshake on an open connection.
    pub(crate) async fn handshake(
        stream: MeteredStream,
        stats: Rc<ConnectionStats>,
        expires: Option<Instant>,
    ) -> Result<Self, Failure> {
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .initial_max_send_streams(INITIAL_MAX_STREAMS)
            .max_concurrent_reset_streams(MAX_RESET_STREAMS)
            .max_local_error_reset_streams(None)
            .enable_push(false);
        let (sender, connection) = builder.handshake(stream).await.map_err(h2_failure)?;
        let has_ended = Rc::new(Cell::new(false));
        let stream_ended = Rc::<Notify>::default();
        let (ended, more_allowed) = (Rc::clone(&has_ended), Rc::clone(&stream_ended));
        let settings: SendRequest<Bytes> = sender.clone();
        let driver = tokio::task::spawn_local(async move {
            let mut connection = pin!(connection);
            let mut allowed = settings.current_max_send_streams();
            // The error is ignored: each request on the connection gets an error of its own.
            let _ = poll_fn(|context| {
                let result = connection.as_mut().poll(context);
                let before = std::mem::replace(&mut allowed, settings.current_max_send_streams());
                if allowed > before {
                    more_allowed.notify_waiters();
                }
                result
            })
            .await;
            ended.set(true);
        });
        let driver = driver.abort_handle();
        Ok(Self {
            sender,
            stats,
            has_ended,
            takes_requests: Cell::new(true),
            open_streams: Rc::default(),
            stream_ended,
            driver,
            expires,
        })
    }

    /// Returns true as long as requests can be sent.
    pub(crate) fn can_send(&self) -> bool {
        let is_young = self.expires.is_none_or(|at| at > Instant::now());
        is_young && self.takes_requests.get() && !self.has_ended.get()
    }

    /// Returns the number of open streams.
    pub(crate) fn open_stream_count(&self) -> usize {
        self.open_streams.get()
    }

    /// Stops sending new requests. Open streams go on.
    pub(crate) fn stop_sending(&self) {
        self.takes_requests.set(false);
    }

    /// Waits until the target allows another stream. The wait is not part of the service time.
    pub(crate) async fn acquire_stream(&self) -> StreamPermit {
        while self.open_streams.get() >= self.sender.current_max_send_streams().max(1) {
            self.stream_ended.notified().await;
        }
        self.open_streams.set(self.open_streams.get() + 1);
        StreamPermit {
            open_streams: Rc::clone(&self.open_streams),
            stream_ended: Rc::clone(&self.stream_ended),
        }
    }

    /// Sends a request and reads the head of its response. Calls `on_first_byte` with the time of
    /// the response.
    pub(crate) async fn send_request(
        &self,
        permit: StreamPermit,
        request: &Request<Bytes>,
        keep_headers: bool,
        on_first_byte: impl Fn(Instant),
    ) -> Result<Http2Response, SendError> {
        let unsent = |error| SendError::Unsent(h2_failure(error));
        let mut head = Request::new(());
        *head.method_mut() = request.method().clone();
        *head.uri_mut() = request.uri().clone();
        *head.headers_mut() = request.headers().clone();
        let body = request.body();
        let mut sender = self.sender.clone().ready().await.map_err(unsent)?;
        let (response, mut request_body) =
            sender.send_request(head, body.is_empty()).map_err(unsent)?;
        if !body.is_empty() {
            let sent = request_body.send_data(body.clone(), true);
            sent.map_err(|error| SendError::Failed(h2_failure(error)))?;
        }
        let (head, body) = match response.await {
            Ok(response) => response.into_parts(),
            // With this error the target says that it has not processed the request (RFC 9113,
            // 8.7).
            Err(error) if error.reason() == Some(Reason::REFUSED_STREAM) => {
                return Err(SendError::Refused(h2_failure(error)));
            }
            // After GOAWAY the target does not process streams beyond the last one that it names.
            Err(error) if error.is_go_away() && error.is_remote() => return Err(unsent(error)),
            Err(error) => {
                // The target has reset the stream, whatever became of the connection.
                let is_of_stream = error.is_reset();
                let failure = stream_failure(error, &sender);
                return Err(match failure.kind {
                    ErrorKind::Reset if !is_of_stream && self.has_ended.get() => {
                        SendError::Ended(failure)
                    }
                    _ => SendError::Failed(failure),
                });
            }
        };
        on_first_byte(self.stats.last_read.get());
        let encoding = head.headers.get(header::CONTENT_ENCODING);
        let headers = head.headers.iter();
        let status = head.status.as_u16();
        let is_kept = |n: &header::HeaderName| keep_headers || STATUS_HEADERS.contains(&n.as_str());
        let copied = || {
            let kept = headers.filter(|(n, _)| is_kept(n));
            kept.map(|(n, v)| (n.as_str().to_owned(), v.as_bytes().to_vec()))
        };
        Ok(Http2Response {
            status,
            encoding: encoding
                .map_or_else(ContentEncoding::default, |v| ContentEncoding::parse(v.as_bytes())),
            headers: if keep_headers || status >= 300 { copied().collect() } else { Vec::new() },
            body,
            sender,
            stats: Rc::clone(&self.stats),
            _permit: permit,
        })
    }
}

impl Http2Response {
    /// Reads the body until it ends or `on_data` stops. Returns the time of the last byte.
    pub(crate) async fn read_body(
        mut self,
        mut on_data: impl FnMut(&[u8], Instant) -> AfterEvent,
    ) -> Result<Instant, Failure> {
        while let Some(data) = self.body.data().await {
            // A reset after the end of the response is no error here.
            let data = data.map_err(|error| stream_failure(error, &self.sender))?;
            let flow = on_data(&data, self.stats.last_read.get())?;
            self.body.flow_control().release_capacity(data.len()).map_err(h2_failure)?;
            if flow.is_break() {
                let last = self.stats.last_read.get();
                tokio::task::spawn_local(self.read_rest());
                return Ok(last);
            }
        }
        Ok(self.stats.last_read.get())
    }

    /// Reads the unneeded rest of a body, within [`REST_TIMEOUT`]. A reset of the stream,
    /// which most targets end at once, would look like an attack to some of them.
    async fn read_rest(mut self) {
        let read = async {
            while let Some(Ok(data)) = self.body.data().await {
                if self.body.flow_control().release_capacity(data.len()).is_err() {
                    return;
                }
            }
        };
        // The end of the time resets the stream.
        let _ = tokio::time::timeout(REST_TIMEOUT, read).await;
    }
}
