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

/// The header `content-encoding` of a response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ContentEncoding {
    /// The body is not compressed.
    #[default]
    Identity,
    Gzip,
    Deflate,
    Brotli,
    Zstd,
    /// A name that is no known encoding. The body is read as it is, as browsers do: servers name `none`, `utf-8` and other
    /// things that change nothing.
    Other,
    /// Several encodings, one after the other, which are not decoded.
    Several,
}

impl ContentEncoding {
    /// Reads the value of the header.
    pub(crate) fn parse(value: &[u8]) -> Self {
        const NAMES: [(&str, ContentEncoding); 8] = [
            ("identity", ContentEncoding::Identity),
            ("none", ContentEncoding::Identity),
            ("", ContentEncoding::Identity),
            ("gzip", ContentEncoding::Gzip),
            ("x-gzip", ContentEncoding::Gzip),
            ("deflate", ContentEncoding::Deflate),
            ("br", ContentEncoding::Brotli),
            ("zstd", ContentEncoding::Zstd),
        ];
        let parse_one = |name: &[u8]| {
            let name = name.trim_ascii();
            let named = NAMES.iter().find(|(known, _)| name.eq_ignore_ascii_case(known.as_bytes()));
            named.map_or(Self::Other, |(_, encoding)| *encoding)
        };
        let encodings = value.split(|byte| *byte == b',').map(parse_one);
        encodings.fold(Self::Identity, |so_far, next| match (so_far, next) {
            (_, Self::Identity) => so_far,
            (Self::Identity | Self::Other, _) => next,
            (_, Self::Other) => so_far,
            _ => Self::Several,
        })
    }

