//! Reads one JSON object of a chat completion: an event of a stream, or a whole response.
//!
//! Only the members that count are read, and each of them in every form that servers send. All
//! others are stepped over.

use memchr::arch::all::is_prefix;

use super::{
    json_scanner::{JsonScanner, ScanError, is_empty_value, parse_count, read_items, read_members},
    usage::{Usage, read_usage},
};

/// The content of an event or answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ChatEvent<'a> {
    /// True when it has the member `choices`, so that it is part of a chat completion.
    pub(crate) has_choices: bool,
    /// Number of choices in it.
    pub(crate) choice_count: u32,
    /// The index of the first choice in it. A request may ask for several choices at once (`n`).
    pub(crate) choice_index: u64,
    /// The kinds of tokens in it.
    pub(crate) tokens: TokenKinds,
    /// Length of the text of reasoning, as JSON, in bytes.
    pub(crate) reasoning_bytes: usize,
    /// Length of content and tool calls, as JSON, in bytes.
    pub(crate) answer_bytes: usize,
    pub(crate) finish_reason: Option<&'a [u8]>,
    /// The value that holds the finish reason: JSON of any type.
    pub(crate) finish_value: &'a [u8],
    pub(crate) usage: Usage,
    /// The target's description of an error: JSON of any type.
    pub(crate) error: Option<&'a [u8]>,
    /// True when the error is named as one. Otherwise members such as `detail` look like an error.
    pub(crate) is_named_error: bool,
    /// A text for people, which may describe an error.
    pub(crate) message: Option<&'a [u8]>,
    /// The name of the API, if it is not chat completions.
    pub(crate) other_api: Option<&'static str>,
    /// The text before the value of `choices`. `None` if it holds something that counts, and if it
    /// was known.
    pub(crate) head: Option<&'a [u8]>,
}

/// Which kinds of tokens an event holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TokenKinds {
    /// Text for the user; a refusal too.
    pub(crate) content: bool,
    /// Text of a model that thinks before it responds.
    pub(crate) reasoning: bool,
    /// A part of a tool call.
    pub(crate) tool: bool,
}

impl TokenKinds {
    pub(crate) const fn any(self) -> bool {
        self.content || self.reasoning || self.tool
    }
}

/// Members that report an error in an object without `choices`, beside `error`.
#[derive(Default, PartialEq, Eq)]
struct ErrorSigns<'a> {
    /// A description of the error, which needs no other sign.
    description: Option<&'a [u8]>,
    /// A text that describes an error only beside a code.
    message: Option<&'a [u8]>,
    has_code: bool,
    /// The object calls itself an error.
    is_named_error: bool,
}

impl<'a> ChatEvent<'a> {
    /// Returns true when a choice is in it.
    pub(crate) const fn has_choice(&self) -> bool {
        self.choice_count > 0
    }

    /// Reads an object.
    pub(crate) fn parse(text: &'a [u8]) -> Result<Self, ScanError> {
        Self::parse_after(text, &[])
    }

    /// Reads an object. `known_head` is the head of an event before it: if this object begins with
    /// the same bytes, they are not read again. The events of most streams differ only after them.
    pub(crate) fn parse_after(text: &'a [u8], known_head: &[u8]) -> Result<Self, ScanError> {
        let (mut event, mut signs) = (Self::default(), ErrorSigns::default());
        let mut scanner = JsonScanner::new(text);
        // `starts_with` would call the C library, and musl compares single bytes.
        let is_head_known = !known_head.is_empty() && is_prefix(text, known_head);
        let read_member = |name: &'a [u8], scanner: &mut JsonScanner<'a>| match name {
            b"choices" => {
                let is_first = !is_head_known && !event.has_choices;
                if is_first && event == Self::default() && signs == ErrorSigns::default() {
                    event.head = text.get(..scanner.position());
                }
                event.has_choices = true;
                read_items(scanner, |scanner| event.read_choice(scanner))
            }
            b"usage" => read_usage(scanner, &mut event.usage),
            // Groq reports here what others report at the top.
            b"x_groq" => read_members(scanner, |name, scanner| match name {
                b"usage" => read_usage(scanner, &mut event.usage),
                b"error" => event.read_error(scanner),
                _ => scanner.value().map(drop),
            }),
            b"error" => event.read_error(scanner),
            b"error_code" | b"code" => {
                let is_error = !is_no_error(scanner.value()?);
                signs.has_code |= is_error;
                signs.is_named_error |= is_error && name == b"error_code";
                Ok(())
            }
            b"status" | b"status_code" | b"statusCode" => {
                signs.has_code |= is_failing_status(scanner.value()?);
                Ok(())
            }
            b"success" | b"ok" => {
                signs.has_code |= scanner.value()? == b"false";
                Ok(())
            }
            b"detail" | b"errors" | b"error_message" | b"error_msg" => {
                signs.description = filled(scanner.value()?).or(signs.description);
                Ok(())
            }
            b"message" | b"msg" => {
                signs.message = filled(scanner.value()?).or(signs.message);
                Ok(())
            }
            b"base_resp" => read_members(scanner, |name, scanner| {
                let value = scanner.value()?;
                match name {
                    b"status_code" => signs.is_named_error |= !is_empty_value(value),
                    b"status_msg" => signs.message = filled(value),
                    _ => {}
                }
                Ok(())
            }),
            b"object" => {
                signs.is_named_error |= scanner.value()? == b"\"error\"";
                Ok(())
            }
            b"type" => {
                let value = scanner.value()?;
                signs.is_named_error |= value == b"\"error\"";
                event.other_api = api_of_type(value);
                Ok(())
            }
            b"finish_reason" => event.read_finish_reason(scanner),
            b"candidates" => {
                event.other_api = Some("the Gemini API");
                scanner.value().map(drop)
            }
            _ => scanner.value().map(drop),
        };
        if is_head_known {
            scanner.rest_of_object(known_head.len(), b"choices", read_member)?;
        } else {
            scanner.object(read_member)?;
        }
        scanner.end()?;
        event.is_named_error = event.error.is_some() || signs.is_named_error;
        event.message = signs.message;
        if event.error.is_none() {
            event.error = signs.error(event.has_choices, event.has_choice(), text);
        }
        Ok(event)
    }

