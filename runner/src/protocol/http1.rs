//! HTTP/1.1 as a load generator needs it: a request is bytes made beforehand, an answer is
//! read once and not kept.
//!
//! A general client builds every request anew, hands it to a task of the connection and gives
//! the answer back in parts; here it is one write and, for a small answer, one read.

use std::mem::MaybeUninit;

use bytes::{Buf, BytesMut};
use httparse::{Header, ParserConfig, Status};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    failure::{ErrorKind, Failure},
    net::stream::Wire,
    prepare::check::Field,
};

/// What an answer's head may take.
const MAX_HEAD: usize = 64 << 10;
/// Header fields of an answer.
const MAX_HEADERS: usize = 96;
/// What is read at once.
const READ: usize = 16 << 10;

/// The head of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) status: u16,
    /// The body is compressed.
    pub(crate) gzip: bool,
    /// All fields, if they were asked for.
    pub(crate) fields: Vec<Field>,
    /// How the body ends.
    body: Framing,
    /// True when the connection can be used again after the body.
    pub(crate) keep_alive: bool,
}

/// How a body ends (RFC 9112, 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length(u64),
    Chunked,
    UntilClose,
}

fn protocol(message: impl std::fmt::Display) -> Failure {
    Failure::new(ErrorKind::Protocol, message)
}

fn ended(what: &str) -> Failure {
    Failure::new(ErrorKind::Reset, format!("connection ended before {what}"))
}

fn failed(error: &std::io::Error) -> Failure {
    Failure::new(Failure::kind_of_io(error), error)
}

/// Writes a request.
pub(crate) async fn write(wire: &mut Wire, request: &[u8]) -> Result<(), Failure> {
    wire.write_all(request).await.map_err(|error| failed(&error))?;
    // TLS keeps what it has encrypted until then; TCP has nothing to do.
    wire.flush().await.map_err(|error| failed(&error))
}

async fn read(wire: &mut Wire, buffer: &mut BytesMut) -> Result<usize, Failure> {
    buffer.reserve(READ);
    wire.read_buf(buffer).await.map_err(|error| failed(&error))
}

/// Reads the head of an answer; what of its body came with it stays in the buffer.
///
/// `to_head` is true for the answer to a HEAD request, which has no body; `keep` asks for its
/// fields. `began` is told after each read: the answer has begun at the first.
pub(crate) async fn read_head(
    wire: &mut Wire,
    buffer: &mut BytesMut,
    to_head: bool,
    keep: bool,
    began: impl Fn(),
) -> Result<Head, Failure> {
    loop {
        match parse_head(buffer, to_head, keep)? {
            // An interim answer: the real one follows (RFC 9110, 15.2).
            Some((head, length)) if (100..200).contains(&head.status) && head.status != 101 => {
                buffer.advance(length);
            }
            Some((head, length)) => {
                buffer.advance(length);
                return Ok(head);
            }
            None if buffer.len() > MAX_HEAD => {
                return Err(protocol("answer's head is over 64 KiB"));
            }
            None => {
                if read(wire, buffer).await? == 0 {
                    return Err(ended("the answer's head was complete"));
                }
                began();
            }
        }
    }
}

/// The head that a buffer begins with, and its length; `None` when it is not complete.
fn parse_head(buffer: &[u8], to_head: bool, keep: bool) -> Result<Option<(Head, usize)>, Failure> {
    let mut fields = [const { MaybeUninit::<Header<'_>>::uninit() }; MAX_HEADERS];
    let mut answer = httparse::Response::new(&mut []);
    let parsed = ParserConfig::default().parse_response_with_uninit_headers(
        &mut answer,
        buffer,
        &mut fields,
    );
    let length = match parsed {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) => return Ok(None),
        Err(error) => return Err(protocol(format!("answer is not HTTP/1.1: {error}"))),
    };
    let status = answer.code.unwrap_or(0);
    // HTTP/1.0 closes unless told otherwise.
    let mut keep_alive = answer.version == Some(1);
    let (mut content_length, mut chunked, mut gzip) = (None, false, false);
    for Header { name, value } in answer.headers.iter() {
        if name.eq_ignore_ascii_case("content-length") {
            let read = std::str::from_utf8(value).ok().and_then(|text| text.trim().parse().ok());
            let Some(read) = read else { return Err(protocol("content-length is no number")) };
            if content_length.is_some_and(|before: u64| before != read) {
                return Err(protocol("answer has two different content-lengths"));
            }
            content_length = Some(read);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            chunked = last_token(value).eq_ignore_ascii_case(b"chunked");
        } else if name.eq_ignore_ascii_case("content-encoding") {
            gzip = is_gzip(value);
        } else if name.eq_ignore_ascii_case("connection") {
            for token in value.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
                if token.eq_ignore_ascii_case(b"close") {
                    keep_alive = false;
                } else if token.eq_ignore_ascii_case(b"keep-alive") && answer.version == Some(0) {
                    keep_alive = true;
                }
            }
        }
    }
    let body = match content_length {
        _ if to_head || matches!(status, 100..200 | 204 | 304) => Framing::Length(0),
        _ if chunked => Framing::Chunked,
        Some(length) => Framing::Length(length),
        None => Framing::UntilClose,
    };
    let keep_alive = keep_alive && body != Framing::UntilClose;
    let kept = || answer.headers.iter().map(|h| (h.name.to_ascii_lowercase(), h.value.to_vec()));
    let fields = if keep { kept().collect() } else { Vec::new() };
    Ok(Some((Head { status, gzip, fields, body, keep_alive }, length)))
}

