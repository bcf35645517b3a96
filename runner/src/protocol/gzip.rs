//! An answer's body as it comes: taken out of gzip where it is in it.

use std::io::Write;

use flate2::write::GzDecoder;

use crate::failure::{ErrorKind, Failure};

/// What is decompressed at once: a thousand times as much may come out.
const PIECE: usize = 1 << 10;

/// How a body is encoded.
#[derive(Debug)]
pub(crate) enum Body {
    /// As it is.
    Plain,
    /// Compressed, and it has begun. What is decompressed waits in the decoder's own vector.
    Gzip(Box<GzDecoder<Vec<u8>>>, bool),
}

impl Body {
    pub(crate) fn new(gzip: bool) -> Self {
        if gzip { Self::Gzip(Box::new(GzDecoder::new(Vec::new())), false) } else { Self::Plain }
    }

    /// Takes bytes off the wire; hands on what they hold, as far as it can be told.
    pub(crate) fn read(
        &mut self,
        data: &[u8],
        mut take: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let Self::Gzip(decoder, begun) = self else { return take(data) };
        for mut piece in data.chunks(PIECE) {
            *begun = true;
            while !piece.is_empty() {
                let read = decoder.write(piece).map_err(malformed)?;
                // What follows the end belongs to nothing: browsers pass over it too.
                if read == 0 {
                    return Ok(());
                }
                piece = &piece[read..];
            }
            decoder.flush().map_err(malformed)?;
            let held = decoder.get_mut();
            if !held.is_empty() {
                take(held)?;
                held.clear();
            }
        }
        Ok(())
    }

    /// The body is over; hands on what was held back.
    pub(crate) fn finish(
        self,
        take: impl FnOnce(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        match self {
            // One without a byte is empty, whatever its head says.
            Self::Plain | Self::Gzip(_, false) => Ok(()),
            Self::Gzip(decoder, true) => {
                let rest = decoder.finish().map_err(malformed)?;
                if rest.is_empty() { Ok(()) } else { take(&rest) }
            }
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "map_err hands it so")]
fn malformed(error: std::io::Error) -> Failure {
    Failure::new(ErrorKind::Protocol, format!("body is not gzip: {error}"))
}

#[cfg(test)]
mod tests {
    use flate2::{Compression, write::GzEncoder};
    use proptest::prelude::*;

    use super::*;

    fn read(body: &[u8], gzip: bool, cut: usize) -> Result<Vec<u8>, ErrorKind> {
        let (mut decoder, mut whole) = (Body::new(gzip), Vec::new());
        let mut take = |data: &[u8]| {
            whole.extend_from_slice(data);
            Ok(())
        };
        for piece in body.chunks(cut) {
            decoder.read(piece, &mut take).map_err(|failure| failure.kind)?;
        }
        decoder.finish(&mut take).map_err(|failure| failure.kind)?;
        Ok(whole)
    }

    proptest! {
        #[test]
        fn what_was_compressed_comes_out_wherever_the_network_cuts_it(
            data in prop::collection::vec(any::<u8>(), 0..2000),
            cut in 1_usize..300,
        ) {
            let body = compressed(&data);
            prop_assert_eq!(read(&body, true, cut).unwrap(), data.clone());
            prop_assert_eq!(read(&data, false, cut).unwrap(), data);
        }
    }

    fn compressed(data: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn what_is_no_gzip_fails() {
        assert_eq!(read(b"plain text, and long enough", true, 7), Err(ErrorKind::Protocol));
    }

    #[test]
    fn a_stream_that_breaks_off_fails() {
        let body = compressed(b"much ado about nothing");
        assert_eq!(read(&body[..body.len() - 3], true, 7), Err(ErrorKind::Protocol));
    }

    #[test]
    fn what_follows_the_end_is_passed_over_and_nothing_is_nothing() {
        let body = [compressed(b"one"), vec![0; 30]].concat();
        assert_eq!(read(&body, true, 9).unwrap(), b"one");
        assert_eq!(read(b"", true, 9).unwrap(), b"");
    }
}
