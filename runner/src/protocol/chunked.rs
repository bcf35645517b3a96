//! Decodes chunked bodies of HTTP/1.1.

use std::ops::ControlFlow;

use crate::{
    failure::{ErrorKind, Failure},
    protocol::chat::event_stream::AfterEvent,
};

/// Maximum number of digits of a size that is read at once.
const MAX_USUAL_DIGITS: usize = 8;

/// Decodes a chunked body (RFC 9112, 7.1) from pieces of any size.
#[derive(Debug, Default)]
pub(super) struct ChunkedDecoder {
    state: ChunkState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChunkState {
    /// In the size of a chunk: the value so far, and its number of digits.
    Size(u64, u8),
    /// After the size, up to the end of the line.
    Extension(u64),
    /// In the data of a chunk.
    Data(u64),
    /// After the data: CR, then LF.
    DataEnd,
    /// In a line of the trailer. True when the line has a character.
    Trailer(bool),
    Done,
}

impl Default for ChunkState {
    fn default() -> Self {
        Self::Size(0, 0)
    }
}

impl ChunkedDecoder {
    pub(super) const fn is_done(&self) -> bool {
        matches!(self.state, ChunkState::Done)
    }

    /// Decodes bytes and returns how many of them belong to the body. Only the end of the body and
    /// a stop by `on_data` leave bytes over.
    pub(super) fn decode(
        &mut self,
        bytes: &[u8],
        on_data: &mut impl FnMut(&[u8]) -> AfterEvent,
    ) -> Result<(usize, ControlFlow<()>), Failure> {
        let mut at = 0;
        while at < bytes.len() && !self.is_done() {
            if let ChunkState::Data(remaining) = self.state {
                let available =
                    usize::try_from(remaining).unwrap_or(usize::MAX).min(bytes.len() - at);
                let flow = on_data(&bytes[at..at + available])?;
                at += available;
                let remaining = remaining - available as u64;
                self.state =
                    if remaining == 0 { ChunkState::DataEnd } else { ChunkState::Data(remaining) };
                if flow.is_break() {
                    return Ok((at, flow));
                }
                continue;
            }
            if let Some((size, length)) = self.read_usual_size(&bytes[at..]) {
                self.state = ChunkState::Data(size);
                at += length;
                continue;
            }
            self.state = self.next_state(bytes[at])?;
            at += 1;
        }
        Ok((at, ControlFlow::Continue(())))
    }

    /// Reads the line with the size of the next chunk, and the end of the line before it, if all of
    /// it is there in its usual form. Returns the size and the length of what was read.
    fn read_usual_size(&self, bytes: &[u8]) -> Option<(u64, usize)> {
        let line = match self.state {
            ChunkState::DataEnd => bytes.strip_prefix(b"\r\n")?,
            ChunkState::Size(0, 0) => bytes,
            _ => return None,
        };
        let mut size = 0;
        for (index, byte) in line.iter().take(MAX_USUAL_DIGITS + 1).enumerate() {
            match char::from(*byte).to_digit(16) {
                Some(digit) => size = size * 16 + u64::from(digit),
                None if size > 0 && line[index..].starts_with(b"\r\n") => {
                    return Some((size, bytes.len() - line.len() + index + 2));
                }
                None => return None,
            }
        }
        None
    }

    fn next_state(&self, byte: u8) -> Result<ChunkState, Failure> {
        let malformed =
            || Failure::new(ErrorKind::Protocol, format!("chunk is malformed at byte {byte:#04x}"));
        let after_size =
            |size| if size == 0 { ChunkState::Trailer(false) } else { ChunkState::Data(size) };
        Ok(match (self.state, byte) {
            // Sixteen digits without leading zeros could overflow: 2^64.
            (ChunkState::Size(0, digits), b'0') => ChunkState::Size(0, digits.max(1)),
            (ChunkState::Size(size, digits @ 0..15), b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = char::from(byte).to_digit(16).unwrap_or(0);
                ChunkState::Size(size * 16 + u64::from(digit), digits + 1)
            }
            (ChunkState::Size(size, 1..) | ChunkState::Extension(size), b'\n') => after_size(size),
            (ChunkState::Size(size, 1..), b';' | b' ' | b'\t' | b'\r')
            | (ChunkState::Extension(size), _) => ChunkState::Extension(size),
            (ChunkState::DataEnd, b'\r') => ChunkState::DataEnd,
            (ChunkState::DataEnd, b'\n') => ChunkState::Size(0, 0),
            (ChunkState::Size(..) | ChunkState::DataEnd, _) => return Err(malformed()),
            (ChunkState::Trailer(false), b'\n') => ChunkState::Done,
            (ChunkState::Trailer(true), b'\n') => ChunkState::Trailer(false),
            (ChunkState::Trailer(seen), b'\r') => ChunkState::Trailer(seen),
            (ChunkState::Trailer(_), _) => ChunkState::Trailer(true),
            (ChunkState::Data(_) | ChunkState::Done, _) => self.state,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Decodes pieces of a chunked body. Returns the data, and true when the body is complete.
    fn decode_chunked(pieces: &[&[u8]]) -> Result<(Vec<u8>, bool), Failure> {
        let (mut decoder, mut data) = (ChunkedDecoder::default(), Vec::new());
        for piece in pieces {
            let _ = decoder.decode(piece, &mut |bytes| {
                data.extend_from_slice(bytes);
                Ok(ControlFlow::Continue(()))
            })?;
        }
        Ok((data, decoder.is_done()))
    }

    #[test]
    fn chunked_bodies_are_decoded() {
        let body = b"5\r\nhello\r\n6;x=\"y\"\r\n world\r\n0\r\nx-trailer: 1\r\n\r\n";
        assert_eq!(decode_chunked(&[body]).unwrap(), (b"hello world".to_vec(), true));
        assert_eq!(decode_chunked(&[b"0\r\n\r\n"]).unwrap(), (vec![], true));
        assert_eq!(decode_chunked(&[b"5\r\nhel"]).unwrap(), (b"hel".to_vec(), false));
    }

    #[test]
    fn malformed_chunks_are_refused() {
        for body in ["x\r\n", "\r\n", "5\r\nhellox", "1000000000000000\r\n", "5x\r\n"] {
            assert!(decode_chunked(&[body.as_bytes()]).is_err(), "{body}");
        }
    }

    proptest! {
        #[test]
        fn chunked_bodies_may_arrive_in_pieces_of_any_size(
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
            prop_assert_eq!(decode_chunked(&pieces).unwrap(), (parts.concat(), true));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode_chunked(&[&bytes]);
        }
    }
}
