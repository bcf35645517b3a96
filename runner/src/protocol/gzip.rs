//! Decodes the body of a response piece by piece: unchanged, or decompressed from gzip.

use std::io::Write;

use flate2::write::GzDecoder;

use crate::failure::{ErrorKind, Failure};

/// Number of compressed bytes that are decoded at once. They may decompress to a thousand times as
/// many.
const MAX_INPUT: usize = 1 << 10;

/// The decoder of one body.
#[derive(Debug)]
pub(crate) enum BodyDecoder {
    /// The body is not compressed.
    Plain,
    /// The decoder, and true once a byte has arrived. Decompressed bytes wait in the decoder's own
    /// vector.
    Gzip(Box<GzDecoder<Vec<u8>>>, bool),
}

impl BodyDecoder {
    pub(crate) fn new(gzip: bool) -> Self {
        if gzip { Self::Gzip(Box::new(GzDecoder::new(Vec::new())), false) } else { Self::Plain }
    }

    /// Decodes received bytes and hands the decoded bytes to `on_data`, as far as they are
    /// complete.
    pub(crate) fn decode(
        &mut self,
        data: &[u8],
        mut on_data: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let Self::Gzip(decoder, has_begun) = self else { return on_data(data) };
        for mut piece in data.chunks(MAX_INPUT) {
            *has_begun = true;
            while !piece.is_empty() {
                let consumed = decoder.write(piece).map_err(gzip_failure)?;
                // Bytes after the end of the gzip stream are ignored, as in browsers.
                if consumed == 0 {
                    return Ok(());
                }
                piece = &piece[consumed..];
            }
            decoder.flush().map_err(gzip_failure)?;
            let plain = decoder.get_mut();
            if !plain.is_empty() {
                on_data(plain)?;
                plain.clear();
            }
        }
        Ok(())
    }

    /// Ends the body and hands the remaining decoded bytes to `on_data`.
    pub(crate) fn finish(
        self,
        on_data: impl FnOnce(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        match self {
            // A body without a byte is empty, even if its headers say gzip.
            Self::Plain | Self::Gzip(_, false) => Ok(()),
            Self::Gzip(decoder, true) => {
                let rest = decoder.finish().map_err(gzip_failure)?;
                if rest.is_empty() { Ok(()) } else { on_data(&rest) }
            }
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "`map_err` passes the error by value")]
fn gzip_failure(error: std::io::Error) -> Failure {
    Failure::new(ErrorKind::Protocol, format!("body is not gzip: {error}"))
}

#[cfg(test)]
mod tests {
    use flate2::{Compression, write::GzEncoder};
    use proptest::prelude::*;

    use super::*;

    fn decode_pieces(body: &[u8], gzip: bool, cut: usize) -> Result<Vec<u8>, ErrorKind> {
        let (mut decoder, mut plain) = (BodyDecoder::new(gzip), Vec::new());
        let mut on_data = |data: &[u8]| {
            plain.extend_from_slice(data);
            Ok(())
        };
        for piece in body.chunks(cut) {
            decoder.decode(piece, &mut on_data).map_err(|failure| failure.kind)?;
        }
        decoder.finish(&mut on_data).map_err(|failure| failure.kind)?;
        Ok(plain)
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_decode_to_the_same_body(
            data in prop::collection::vec(any::<u8>(), 0..2000),
            cut in 1_usize..300,
        ) {
            let body = compress(&data);
            prop_assert_eq!(decode_pieces(&body, true, cut).unwrap(), data.clone());
            prop_assert_eq!(decode_pieces(&data, false, cut).unwrap(), data);
        }
    }

    fn compress(data: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn a_body_that_is_not_gzip_fails() {
        assert_eq!(
            decode_pieces(b"plain text, and long enough", true, 7),
            Err(ErrorKind::Protocol)
        );
    }

    #[test]
    fn an_incomplete_body_fails() {
        let body = compress(b"much ado about nothing");
        assert_eq!(decode_pieces(&body[..body.len() - 3], true, 7), Err(ErrorKind::Protocol));
    }

    #[test]
    fn surplus_bytes_are_ignored_and_no_bytes_are_an_empty_body() {
        let body = [compress(b"one"), vec![0; 30]].concat();
        assert_eq!(decode_pieces(&body, true, 9).unwrap(), b"one");
        assert_eq!(decode_pieces(b"", true, 9).unwrap(), b"");
    }
}
