//! HTTP/1.1 for a load generator: requests are encoded before the load, and responses are read once
//! and not kept.
//!
//! A general client builds each request, hands it to the task of the connection and returns the
//! response in parts. This one needs a single write and, for a small response, a single read.

use std::{
    mem::MaybeUninit,
    ops::ControlFlow,
    pin::Pin,
    rc::Rc,
    task::{Context, Waker},
    time::Instant,
};

use bytes::{Buf, BytesMut};
use httparse::{Header, ParserConfig, Status};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};

use crate::{
    failure::{ErrorKind, Failure},
    net::{stream::MeteredStream, timestamped_socket::ConnectionStats},
    prepare::check::HeaderField,
    protocol::{
        chat::event_stream::AfterEvent,
        chunked::ChunkedDecoder,
        content_encoding::ContentEncoding,
        target_words::{STATUS_HEADERS, with_words},
    },
};

/// Maximum length of the head of a response.
const MAX_HEAD: usize = 256 << 10;
/// Maximum number of headers of a response.
const MAX_HEADERS: usize = 256;
/// Number of bytes that are read at once.
const READ_SIZE: usize = 16 << 10;

/// The status and the headers of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ResponseHead {
    pub(crate) status: u16,
    pub(crate) encoding: ContentEncoding,
    /// All headers, if the caller asked for them. Otherwise only the location of a redirect.
    pub(crate) headers: Vec<HeaderField>,
    /// How the body ends.
    pub(super) framing: BodyFraming,
    /// True when the connection can be used again after the body.
    pub(crate) keep_alive: bool,
}

/// How the end of a body is found (RFC 9112, 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyFraming {
    Length(u64),
    Chunked,
    UntilClose,
}

/// An HTTP/1.1 connection.
#[derive(Debug)]
pub(crate) struct Http1Connection {
    pub(crate) stream: MeteredStream,
    pub(crate) stats: Rc<ConnectionStats>,
    /// True when no other request can be sent: the target said so, or a response ended with the
    /// connection.
    pub(crate) is_used_up: bool,
    /// The rest of a body of which the caller needs nothing more. It has to be read before the next
    /// request.
    pub(crate) unread_body: Option<BodyReader>,
    /// When the connection is too old for another request.
    pub(crate) expires: Option<Instant>,
}

impl Http1Connection {
    /// Returns false when the target has closed the connection or sent unexpected bytes.
    ///
    /// Between requests there is nothing to read, so the check needs no system call.
    pub(super) fn is_open(&mut self) -> bool {
        let mut byte = [0];
        let mut buffer = ReadBuf::new(&mut byte);
        let mut context = Context::from_waker(Waker::noop());
        Pin::new(&mut self.stream).poll_read(&mut context, &mut buffer).is_pending()
    }

    /// Reads the rest of the previous body, which nobody needs. Returns false when the connection
    /// can't be used again.
    pub(super) async fn finish_unread_body(&mut self, buffer: &mut BytesMut) -> bool {
        let Some(mut body) = self.unread_body.take() else { return true };
        let ignore = |_: &[u8]| Ok(ControlFlow::Continue(()));
        let end = read_body(&mut self.stream, buffer, &mut body, ignore).await;
        buffer.clear();
        self.is_used_up |= !matches!(end, Ok(BodyEnd::Complete { has_surplus: false }));
        !self.is_used_up
    }
}

fn protocol_failure(message: impl std::fmt::Display) -> Failure {
    Failure::new(ErrorKind::Protocol, message)
}

fn early_end(what: &str) -> Failure {
    Failure::new(ErrorKind::Reset, format!("connection ended before {what}"))
}

/// Writes a request.
pub(crate) async fn write_request(
    stream: &mut MeteredStream,
    request: &[u8],
) -> Result<(), Failure> {
    stream.write_all(request).await.map_err(|error| Failure::from_io_error(&error))?;
    // TLS may buffer encrypted bytes until a flush. A flush of a TCP connection does nothing.
    stream.flush().await.map_err(|error| Failure::from_io_error(&error))
}

async fn read_more(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut BytesMut,
) -> Result<usize, Failure> {
    buffer.reserve(READ_SIZE);
    stream.read_buf(buffer).await.map_err(|error| Failure::from_io_error(&error))
}