    fn read_error(&mut self, scanner: &mut JsonScanner<'a>) -> Result<(), ScanError> {
        let value = scanner.value()?;
        if !is_no_error(value) {
            self.error = Some(value);
        }
        Ok(())
    }

    fn read_finish_reason(&mut self, scanner: &mut JsonScanner<'a>) -> Result<(), ScanError> {
        // SGLang's own form is an object such as {"type": "abort", "message": "…"}.
        let whole = scanner.clone();
        let (mut word, mut is_object) = (&b""[..], false);
        if scanner.peek()? == b'{' {
            is_object = true;
            scanner.object(|name, scanner| {
                let value = scanner.value()?;
                if name == b"type" {
                    word = value;
                }
                Ok(())
            })?;
        } else {
            word = scanner.value()?;
        }
        if let [b'"', reason @ .., b'"'] = word {
            let is_none =
                [&b""[..], b"null", b"none"].iter().any(|none| reason.eq_ignore_ascii_case(none));
            if !is_none {
                self.finish_reason = Some(reason);
                self.finish_value = if is_object { whole.clone().value()? } else { word };
            }
        }
        Ok(())
    }

    fn read_choice(&mut self, scanner: &mut JsonScanner<'a>) -> Result<(), ScanError> {
        self.choice_count += 1;
        let is_first = self.choice_count == 1;
        let (mut has_delta, mut message) = (false, None);
        read_members(scanner, |name, scanner| match name {
            b"delta" => {
                has_delta = true;
                read_members(scanner, |name, scanner| self.read_delta(name, scanner))
            }
            b"message" => {
                message = Some(scanner.clone());
                scanner.value().map(drop)
            }
            // The form of the older completions API.
            b"text" => {
                self.answer_bytes += text_length(scanner.clone().value()?);
                self.tokens.content |= read_has_text(scanner)?;
                Ok(())
            }
            b"index" if is_first => {
                self.choice_index = parse_count(scanner.value()?).unwrap_or_default();
                Ok(())
            }
            b"finish_reason" => self.read_finish_reason(scanner),
            b"error" => self.read_error(scanner),
            b"usage" => read_usage(scanner, &mut self.usage),
            _ => scanner.value().map(drop),
        })?;
        // Beside a delta, it repeats the whole text so far.
        match message.filter(|_| !has_delta) {
            Some(mut message) => {
                read_members(&mut message, |name, scanner| self.read_delta(name, scanner))
            }
            None => Ok(()),
        }
    }

    /// Some servers send the same reasoning in several members, so the longest one counts.
    fn note_reasoning(&mut self, text: &[u8]) {
        self.tokens.reasoning = true;
        self.reasoning_bytes = self.reasoning_bytes.max(text.len());
    }

    fn read_delta(&mut self, name: &[u8], scanner: &mut JsonScanner<'a>) -> Result<(), ScanError> {
        match name {
            b"content" => {
                let text = scanner.clone().value()?;
                let found = read_content(scanner)?;
                self.tokens.content |= found.content;
                self.answer_bytes += text_length(text);
                if found.reasoning {
                    self.note_reasoning(text);
                }
            }
            b"refusal" | b"audio" => {
                let text = filled(scanner.value()?);
                self.tokens.content |= text.is_some();
                self.answer_bytes += text.map_or(0, <[u8]>::len);
            }
            // Servers use different names, and some send several of them.
            b"reasoning_content" | b"reasoning" | b"reasoning_details" | b"thinking"
            | b"thinking_blocks" => {
                if let Some(text) = filled(scanner.value()?) {
                    self.note_reasoning(text);
                }
            }
            // The second is the older form of the first.
            b"tool_calls" | b"function_call" => {
                let text = filled(scanner.value()?);
                self.tokens.tool |= text.is_some();
                self.answer_bytes += text.map_or(0, <[u8]>::len);
            }
            _ => drop(scanner.value()?),
        }
        Ok(())
    }
}

