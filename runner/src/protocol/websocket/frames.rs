//! WebSocket frames and messages (RFC 6455, 5) with permessage-deflate (RFC 7692), as a client reads
//! and writes them. Pure: bytes in, messages out.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Decompress, FlushDecompress};

use crate::failure::{ErrorKind, Failure};

/// Maximum length of a message, before and after its decompression.
const MAX_MESSAGE: usize = 64 << 20;
/// Maximum length of the content of a control frame.
const MAX_CONTROL: u64 = 125;
/// The end of the content of a compressed message, which is not sent (RFC 7692, 7.2.2).
const DEFLATE_TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// A message to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum OutgoingMessage {
    Text(Bytes),
    Binary(Bytes),
}

impl OutgoingMessage {
    pub(crate) const fn content(&self) -> &Bytes {
        match self {
            Self::Text(content) | Self::Binary(content) => content,
        }
    }
}

/// What the target has sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum IncomingFrame {
    /// A whole text or binary message.
    Message(Bytes),
    /// A ping with its content, which the pong repeats.
    Ping(Bytes),
    Pong,
    /// The close code, if there is one, and the reason.
    Close(Option<u16>, String),
}

/// The head of a frame.
#[derive(Clone, Copy, Debug)]
struct FrameHead {
    is_final: bool,
    is_compressed: bool,
    opcode: u8,
    length: u64,
    /// Length of the head itself.
    head_length: usize,
}

/// A message of which some fragments have arrived.
#[derive(Debug)]
struct PartialMessage {
    is_text: bool,
    is_compressed: bool,
    content: BytesMut,
}

/// Reads frames and puts messages together.
#[derive(Debug, Default)]
pub(crate) struct FrameReader {
    partial: Option<PartialMessage>,
    /// The decompressor, if the target agreed to compress.
    inflater: Option<Box<Inflater>>,
}

#[derive(Debug)]
struct Inflater {
    state: Decompress,
    /// True when each message starts with an empty window.
    is_reset: bool,
}

fn protocol_failure(message: impl std::fmt::Display) -> Failure {
    Failure::new(ErrorKind::Protocol, message)
}

fn too_long() -> Failure {
    let message = "a WebSocket message is over 64 MiB, the limit of the load generator";
    Failure::new(ErrorKind::SizeLimit, message)
}

impl FrameReader {
    /// Creates a reader. `deflate` has a value when the target agreed to compress: true when each
    /// message starts with an empty window.
    pub(crate) fn new(deflate: Option<bool>) -> Self {
        let inflater =
            deflate.map(|is_reset| Box::new(Inflater { state: Decompress::new(false), is_reset }));
        Self { partial: None, inflater }
    }

    /// Takes the next whole message or control frame from the input. `None` when more bytes are
    /// needed.
    pub(crate) fn next_frame(
        &mut self,
        input: &mut BytesMut,
    ) -> Result<Option<IncomingFrame>, Failure> {
        loop {
            let Some(head) = parse_head(input)? else { return Ok(None) };
            // RFC 6455, 5.2: the highest bit of a length is 0.
            if head.length >> 63 != 0 {
                return Err(protocol_failure("the length of a WebSocket frame is invalid"));
            }
            let length = usize::try_from(head.length).map_err(|_| too_long())?;
            let before = self.partial.as_ref().map_or(0, |partial| partial.content.len());
            // The target chooses the length, which may be the largest number.
            if length.saturating_add(before) > MAX_MESSAGE {
                return Err(too_long());
            }
            if input.len() < head.head_length + length {
                return Ok(None);
            }
            input.advance(head.head_length);
            let content = input.split_to(length);
            if let Some(frame) = self.read_frame(head, content)? {
                return Ok(Some(frame));
            }
        }
    }