    const fn is_read_as_it_is(self) -> bool {
        matches!(self, Self::Identity | Self::Other | Self::Several)
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
            Self::Brotli => "br",
            Self::Zstd => "zstd",
            Self::Other => "not known",
            Self::Several => "one of several",
        }
    }

    /// Returns an error when the body can't be decoded while it arrives.
    pub(crate) fn check_streamable(self) -> Result<(), Failure> {
        match self {
            Self::Zstd | Self::Several => Err(Failure::new(
                ErrorKind::Protocol,
                format!(
                    "stream has a content-encoding that is {}: ask for gzip, br or none in accept-encoding",
                    self.name()
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Returns an error when the body can't be decoded at all.
    pub(crate) fn check_readable(self) -> Result<(), Failure> {
        match self {
            Self::Several => Err(Failure::new(
                ErrorKind::CheckBody,
                "content-encoding of the response names several encodings, so checks can't read the body: change accept-encoding",
            )),
            _ => Ok(()),
        }
    }

    /// Adds to a failure about the content of a body that the load generator does not know its encoding.
    pub(crate) fn explain_failure(self, mut failure: Failure) -> Failure {
        if self == Self::Other {
            failure.message +=
                ". The response has a content-encoding that is none of gzip, deflate, br and zstd";
        }
        failure
    }
}

/// The decoder of one body.
pub(crate) struct BodyDecoder {
    encoding: ContentEncoding,
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

impl std::fmt::Debug for BodyDecoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BodyDecoder({})", self.encoding.name())
    }
}

impl BodyDecoder {
    pub(crate) const fn new(encoding: ContentEncoding) -> Self {
        Self { encoding, state: None }
    }

    /// Decodes received bytes and hands the decoded bytes to `on_data`, as far as they are
    /// complete. Stops when `on_data` does.
    pub(crate) fn decode(
        &mut self,
        data: &[u8],
        mut on_data: impl FnMut(&[u8]) -> AfterEvent,
    ) -> AfterEvent {
        if self.encoding.is_read_as_it_is() {
            return on_data(data);
        }
        for mut piece in data.chunks(MAX_INPUT) {
            while !piece.is_empty() {
                let state = self.state.get_or_insert_with(|| new_state(self.encoding, piece));
                let consumed =
                    state.write(piece).map_err(|error| decode_failure(self.encoding, &error))?;
                let is_ended = consumed == 0;
                if is_ended {
                    // A gzip body may have several members (RFC 1952, 2.2), one directly after the other.
                    let is_next_member = self.encoding == ContentEncoding::Gzip
                        && piece[0] == GZIP_MAGIC
                        && !matches!(state, DecoderState::Ended);
                    let ended = if is_next_member {
                        self.state.take()
                    } else {
                        self.state.replace(DecoderState::Ended)
                    };
                    let rest = ended.map_or(Ok(Vec::new()), DecoderState::finish);
                    let rest = rest.map_err(|error| decode_failure(self.encoding, &error))?;
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
            let plain = state.output().map_err(|error| decode_failure(self.encoding, &error))?;
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

    /// Ends the body and hands the remaining decoded bytes to `on_data`.
    pub(crate) fn finish(self, on_data: impl FnOnce(&[u8]) -> AfterEvent) -> AfterEvent {
        // A body without a byte is empty, whatever its headers say.
        let Some(state) = self.state else { return Ok(ControlFlow::Continue(())) };
        let rest = state.finish().map_err(|error| decode_failure(self.encoding, &error))?;
        if rest.is_empty() { Ok(ControlFlow::Continue(())) } else { on_data(&rest) }
    }
}

/// The first byte of a gzip member.
const GZIP_MAGIC: u8 = 0x1f;

fn new_state(encoding: ContentEncoding, first: &[u8]) -> DecoderState {
    match encoding {
        ContentEncoding::Gzip => DecoderState::Gzip(Box::new(GzDecoder::new(Vec::new()))),
        // The standard means zlib by this name, but some servers send bare deflate. The low bits of
        // the first byte of zlib are its method, 8 (RFC 1950, 2.2).
        ContentEncoding::Deflate if first.first().is_some_and(|byte| byte & 0x8f == 8) => {
            DecoderState::Zlib(Box::new(ZlibDecoder::new(Vec::new())))
        }
        ContentEncoding::Deflate => {
            DecoderState::Deflate(Box::new(DeflateDecoder::new(Vec::new())))
        }
        ContentEncoding::Brotli => {
            DecoderState::Brotli(Box::new(DecompressorWriter::new(Vec::new(), 4 << 10)))
        }
        ContentEncoding::Zstd => DecoderState::Zstd(Vec::new()),
        ContentEncoding::Identity | ContentEncoding::Other | ContentEncoding::Several => {
            DecoderState::Ended
        }
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

fn decode_failure(encoding: ContentEncoding, error: &io::Error) -> Failure {
    let name = encoding.name();
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

    fn decode_pieces(
        body: &[u8],
        encoding: ContentEncoding,
        cut: usize,
    ) -> Result<Vec<u8>, ErrorKind> {
        let (mut decoder, mut plain) = (BodyDecoder::new(encoding), Vec::new());
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
                (gzip(&data), ContentEncoding::Gzip),
                (zlib.finish().unwrap(), ContentEncoding::Deflate),
                (deflate.finish().unwrap(), ContentEncoding::Deflate),
                (ruzstd::encoding::compress_to_vec(data.as_slice(), ruzstd::encoding::CompressionLevel::Fastest), ContentEncoding::Zstd),
                (data.clone(), ContentEncoding::Identity),
            ] {
                prop_assert_eq!(&decode_pieces(&body, encoding, cut).unwrap(), &data, "{:?}", encoding);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            for encoding in [
                ContentEncoding::Gzip,
                ContentEncoding::Deflate,
                ContentEncoding::Brotli,
                ContentEncoding::Zstd,
            ] {
                let _ = decode_pieces(&bytes, encoding, 50);
            }
        }
    }

    #[test]
    fn brotli_is_decoded() {
        for cut in [1, 5, 100] {
            let plain = decode_pieces(BROTLI, ContentEncoding::Brotli, cut).unwrap();
            assert_eq!(plain, b"hello hello hello");
        }
    }

    #[test]
    fn encodings_are_recognized() {
        for (value, encoding) in [
            ("GZip", ContentEncoding::Gzip),
            (" br ", ContentEncoding::Brotli),
            ("identity", ContentEncoding::Identity),
            ("gzip, br", ContentEncoding::Several),
            ("compress", ContentEncoding::Other),
            ("none", ContentEncoding::Identity),
            ("identity, gzip", ContentEncoding::Gzip),
            ("aws-chunked, gzip", ContentEncoding::Gzip),
        ] {
            assert_eq!(ContentEncoding::parse(value.as_bytes()), encoding, "{value}");
        }
        assert!(ContentEncoding::Several.check_readable().is_err());
        assert!(ContentEncoding::Zstd.check_streamable().is_err());
    }

    #[test]
    fn a_body_that_is_not_compressed_fails() {
        let text = b"plain text, and long enough";
        assert_eq!(decode_pieces(text, ContentEncoding::Gzip, 7), Err(ErrorKind::Protocol));
        assert_eq!(decode_pieces(text, ContentEncoding::Zstd, 7), Err(ErrorKind::Protocol));
    }

    #[test]
    fn an_incomplete_body_fails() {
        let body = gzip(b"much ado about nothing");
        let cut = &body[..body.len() - 3];
        assert_eq!(decode_pieces(cut, ContentEncoding::Gzip, 7), Err(ErrorKind::Protocol));
        assert_eq!(
            decode_pieces(&BROTLI[..8], ContentEncoding::Brotli, 7),
            Err(ErrorKind::Protocol)
        );
    }

    #[test]
    fn all_members_of_a_gzip_body_are_read() {
        let body = [gzip(b"one "), gzip(b"two "), gzip(b"three")].concat();
        for cut in [1, 9, 1000] {
            let plain = decode_pieces(&body, ContentEncoding::Gzip, cut).unwrap();
            assert_eq!(plain, b"one two three");
        }
    }

    #[test]
    fn surplus_bytes_are_ignored_and_no_bytes_are_an_empty_body() {
        let body = [gzip(b"one"), vec![0; 30]].concat();
        assert_eq!(decode_pieces(&body, ContentEncoding::Gzip, 9).unwrap(), b"one");
        assert_eq!(decode_pieces(b"", ContentEncoding::Gzip, 9).unwrap(), b"");
        // A member after surplus bytes is surplus too, wherever the body was cut.
        let body = [gzip(b"one"), b"surplus".to_vec(), gzip(b"two")].concat();
        for cut in [1, 9, 1000] {
            assert_eq!(decode_pieces(&body, ContentEncoding::Gzip, cut).unwrap(), b"one", "{cut}");
        }
    }
}
