//! Which WebSocket message is the reply to the one that was sent. Pure.

use loadtest_core::resource::{MAX_REGEX_BYTES, Reply};
use memchr::memmem;
use regex::bytes::{Regex, RegexBuilder};
use serde_json::Value;
use serde_json_path::JsonPath;

use crate::{prepare::error::PrepareError, protocol::chat::lenient_json::parse_value};

/// Types of messages that servers send at any time, in lower case and without punctuation.
const PUSHED_TYPES: [&str; 12] = [
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
    "serverping",
    "beat",
];

/// Types of messages that servers send to all clients: at any time, or in reply to one that they repeat.
const SHARED_TYPES: [&str; 3] = ["broadcast", "notification", "notify"];

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
const HANDSHAKE_TYPES: [&str; 15] = [
    "hello",
    "hi",
    "hey",
    "greet",
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

/// Starts of the types of messages that ask for what the rest of the type names, such as `get_info`.
const ASKING_STARTS: [&str; 4] = ["get", "query", "fetch", "request"];

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
                RegexBuilder::new(text)
                    .size_limit(MAX_REGEX_BYTES)
                    .build()
                    .map_err(|error| invalid(format!("reply.regex: {error}")))?,
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

    /// Returns true when `message` is a reply to `sent`. `may_be_greeting` is true before the first reply of a session.
    pub(crate) fn is_reply(&self, message: &[u8], sent: &[u8], may_be_greeting: bool) -> bool {
        match self {
            Self::Next => !is_unasked(message, sent, may_be_greeting),
            Self::Contains(text) => memmem::find(message, text.as_bytes()).is_some(),
            Self::Regex(regex) => regex.is_match(message),
            Self::Json { path, equals } => {
                let text =
                    |node: &Value| node.as_str().map_or_else(|| node.to_string(), str::to_owned);
                let is_expected =
                    |node: &Value| equals.as_ref().is_none_or(|expected| text(node) == *expected);
                let mut values = message.split(|byte| is_separator(*byte)).filter_map(parse_value);
                values.any(|value| path.query(&value).iter().any(|node| is_expected(node)))
            }
        }
    }
}

/// Returns true for a message that servers send unasked: a heartbeat, a message to all clients, or a greeting at the start of
/// a session.
fn is_unasked(message: &[u8], sent: &[u8], may_be_greeting: bool) -> bool {
    // An echo is a reply, whatever it says.
    if message == sent {
        return false;
    }
    if is_notification(message, sent) {
        return true;
    }
    let Some(kind) = type_of(message) else { return false };
    let sent_kind = type_of(sent).unwrap_or_default();
    if PUSHED_TYPES.contains(&kind.as_str()) {
        return kind != sent_kind;
    }
    if SHARED_TYPES.contains(&kind.as_str()) {
        return kind != sent_kind && !repeats_content(message, sent);
    }
    let asks_for_it = |start: &&str| sent_kind.strip_prefix(*start) == Some(&*kind);
    let is_answer = kind == sent_kind
        || HANDSHAKE_TYPES.contains(&sent_kind.as_str())
        || ASKING_STARTS.iter().any(asks_for_it);
    may_be_greeting && GREETING_TYPES.contains(&kind.as_str()) && !is_answer
}

/// Returns true for a notification of JSON-RPC in place of a response: the call that was sent has an `id`, and the
/// message has a `method` and no `id`.
fn is_notification(message: &[u8], sent: &[u8]) -> bool {
    let members = |text: &[u8]| {
        let value = parse_value(text.trim_ascii()).filter(Value::is_object)?;
        let has = |name| value.get(name).is_some_and(|value: &Value| !value.is_null());
        Some((has("id"), has("method")))
    };
    memmem::find(message, b"\"method\"").is_some()
        && members(message) == Some((false, true))
        && members(sent) == Some((true, true))
}

/// Returns true if a message has a text of the one that was sent: the whole text, or a string of the JSON other than its
/// type.
fn repeats_content(message: &[u8], sent: &[u8]) -> bool {
    let has = |text: &str| text.len() > 1 && memmem::find(message, text.as_bytes()).is_some();
    match parse_value(sent.trim_ascii()) {
        Some(Value::Object(members)) => members.iter().any(|(name, value)| {
            !TYPE_MEMBERS.contains(&name.as_str()) && value.as_str().is_some_and(has)
        }),
        _ => std::str::from_utf8(sent).is_ok_and(has),
    }
}

