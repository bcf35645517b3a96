//! Parses a whole JSON text, and accepts what real servers send although it is no valid JSON: a byte
//! order mark, `NaN`, halves of surrogate pairs, bytes that are not UTF-8.

use serde_json::{Map, Number, Value};

use super::json_scanner::{JsonScanner, ScanError};

/// Maximum depth of nested arrays and objects.
const MAX_DEPTH: u16 = 512;

/// Parses a text. `None` when it is not JSON.
///
/// Numbers that a `Value` can't hold exactly, and `NaN`, become texts with their digits.
pub(crate) fn parse_value(text: &[u8]) -> Option<Value> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let mut scanner = JsonScanner::with_max_depth(text, MAX_DEPTH);
    let value = read_value(&mut scanner).ok()?;
    scanner.end().ok()?;
    Some(value)
}

fn read_value(scanner: &mut JsonScanner<'_>) -> Result<Value, ScanError> {
    Ok(match scanner.peek()? {
        b'{' => {
            let mut members = Map::new();
            scanner.object(|name, scanner| {
                members.insert(unescape(name), read_value(scanner)?);
                Ok(())
            })?;
            Value::Object(members)
        }
        b'[' => {
            let mut items = Vec::new();
            scanner.array(|scanner| {
                items.push(read_value(scanner)?);
                Ok(())
            })?;
            Value::Array(items)
        }
        b'"' => Value::String(unescape(scanner.string()?)),
        _ => match scanner.value()? {
            b"null" => Value::Null,
            b"true" => Value::Bool(true),
            b"false" => Value::Bool(false),
            word => read_number(word).ok_or(ScanError::Unexpected(0))?,
        },
    })
}

fn read_number(word: &[u8]) -> Option<Value> {
    let word = std::str::from_utf8(word).ok()?;
    if let Ok(number) = word.parse::<u64>() {
        return Some(Value::Number(number.into()));
    }
    if let Ok(number) = word.parse::<i64>() {
        return Some(Value::Number(number.into()));
    }
    let float: f64 = word.parse().ok()?;
    let is_whole = word.strip_prefix('-').unwrap_or(word).bytes().all(|b| b.is_ascii_digit());
    let number = Number::from_f64(float).filter(|_| !is_whole);
    Some(number.map_or_else(|| Value::String(word.to_owned()), Value::Number))
}

/// Returns the text of a string that was read with its escapes.
fn unescape(escaped: &[u8]) -> String {
    if memchr::memchr(b'\\', escaped).is_none() {
        return String::from_utf8_lossy(escaped).into_owned();
    }
    let escaped = String::from_utf8_lossy(escaped);
    if let Ok(text) = serde_json::from_str(&format!("\"{escaped}\"")) {
        return text;
    }
    let mut text = String::with_capacity(escaped.len());
    let mut rest = escaped.as_ref();
    while let Some(at) = rest.find('\\') {
        text.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let Some(letter) = rest.chars().next() else { break };
        rest = &rest[letter.len_utf8()..];
        match letter {
            'n' => text.push('\n'),
            't' => text.push('\t'),
            'r' => text.push('\r'),
            'b' => text.push('\u{8}'),
            'f' => text.push('\u{c}'),
            'u' => {
                let (decoded, length) = decode_unit(rest);
                text.push(decoded);
                rest = &rest[length..];
            }
            other => text.push(other),
        }
    }
    text.push_str(rest);
    text
}

/// Decodes the hexadecimal digits after `\u`, and the other half of a surrogate pair after them.
/// Returns the character and the length of what was decoded.
fn decode_unit(text: &str) -> (char, usize) {
    let unit = |text: Option<&str>| u16::from_str_radix(text?, 16).ok();
    let Some(first) = unit(text.get(..4)) else { return (char::REPLACEMENT_CHARACTER, 0) };
    let second = text.get(4..6).filter(|mark| *mark == "\\u").and_then(|_| unit(text.get(6..10)));
    let decoded = |units: &[u16]| char::decode_utf16(units.iter().copied()).next()?.ok();
    match (decoded(&[first]), second.and_then(|second| decoded(&[first, second]))) {
        (Some(character), _) => (character, 4),
        (None, Some(character)) => (character, 10),
        (None, None) => (char::REPLACEMENT_CHARACTER, 4),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_servers_send_is_accepted() {
        for (text, expected) in [
            ("\u{feff}{\"a\": 1}", json!({"a": 1})),
            (r#"{"a": 1, "b": NaN}"#, json!({"a": 1, "b": "NaN"})),
            (r#"{"a": "x\ud83d", "b": "\ud83d\ude00\n"}"#, json!({"a": "x\u{fffd}", "b": "😀\n"})),
            (r#""\ud83d\ude00 \ud83d""#, json!("😀 \u{fffd}")),
            ("[12345678901234567890123, 1e400]", json!(["12345678901234567890123", "1e400"])),
            ("[1.0, -7, 18446744073709551615]", json!([1.0, -7, 18_446_744_073_709_551_615_u64])),
        ] {
            assert_eq!(parse_value(text.as_bytes()), Some(expected), "{text}");
        }
        assert_eq!(parse_value(b"\"\xff\""), Some(json!("\u{fffd}")));
        let deep = ["[".repeat(200), "]".repeat(200)].concat();
        assert!(parse_value(deep.as_bytes()).is_some());
        let too_deep = ["[".repeat(100_000), "]".repeat(100_000)].concat();
        for text in ["", "<html>", "{", "{}{}", "1x", &too_deep] {
            assert_eq!(parse_value(text.as_bytes()), None);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_value(&bytes);
        }

        #[test]
        fn escapes_never_panic(text in r"(\\u[0-9a-fA-FdD]{0,4}|\\.|[a-zü😀]){0,8}") {
            let _ = parse_value(format!("\"{text}\"").as_bytes());
        }

        #[test]
        fn valid_json_is_read_as_it_is(
            keys in prop::collection::vec(".{0,8}", 0..5), n: i64, x in -1e15..1e15,
        ) {
            let object: Map<_, _> =
                keys.into_iter().map(|key| (key.clone(), json!([key, n, x, null, true]))).collect();
            let value = Value::Object(object);
            prop_assert_eq!(parse_value(value.to_string().as_bytes()), Some(value));
        }
    }
}