impl<'a> ErrorSigns<'a> {
    /// Returns the error of an object: `has_choices` tells whether it has the member `choices`, and `has_choice` whether a
    /// choice is in it.
    fn error(&self, has_choices: bool, has_choice: bool, whole: &'a [u8]) -> Option<&'a [u8]> {
        let described = self.description.or(self.message);
        let is_error = self.is_named_error
            || !has_choices && self.description.is_some()
            || !has_choice && self.has_code && self.message.is_some();
        is_error.then(|| described.unwrap_or(whole))
    }
}

/// Returns the length of a JSON text without its quotation marks.
const fn text_length(value: &[u8]) -> usize {
    value.len().saturating_sub(2)
}

/// Returns true when an error says that there is none: it is empty, or all its members are empty,
/// or they say `success`. Values that are nested too deeply say something.
fn is_no_error(value: &[u8]) -> bool {
    says_nothing(&mut JsonScanner::new(value)).unwrap_or(false)
}

fn says_nothing(scanner: &mut JsonScanner<'_>) -> Result<bool, ScanError> {
    let mut is_nothing = true;
    match scanner.peek()? {
        b'{' => scanner.object(|_, scanner| {
            is_nothing &= says_nothing(scanner)?;
            Ok(())
        })?,
        b'[' => scanner.array(|scanner| {
            is_nothing &= says_nothing(scanner)?;
            Ok(())
        })?,
        _ => {
            const SUCCESS: [&[u8]; 5] =
                [b"\"success\"", b"\"ok\"", b"\"none\"", b"\"200\"", b"200"];
            let value = scanner.value()?;
            let is_success = SUCCESS.iter().any(|word| word.eq_ignore_ascii_case(value));
            is_nothing = is_success || is_empty_value(value);
        }
    }
    Ok(is_nothing)
}

/// Returns true for the status of a response that failed: a number that is no success, or a word such as `failed` or
/// `RESOURCE_EXHAUSTED`. Other words tell how a response goes on.
fn is_failing_status(value: &[u8]) -> bool {
    const PARTS: [&str; 22] = [
        "err",
        "fail",
        "abort",
        "cancel",
        "timeout",
        "timed",
        "exceed",
        "exhaust",
        "unavailable",
        "overload",
        "denied",
        "refused",
        "reject",
        "invalid",
        "unauth",
        "forbidden",
        "not_found",
        "notfound",
        "internal",
        "unknown",
        "unsupported",
        "exception",
    ];
    let text = String::from_utf8_lossy(value).to_ascii_lowercase();
    let word = text.trim_matches('"');
    match word.parse::<i64>() {
        Ok(code) => code != 0 && !(100..400).contains(&code),
        Err(_) => PARTS.iter().any(|part| word.contains(part)),
    }
}

/// Returns a value unless it says nothing.
fn filled(value: &[u8]) -> Option<&[u8]> {
    Some(value).filter(|value| !is_empty_value(value))
}

/// Reads a text. Returns true when it is not empty. A number counts as a text too.
fn read_has_text(scanner: &mut JsonScanner<'_>) -> Result<bool, ScanError> {
    if scanner.peek()? == b'"' {
        return Ok(!scanner.string()?.is_empty());
    }
    let value = scanner.value()?;
    Ok(!matches!(value, b"null" | b"false") && !matches!(value.first(), Some(b'{' | b'[')))
}

/// Reads a content: a text, or a list of parts.
fn read_content(scanner: &mut JsonScanner<'_>) -> Result<TokenKinds, ScanError> {
    let mut found = TokenKinds::default();
    match scanner.peek()? {
        b'[' => scanner.array(|scanner| {
            let part = read_part(scanner)?;
            found.content |= part.content;
            found.reasoning |= part.reasoning;
            Ok(())
        })?,
        b'{' => found = read_part(scanner)?,
        _ => found.content = read_has_text(scanner)?,
    }
    Ok(found)
}

/// Reads a part of a content, such as `{"type": "text", "text": "Hi"}`. A part of the type
/// `thinking` is reasoning.
fn read_part(scanner: &mut JsonScanner<'_>) -> Result<TokenKinds, ScanError> {
    if scanner.peek()? != b'{' {
        return Ok(TokenKinds { content: read_has_text(scanner)?, ..TokenKinds::default() });
    }
    let (mut has_content, mut is_reasoning) = (false, false);
    scanner.object(|name, scanner| {
        let value = scanner.value()?;
        if name == b"type" {
            is_reasoning |= matches!(value, b"\"thinking\"" | b"\"reasoning\"");
        } else {
            has_content |= value.len() > 2 && !is_empty_value(value);
        }
        Ok(())
    })?;
    Ok(TokenKinds {
        content: has_content && !is_reasoning,
        reasoning: has_content && is_reasoning,
        tool: false,
    })
}

/// Returns the name of the API whose events have this `type`.
fn api_of_type(value: &[u8]) -> Option<&'static str> {
    match value {
        b"\"message_start\""
        | b"\"content_block_start\""
        | b"\"content_block_delta\""
        | b"\"message_delta\""
        | b"\"message\"" => Some("the Anthropic messages API"),
        _ if value.starts_with(b"\"response.") => Some("the OpenAI Responses API"),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