    fn read_frame(
        &mut self,
        head: FrameHead,
        content: BytesMut,
    ) -> Result<Option<IncomingFrame>, Failure> {
        match head.opcode {
            CLOSE => return Ok(Some(read_close(&content))),
            PING => return Ok(Some(IncomingFrame::Ping(content.freeze()))),
            PONG => return Ok(Some(IncomingFrame::Pong)),
            _ => {}
        }
        if head.is_compressed && (self.inflater.is_none() || head.opcode == CONTINUATION) {
            return Err(protocol_failure("a WebSocket frame is compressed, which was not agreed"));
        }
        let partial = match (head.opcode, self.partial.take()) {
            (CONTINUATION, Some(mut partial)) => {
                partial.content.unsplit(content);
                partial
            }
            (CONTINUATION, None) => {
                return Err(protocol_failure("a WebSocket message continues that never began"));
            }
            (_, None) => PartialMessage {
                is_text: head.opcode == TEXT,
                is_compressed: head.is_compressed,
                content,
            },
            (_, Some(_)) => {
                return Err(protocol_failure(
                    "a WebSocket message began before the last one ended",
                ));
            }
        };
        if !head.is_final {
            self.partial = Some(partial);
            return Ok(None);
        }
        let PartialMessage { is_text, is_compressed, content } = partial;
        let content = match &mut self.inflater {
            Some(inflater) if is_compressed => inflater.inflate(&content)?,
            _ => content.freeze(),
        };
        if is_text && std::str::from_utf8(&content).is_err() {
            return Err(protocol_failure("a WebSocket text message is not UTF-8"));
        }
        Ok(Some(IncomingFrame::Message(content)))
    }
}

impl Inflater {
    fn inflate(&mut self, content: &[u8]) -> Result<Bytes, Failure> {
        let mut plain = Vec::with_capacity(content.len().saturating_mul(2).max(64));
        for mut piece in [content, &DEFLATE_TAIL] {
            // The buffer may hold more output after all input is read.
            loop {
                let (read_before, plain_before) = (self.state.total_in(), plain.len());
                self.state
                    .decompress_vec(piece, &mut plain, FlushDecompress::Sync)
                    .map_err(|error| protocol_failure(format!("WebSocket message: {error}")))?;
                let read = self.state.total_in() - read_before;
                piece = piece.get(usize::try_from(read).unwrap_or(usize::MAX)..).unwrap_or(&[]);
                let is_full = plain.len() == plain.capacity();
                if plain.len() > MAX_MESSAGE {
                    return Err(too_long());
                }
                if is_full {
                    plain.reserve(plain.len().max(64));
                } else if piece.is_empty() || read == 0 && plain.len() == plain_before {
                    break;
                }
            }
        }
        if self.is_reset {
            self.state.reset(false);
        }
        Ok(plain.into())
    }
}

fn parse_head(input: &[u8]) -> Result<Option<FrameHead>, Failure> {
    let [first, second, rest @ ..] = input else { return Ok(None) };
    let (is_final, opcode) = (first & 0x80 != 0, first & 0x0f);
    if first & 0x30 != 0 {
        return Err(protocol_failure("a WebSocket frame has reserved bits"));
    }
    if second & 0x80 != 0 {
        return Err(protocol_failure("a WebSocket frame of the target is masked"));
    }
    let (length, head_length) = match second & 0x7f {
        126 => match rest.first_chunk() {
            Some(bytes) => (u64::from(u16::from_be_bytes(*bytes)), 4),
            None => return Ok(None),
        },
        127 => match rest.first_chunk() {
            Some(bytes) => (u64::from_be_bytes(*bytes), 10),
            None => return Ok(None),
        },
        length => (u64::from(length), 2),
    };
    let is_control = opcode >= CLOSE;
    if !matches!(opcode, CONTINUATION | TEXT | BINARY | CLOSE | PING | PONG) {
        return Err(protocol_failure(format!("a WebSocket frame has the unknown opcode {opcode}")));
    }
    if is_control && (!is_final || length > MAX_CONTROL) {
        return Err(protocol_failure("a WebSocket control frame is fragmented or too long"));
    }
    let is_compressed = first & 0x40 != 0;
    Ok(Some(FrameHead { is_final, is_compressed, opcode, length, head_length }))
}

