//! Decodes the body of a response piece by piece: unchanged, or decompressed (RFC 9110, 8.4).

use std::{
    io::{self, Read, Write},
    ops::ControlFlow,
};

use brotli_decompressor::DecompressorWriter;
use flate2::write::{DeflateDecoder, GzDecoder, ZlibDecoder};

use crate::{
    failure::{ErrorKind, Failure},
    protocol::chat::event_stream::AfterEvent,
};

/// Number of compressed bytes that are decoded at once. They may decompress to a thousand times as
/// many.
const MAX_INPUT: usize = 1 << 10;

/// Maximum length of a body that is decompressed as a whole, before and after.
const MAX_WHOLE_BODY: usize = 16 << 20;

/// Maximum number of encodings of one body, one around the other.
const MAX_CODINGS: usize = 4;

/// A compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    Gzip,
    Deflate,
    Brotli,
    Zstd,
}

/// The header `content-encoding` of a response: the compressions of its body, in the order in which they were made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ContentEncoding {
    codings: [Option<Coding>; MAX_CODINGS],
    /// True if the header has a name that is no known encoding. It is left out, as browsers do: servers name `utf-8` and
    /// other things that change nothing.
    has_unknown: bool,
    /// True if there are more than [`MAX_CODINGS`].
    is_too_long: bool,
}

impl ContentEncoding {
    /// Reads the value of the header.
    pub(crate) fn parse(value: &[u8]) -> Self {
        let mut encoding = Self::default();
        let mut places = encoding.codings.iter_mut();
        for name in value.split(|byte| *byte == b',') {
            let coding = match name.trim_ascii().to_ascii_lowercase().as_slice() {
                b"identity" | b"none" | b"" => continue,
                b"gzip" | b"x-gzip" => Coding::Gzip,
                b"deflate" => Coding::Deflate,
                b"br" => Coding::Brotli,
                b"zstd" => Coding::Zstd,
                _ => {
                    encoding.has_unknown = true;
                    continue;
                }
            };
            match places.next() {
                Some(place) => *place = Some(coding),
                None => encoding.is_too_long = true,
            }
        }
        encoding
    }

    fn codings(self) -> impl DoubleEndedIterator<Item = Coding> {
        self.codings.into_iter().flatten()
    }

    /// Returns an error when the body can't be decoded while it arrives.
    pub(crate) fn check_streamable(self) -> Result<(), Failure> {
        self.check_length(ErrorKind::Protocol)?;
        if self.codings().any(|coding| coding == Coding::Zstd) {
            let message = "stream has the content-encoding zstd, which was not asked for";
            return Err(Failure::new(ErrorKind::Protocol, message));
        }
        Ok(())
    }

    /// Returns an error when the body can't be decoded at all.
    pub(crate) fn check_readable(self) -> Result<(), Failure> {
        self.check_length(ErrorKind::CheckBody)
    }

    fn check_length(self, kind: ErrorKind) -> Result<(), Failure> {
        if !self.is_too_long {
            return Ok(());
        }
        let message =
            format!("content-encoding of the response names over {MAX_CODINGS} encodings");
        Err(Failure::new(kind, message))
    }

    /// Adds to a failure about the content of a body that the load generator does not know its encoding.
    pub(crate) fn explain_failure(self, mut failure: Failure) -> Failure {
        if self.has_unknown && self.codings().next().is_none() {
            failure.message +=
                ". The response has a content-encoding that is none of gzip, deflate, br and zstd";
        }
        failure
    }
}

impl Coding {
    const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
            Self::Brotli => "br",
            Self::Zstd => "zstd",
        }
    }
}

/// The decoder of one body.
#[derive(Debug)]
pub(crate) struct BodyDecoder {
    /// The decoders of the encodings, the last encoding first.
    layers: Vec<Layer>,
}

/// The decoder of one encoding.
struct Layer {
    coding: Coding,
    /// `None` before the first byte.
    state: Option<DecoderState>,
}

/// Decompressed bytes wait in the decoder's own vector.
enum DecoderState {
    Gzip(Box<GzDecoder<Vec<u8>>>),
    Zlib(Box<ZlibDecoder<Vec<u8>>>),
    Deflate(Box<DeflateDecoder<Vec<u8>>>),
    Brotli(Box<DecompressorWriter<Vec<u8>>>),
    /// The compressed bytes: the crate returns nothing before its window is full.
    Zstd(Vec<u8>),
    /// The body has ended. Further bytes are ignored, as in browsers.
    Ended,
}