/// Reads the head of a response. Bytes of the body that arrive with it stay in the buffer.
///
/// `is_head_request` is true for the response to a HEAD request, which has no body. `keep_headers`
/// returns all headers. `on_begin` is called when the response has begun. Interim responses, such as
/// 103 (Early Hints), are stepped over: the response has not begun with them (RFC 9110, 15.2).
pub(crate) async fn read_head(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut BytesMut,
    is_head_request: bool,
    keep_headers: bool,
    on_begin: impl Fn(),
) -> Result<ResponseHead, Failure> {
    let mut has_begun = false;
    loop {
        if !has_begun && begins_final_response(buffer) {
            has_begun = true;
            on_begin();
        }
        match parse_head(buffer, is_head_request, keep_headers)? {
            Some((head, length)) if is_interim(head.status) => {
                buffer.advance(length);
            }
            Some((head, length)) => {
                buffer.advance(length);
                return Ok(head);
            }
            None if buffer.len() > MAX_HEAD => {
                let message =
                    "head of the response is over 256 KiB, the limit of the load generator";
                return Err(Failure::new(ErrorKind::SizeLimit, message));
            }
            None => {
                if read_more(stream, buffer).await? == 0 {
                    return Err(early_end("the head of the response was complete"));
                }
            }
        }
    }
}

/// Returns true for the status of an interim response. 101 is final: it ends HTTP on the connection.
const fn is_interim(status: u16) -> bool {
    status >= 100 && status < 200 && status != 101
}

/// Returns true when the buffer holds the status of a response that is not interim.
fn begins_final_response(buffer: &[u8]) -> bool {
    // `HTTP/1.1 200`
    let Some(digits) = buffer.get(9..12) else { return false };
    !std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok()).is_some_and(is_interim)
}

/// Parses the head at the start of the buffer, and returns it with its length. `None` when the head
/// is incomplete.
fn parse_head(
    buffer: &[u8],
    is_head_request: bool,
    keep_headers: bool,
) -> Result<Option<(ResponseHead, usize)>, Failure> {
    let mut fields = [const { MaybeUninit::<Header<'_>>::uninit() }; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut []);
    let mut config = ParserConfig::default();
    // Old servers fold long headers, or put a space before the colon.
    config.allow_obsolete_multiline_headers_in_responses(true);
    config.allow_spaces_after_header_name_in_responses(true);
    // Scripts write a status line as a header, and proxies write names with spaces. Browsers skip such a line.
    config.ignore_invalid_headers_in_responses(true);
    let parsed = config.parse_response_with_uninit_headers(&mut response, buffer, &mut fields);
    let length = match parsed {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => {
            let message = "response has over 256 headers, the limit of the load generator";
            return Err(Failure::new(ErrorKind::SizeLimit, message));
        }
        Err(error) => return Err(protocol_failure(describe_other_protocol(buffer, error))),
    };
    let status = response.code.unwrap_or(0);
    // HTTP/1.0 closes the connection by default.
    let mut keep_alive = response.version == Some(1);
    let (mut content_length, mut is_chunked) = (None, false);
    let mut encoding = ContentEncoding::default();
    for Header { name, value } in response.headers.iter() {
        if name.eq_ignore_ascii_case("content-length") {
            // The same length may be repeated (RFC 9112, 6.3).
            for text in value.split(|b| *b == b',') {
                let Some(length) = parse_length(text.trim_ascii()) else {
                    return Err(protocol_failure("content-length is not a number"));
                };
                if content_length.is_some_and(|before: u64| before != length) {
                    return Err(protocol_failure("response has two different content-lengths"));
                }
                content_length = Some(length);
            }
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            is_chunked = last_token(value).eq_ignore_ascii_case(b"chunked");
        } else if name.eq_ignore_ascii_case("content-encoding") {
            encoding = ContentEncoding::parse(value);
        } else if name.eq_ignore_ascii_case("connection") {
            for token in value.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
                if token.eq_ignore_ascii_case(b"close") {
                    keep_alive = false;
                } else if token.eq_ignore_ascii_case(b"keep-alive") && response.version == Some(0) {
                    keep_alive = true;
                }
            }
        }
    }
    let framing = match content_length {
        _ if is_head_request || matches!(status, 100..200 | 204 | 304) => BodyFraming::Length(0),
        _ if is_chunked => BodyFraming::Chunked,
        Some(length) => BodyFraming::Length(length),
        None => BodyFraming::UntilClose,
    };
    let keep_alive = keep_alive && framing != BodyFraming::UntilClose;
    let explains = |h: &&Header<'_>| STATUS_HEADERS.iter().any(|n| h.name.eq_ignore_ascii_case(n));
    let is_kept = |h: &&Header<'_>| keep_headers || explains(h);
    let copied = |h: &Header<'_>| (h.name.to_ascii_lowercase(), h.value.to_vec());
    let headers = if keep_headers || status >= 300 {
        response.headers.iter().filter(is_kept).map(copied).collect()
    } else {
        Vec::new()
    };
    Ok(Some((ResponseHead { status, encoding, headers, framing, keep_alive }, length)))
}

/// Parses a number of digits only, so not `+2` (RFC 9110, 8.6).
fn parse_length(text: &[u8]) -> Option<u64> {
    let is_number = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| is_number)?.parse().ok()
}