fn read_close(content: &[u8]) -> IncomingFrame {
    match content.split_first_chunk() {
        Some((code, reason)) => IncomingFrame::Close(
            Some(u16::from_be_bytes(*code)),
            String::from_utf8_lossy(reason).into_owned(),
        ),
        None => IncomingFrame::Close(None, String::new()),
    }
}

/// Writes frames. Frames of a client are masked, with a key that differs from frame to frame.
#[derive(Debug)]
pub(crate) struct FrameWriter {
    seed: u32,
}

impl FrameWriter {
    /// Creates a writer. The keys only have to be unpredictable for the one who chose the content
    /// of the messages, which is the user here.
    pub(crate) const fn new(seed: u32) -> Self {
        Self { seed: seed | 1 }
    }

    pub(crate) fn write_message(&mut self, message: &OutgoingMessage, output: &mut BytesMut) {
        let opcode = match message {
            OutgoingMessage::Text(_) => TEXT,
            OutgoingMessage::Binary(_) => BINARY,
        };
        self.write_frame(opcode, message.content(), output);
    }

    pub(crate) fn write_ping(&mut self, output: &mut BytesMut) {
        self.write_frame(PING, &[], output);
    }

    pub(crate) fn write_pong(&mut self, content: &[u8], output: &mut BytesMut) {
        self.write_frame(PONG, content, output);
    }

    pub(crate) fn write_close(&mut self, code: Option<u16>, output: &mut BytesMut) {
        match code {
            Some(code) => self.write_frame(CLOSE, &code.to_be_bytes(), output),
            None => self.write_frame(CLOSE, &[], output),
        }
    }

