//! Reads single values out of a JSON text, without a copy and without an allocation.
//!
//! A strict parser refuses a whole event because of one value that nobody needs: `NaN` in a list of
//! probabilities, half of a surrogate pair, bytes that are not UTF-8, a member that appears twice.
//! The scanner checks only the structure of what it reads, and steps over all other values.

/// Maximum depth of nested arrays and objects that [`JsonScanner::object`] and
/// [`JsonScanner::array`] usually enter. Deeper ones are stepped over without recursion.
const MAX_DEPTH: u16 = 32;

/// Why a text could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ScanError {
    /// The text ends within a value.
    Incomplete,
    /// The byte at this position can't stand there.
    Unexpected(usize),
    /// Arrays and objects are nested too deeply.
    TooDeep,
}

impl std::fmt::Display for ScanError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Incomplete => f.write_str("the JSON ends within a value"),
            Self::Unexpected(at) => write!(f, "the JSON is malformed at byte {at}"),
            Self::TooDeep => f.write_str("the JSON is nested too deeply"),
        }
    }
}

/// A position in a JSON text.
#[derive(Clone, Debug)]
pub(crate) struct JsonScanner<'a> {
    text: &'a [u8],
    at: usize,
    depth: u16,
    max_depth: u16,
}

impl<'a> JsonScanner<'a> {
    pub(crate) const fn new(text: &'a [u8]) -> Self {
        Self::with_max_depth(text, MAX_DEPTH)
    }

    /// Creates a scanner that enters arrays and objects of another maximum depth.
    pub(crate) const fn with_max_depth(text: &'a [u8], max_depth: u16) -> Self {
        Self { text, at: 0, depth: 0, max_depth }
    }

    /// Returns the first byte of the next value, or of whatever comes next, without reading it.
    pub(crate) fn peek(&mut self) -> Result<u8, ScanError> {
        while let Some(byte) = self.text.get(self.at) {
            if !byte.is_ascii_whitespace() {
                return Ok(*byte);
            }
            self.at += 1;
        }
        Err(ScanError::Incomplete)
    }

    fn expect(&mut self, expected: u8) -> Result<(), ScanError> {
        if self.peek()? == expected {
            self.at += 1;
            return Ok(());
        }
        Err(ScanError::Unexpected(self.at))
    }