/// Describes bytes that are no HTTP/1.1: other protocols have other first bytes.
fn describe_other_protocol(buffer: &[u8], error: httparse::Error) -> String {
    match buffer {
        // A record of TLS: an alert or a handshake.
        [0x15 | 0x16, 3, ..] => {
            "the target speaks TLS on this port: use https:// or wss://".to_owned()
        }
        // The SETTINGS with which a server begins HTTP/2.
        [0, 0, _, 4, _, 0, 0, 0, 0, ..] => {
            "the target speaks HTTP/2 on this port: set target.httpVersion: HTTP2".to_owned()
        }
        _ => with_words(format!("response is not HTTP/1.1: {error}"), buffer),
    }
}

fn last_token(value: &[u8]) -> &[u8] {
    value.rsplit(|b| *b == b',').next().unwrap_or_default().trim_ascii()
}

/// A body that is being read.
#[derive(Debug)]
pub(crate) struct BodyReader {
    framing: BodyFraming,
    chunks: ChunkedDecoder,
}

/// How reading a body has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyEnd {
    /// The whole body was read. Surplus bytes may follow it. Then the connection can't be used
    /// again.
    Complete { has_surplus: bool },
    /// The caller needs nothing more, and the rest of the body has not arrived.
    Stopped,
}

/// The state of a body after the bytes that have arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BodyState {
    Incomplete,
    Complete,
    Stopped,
}

impl BodyReader {
    pub(crate) fn new(head: &ResponseHead) -> Self {
        Self { framing: head.framing, chunks: ChunkedDecoder::default() }
    }

    /// Hands the bytes of the body in the buffer to `on_data`, until it stops.
    fn consume(
        &mut self,
        buffer: &mut BytesMut,
        mut on_data: impl FnMut(&[u8]) -> AfterEvent,
    ) -> Result<BodyState, Failure> {
        let mut flow = ControlFlow::Continue(());
        let is_complete = match &mut self.framing {
            BodyFraming::Length(remaining) => {
                let available = usize::try_from(*remaining).unwrap_or(usize::MAX).min(buffer.len());
                if available > 0 {
                    flow = on_data(&buffer[..available])?;
                    buffer.advance(available);
                    *remaining -= available as u64;
                }
                *remaining == 0
            }
            BodyFraming::Chunked => {
                let (consumed, after) = self.chunks.decode(buffer, &mut on_data)?;
                buffer.advance(consumed);
                flow = after;
                self.chunks.is_done()
            }
            BodyFraming::UntilClose => {
                if !buffer.is_empty() {
                    flow = on_data(buffer)?;
                    buffer.clear();
                }
                false
            }
        };
        Ok(match (is_complete, flow) {
            (true, _) => BodyState::Complete,
            (false, ControlFlow::Break(())) => BodyState::Stopped,
            (false, ControlFlow::Continue(())) => BodyState::Incomplete,
        })
    }