    fn write_frame(&mut self, opcode: u8, content: &[u8], output: &mut BytesMut) {
        const MASKED: u8 = 0x80;
        output.reserve(content.len() + 14);
        output.put_u8(0x80 | opcode);
        match content.len() {
            length @ 0..126 => output.put_u8(MASKED | u8::try_from(length).unwrap_or(0)),
            length @ 126..65_536 => {
                output.put_u8(MASKED + 126);
                output.put_u16(u16::try_from(length).unwrap_or(0));
            }
            length => {
                output.put_u8(MASKED + 127);
                output.put_u64(length as u64);
            }
        }
        // Xorshift: https://www.jstatsoft.org/article/view/v008i14
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 17;
        self.seed ^= self.seed << 5;
        let key = self.seed.to_be_bytes();
        output.put_slice(&key);
        output.extend(content.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::DeflateEncoder};
    use proptest::prelude::*;

    use super::*;

    /// A frame of a target.
    fn frame(first: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![first];
        match content.len() {
            length @ 0..126 => bytes.push(u8::try_from(length).unwrap()),
            length => {
                bytes.push(126);
                bytes.extend(u16::try_from(length).unwrap().to_be_bytes());
            }
        }
        bytes.extend(content);
        bytes
    }

    /// Reads frames that arrive in pieces.
    fn read(
        reader: &mut FrameReader,
        bytes: &[u8],
        cut: usize,
    ) -> Result<Vec<IncomingFrame>, Failure> {
        let (mut input, mut frames) = (BytesMut::new(), Vec::new());
        for piece in bytes.chunks(cut) {
            input.extend_from_slice(piece);
            while let Some(frame) = reader.next_frame(&mut input)? {
                frames.push(frame);
            }
        }
        Ok(frames)
    }

    fn message(text: &'static str) -> IncomingFrame {
        IncomingFrame::Message(Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn fragments_are_put_together_around_control_frames() {
        let bytes = [
            frame(0x01, b"Hel"),
            frame(0x89, b"?"),
            frame(0x80, b"lo"),
            frame(0x82, b"\xff"),
            frame(0x8a, b""),
            frame(0x88, b"\x03\xe9bye"),
        ]
        .concat();
        for cut in [1, 3, 100] {
            let frames = read(&mut FrameReader::default(), &bytes, cut).unwrap();
            let expected = [
                IncomingFrame::Ping(Bytes::from_static(b"?")),
                message("Hello"),
                IncomingFrame::Message(Bytes::from_static(b"\xff")),
                IncomingFrame::Pong,
                IncomingFrame::Close(Some(1001), "bye".to_owned()),
            ];
            assert_eq!(frames, expected, "{cut}");
        }
    }

    #[test]
    fn compressed_messages_are_read_with_and_without_a_window() {
        // The example of RFC 7692, 7.2.3.2: the second message refers to the first.
        let first = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
        let second = [0xf2, 0x00, 0x11, 0x00, 0x00];
        let bytes = [frame(0xc1, &first), frame(0xc1, &second)].concat();
        let frames = read(&mut FrameReader::new(Some(false)), &bytes, 3).unwrap();
        assert_eq!(frames, [message("Hello"), message("Hello")]);
        let bytes = [frame(0xc1, &first), frame(0xc1, &first)].concat();
        let frames = read(&mut FrameReader::new(Some(true)), &bytes, 100).unwrap();
        assert_eq!(frames, [message("Hello"), message("Hello")]);
        assert!(read(&mut FrameReader::default(), &bytes, 100).is_err());
    }

    #[test]
    fn invalid_frames_are_refused() {
        for bytes in [
            frame(0x91, b"reserved bit"),
            frame(0x83, b"opcode"),
            frame(0x80, b"continues nothing"),
            [frame(0x01, b"a"), frame(0x81, b"b")].concat(),
            frame(0x09, b"fragmented ping"),
            frame(0x89, &[0; 126]),
            frame(0x81, b"\xff"),
            vec![0x81, 0x80, 0, 0, 0, 0],
            vec![0x81, 127, 0xff, 0, 0, 0, 0, 0, 0, 0],
            [&frame(0x01, b"a")[..], &[0x80, 127], &[0xff; 8]].concat(),
        ] {
            let failure = read(&mut FrameReader::default(), &bytes, 1000).unwrap_err();
            assert_eq!(failure.kind, ErrorKind::Protocol, "{bytes:?}");
        }
        let too_long = [0x81, 127, 0, 0, 0, 1, 0, 0, 0, 0];
        let failure = read(&mut FrameReader::default(), &too_long, 1000).unwrap_err();
        assert_eq!(failure.kind, ErrorKind::SizeLimit);
    }

    #[test]
    fn frames_of_a_client_are_masked() {
        let (mut writer, mut output) = (FrameWriter::new(7), BytesMut::new());
        for length in [0, 5, 125, 126, 65_535, 65_536] {
            output.clear();
            let content = vec![b'x'; length];
            writer.write_message(&OutgoingMessage::Text(content.clone().into()), &mut output);
            assert_eq!((output[0], output[1] & 0x80), (0x81, 0x80));
            let body = &output[output.len() - length..];
            let key = &output[output.len() - length - 4..output.len() - length];
            let plain: Vec<u8> = body.iter().zip(key.iter().cycle()).map(|(b, k)| b ^ k).collect();
            assert_eq!(plain, content);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            deflate: Option<bool>,
        ) {
            let _ = read(&mut FrameReader::new(deflate), &bytes, 50);
        }

        #[test]
        fn any_compressed_message_is_read(content in prop::collection::vec(any::<u8>(), 0..5000)) {
            let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
            encoder.write_all(&content).unwrap();
            encoder.flush().unwrap();
            let compressed = encoder.get_ref().clone();
            let compressed = compressed.strip_suffix(&DEFLATE_TAIL).unwrap_or(&compressed);
            let frames = read(&mut FrameReader::new(Some(true)), &frame(0xc2, compressed), 700);
            prop_assert_eq!(frames.unwrap(), [IncomingFrame::Message(content.into())]);
        }
    }
}
