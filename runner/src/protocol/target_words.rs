//! What the target itself says about an error, short enough for a status and without credentials.

use std::{borrow::Cow, sync::LazyLock};

use regex::Regex;
use serde_json::Value;

use crate::protocol::chat::json_scanner;

/// Maximum length of a message in bytes.
const MAX_LENGTH: usize = 240;

/// Number of bytes of a body that are looked at for a message.
pub(crate) const MAX_ERROR_BODY: usize = 16 << 10;

/// Members of a JSON error that describe it, the best first.
const DESCRIPTIONS: [&str; 12] = [
    "message",
    "msg",
    "error_description",
    "detail",
    "description",
    "status_msg",
    "error_message",
    "error_msg",
    "error",
    "errors",
    "reason",
    "title",
];

/// Words before a value that must not be shown, such as `token: abc` or `Bearer abc`.
const SECRET_WORDS: [&str; 12] = [
    "authorization",
    "bearer",
    "basic",
    "token",
    "password",
    "passwd",
    "secret",
    "apikey",
    "api_key",
    "api-key",
    "session",
    "cookie",
];

/// Starts of values that are credentials of well-known services.
const SECRET_STARTS: [&str; 9] = ["sk-", "sk_", "pk_", "eyJ", "AKIA", "ghp_", "gho_", "xox", "hf_"];

/// Minimum length of a mix of letters and digits that is taken for a credential.
const MIN_SECRET: usize = 32;

/// Returns what a body says: the message of a JSON error, the title of an HTML page, or the first
/// line of another text. `None` for an empty body and for bytes that are no text.
pub(crate) fn describe_body(body: &[u8]) -> Option<String> {
    let body = body.trim_ascii();
    let text = match body.first()? {
        b'{' | b'[' | b'"' => describe_json(body),
        b'<' => describe_html(&String::from_utf8_lossy(body)),
        _ => first_line(&String::from_utf8_lossy(body)),
    };
    if text.chars().filter(|c| c.is_control() || *c == char::REPLACEMENT_CHARACTER).count() * 4
        > text.chars().count()
    {
        return None;
    }
    Some(shorten(&text)).filter(|text| !text.is_empty())
}

/// Returns a text on one line, cut to the maximum length, without credentials.
pub(crate) fn shorten(text: &str) -> String {
    let spaced = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let visible: String = spaced.chars().filter(|c| !c.is_control()).collect();
    // Cut first, roughly, so that a long text costs no more than a short one.
    loadtest_core::text::truncate(
        &hide_credentials(&hide_passwords(&loadtest_core::text::truncate(
            &visible,
            4 * MAX_LENGTH,
        ))),
        MAX_LENGTH,
    )
}

/// Adds what a body says to a message.
pub(crate) fn with_words(message: String, body: &[u8]) -> String {
    match describe_body(body) {
        Some(words) => format!("{message}: {words}"),
        None => message,
    }
}

/// Returns the description in a JSON error, or the JSON itself.
fn describe_json(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    match serde_json::from_str(&text) {
        Ok(value) => description(&value, 0).unwrap_or_else(|| text.into_owned()),
        Err(_) => text.into_owned(),
    }
}

