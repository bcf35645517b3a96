//! The tasks of a scenario: one task is one request or one use of a WebSocket.
//!
//! [`crate::plan::Task`] is the validated form.

use std::{collections::BTreeMap, num::NonZeroU32};

use serde::{Deserialize, Serialize};

use super::Check;
use crate::values::Duration;

/// One thing that a user does, picked by weight.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "crd", schemars(extend("x-kubernetes-validations" = [{
    "rule": "(has(self.http) ? 1 : 0) + (has(self.chat) ? 1 : 0) + (has(self.webSocket) ? 1 : 0) == 1",
    "messageExpression": "'task \"' + self.name + '\" must have exactly one of http, chat and webSocket'",
}])))]
pub struct Task {
    /// The name of the task in thresholds, metrics and the status.
    #[cfg_attr(feature = "crd", schemars(length(min = 1, max = 63), extend("x-kubernetes-validations" = [{
        "rule": "self.matches('^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$')",
        "messageExpression": "'\"' + self + '\" is not a task name: use letters, digits, and -, _ or . between them'",
    }])))]
    pub name: String,
    /// How often the task is picked, relative to the weights of the other tasks; 0 is never.
    #[serde(default = "default_weight")]
    #[cfg_attr(feature = "crd", schemars(range(min = 0, max = 1_000_000)))]
    pub weight: u32,
    /// An HTTP request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpTask>,
    /// An OpenAI-compatible chat completion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat: Option<ChatTask>,
    /// A WebSocket session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub web_socket: Option<WebSocketTask>,
}

impl Task {
    /// The headers of the task's requests.
    pub fn headers(&self) -> Option<&BTreeMap<String, String>> {
        let http = self.http.as_ref().map(|task| &task.headers);
        let chat = self.chat.as_ref().map(|task| &task.headers);
        http.or(chat).or(self.web_socket.as_ref().map(|task| &task.headers))
    }

    /// Borrows the headers of the task's requests to change them.
    pub fn headers_mut(&mut self) -> Option<&mut BTreeMap<String, String>> {
        let http = self.http.as_mut().map(|task| &mut task.headers);
        let chat = self.chat.as_mut().map(|task| &mut task.headers);
        http.or(chat).or(self.web_socket.as_mut().map(|task| &mut task.headers))
    }
}

const fn default_weight() -> u32 {
    1
}

/// An HTTP method.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "UPPERCASE")]
pub enum Method {
    /// GET
    #[default]
    Get,
    /// HEAD
    Head,
    /// POST
    Post,
    /// PUT
    Put,
    /// PATCH
    Patch,
    /// DELETE
    Delete,
    /// OPTIONS
    Options,
}

impl Method {
    /// The method's name in HTTP.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
            Self::Options => "OPTIONS",
        }
    }
}

/// An HTTP request, and which responses are successes.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct HttpTask {
    /// The method. Default: GET.
    #[serde(default)]
    pub method: Method,
    /// Path and query, appended to the base URL.
    #[cfg_attr(feature = "crd", schemars(schema_with = "path"))]
    pub path: String,
    /// Headers in addition to those of the target.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[cfg_attr(feature = "crd", schemars(schema_with = "super::target::header_map"))]
    pub headers: BTreeMap<String, String>,
    /// The body, sent unchanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(length(max = 65_536)))]
    pub body: Option<String>,
    /// Statuses that are successes. Default: any status below 400.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "crd", schemars(length(max = 32), inner(range(min = 100, max = 599))))]
    pub expect_status: Vec<u16>,
    /// Checks of the response. They run after the last byte was timed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "crd", schemars(length(max = 16)))]
    pub checks: Vec<Check>,
    /// Maximum of redirects to follow, within the target only. With 0, a redirect is a response
    /// like any other.
    #[serde(default)]
    #[cfg_attr(feature = "crd", schemars(range(min = 0, max = 20)))]
    pub max_redirects: u32,
    /// Maximum time of a request, from its planned start to its last byte.
    #[serde(default = "default_timeout")]
    #[cfg_attr(feature = "crd", schemars(schema_with = "timeout"))]
    pub timeout: Duration,
}

/// An OpenAI-compatible chat completion.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ChatTask {
    /// Path, appended to the base URL.
    #[serde(default = "default_chat_path")]
    #[cfg_attr(feature = "crd", schemars(schema_with = "path"))]
    pub path: String,
    /// Model ids. Each request picks one at random.
    #[cfg_attr(
        feature = "crd",
        schemars(length(min = 1, max = 32), inner(length(min = 1, max = 256)))
    )]
    pub models: Vec<String>,
    /// User messages. Each request picks one at random.
    #[cfg_attr(
        feature = "crd",
        schemars(length(min = 1, max = 64), inner(length(min = 1, max = 16_384)))
    )]
    pub messages: Vec<String>,
    /// Asks for a streamed response, so that timeToFirstResponse ends at the first content token.
    #[serde(default)]
    pub stream: bool,
    /// Asks the server to count the tokens of a streamed response
    /// (`stream_options.include_usage`). Set false for servers that refuse this option.
    #[serde(default = "default_true")]
    pub usage: bool,
    /// `max_tokens` of the request. Default: that of the server. Newer models take
    /// `maxCompletionTokens` instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(range(min = 1, max = 1_000_000)))]
    pub max_tokens: Option<NonZeroU32>,
    /// `max_completion_tokens` of the request. Default: that of the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(range(min = 1, max = 1_000_000)))]
    pub max_completion_tokens: Option<NonZeroU32>,
    /// Further fields of the request's JSON body, such as `temperature: 0` or `ignore_eos: true`.
    /// They replace fields of the same name; null removes one.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    #[cfg_attr(feature = "crd", schemars(schema_with = "any_object"))]
    pub body: serde_json::Map<String, serde_json::Value>,
    /// Headers in addition to those of the target.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[cfg_attr(feature = "crd", schemars(schema_with = "super::target::header_map"))]
    pub headers: BTreeMap<String, String>,
    /// Maximum time of a request, from its planned start to its last byte.
    #[serde(default = "default_timeout")]
    #[cfg_attr(feature = "crd", schemars(schema_with = "timeout"))]
    pub timeout: Duration,
}

