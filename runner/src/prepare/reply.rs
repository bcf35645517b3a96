//! Which WebSocket message is the reply to the one that was sent. Pure.

use loadtest_core::resource::Reply;
use memchr::memmem;
use regex::bytes::Regex;
use serde_json::Value;
use serde_json_path::JsonPath;

use crate::{prepare::error::PrepareError, protocol::chat::lenient_json::parse_value};

/// Types of messages that servers send at any time, in lower case and without punctuation.
const PUSHED_TYPES: [&str; 15] = [
    "ping",
    "heartbeat",
    "heartbeats",
    "keepalive",
    "hb",
    "ka",
    "tick",
    "presence",
    "presencestate",
    "presencediff",
    "broadcast",
    "notification",
    "notify",
    "serverping",
    "beat",
];

/// Types of messages that servers send at the start of a session.
const GREETING_TYPES: [&str; 16] = [
    "welcome",
    "hello",
    "connected",
    "connect",
    "connectionestablished",
    "connection",
    "ready",
    "open",
    "opened",
    "greeting",
    "greetings",
    "sessioncreated",
    "sessionstarted",
    "session",
    "info",
    "init",
];

/// Types of messages to which a greeting is the reply.
const HANDSHAKE_TYPES: [&str; 12] = [
    "hello",
    "connect",
    "connectioninit",
    "init",
    "auth",
    "authenticate",
    "login",
    "join",
    "subscribe",
    "open",
    "identify",
    "start",
];

/// Members that hold the type of a JSON message.
const TYPE_MEMBERS: [&str; 8] = ["type", "event", "op", "action", "kind", "cmd", "method", "msg"];

/// The condition that a message must meet to end a round trip.
#[derive(Clone, Debug)]
pub(crate) enum ReplyMatcher {
    /// The next message, except for those that servers send unasked.
    Next,
    Contains(String),
    Regex(Regex),
    Json {
        path: JsonPath,
        equals: Option<String>,
    },
}

impl ReplyMatcher {
    /// Prepares the condition of a task.
    ///
    /// # Errors
    /// When the path or the expression can't be parsed.
    pub(crate) fn new(reply: Option<&Reply>) -> Result<Self, PrepareError> {
        let Some(reply) = reply else { return Ok(Self::Next) };
        let invalid = |problem: String| PrepareError::Reply { problem };
        Ok(match (&reply.contains, &reply.regex, &reply.json_path) {
            (Some(text), None, None) => Self::Contains(text.clone()),
            (None, Some(text), None) => Self::Regex(
                Regex::new(text).map_err(|error| invalid(format!("reply.regex: {error}")))?,
            ),
            (None, None, Some(path)) => Self::Json {
                path: JsonPath::parse(path)
                    .map_err(|error| invalid(format!("reply.jsonPath: {error}")))?,
                equals: reply.equals.clone(),
            },
            _ => {
                let problem = "reply: give one of contains, regex and jsonPath";
                return Err(invalid(problem.to_owned()));
            }
        })
    }

    /// Returns true when `message` is a reply to `sent`. `is_first` is true before the first reply
    /// of a session.
    pub(crate) fn is_reply(&self, message: &[u8], sent: &[u8], is_first: bool) -> bool {
        match self {
            Self::Next => !is_unasked(message, sent, is_first),
            Self::Contains(text) => memmem::find(message, text.as_bytes()).is_some(),
            Self::Regex(regex) => regex.is_match(message),
            Self::Json { path, equals } => {
                let Some(value) = parse_value(message) else { return false };
                let text =
                    |node: &Value| node.as_str().map_or_else(|| node.to_string(), str::to_owned);
                let is_expected =
                    |node: &Value| equals.as_ref().is_none_or(|expected| text(node) == *expected);
                path.query(&value).iter().any(|node| is_expected(node))
            }
        }
    }
}

/// Returns true for a message that servers send unasked: a heartbeat, or a greeting at the start of
/// a session.
fn is_unasked(message: &[u8], sent: &[u8], is_first: bool) -> bool {
    // An echo is a reply, whatever it says.
    if message == sent {
        return false;
    }
    let Some(kind) = type_of(message) else { return false };
    let sent_kind = type_of(sent).unwrap_or_default();
    if PUSHED_TYPES.contains(&kind.as_str()) {
        return kind != sent_kind;
    }
    is_first
        && GREETING_TYPES.contains(&kind.as_str())
        && !HANDSHAKE_TYPES.contains(&sent_kind.as_str())
        && kind != sent_kind
}

