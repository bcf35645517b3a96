//! What the target itself says about an error, short enough for a status and without credentials.

mod markup;
mod secrets;
mod text;

use serde_json::Value;

use self::markup::describe_markup;
pub(crate) use self::text::MAX_ERROR_BODY;
pub(crate) use self::{secrets::hide_secrets, text::decode_text};
use crate::protocol::chat::{json_scanner, lenient_json::parse_value};

/// Maximum length of a message in bytes.
const MAX_LENGTH: usize = 240;

/// Maximum length of a JSON error that is read as a whole.
const MAX_JSON_ERROR: usize = 256 << 10;

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

/// Returns what a body says: the message of a JSON error, the title of an HTML page, or the first
/// line of another text. `None` for an empty body and for bytes that are no text.
pub(crate) fn describe_body(body: &[u8]) -> Option<String> {
    // The work on a load thread has a limit. A JSON error is read as a whole unless it is very large.
    let is_large = body.len() > MAX_JSON_ERROR || body.first() == Some(&b'<');
    let limit = if is_large { MAX_ERROR_BODY } else { MAX_JSON_ERROR };
    let text = decode_text(&body[..body.len().min(limit)])?;
    let text = text.trim();
    let text = data_of_first_event(text).unwrap_or(text);
    let words = match text.as_bytes().first()? {
        b'{' | b'[' | b'"' => describe_json(text),
        b'<' => describe_markup(text),
        _ => describe_text(text).to_owned(),
    };
    Some(shorten(&words)).filter(|words| !words.is_empty())
}

/// Returns the data of the first event of an event stream. `None` for another text.
fn data_of_first_event(text: &str) -> Option<&str> {
    let is_event = ["event:", "data:", "id:", ":"].iter().any(|start| text.starts_with(start));
    let data = text.lines().find_map(|line| line.strip_prefix("data:"));
    data.filter(|_| is_event).map(str::trim).filter(|data| !data.is_empty())
}

/// Returns a text on one line, cut to the maximum length, without credentials.
pub(crate) fn shorten(text: &str) -> String {
    let spaced = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let visible: String = spaced.chars().filter(|c| !c.is_control()).collect();
    // Cut first, roughly, so that a long text costs no more than a short one.
    loadtest_core::text::truncate(
        &hide_secrets(&loadtest_core::text::truncate(&visible, 4 * MAX_LENGTH)),
        MAX_LENGTH,
    )
}

const LOCATION: &str = "location";

/// Headers that explain a status from 300 on.
pub(crate) const STATUS_HEADERS: [&str; 3] = [LOCATION, "www-authenticate", "retry-after"];

/// Returns a status as `status 302 (location: /login)`.
pub(crate) fn describe_status(status: u16, headers: &[(String, Vec<u8>)]) -> String {
    let is_shown = |name: &str| match status {
        300..400 => name == LOCATION,
        400.. => name != LOCATION && STATUS_HEADERS.contains(&name),
        _ => false,
    };
    let shown = headers.iter().filter(|(name, _)| is_shown(name)).map(|(name, value)| {
        let value = String::from_utf8_lossy(value);
        // The query is left out because it may hold a credential.
        let is_url = name == LOCATION;
        let end = value.find(['?', '#']).filter(|_| is_url).unwrap_or(value.len());
        format!("{name}: {}", shorten(value.get(..end).unwrap_or_default()))
    });
    let shown: Vec<String> = shown.collect();
    match shown.as_slice() {
        [] => format!("status {status}"),
        shown => format!("status {status} ({})", shown.join(", ")),
    }
}

/// Adds what a body says to a message.
pub(crate) fn with_words(message: String, body: &[u8]) -> String {
    match describe_body(body) {
        Some(words) => format!("{message}: {words}"),
        None => message,
    }
}

/// Returns the description in a JSON error, or the JSON itself.
fn describe_json(text: &str) -> String {
    let value = parse_value(text.as_bytes());
    value.and_then(|value| description(&value, 0)).unwrap_or_else(|| text.to_owned())
}

/// Returns the text that describes an error, wherever it stands.
fn description(value: &Value, depth: u8) -> Option<String> {
    match value {
        _ if depth > 8 => None,
        Value::String(text) if text.is_empty() => None,
        // Some gateways put the JSON of the error behind them into a text.
        Value::String(text) => {
            let inner = text.trim();
            let parsed = inner.starts_with('{').then(|| parse_value(inner.as_bytes())).flatten();
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

/// Returns the line of a text that says the most: the first one or, of a Python traceback, the last
/// one.
fn describe_text(text: &str) -> &str {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default();
    if first.starts_with("Traceback (most recent call last)") {
        return lines.next_back().unwrap_or(first);
    }
    first
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
    fn headers_explain_a_status() {
        let headers = [
            ("location", "/login?next=x"),
            ("www-authenticate", "Bearer error=\"invalid_token\""),
            ("retry-after", "30"),
        ];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()));
        assert_eq!(describe_status(200, &headers), "status 200");
        assert_eq!(describe_status(302, &headers), "status 302 (location: /login)");
        let text = "status 401 (www-authenticate: Bearer error=\"invalid_token\", retry-after: 30)";
        assert_eq!(describe_status(401, &headers), text);
        assert_eq!(describe_status(500, &headers[..1]), "status 500");
    }

    #[test]
    fn bodies_that_are_no_stream_are_named() {
        let named = |body: &str| describe_other_body(body.as_bytes());
        assert!(named("{\"a\":1}\n{\"a\":2}\n").starts_with("JSON lines (NDJSON)"));
        assert!(named("{\"a\":1}").starts_with("a JSON response"));
        assert!(named("<html><title>Login</title>").contains("HTML page \"Login\""));
        assert_eq!(named(""), "an empty body");
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
        }
    }
}