/// Uses a WebSocket session: connects, sends messages, awaits replies, closes.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "crd", schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "!has(self.reply) || self.replies > 0",
        "message": "reply has no effect while replies is 0: set replies to 1 or more, or remove reply",
    },
    {
        "rule": "!has(self.pingInterval) || self.session == 'PerUser'",
        "message": "pingInterval has an effect only with session: PerUser, because pings are sent between tasks: set session to PerUser, or remove pingInterval",
    },
])))]
pub struct WebSocketTask {
    /// Path and query, appended to the base URL.
    #[serde(default = "default_web_socket_path")]
    #[cfg_attr(feature = "crd", schemars(schema_with = "path"))]
    pub path: String,
    /// Text messages, sent one after the other.
    #[serde(default)]
    #[cfg_attr(feature = "crd", schemars(length(max = 64), inner(length(max = 16_384))))]
    pub send: Vec<String>,
    /// How messages are sent: as text, or as binary messages that `send` holds in base64.
    #[serde(default)]
    pub format: MessageFormat,
    /// Number of replies to await after each message before the next one is sent.
    #[serde(default)]
    #[cfg_attr(feature = "crd", schemars(range(min = 0, max = 1000)))]
    pub replies: u32,
    /// Which messages of the target are replies. Default: every message after the one that was sent,
    /// except for greetings and heartbeats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<Reply>,
    /// Offers to compress messages (permessage-deflate). Messages of the target may then be
    /// compressed; those of the user are not.
    #[serde(default)]
    pub compression: bool,
    /// Sends a ping at this interval while a session waits for its user's next task. Default: no
    /// pings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(schema_with = "ping_interval"))]
    pub ping_interval: Option<Duration>,
    /// How long a session lives: for one task, or as long as its user runs.
    #[serde(default)]
    pub session: Session,
    /// Ends the session with a close handshake. With false, the connection is dropped.
    #[serde(default = "default_true")]
    pub close: bool,
    /// Headers in addition to those of the target.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[cfg_attr(feature = "crd", schemars(schema_with = "super::target::header_map"))]
    pub headers: BTreeMap<String, String>,
    /// Maximum time of the task, from its planned start.
    #[serde(default = "default_timeout")]
    #[cfg_attr(feature = "crd", schemars(schema_with = "timeout"))]
    pub timeout: Duration,
}

/// How WebSocket messages are sent.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum MessageFormat {
    /// As text messages.
    #[default]
    Text,
    /// As binary messages.
    Base64,
}

/// Maximum memory of the compiled expression of [`Reply::regex`], in bytes. The author of a spec may be hostile.
pub const MAX_REGEX_BYTES: usize = 1 << 20;

/// The condition that a WebSocket message must meet to be a reply. Other messages are counted, and
/// end no round trip.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "crd", schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "(has(self.contains) ? 1 : 0) + (has(self.regex) ? 1 : 0) + (has(self.jsonPath) ? 1 : 0) == 1",
        "message": "a reply has exactly one of contains, regex and jsonPath",
    },
    {
        "rule": "!has(self.equals) || has(self.jsonPath)",
        "message": "equals compares the value that jsonPath finds: give jsonPath too, or use contains",
    },
])))]
pub struct Reply {
    /// Text that the message must contain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(length(min = 1, max = 1024)))]
    pub contains: Option<String>,
    /// Regular expression that must match a part of the message (syntax of the Rust crate `regex`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(length(min = 1, max = 1024)))]
    pub regex: Option<String>,
    /// A `JSONPath` (RFC 9535), such as `$.id`, that must find a value in the message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(length(min = 1, max = 512), extend("x-kubernetes-validations" = [{
        "rule": "self.startsWith('$')",
        "messageExpression": "'\"' + self + '\" is not a JSONPath: start it with $, as in $.id'",
    }])))]
    pub json_path: Option<String>,
    /// The expected value of one value that the path finds. A JSON text is compared without its
    /// quotes, any other value in its JSON form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(length(max = 1024)))]
    pub equals: Option<String>,
}

/// How long a WebSocket session lives.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum Session {
    /// For one task: each task opens a new connection.
    #[default]
    PerTask,
    /// As long as its user runs: a task continues in the session of the user's previous task, and
    /// opens a new connection only after that session has ended.
    PerUser,
}

const fn default_true() -> bool {
    true
}

fn default_chat_path() -> String {
    "/v1/chat/completions".to_owned()
}

fn default_web_socket_path() -> String {
    "/".to_owned()
}

fn default_timeout() -> Duration {
    Duration::from_secs(60)
}

#[cfg(feature = "crd")]
fn path(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "string",
        "maxLength": 4096,
        "x-kubernetes-validations": [{
            "rule": r"self.matches('^/[A-Za-z0-9._~:/?@!$&()*+,;=%|-]*$')",
            "messageExpression": "'\"' + self + '\" is not a path: start it with / and percent-encode everything but letters, digits and -._~:/?@!$&()*+,;=%|'",
        }],
    })
}

#[cfg(feature = "crd")]
fn ping_interval(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    crate::values::schema_between("100ms", "1h")
}

#[cfg(feature = "crd")]
fn any_object(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": true,
    })
}

#[cfg(feature = "crd")]
fn timeout(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    crate::values::schema_between("1ms", "1h")
}