/// True for the value of a content-encoding that says gzip.
pub(crate) fn is_gzip(value: &[u8]) -> bool {
    let value = value.trim_ascii();
    value.eq_ignore_ascii_case(b"gzip") || value.eq_ignore_ascii_case(b"x-gzip")
}

fn last_token(value: &[u8]) -> &[u8] {
    value.rsplit(|b| *b == b',').next().unwrap_or_default().trim_ascii()
}

/// Reads a body to its end, handing each piece to `take` as soon as it was read.
///
/// True when bytes followed that belong to no answer: such a connection can't be used again.
pub(crate) async fn read_body(
    wire: &mut Wire,
    buffer: &mut BytesMut,
    head: &Head,
    mut take: impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<bool, Failure> {
    match head.body {
        Framing::Length(mut left) => loop {
            let now = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            if now > 0 {
                take(&buffer[..now])?;
                buffer.advance(now);
                left -= now as u64;
            }
            if left == 0 {
                return Ok(!buffer.is_empty());
            }
            if read(wire, buffer).await? == 0 {
                return Err(ended(&format!("{left} more bytes of the body came")));
            }
        },
        Framing::Chunked => {
            let mut chunks = Chunks::default();
            loop {
                let used = chunks.read(buffer, &mut take)?;
                buffer.advance(used);
                if chunks.is_done() {
                    return Ok(!buffer.is_empty());
                }
                if read(wire, buffer).await? == 0 {
                    return Err(ended("the last chunk came"));
                }
            }
        }
        Framing::UntilClose => loop {
            if !buffer.is_empty() {
                take(buffer)?;
                buffer.clear();
            }
            if read(wire, buffer).await? == 0 {
                return Ok(false);
            }
        },
    }
}

/// Takes the chunks off a body (RFC 9112, 7.1), wherever the network has cut it.
#[derive(Debug, Default)]
struct Chunks {
    state: Chunk,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chunk {
    /// In a chunk's size: its value so far, and its digits.
    Size(u64, u8),
    /// After the size, up to the line's end.
    Extension(u64),
    /// In a chunk's data.
    Data(u64),
    /// After the data: CR, then LF.
    DataEnd,
    /// In a line of the trailer; true when the line has a character.
    Trailer(bool),
    Done,
}

impl Default for Chunk {
    fn default() -> Self {
        Self::Size(0, 0)
    }
}

impl Chunks {
    const fn is_done(&self) -> bool {
        matches!(self.state, Chunk::Done)
    }

    /// Reads on; how many of the bytes were used. All are, unless the body is over.
    fn read(
        &mut self,
        bytes: &[u8],
        take: &mut impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<usize, Failure> {
        let mut at = 0;
        while at < bytes.len() && !self.is_done() {
            if let Chunk::Data(left) = self.state {
                let now = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len() - at);
                take(&bytes[at..at + now])?;
                at += now;
                let left = left - now as u64;
                self.state = if left == 0 { Chunk::DataEnd } else { Chunk::Data(left) };
                continue;
            }
            self.state = self.step(bytes[at])?;
            at += 1;
        }
        Ok(at)
    }

    fn step(&self, byte: u8) -> Result<Chunk, Failure> {
        let malformed = || protocol(format!("chunk is malformed at byte {byte:#04x}"));
        let sized = |size| if size == 0 { Chunk::Trailer(false) } else { Chunk::Data(size) };
        Ok(match (self.state, byte) {
            // Sixteen digits would be 2^64.
            (Chunk::Size(size, digits @ 0..15), b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = char::from(byte).to_digit(16).unwrap_or(0);
                Chunk::Size(size * 16 + u64::from(digit), digits + 1)
            }
            (Chunk::Size(size, 1..) | Chunk::Extension(size), b'\n') => sized(size),
            (Chunk::Size(size, 1..), b';' | b' ' | b'\t' | b'\r') | (Chunk::Extension(size), _) => {
                Chunk::Extension(size)
            }
            (Chunk::DataEnd, b'\r') => Chunk::DataEnd,
            (Chunk::DataEnd, b'\n') => Chunk::Size(0, 0),
            (Chunk::Size(..) | Chunk::DataEnd, _) => return Err(malformed()),
            (Chunk::Trailer(false), b'\n') => Chunk::Done,
            (Chunk::Trailer(true), b'\n') => Chunk::Trailer(false),
            (Chunk::Trailer(seen), b'\r') => Chunk::Trailer(seen),
            (Chunk::Trailer(_), _) => Chunk::Trailer(true),
            (Chunk::Data(_) | Chunk::Done, _) => self.state,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(text: &str) -> Option<Head> {
        parse_head(text.as_bytes(), false, false).unwrap().map(|(head, _)| head)
    }

    #[test]
    fn heads_say_how_their_bodies_end() {
        for (fields, body, keep_alive) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n", Framing::Length(5), true),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, Chunked\r\n", Framing::Chunked, true),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n",
                Framing::Chunked,
                true,
            ),
            ("HTTP/1.1 200 OK\r\n", Framing::UntilClose, false),
            ("HTTP/1.1 204 No Content\r\n", Framing::Length(0), true),
            ("HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n", Framing::Length(0), true),
            (
                "HTTP/1.1 200 OK\r\nConnection: x, Close\r\ncontent-length: 0\r\n",
                Framing::Length(0),
                false,
            ),
            ("HTTP/1.0 200 OK\r\ncontent-length: 0\r\n", Framing::Length(0), false),
            (
                "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 0\r\n",
                Framing::Length(0),
                true,
            ),
        ] {
            let found = head(&format!("{fields}\r\n")).unwrap();
            assert_eq!((found.body, found.keep_alive), (body, keep_alive), "{fields}");
            assert_eq!(head(fields), None, "{fields}");
        }
    }

    #[test]
    fn an_answer_to_head_has_no_body() {
        let text = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n";
        let (head, length) = parse_head(text, true, false).unwrap().unwrap();
        assert_eq!((head.body, length), (Framing::Length(0), text.len()));
    }

    #[test]
    fn what_is_no_answer_is_refused() {
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

    /// Reads pieces of a chunked body; the data, and whether it is over.
    fn chunked(pieces: &[&[u8]]) -> Result<(Vec<u8>, bool), Failure> {
        let (mut chunks, mut data) = (Chunks::default(), Vec::new());
        for piece in pieces {
            chunks.read(piece, &mut |bytes| {
                data.extend_from_slice(bytes);
                Ok(())
            })?;
        }
        Ok((data, chunks.is_done()))
    }

    #[test]
    fn chunks_are_taken_apart() {
        let body = b"5\r\nhello\r\n6;x=\"y\"\r\n world\r\n0\r\nx-trailer: 1\r\n\r\n";
        assert_eq!(chunked(&[body]).unwrap(), (b"hello world".to_vec(), true));
        assert_eq!(chunked(&[b"0\r\n\r\n"]).unwrap(), (vec![], true));
        assert_eq!(chunked(&[b"5\r\nhel"]).unwrap(), (b"hel".to_vec(), false));
    }

    #[test]
    fn malformed_chunks_are_refused() {
        for body in ["x\r\n", "\r\n", "5\r\nhellox", "1000000000000000\r\n", "5x\r\n"] {
            assert!(chunked(&[body.as_bytes()]).is_err(), "{body}");
        }
    }

    proptest! {
        #[test]
        fn where_the_network_cuts_a_body_changes_nothing(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6),
            cuts in prop::collection::vec(1_usize..30, 0..20),
        ) {
            let mut body = Vec::new();
            for part in &parts {
                body.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
                body.extend_from_slice(part);
                body.extend_from_slice(b"\r\n");
            }
            body.extend_from_slice(b"0\r\n\r\n");
            let (mut pieces, mut rest) = (Vec::new(), body.as_slice());
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            pieces.push(rest);
            prop_assert_eq!(chunked(&pieces).unwrap(), (parts.concat(), true));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_head(&bytes, false, true);
            let _ = chunked(&[&bytes]);
        }
    }
}