    /// Returns the end of the body at the end of the connection.
    fn end_of_connection(&self) -> Result<BodyEnd, Failure> {
        match self.framing {
            BodyFraming::UntilClose => Ok(BodyEnd::Complete { has_surplus: false }),
            BodyFraming::Chunked => Err(early_end("the last chunk arrived")),
            BodyFraming::Length(remaining) => {
                Err(early_end(&format!("{remaining} more bytes of the body arrived")))
            }
        }
    }
}

/// Reads a body and hands each piece to `on_data` as soon as it was read, until the body ends or
/// `on_data` stops.
pub(crate) async fn read_body(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut BytesMut,
    body: &mut BodyReader,
    mut on_data: impl FnMut(&[u8]) -> AfterEvent,
) -> Result<BodyEnd, Failure> {
    loop {
        match body.consume(buffer, &mut on_data)? {
            BodyState::Incomplete => {}
            BodyState::Complete => {
                return Ok(BodyEnd::Complete { has_surplus: !buffer.is_empty() });
            }
            BodyState::Stopped => {
                // The end of the body often arrives together with what the caller waited for.
                let rest = body.consume(buffer, |_| Ok(ControlFlow::Continue(())));
                return Ok(match rest {
                    Ok(BodyState::Complete) => {
                        BodyEnd::Complete { has_surplus: !buffer.is_empty() }
                    }
                    _ => BodyEnd::Stopped,
                });
            }
        }
        if read_more(stream, buffer).await? == 0 {
            return body.end_of_connection();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse_text(text: &str) -> Option<ResponseHead> {
        parse_head(text.as_bytes(), false, false).unwrap().map(|(head, _)| head)
    }

    #[test]
    fn header_lines_that_are_none_are_skipped() {
        for line in ["HTTP/1.1 200 OK", "X Frame Options: DENY", "no colon", "x: a\u{1}b"] {
            let text = format!("HTTP/1.1 200 OK\r\n{line}\r\ncontent-length: 5\r\n\r\n");
            assert_eq!(parse_text(&text).unwrap().framing, BodyFraming::Length(5), "{line}");
        }
    }

    #[test]
    fn other_protocols_are_named() {
        let name = |bytes: &[u8]| parse_head(bytes, false, false).unwrap_err().message;
        assert!(name(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03").contains("HTTP2"));
        assert!(name(b"\x15\x03\x01\x00\x02\x02\x28").contains("https://"));
    }

    #[test]
    fn headers_decide_how_the_body_ends() {
        for (headers, framing, keep_alive) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n", BodyFraming::Length(5), true),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, Chunked\r\n", BodyFraming::Chunked, true),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n",
                BodyFraming::Chunked,
                true,
            ),
            ("HTTP/1.1 200 OK\r\n", BodyFraming::UntilClose, false),
            ("HTTP/1.1 204 No Content\r\n", BodyFraming::Length(0), true),
            ("HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n", BodyFraming::Length(0), true),
            (
                "HTTP/1.1 200 OK\r\nConnection: x, Close\r\ncontent-length: 0\r\n",
                BodyFraming::Length(0),
                false,
            ),
            ("HTTP/1.0 200 OK\r\ncontent-length: 0\r\n", BodyFraming::Length(0), false),
            (
                "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 0\r\n",
                BodyFraming::Length(0),
                true,
            ),
        ] {
            let found = parse_text(&format!("{headers}\r\n")).unwrap();
            assert_eq!((found.framing, found.keep_alive), (framing, keep_alive), "{headers}");
            assert_eq!(parse_text(headers), None, "{headers}");
        }
    }

    #[test]
    fn the_response_to_a_head_request_has_no_body() {
        let text = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n";
        let (head, length) = parse_head(text, true, false).unwrap().unwrap();
        assert_eq!((head.framing, length), (BodyFraming::Length(0), text.len()));
    }

    #[test]
    fn invalid_responses_are_refused() {
        for text in [
            "SSH-2.0-OpenSSH\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
            "HTTP/1.1 2000 OK\r\n\r\n",
        ] {
            let failure = parse_head(text.as_bytes(), false, false).unwrap_err();
            assert_eq!(failure.kind, ErrorKind::Protocol, "{text}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_head(&bytes, false, true);
        }
    }
}
