//! The text of a body whose encoding nobody has checked.

use std::borrow::Cow;

/// Number of bytes of a body that are looked at for a message.
pub(crate) const MAX_ERROR_BODY: usize = 16 << 10;

/// Returns a body as text: UTF-8, UTF-16 with its mark, or one byte for each character as in
/// ISO 8859-1. `None` for bytes that are no text.
pub(crate) fn decode_text(body: &[u8]) -> Option<Cow<'_, str>> {
    let text = match body {
        [0xef, 0xbb, 0xbf, rest @ ..] => decode_bytes(rest)?,
        [0xff, 0xfe, rest @ ..] => decode_utf16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => decode_utf16(rest, u16::from_be_bytes),
        _ => decode_bytes(body)?,
    };
    let is_odd = |c: char| c.is_control() && !c.is_whitespace() || c == char::REPLACEMENT_CHARACTER;
    let odd = text.chars().filter(|c| is_odd(*c)).count();
    (odd * 4 <= text.chars().count()).then_some(text)
}

fn decode_bytes(body: &[u8]) -> Option<Cow<'_, str>> {
    if let Ok(text) = std::str::from_utf8(body) {
        return Some(Cow::Borrowed(text));
    }
    let text = String::from_utf8_lossy(body);
    // A text of UTF-8 that was cut within a character, or that has some wrong bytes.
    if text.chars().any(|c| !c.is_ascii() && c != char::REPLACEMENT_CHARACTER) {
        return Some(text);
    }
    let is_text = |byte: &u8| !byte.is_ascii_control() || byte.is_ascii_whitespace();
    let ascii = body.iter().filter(|byte| byte.is_ascii()).count();
    // Bytes of a binary format are of all values.
    let is_latin = body.iter().all(is_text) && ascii * 2 >= body.len();
    is_latin.then(|| body.iter().map(|byte| char::from(*byte)).collect())
}

fn decode_utf16(body: &[u8], unit: fn([u8; 2]) -> u16) -> Cow<'_, str> {
    let units = body.chunks_exact(2).map(|pair| unit([pair[0], pair[1]]));
    let decoded = char::decode_utf16(units);
    decoded.map(|character| character.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn texts_of_other_encodings_are_readable() {
        let utf16: Vec<u8> = "\u{feff}zu groß".encode_utf16().flat_map(u16::to_le_bytes).collect();
        for body in ["zu groß".as_bytes(), b"\xef\xbb\xbfzu gro\xc3\x9f", b"zu gro\xdf", &utf16] {
            assert_eq!(decode_text(body).unwrap(), "zu groß");
        }
        let cut = &"模型正在加载".as_bytes()[..17];
        assert!(decode_text(cut).unwrap().starts_with("模型正在加"));
        for body in [&[0x1f, 0x8b, 8, 0, 0, 0][..], b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\xff"] {
            assert_eq!(decode_text(body), None);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = decode_text(&bytes);
        }
    }
}
