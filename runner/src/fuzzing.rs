//! The readers of responses, for `fuzz/`.
//!
//! Each function takes the bytes that a target sends before it closes the connection, in pieces as reads
//! return them. It calls the code that reads real connections, and returns what a user of the connection
//! learns. This must not depend on the pieces.

use std::{
    io,
    ops::ControlFlow,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    failure::{ErrorKind, Failure},
    protocol::{
        chat::ChatReader,
        content_encoding::BodyDecoder,
        http1::{BodyEnd, BodyReader, read_body, read_head},
        websocket::{
            frames::{FrameReader, OutgoingMessage},
            stream::{SocketEvent, WebSocket},
        },
    },
};

/// Maximum number of bytes of a decoded body that are kept.
const MAX_KEPT: usize = 64 << 10;

/// A connection that holds all bytes of the target. Reads and writes are ready at once.
#[derive(Debug)]
struct PieceStream<'a> {
    pieces: &'a [&'a [u8]],
    /// The rest of a piece that was longer than a read.
    rest: &'a [u8],
    written: Vec<u8>,
}

impl<'a> PieceStream<'a> {
    const fn new(pieces: &'a [&'a [u8]]) -> Self {
        Self { pieces, rest: &[], written: Vec::new() }
    }
}

impl AsyncRead for PieceStream<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            let Some((piece, after)) = self.pieces.split_first() else {
                return Poll::Ready(Ok(()));
            };
            (self.rest, self.pieces) = (piece, after);
        }
        let (now, later) = self.rest.split_at(self.rest.len().min(buffer.remaining()));
        buffer.put_slice(now);
        self.rest = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for PieceStream<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.written.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Runs a future that never waits.
fn finish<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("a piece stream is always ready")
}

/// Reads a chat response. Its pieces arrive `gap` apart. `is_stream` is false for a response without a
/// stream. Returns the response, or the kind and the message of the failure.
///
/// # Errors
/// When the response is not a complete chat response.
///
/// # Panics
/// When the share of the tokens that came in time is no share.
pub fn read_chat(
    pieces: &[&[u8]],
    is_stream: bool,
    start: Instant,
    gap: Duration,
) -> Result<String, (ErrorKind, String)> {
    let mut at = start;
    let mut read = || -> Result<_, Failure> {
        let mut reader = ChatReader::new(is_stream);
        for piece in pieces {
            at += gap;
            if reader.read_bytes(piece, at)?.is_break() {
                break;
            }
        }
        reader.finish(at)
    };
    let response = read().map_err(|failure| (failure.kind, failure.message))?;
    let (mut waited, mut tokens) = (Duration::ZERO, 0);
    response.token_times.token_gaps(|wait, count| {
        waited = waited.saturating_add(wait);
        tokens += count;
    });
    let share = response.token_times.share_until(start, start);
    assert!((0.0..=1.0).contains(&share), "{share} of the tokens came in time");
    let mean = response.token_times.mean_gap();
    let reason = response.finish_reason.map(|reason| reason.as_str().to_owned());
    Ok(format!("{response:?} {waited:?} {tokens} {mean:?} {reason:?}"))
}

/// An HTTP/1.1 response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpResponse {
    /// The status.
    pub status: u16,
    /// The headers, if they were asked for.
    pub headers: Vec<(String, Vec<u8>)>,
    /// True if the connection can be used again.
    pub keep_alive: bool,
    /// Length of the decoded body, and its first bytes.
    pub body: (usize, Vec<u8>),
}

/// Reads an HTTP/1.1 response and decodes its body. `is_head_request` is true for the response to a HEAD
/// request. Nothing is read after `stop_after` bytes of the decoded body.
///
/// # Errors
/// When the response is not valid or not complete.
pub fn read_http_response(
    pieces: &[&[u8]],
    is_head_request: bool,
    keep_headers: bool,
    stop_after: usize,
) -> Result<HttpResponse, ErrorKind> {
    let read = async {
        let (mut stream, mut buffer) = (PieceStream::new(pieces), BytesMut::new());
        let head =
            read_head(&mut stream, &mut buffer, is_head_request, keep_headers, || ()).await?;
        let (mut length, mut body) = (0, Vec::new());
        let mut keep = |plain: &[u8]| {
            length += plain.len();
            let room = MAX_KEPT.saturating_sub(body.len());
            body.extend_from_slice(&plain[..plain.len().min(room)]);
            Ok(if length < stop_after { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        };
        let (mut reader, mut decoder) = (BodyReader::new(&head), BodyDecoder::new(head.encoding));
        let mut is_stopped = false;
        let decode = |data: &[u8]| {
            let flow = decoder.decode(data, &mut keep)?;
            is_stopped = flow.is_break();
            Ok(flow)
        };
        let end = read_body(&mut stream, &mut buffer, &mut reader, decode).await?;
        if !is_stopped {
            let _ = decoder.finish(keep)?;
        }
        let keep_alive = head.keep_alive && end != BodyEnd::Stopped;
        Ok(HttpResponse {
            status: head.status,
            headers: head.headers,
            keep_alive,
            body: (length, body),
        })
    };
    finish(read).map_err(|failure: Failure| failure.kind)
}

/// Reads a WebSocket to its end. `deflate` has a value if the target compresses its messages: true if
/// each message starts with an empty window. Returns the events, and what the client has written.
pub fn read_web_socket(pieces: &[&[u8]], deflate: Option<bool>) -> (Vec<String>, Vec<u8>) {
    let reader = FrameReader::new(deflate);
    let mut socket = WebSocket::new(PieceStream::new(pieces), BytesMut::new(), reader, 1);
    let mut events = Vec::new();
    let session = async {
        // A message and a ping come before the answers to frames of the target.
        let hello = OutgoingMessage::Text(Bytes::from_static(b"hello"));
        socket.send(&hello).await?;
        socket.send_ping().await?;
        loop {
            let event = socket.next_event().await?;
            let is_end = matches!(event, SocketEvent::Closed(..) | SocketEvent::Ended);
            events.push(describe_event(event));
            if is_end {
                return Ok(());
            }
        }
    };
    let end: Result<(), Failure> = finish(session);
    events.extend(end.err().map(|failure| format!("{}: {}", failure.kind, failure.message)));
    (events, std::mem::take(&mut socket.stream_mut().written))
}

/// Describes an event. A long message is described by its length and its start.
fn describe_event(event: SocketEvent) -> String {
    match event {
        SocketEvent::Message(content) => {
            format!("{} bytes: {:?}", content.len(), &content[..content.len().min(MAX_KEPT)])
        }
        other => format!("{other:?}"),
    }
}