/// Returns true for the bytes that end a message of `SignalR` and of STOMP.
const fn is_separator(byte: u8) -> bool {
    matches!(byte, 0x1e | 0)
}

/// Returns the type of a message in lower case and without punctuation: the value of a member such
/// as `type`, or a short text as a whole.
fn type_of(message: &[u8]) -> Option<String> {
    let mut text = message.trim_ascii();
    while let Some(shorter) = text.strip_suffix(b"\x1e").or_else(|| text.strip_suffix(b"\0")) {
        text = shorter.trim_ascii();
    }
    match text.first() {
        // An empty message, or a line end as of STOMP.
        None => Some("heartbeat".to_owned()),
        // The frames of SockJS, Engine.IO and Socket.IO: open, heartbeat, ping, connect.
        _ if text == b"o" => Some("open".to_owned()),
        _ if text == b"h" || text == b"2" => Some("ping".to_owned()),
        _ if text == b"40" => Some("connect".to_owned()),
        Some(b'0') if text.get(1) == Some(&b'{') => Some("open".to_owned()),
        Some(b'{') => type_of_object(&parse_value(text)?),
        // Phoenix and Bitfinex name the type in a list.
        Some(b'[') => {
            let value = parse_value(text)?;
            let mut names = value.as_array()?.iter().filter_map(Value::as_str).map(normalize);
            names.find(|name| PUSHED_TYPES.contains(&name.as_str()))
        }
        // Longer texts are content.
        _ if text.len() <= 24 => Some(normalize(std::str::from_utf8(text).ok()?)),
        _ => None,
    }
}

fn type_of_object(value: &Value) -> Option<String> {
    let named = TYPE_MEMBERS.iter().find_map(|name| value.get(*name)?.as_str()).map(normalize);
    let members = value.as_object()?;
    named.or_else(|| {
        // The ping of SignalR is {"type": 6}, others have {"ping": 1492420473027} or {"channel": "heartbeat"}.
        let only = members.iter().next().filter(|_| members.len() == 1);
        let channel = ["channel", "topic"].iter().find_map(|name| value.get(*name)?.as_str());
        match only {
            Some((name, value)) if name == "type" && *value == 6 => Some("ping".to_owned()),
            Some((name, value)) if !value.is_object() => Some(normalize(name)),
            _ => channel.map(normalize),
        }
    })
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
    fn notifications_of_json_rpc_are_no_responses() {
        let is_reply = |message: &str| {
            let call = br#"{"jsonrpc": "2.0", "id": 1, "method": "x"}"#;
            ReplyMatcher::Next.is_reply(message.as_bytes(), call, false)
        };
        assert!(!is_reply(r#"{"jsonrpc": "2.0", "method": "eth_subscription", "params": {}}"#));
        assert!(is_reply(r#"{"jsonrpc": "2.0", "id": 1, "error": {"code": 1}}"#));
    }

    #[test]
    fn a_condition_meets_each_message_of_signalr() {
        let message = b"{\"type\":6}\x1e{\"type\":3,\"invocationId\":\"0\"}\x1e";
        assert!(matcher("{jsonPath: $.type, equals: '3'}").is_reply(message, b"", true));
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
            "\n",
            "",
            "{\"type\":6}\u{1e}",
            r#"[null,null,"room:1","presence_diff",{}]"#,
            r#"[42,"hb"]"#,
            r#"{"ping": 1492420473027}"#,
            r#"{"channel": "heartbeat", "data": []}"#,
            r#"{"type": "notification", "text": "a new user"}"#,
        ] {
            assert!(!is_reply(message, r#"{"id": 1}"#, false), "{message}");
        }
        for message in [
            r#"{"type": "welcome"}"#,
            r#"{"type": "session.created"}"#,
            r#"0{"sid": "abc"}"#,
            "40",
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
            ("Hello", "Hi"),
            (r#"{"type": "info"}"#, r#"{"type": "get_info"}"#),
            (r#"{"type": "broadcast", "text": "42"}"#, r#"{"type": "message", "text": "42"}"#),
            (r#"{"jsonrpc": "2.0", "id": 1, "result": 2}"#, r#"{"id": 1, "method": "x"}"#),
        ] {
            assert!(is_reply(message, sent, true), "{message}");
        }
    }
}