/// Returns the text that describes an error, wherever it stands.
fn description(value: &Value, depth: u8) -> Option<String> {
    match value {
        _ if depth > 8 => None,
        Value::String(text) if text.is_empty() => None,
        // Some gateways put the JSON of the error behind them into a text.
        Value::String(text) => {
            let inner = text.trim();
            let parsed = inner.starts_with('{').then(|| serde_json::from_str(inner).ok()).flatten();
            parsed
                .and_then(|value: Value| description(&value, depth + 1))
                .or_else(|| Some(text.clone()))
        }
        Value::Array(items) => items.iter().find_map(|item| description(item, depth + 1)),
        Value::Object(members) => {
            let found = DESCRIPTIONS.iter().filter_map(|name| members.get(*name));
            found.filter(|value| !value.is_boolean()).find_map(|v| description(v, depth + 1))
        }
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// Returns the title of an HTML page, or its first text.
fn describe_html(page: &str) -> String {
    let lower = page.to_ascii_lowercase();
    for (open, close) in [("<title", "</title"), ("<h1", "</h1"), ("<body", "</body")] {
        let Some(start) = lower.find(open) else { continue };
        let Some(begin) = page[start..].find('>').map(|at| start + at + 1) else { continue };
        let end = lower[begin..].find(close).map_or(page.len(), |at| begin + at);
        let text = first_line(&without_tags(&page[begin..end]));
        if !text.is_empty() {
            return format!("HTML page {text:?}");
        }
    }
    let text = first_line(&without_tags(page));
    if text.is_empty() { "HTML page".to_owned() } else { format!("HTML page {text:?}") }
}

fn without_tags(html: &str) -> String {
    let mut in_tag = false;
    html.chars()
        .filter(|c| {
            in_tag |= *c == '<';
            let is_text = !in_tag;
            in_tag &= *c != '>';
            is_text
        })
        .collect()
}

fn first_line(text: &str) -> String {
    text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_owned()
}

/// Replaces the passwords in URLs such as `postgres://app:secret@db/app` by `***`.
fn hide_passwords(text: &str) -> Cow<'_, str> {
    // A constant that can't be parsed would fail every test of this module.
    static PASSWORD: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"(://[^\s/:@]*:)[^\s/@]+@").ok());
    PASSWORD.as_ref().map_or(Cow::Borrowed(text), |password| password.replace_all(text, "$1***@"))
}

/// Replaces credentials by `***`: values after a word such as `token`, values with a well-known
/// start, and long mixes of letters and digits.
fn hide_credentials(text: &str) -> Cow<'_, str> {
    let is_value = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '+' | '/' | '~');
    let (mut shown, mut rest, mut after_secret_word) = (String::new(), text, false);
    while let Some(first) = rest.chars().next() {
        let is_word = is_value(first);
        let end = rest.find(|c| is_value(c) != is_word).unwrap_or(rest.len());
        let (piece, later) = rest.split_at(end);
        rest = later;
        if !is_word {
            // `token: x`, `token=x` and `Bearer x` name a value; `token is invalid` does not.
            let joins = piece.trim().chars().all(|c| matches!(c, ':' | '=' | '"' | '\''));
            after_secret_word &= joins;
            shown.push_str(piece);
            continue;
        }
        let is_secret = looks_like_credential(piece)
            || after_secret_word && piece.len() >= 4 && piece.chars().any(|c| c.is_ascii_digit());
        shown.push_str(if is_secret { "***" } else { piece });
        let lower = piece.to_ascii_lowercase();
        after_secret_word = SECRET_WORDS.iter().any(|word| lower.ends_with(word));
    }
    if shown == text { Cow::Borrowed(text) } else { Cow::Owned(shown) }
}

fn looks_like_credential(word: &str) -> bool {
    let has_start = SECRET_STARTS.iter().any(|start| word.starts_with(start));
    let is_mix = word.chars().any(|c| c.is_ascii_digit())
        && word.chars().any(|c| c.is_ascii_alphabetic())
        && !word.contains("//");
    // A path or a host name is long too, but has separators.
    let longest = word.split(['.', '/', '-']).map(str::len).max().unwrap_or(0);
    has_start && word.len() >= 12 || is_mix && longest >= MIN_SECRET
}