impl std::fmt::Debug for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Layer({})", self.coding.name())
    }
}

impl BodyDecoder {
    pub(crate) fn new(encoding: ContentEncoding) -> Self {
        let layers = encoding.codings().rev().map(|coding| Layer { coding, state: None });
        // A body that can't be decoded is read as it is.
        Self { layers: if encoding.is_too_long { Vec::new() } else { layers.collect() } }
    }

    /// Decodes received bytes and hands the decoded bytes to `on_data`, as far as they are
    /// complete. Stops when `on_data` does.
    pub(crate) fn decode(
        &mut self,
        data: &[u8],
        mut on_data: impl FnMut(&[u8]) -> AfterEvent,
    ) -> AfterEvent {
        match self.layers.as_mut_slice() {
            [] => on_data(data),
            layers => decode_layers(layers, data, &mut on_data),
        }
    }

    /// Ends the body and hands the remaining decoded bytes to `on_data`.
    pub(crate) fn finish(mut self, mut on_data: impl FnMut(&[u8]) -> AfterEvent) -> AfterEvent {
        let mut layers = self.layers.as_mut_slice();
        while let Some((first, inner)) = layers.split_first_mut() {
            let rest = first.finish()?;
            if !rest.is_empty() && decode_layers(inner, &rest, &mut on_data)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            layers = inner;
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// Decodes bytes by the first layer, the result by the second one, and so on.
fn decode_layers(
    layers: &mut [Layer],
    data: &[u8],
    on_data: &mut dyn FnMut(&[u8]) -> AfterEvent,
) -> AfterEvent {
    match layers.split_first_mut() {
        Some((first, inner)) => {
            first.decode(data, &mut |plain| decode_layers(inner, plain, on_data))
        }
        None => on_data(data),
    }
}

impl Layer {
    fn decode(&mut self, data: &[u8], on_data: &mut dyn FnMut(&[u8]) -> AfterEvent) -> AfterEvent {
        for mut piece in data.chunks(MAX_INPUT) {
            while !piece.is_empty() {
                let state = self.state.get_or_insert_with(|| new_state(self.coding, piece));
                let consumed =
                    state.write(piece).map_err(|error| decode_failure(self.coding, &error))?;
                let is_ended = consumed == 0;
                if is_ended {
                    // A gzip body may have several members (RFC 1952, 2.2), one directly after the other.
                    let is_next_member = self.coding == Coding::Gzip
                        && piece[0] == GZIP_MAGIC
                        && !matches!(state, DecoderState::Ended);
                    let ended = if is_next_member {
                        self.state.take()
                    } else {
                        self.state.replace(DecoderState::Ended)
                    };
                    let rest = ended.map_or(Ok(Vec::new()), DecoderState::finish);
                    let rest = rest.map_err(|error| decode_failure(self.coding, &error))?;
                    if !rest.is_empty() && on_data(&rest)?.is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                    if !is_next_member {
                        return Ok(ControlFlow::Continue(()));
                    }
                }
                piece = &piece[consumed..];
            }
            let Some(state) = &mut self.state else { continue };
            let plain = state.output().map_err(|error| decode_failure(self.coding, &error))?;
            if let Some(plain) = plain.filter(|plain| !plain.is_empty()) {
                let flow = on_data(plain)?;
                plain.clear();
                if flow.is_break() {
                    return Ok(flow);
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Ends the body. Returns the remaining decoded bytes.
    fn finish(&mut self) -> Result<Vec<u8>, Failure> {
        // A body without a byte is empty, whatever its headers say.
        let Some(state) = self.state.take() else { return Ok(Vec::new()) };
        state.finish().map_err(|error| decode_failure(self.coding, &error))
    }
}

/// The first byte of a gzip member.
const GZIP_MAGIC: u8 = 0x1f;

fn new_state(coding: Coding, first: &[u8]) -> DecoderState {
    match coding {
        Coding::Gzip => DecoderState::Gzip(Box::new(GzDecoder::new(Vec::new()))),
        // The standard means zlib by this name, but some servers send bare deflate. The low bits of
        // the first byte of zlib are its method, 8 (RFC 1950, 2.2).
        Coding::Deflate if first.first().is_some_and(|byte| byte & 0x8f == 8) => {
            DecoderState::Zlib(Box::new(ZlibDecoder::new(Vec::new())))
        }
        Coding::Deflate => DecoderState::Deflate(Box::new(DeflateDecoder::new(Vec::new()))),
        Coding::Brotli => {
            DecoderState::Brotli(Box::new(DecompressorWriter::new(Vec::new(), 4 << 10)))
        }
        Coding::Zstd => DecoderState::Zstd(Vec::new()),
    }
}

impl DecoderState {
    /// Takes compressed bytes and returns how many. 0 means that the body has ended.
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        match self {
            Self::Gzip(decoder) => decoder.write(piece),
            Self::Zlib(decoder) => decoder.write(piece),
            Self::Deflate(decoder) => decoder.write(piece),
            Self::Brotli(decoder) => decoder.write(piece),
            Self::Zstd(compressed) => {
                if compressed.len() + piece.len() > MAX_WHOLE_BODY {
                    return Err(too_long());
                }
                compressed.extend_from_slice(piece);
                Ok(piece.len())
            }
            Self::Ended => Ok(0),
        }
    }

    /// Returns the bytes that are decoded so far. The caller empties the vector.
    fn output(&mut self) -> io::Result<Option<&mut Vec<u8>>> {
        Ok(match self {
            Self::Gzip(decoder) => {
                decoder.flush()?;
                Some(decoder.get_mut())
            }
            Self::Zlib(decoder) => {
                decoder.flush()?;
                Some(decoder.get_mut())
            }
            Self::Deflate(decoder) => {
                decoder.flush()?;
                Some(decoder.get_mut())
            }
            Self::Brotli(decoder) => Some(decoder.get_mut()),
            Self::Zstd(_) | Self::Ended => None,
        })
    }

    /// Ends the body and returns the rest of the decoded bytes.
    fn finish(self) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip(decoder) => decoder.finish(),
            Self::Zlib(decoder) => decoder.finish(),
            Self::Deflate(decoder) => decoder.finish(),
            Self::Brotli(mut decoder) => {
                decoder.close()?;
                Ok(std::mem::take(decoder.get_mut()))
            }
            Self::Zstd(compressed) => {
                let mut plain = Vec::new();
                let mut source = compressed.as_slice();
                while !source.is_empty() {
                    let decoder = ruzstd::decoding::StreamingDecoder::new(&mut source);
                    let mut decoder = decoder.map_err(io::Error::other)?;
                    let room = (MAX_WHOLE_BODY + 1).saturating_sub(plain.len()) as u64;
                    decoder.by_ref().take(room).read_to_end(&mut plain)?;
                    if plain.len() > MAX_WHOLE_BODY {
                        return Err(too_long());
                    }
                }
                Ok(plain)
            }
            Self::Ended => Ok(Vec::new()),
        }
    }
}

fn too_long() -> io::Error {
    let message = "over 16 MiB, the limit of the load generator";
    io::Error::new(io::ErrorKind::FileTooLarge, message)
}

fn decode_failure(coding: Coding, error: &io::Error) -> Failure {
    let name = coding.name();
    if error.kind() == io::ErrorKind::FileTooLarge {
        return Failure::new(ErrorKind::SizeLimit, format!("body in {name} is {error}"));
    }
    Failure::new(ErrorKind::Protocol, format!("body is not valid {name}: {error}"))
}

#[cfg(test)]
mod tests {
    use flate2::{
        Compression,
        write::{DeflateEncoder, GzEncoder, ZlibEncoder},
    };
    use proptest::prelude::*;

    use super::*;

    /// `hello hello hello` compressed by Google's brotli.
    const BROTLI: &[u8] = &[
        0x1b, 0x10, 0x00, 0xf8, 0x8d, 0x94, 0x6e, 0xde, 0x44, 0x55, 0x86, 0x96, 0x6c, 0x20, 0x6f,
        0x01, 0x4f, 0x1c, 0x60, 0x1c,
    ];

    fn decode_pieces(body: &[u8], encoding: &str, cut: usize) -> Result<Vec<u8>, ErrorKind> {
        let (mut decoder, mut plain) =
            (BodyDecoder::new(ContentEncoding::parse(encoding.as_bytes())), Vec::new());
        let mut on_data = |data: &[u8]| {
            plain.extend_from_slice(data);
            Ok(ControlFlow::Continue(()))
        };
        for piece in body.chunks(cut) {
            let _ = decoder.decode(piece, &mut on_data).map_err(|failure| failure.kind)?;
        }
        let _ = decoder.finish(&mut on_data).map_err(|failure| failure.kind)?;
        Ok(plain)
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_decode_to_the_same_body(
            data in prop::collection::vec(any::<u8>(), 0..2000),
            cut in 1_usize..300,
        ) {
            let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
            zlib.write_all(&data).unwrap();
            let mut deflate = DeflateEncoder::new(Vec::new(), Compression::fast());
            deflate.write_all(&data).unwrap();
            for (body, encoding) in [
                (gzip(&data), "gzip"),
                (zlib.finish().unwrap(), "deflate"),
                (deflate.finish().unwrap(), "deflate"),
                (ruzstd::encoding::compress_to_vec(data.as_slice(), ruzstd::encoding::CompressionLevel::Fastest), "zstd"),
                (data.clone(), "identity"),
            ] {
                prop_assert_eq!(&decode_pieces(&body, encoding, cut).unwrap(), &data, "{:?}", encoding);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            for encoding in [
                "gzip",
                "deflate",
                "br",
                "zstd",
            ] {
                let _ = decode_pieces(&bytes, encoding, 50);
            }
        }
    }

    #[test]
    fn brotli_is_decoded() {
        for cut in [1, 5, 100] {
            let plain = decode_pieces(BROTLI, "br", cut).unwrap();
            assert_eq!(plain, b"hello hello hello");
        }
    }

    #[test]
    fn encodings_are_recognized() {
        for (value, codings) in [
            ("GZip", vec![Coding::Gzip]),
            (" br ", vec![Coding::Brotli]),
            ("identity", vec![]),
            ("gzip, br", vec![Coding::Gzip, Coding::Brotli]),
            ("compress", vec![]),
            ("none", vec![]),
            ("identity, gzip", vec![Coding::Gzip]),
            ("aws-chunked, gzip", vec![Coding::Gzip]),
        ] {
            let encoding = ContentEncoding::parse(value.as_bytes());
            assert_eq!(encoding.codings().collect::<Vec<_>>(), codings, "{value}");
            assert!(encoding.check_readable().is_ok() && encoding.check_streamable().is_ok());
        }
        assert!(ContentEncoding::parse(b"br, br, br, br, br").check_readable().is_err());
        assert!(ContentEncoding::parse(b"gzip, zstd").check_streamable().is_err());
    }

    #[test]
    fn encodings_around_each_other_are_all_decoded() {
        let text = b"much ado about nothing";
        for (body, encoding) in [
            (gzip(&gzip(text)), "gzip, gzip"),
            (gzip(&gzip(&gzip(text))), "gzip,gzip,x-gzip"),
            (gzip(BROTLI), "br, gzip"),
        ] {
            let expected: &[u8] = if encoding == "br, gzip" { b"hello hello hello" } else { text };
            for cut in [1, 7, 1000] {
                assert_eq!(decode_pieces(&body, encoding, cut).unwrap(), expected, "{encoding}");
            }
        }
        assert_eq!(decode_pieces(&gzip(text), "gzip, gzip", 7), Err(ErrorKind::Protocol));
    }

    #[test]
    fn a_body_that_is_not_compressed_fails() {
        let text = b"plain text, and long enough";
        assert_eq!(decode_pieces(text, "gzip", 7), Err(ErrorKind::Protocol));
        assert_eq!(decode_pieces(text, "zstd", 7), Err(ErrorKind::Protocol));
    }

    #[test]
    fn an_incomplete_body_fails() {
        let body = gzip(b"much ado about nothing");
        let cut = &body[..body.len() - 3];
        assert_eq!(decode_pieces(cut, "gzip", 7), Err(ErrorKind::Protocol));
        assert_eq!(decode_pieces(&BROTLI[..8], "br", 7), Err(ErrorKind::Protocol));
    }

    #[test]
    fn all_members_of_a_gzip_body_are_read() {
        let body = [gzip(b"one "), gzip(b"two "), gzip(b"three")].concat();
        for cut in [1, 9, 1000] {
            let plain = decode_pieces(&body, "gzip", cut).unwrap();
            assert_eq!(plain, b"one two three");
        }
    }

    #[test]
    fn surplus_bytes_are_ignored_and_no_bytes_are_an_empty_body() {
        let body = [gzip(b"one"), vec![0; 30]].concat();
        assert_eq!(decode_pieces(&body, "gzip", 9).unwrap(), b"one");
        assert_eq!(decode_pieces(b"", "gzip", 9).unwrap(), b"");
        // A member after surplus bytes is surplus too, wherever the body was cut.
        let body = [gzip(b"one"), b"surplus".to_vec(), gzip(b"two")].concat();
        for cut in [1, 9, 1000] {
            assert_eq!(decode_pieces(&body, "gzip", cut).unwrap(), b"one", "{cut}");
        }
    }
}