    /// Reads a string and returns it without its quotes and with its escapes.
    pub(crate) fn string(&mut self) -> Result<&'a [u8], ScanError> {
        self.expect(b'"')?;
        let start = self.at;
        loop {
            let rest = self.text.get(self.at..).ok_or(ScanError::Incomplete)?;
            let found = find_quote_or_escape(rest).ok_or(ScanError::Incomplete)?;
            self.at += found;
            if self.text[self.at] == b'"' {
                let content = &self.text[start..self.at];
                self.at += 1;
                return Ok(content);
            }
            self.at += 2;
        }
    }

    /// Reads an object. `on_member` gets each name, and reads or steps over its value.
    pub(crate) fn object(
        &mut self,
        mut on_member: impl FnMut(&'a [u8], &mut Self) -> Result<(), ScanError>,
    ) -> Result<(), ScanError> {
        self.expect(b'{')?;
        self.enter()?;
        if self.peek()? == b'}' {
            self.at += 1;
        } else {
            self.members(&mut on_member)?;
        }
        self.depth -= 1;
        Ok(())
    }

    /// Reads the rest of an object, from the value of its member `name` at `at`. The members before
    /// it are known.
    pub(crate) fn rest_of_object(
        &mut self,
        at: usize,
        name: &'a [u8],
        mut on_member: impl FnMut(&'a [u8], &mut Self) -> Result<(), ScanError>,
    ) -> Result<(), ScanError> {
        self.at = at;
        self.enter()?;
        on_member(name, self)?;
        if !self.ends_list(b'}')? {
            self.members(&mut on_member)?;
        }
        self.depth -= 1;
        Ok(())
    }

    /// Reads members up to the end of their object.
    fn members(
        &mut self,
        on_member: &mut impl FnMut(&'a [u8], &mut Self) -> Result<(), ScanError>,
    ) -> Result<(), ScanError> {
        loop {
            let name = self.string()?;
            self.expect(b':')?;
            on_member(name, self)?;
            if self.ends_list(b'}')? {
                return Ok(());
            }
        }
    }

    /// Returns the position in the text.
    pub(crate) const fn position(&self) -> usize {
        self.at
    }

    /// Reads an array. `on_item` reads or steps over each value.
    pub(crate) fn array(
        &mut self,
        mut on_item: impl FnMut(&mut Self) -> Result<(), ScanError>,
    ) -> Result<(), ScanError> {
        self.expect(b'[')?;
        self.enter()?;
        if self.peek()? == b']' {
            self.at += 1;
        } else {
            loop {
                on_item(self)?;
                if self.ends_list(b']')? {
                    break;
                }
            }
        }
        self.depth -= 1;
        Ok(())
    }

    const fn enter(&mut self) -> Result<(), ScanError> {
        self.depth += 1;
        if self.depth > self.max_depth { Err(ScanError::TooDeep) } else { Ok(()) }
    }

    /// Reads a comma or the end of an array or object. Returns true at the end.
    fn ends_list(&mut self, end: u8) -> Result<bool, ScanError> {
        let byte = self.peek()?;
        if byte != b',' && byte != end {
            return Err(ScanError::Unexpected(self.at));
        }
        self.at += 1;
        Ok(byte == end)
    }

    /// Steps over a value of any type and returns its text.
    pub(crate) fn value(&mut self) -> Result<&'a [u8], ScanError> {
        let first = self.peek()?;
        let start = self.at;
        match first {
            b'"' => drop(self.string()?),
            b'{' | b'[' => self.skip_nested()?,
            b'}' | b']' | b',' | b':' => return Err(ScanError::Unexpected(self.at)),
            // A number, `true`, `null`, or what some servers write for numbers: `NaN`.
            _ => {
                let is_end = |byte: &u8| matches!(byte, b',' | b'}' | b']' | b':' | b'"');
                let rest = &self.text[start..];
                let length =
                    rest.iter().position(|byte| is_end(byte) || byte.is_ascii_whitespace());
                self.at += length.unwrap_or(rest.len());
                if !first.is_ascii_alphanumeric() && !matches!(first, b'-' | b'+' | b'.') {
                    return Err(ScanError::Unexpected(start));
                }
                // A bare word is no JSON: an event `{oops` is malformed.
                let word = &self.text[start..self.at];
                if first.is_ascii_alphabetic() && !is_literal(word) {
                    return Err(ScanError::Unexpected(start));
                }
            }
        }
        Ok(&self.text[start..self.at])
    }

    /// Steps over an array or object. Only brackets and strings are looked at.
    fn skip_nested(&mut self) -> Result<(), ScanError> {
        let mut depth = 0_usize;
        loop {
            match self.text.get(self.at).ok_or(ScanError::Incomplete)? {
                b'"' => {
                    self.string()?;
                    continue;
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth -= 1,
                _ => {}
            }
            self.at += 1;
            if depth == 0 {
                return Ok(());
            }
        }
    }

    /// Returns an error unless only white space is left.
    pub(crate) fn end(&mut self) -> Result<(), ScanError> {
        match self.peek() {
            Err(_) => Ok(()),
            Ok(_) => Err(ScanError::Unexpected(self.at)),
        }
    }
}

/// Returns the position of the first `"` or `\\`.
///
/// Most strings of a chat event have fewer than 16 bytes. For these, the call of a vector search costs
/// more than the search.
fn find_quote_or_escape(text: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::from_le_bytes([0x01; 8]);
    const QUOTES: u64 = u64::from_le_bytes([b'"'; 8]);
    const ESCAPES: u64 = u64::from_le_bytes([b'\\'; 8]);
    const HIGH_BITS: u64 = u64::from_le_bytes([0x80; 8]);
    // The high bit of each zero byte, and perhaps of bytes after the first zero byte.
    const fn zero_bytes(word: u64) -> u64 {
        word.wrapping_sub(ONES) & !word & HIGH_BITS
    }
    let mut at = 0;
    while let Some(bytes) = text.get(at..).and_then(<[u8]>::first_chunk::<8>).filter(|_| at < 16) {
        let word = u64::from_le_bytes(*bytes);
        let found = zero_bytes(word ^ QUOTES) | zero_bytes(word ^ ESCAPES);
        if found != 0 {
            return Some(at + found.trailing_zeros() as usize / 8);
        }
        at += 8;
    }
    memchr::memchr2(b'"', b'\\', &text[at..]).map(|found| at + found)
}

/// Reads an array; steps over a value of another type.
pub(crate) fn read_items<'a>(
    scanner: &mut JsonScanner<'a>,
    on_item: impl FnMut(&mut JsonScanner<'a>) -> Result<(), ScanError>,
) -> Result<(), ScanError> {
    if scanner.peek()? == b'[' { scanner.array(on_item) } else { scanner.value().map(drop) }
}

/// Reads an object; steps over a value of another type.
pub(crate) fn read_members<'a>(
    scanner: &mut JsonScanner<'a>,
    on_member: impl FnMut(&'a [u8], &mut JsonScanner<'a>) -> Result<(), ScanError>,
) -> Result<(), ScanError> {
    if scanner.peek()? == b'{' { scanner.object(on_member) } else { scanner.value().map(drop) }
}

fn is_literal(word: &[u8]) -> bool {
    const LITERALS: [&[u8]; 5] = [b"null", b"true", b"false", b"NaN", b"Infinity"];
    LITERALS.contains(&word)
}

/// Returns true when the text is one complete JSON value.
pub(crate) fn is_complete(text: &[u8]) -> bool {
    let mut scanner = JsonScanner::new(text);
    scanner.value().is_ok() && scanner.end().is_ok()
}

/// Returns true when a value says nothing: null, false, zero, or an empty string, array or object.
pub(crate) fn is_empty_value(value: &[u8]) -> bool {
    let inner = match value {
        [b'"', inner @ .., b'"'] => {
            let text = inner.trim_ascii();
            return text.is_empty() || text == b"0" || text == b"null";
        }
        [b'{', inner @ .., b'}'] | [b'[', inner @ .., b']'] => inner,
        _ => {
            return matches!(value, b"null" | b"false")
                || parse_number(value).is_some_and(|number| number == 0.0);
        }
    };
    inner.trim_ascii().is_empty()
}

/// Parses a number, also one in quotes.
pub(crate) fn parse_number(value: &[u8]) -> Option<f64> {
    let text = value.strip_prefix(b"\"").and_then(|text| text.strip_suffix(b"\"")).unwrap_or(value);
    std::str::from_utf8(text).ok()?.trim().parse().ok().filter(|number: &f64| number.is_finite())
}

/// Parses a count: a number from 0, possibly with a fraction of zero, as some servers write it.
pub(crate) fn parse_count(value: &[u8]) -> Option<u64> {
    // The common form, without the cost of a float.
    if let Some(count) = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()) {
        return Some(count);
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in this range")]
    parse_number(value).filter(|n| (0.0..1e15).contains(n)).map(|n| n.round() as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns the text of one member of an object.
    fn member<'a>(text: &'a str, wanted: &str) -> Option<&'a str> {
        let mut found = None;
        JsonScanner::new(text.as_bytes())
            .object(|name, scanner| {
                let value = scanner.value()?;
                if name == wanted.as_bytes() {
                    found = std::str::from_utf8(value).ok();
                }
                Ok(())
            })
            .ok()?;
        found
    }

    proptest! {
        #[test]
        fn the_end_of_a_string_is_found(
            text in prop::collection::vec(prop::sample::select(b"ab!#[]\\\"\x00\xff\x22\x5d".to_vec()), 0..40),
            padding in 0_usize..30,
        ) {
            let mut whole = vec![b'x'; padding];
            whole.extend(text);
            let expected = whole.iter().position(|byte| matches!(byte, b'"' | b'\\'));
            prop_assert_eq!(find_quote_or_escape(&whole), expected);
        }
    }

    #[test]
    fn unusual_values_are_stepped_over() {
        for value in
            ["NaN", "-Infinity", "[NaN, 1]", r#""\ud83d""#, "{}", r#"{"a":[{"b":"]}\""}]}"#, "1e5"]
        {
            let text = format!(r#" {{ "skip" : {value} , "b":"x" }} "#);
            assert_eq!(member(&text, "b"), Some("\"x\""), "{text}");
        }
    }

    #[test]
    fn malformed_and_incomplete_texts_are_errors() {
        for text in ["", "{", "{oops", r#"{"a":}"#, r#"{"a":oops}"#, r#"{"a":1"#, r#"{"a" 1}"#, "}"]
        {
            assert!(!is_complete(text.as_bytes()) || member(text, "a").is_none(), "{text}");
        }
        assert!(is_complete(br#"{"a":[1,2]}"#) && !is_complete(br#"{"a":1}{"#));
    }

    #[test]
    fn empty_values_say_nothing() {
        for value in ["null", "false", "0", "0.0", "\"\"", "\" \"", "\"0\"", "{}", "[ ]"] {
            assert!(is_empty_value(value.as_bytes()), "{value}");
        }
        for value in ["true", "1", "\"x\"", "{\"a\":1}", "[0]"] {
            assert!(!is_empty_value(value.as_bytes()), "{value}");
        }
    }

    #[test]
    fn counts_may_have_a_fraction() {
        for (text, count) in
            [("7", Some(7)), ("7.0", Some(7)), ("\"7\"", Some(7)), ("-1", None), ("null", None)]
        {
            assert_eq!(parse_count(text.as_bytes()), count, "{text}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = is_complete(&bytes);
            let _ = JsonScanner::new(&bytes).object(|_, scanner| scanner.value().map(drop));
        }

        #[test]
        fn every_valid_json_is_complete(keys in prop::collection::vec(".{0,8}", 0..5), n: f64) {
            let object: serde_json::Map<_, _> =
                keys.into_iter().map(|key| (key.clone(), serde_json::json!([key, n, null]))).collect();
            let text = serde_json::Value::Object(object).to_string();
            prop_assert!(is_complete(text.as_bytes()), "{}", text);
        }
    }
}