/// Returns what a body is that should have been a stream of events.
pub(crate) fn describe_other_body(body: &[u8]) -> String {
    let body = body.trim_ascii();
    let words = describe_body(body).unwrap_or_else(|| "no text".to_owned());
    match body.first() {
        None => "an empty body".to_owned(),
        Some(b'{') => {
            let first_line = body.split(|b| *b == b'\n').next().unwrap_or_default();
            let has_lines = body.len() > first_line.len();
            if has_lines && json_scanner::is_complete(first_line) {
                format!("JSON lines (NDJSON): {words}")
            } else {
                format!("a JSON response without a stream: {words}")
            }
        }
        Some(b'[') => format!("a JSON list: {words}"),
        Some(b'<') => words,
        Some(_) => format!("text: {words}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_message_of_an_error_is_found_wherever_it_stands() {
        for body in [
            r#"{"error":{"message":"too long","type":"invalid_request_error","code":400}}"#,
            r#"{"error":"too long"}"#,
            r#"{"message":"too long"}"#,
            r#"{"detail":"too long"}"#,
            r#"{"detail":[{"loc":["body"],"msg":"too long"}]}"#,
            r#"{"errors":[{"title":"too long"}]}"#,
            r#"{"error":{"error":{"message":"too long"}}}"#,
            r#"{"error":{"message":"{\"error\":{\"message\":\"too long\"}}"}}"#,
            r#"{"error":true,"reason":"too long"}"#,
            r#"[{"error":{"code":3,"message":"too long"}}]"#,
            r#""too long""#,
            "\n  too long\nsecond line",
        ] {
            assert_eq!(describe_body(body.as_bytes()).as_deref(), Some("too long"), "{body}");
        }
    }

    #[test]
    fn other_bodies_are_shown_as_they_are() {
        let shown = |body: &str| describe_body(body.as_bytes());
        assert_eq!(shown(r#"{"ok":false}"#).unwrap(), r#"{"ok":false}"#);
        let page = "<html>\n<head><title>\n502 Bad Gateway</title></head><body>x</body>";
        assert_eq!(shown(page).unwrap(), "HTML page \"502 Bad Gateway\"");
        assert_eq!(shown("<p>Down <b>now</b></p>").unwrap(), "HTML page \"Down now\"");
        assert_eq!(shown("  "), None);
        assert_eq!(describe_body(&[0x1f, 0x8b, 8, 0, 0, 0]), None);
        assert!(shown(&"word ".repeat(500)).unwrap().len() <= MAX_LENGTH);
    }

    #[test]
    fn bodies_that_are_no_stream_are_named() {
        let named = |body: &str| describe_other_body(body.as_bytes());
        assert!(named("{\"a\":1}\n{\"a\":2}\n").starts_with("JSON lines (NDJSON)"));
        assert!(named("{\"a\":1}").starts_with("a JSON response"));
        assert!(named("<html><title>Login</title>").contains("HTML page \"Login\""));
        assert_eq!(named(""), "an empty body");
    }

    #[test]
    fn credentials_are_hidden() {
        for (text, shown) in [
            ("Incorrect API key provided: sk-proj-abc123def456", "Incorrect API key provided: ***"),
            ("invalid token: a1b2c3d4", "invalid token: ***"),
            ("bad header Authorization: Bearer abc12345", "bad header Authorization: Bearer ***"),
            ("got password=hunter22 for bob", "got password=*** for bob"),
            ("jwt eyJhbGciOiJIUzI1NiJ9.e30.abc expired", "jwt *** expired"),
            ("id 0123456789abcdef0123456789abcdef", "id ***"),
        ] {
            assert_eq!(hide_credentials(text), shown);
        }
        for text in [
            "This model's maximum context length is 8192 tokens",
            "Unsupported parameter: 'max_tokens' is not supported with this model.",
            "token limit exceeded: 4096",
            "no route to http://chat.default.svc.cluster.local:8080/v1/chat/completions",
            "model meta-llama/Meta-Llama-3.1-8B-Instruct-very-long-name-of-a-model not found",
            "request 550e8400-e29b-41d4-a716-446655440000 failed",
        ] {
            assert_eq!(hide_credentials(text), text);
        }
    }

    #[test]
    fn passwords_in_urls_are_hidden() {
        for (text, shown) in [
            ("no route to postgres://app:hunter2@db:5432/app", "postgres://app:***@db:5432/app"),
            ("redis://:hunter2@cache failed", "redis://:***@cache failed"),
            ("see http://db:80/a@b and http://db:80", "http://db:80/a@b and http://db:80"),
        ] {
            assert!(shorten(text).contains(shown), "{}", shorten(text));
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = describe_body(&bytes);
            let _ = describe_other_body(&bytes);
        }

        #[test]
        fn arbitrary_texts_never_panic(text in "[<>a-zäöü\"{}:= .,]{0,60}") {
            let _ = describe_body(text.as_bytes());
            let _ = hide_credentials(&text);
        }
    }
}