/// Returns the type of a message in lower case and without punctuation: the value of a member such
/// as `type`, or a short text as a whole.
fn type_of(message: &[u8]) -> Option<String> {
    let text = message.trim_ascii();
    match text.first()? {
        // The frames of SockJS and Engine.IO: open, heartbeat, ping.
        _ if text == b"o" => Some("open".to_owned()),
        _ if text == b"h" || text == b"2" => Some("ping".to_owned()),
        b'0' if text.get(1) == Some(&b'{') => Some("open".to_owned()),
        b'{' => {
            let value = parse_value(text)?;
            TYPE_MEMBERS.iter().find_map(|name| value.get(*name)?.as_str()).map(normalize)
        }
        // Longer texts are content.
        _ if text.len() <= 24 => Some(normalize(std::str::from_utf8(text).ok()?)),
        _ => None,
    }
}

fn normalize(text: &str) -> String {
    text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matcher(yaml: &str) -> ReplyMatcher {
        ReplyMatcher::new(Some(&serde_saphyr::from_str(yaml).unwrap())).unwrap()
    }

    #[test]
    fn conditions_name_the_reply() {
        let message = br#"{"id": 7, "type": "done", "data": {"ok": true}}"#;
        for (yaml, expected) in [
            ("{contains: done}", true),
            ("{contains: gone}", false),
            ("{regex: '\"id\": [0-9]+'}", true),
            ("{regex: '^id'}", false),
            ("{jsonPath: $.id}", true),
            ("{jsonPath: $.id, equals: '7'}", true),
            ("{jsonPath: $.type, equals: done}", true),
            ("{jsonPath: $.type, equals: gone}", false),
            ("{jsonPath: $.data.ok, equals: 'true'}", true),
            ("{jsonPath: $.missing}", false),
        ] {
            assert_eq!(matcher(yaml).is_reply(message, b"", true), expected, "{yaml}");
        }
        assert!(!matcher("{jsonPath: $.id}").is_reply(b"no json", b"", true));
        for yaml in ["{}", "{regex: '('}", "{jsonPath: '$.['}"] {
            assert!(ReplyMatcher::new(Some(&serde_saphyr::from_str(yaml).unwrap())).is_err());
        }
    }

    #[test]
    fn greetings_and_heartbeats_are_no_replies() {
        let is_reply = |message: &str, sent: &str, is_first| {
            ReplyMatcher::Next.is_reply(message.as_bytes(), sent.as_bytes(), is_first)
        };
        for message in [
            r#"{"type": "ping", "message": 1700000000}"#,
            r#"{"event": "heartbeat"}"#,
            r#"{"type": "keep-alive"}"#,
            r#"{"type": "presence_state", "payload": {}}"#,
            "ping",
            "h",
        ] {
            assert!(!is_reply(message, r#"{"id": 1}"#, false), "{message}");
        }
        for message in [
            r#"{"type": "welcome"}"#,
            r#"{"type": "session.created"}"#,
            r#"0{"sid": "abc"}"#,
            "Hello!",
        ] {
            assert!(!is_reply(message, r#"{"id": 1}"#, true), "{message}");
            assert!(is_reply(message, r#"{"id": 1}"#, false), "{message}");
        }
        for (message, sent) in [
            (r#"{"type": "pong"}"#, r#"{"type": "ping"}"#),
            (r#"{"type": "ping"}"#, r#"{"type": "ping"}"#),
            (r#"{"type": "connection_ack"}"#, r#"{"type": "connection_init"}"#),
            (r#"{"type": "welcome"}"#, r#"{"type": "hello"}"#),
            (r#"{"type": "reply"}"#, r#"{"id": 1}"#),
            (r#"{"id": 1}"#, r#"{"id": 1}"#),
            ("any text", "hi"),
        ] {
            assert!(is_reply(message, sent, true), "{message}");
        }
    }
}
