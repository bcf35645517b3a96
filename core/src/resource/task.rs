//! What a user does: one task is one request, or one WebSocket session.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Check;
use crate::values::{Duration, schema_between};

/// One thing a user does, chosen by weight.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "(has(self.http) ? 1 : 0) + (has(self.chat) ? 1 : 0) + (has(self.webSocket) ? 1 : 0) == 1",
    "messageExpression": "'task \"' + self.name + '\" must have exactly one of http, chat and webSocket'",
}]))]
pub struct Task {
    /// The name in thresholds, metrics and the status.
    #[schemars(length(min = 1, max = 63), extend("x-kubernetes-validations" = [{
        "rule": "self.matches('^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$')",
        "messageExpression": "'\"' + self + '\" is not a task name: use letters, digits, and -, _ or . between them'",
    }]))]
    pub name: String,
    /// How often it is chosen, relative to the other tasks' weights; 0 is never.
    #[serde(default = "default_weight")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub weight: i64,
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

/// A task's one kind, with its settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TaskKind<'a> {
    /// An HTTP request.
    Http(&'a HttpTask),
    /// A chat completion.
    Chat(&'a ChatTask),
    /// A WebSocket session.
    WebSocket(&'a WebSocketTask),
}

impl Task {
    /// The one kind this task has; `None` when it has no kind or several.
    pub fn kind(&self) -> Option<TaskKind<'_>> {
        match (&self.http, &self.chat, &self.web_socket) {
            (Some(http), None, None) => Some(TaskKind::Http(http)),
            (None, Some(chat), None) => Some(TaskKind::Chat(chat)),
            (None, None, Some(web_socket)) => Some(TaskKind::WebSocket(web_socket)),
            _ => None,
        }
    }
}

fn default_weight() -> i64 {
    1
}

/// An HTTP method.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
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
    /// The method as it stands on the wire.
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

/// An HTTP request and what counts as success.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpTask {
    /// The method; GET when absent.
    #[serde(default)]
    pub method: Method,
    /// Path and query, from the base URL on.
    #[schemars(schema_with = "path")]
    pub path: String,
    /// Headers on top of the target's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "super::target::header_map")]
    pub headers: BTreeMap<String, String>,
    /// The body, sent as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65_536))]
    pub body: Option<String>,
    /// Statuses that count as success; any below 400 when absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(range(min = 100, max = 599)))]
    pub expect_status: Vec<i32>,
    /// What its answer must hold; read only after its last byte was timed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub checks: Vec<Check>,
    /// Redirects followed, within the target only; 0 takes a redirect for an answer as any other.
    #[serde(default)]
    #[schemars(range(min = 0, max = 20))]
    pub max_redirects: i32,
    /// The longest a request may take, from when it was planned.
    #[serde(default = "default_timeout")]
    #[schemars(schema_with = "timeout")]
    pub timeout: Duration,
}

/// An OpenAI-compatible chat completion.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChatTask {
    /// Path, from the base URL on.
    #[serde(default = "default_chat_path")]
    #[schemars(schema_with = "path")]
    pub path: String,
    /// Model ids, one drawn per request.
    #[schemars(length(min = 1, max = 32), inner(length(min = 1, max = 256)))]
    pub models: Vec<String>,
    /// User messages, one drawn per request.
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 16_384)))]
    pub messages: Vec<String>,
    /// Asks for a streamed answer, so that time to first response is its first content token.
    #[serde(default)]
    pub stream: bool,
    /// Asks a streamed answer's server to count its tokens (`stream_options.include_usage`); false
    /// for servers that refuse to be asked.
    #[serde(default = "default_true")]
    pub usage: bool,
    /// `max_tokens` of the request; the server's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_tokens: Option<i32>,
    /// Headers on top of the target's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "super::target::header_map")]
    pub headers: BTreeMap<String, String>,
    /// The longest a request may take until its last byte, from when it was planned.
    #[serde(default = "default_timeout")]
    #[schemars(schema_with = "timeout")]
    pub timeout: Duration,
}

/// A WebSocket session: connect, send, await replies, close.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WebSocketTask {
    /// Path and query, from the base URL on.
    #[serde(default = "default_web_socket_path")]
    #[schemars(schema_with = "path")]
    pub path: String,
    /// Text messages, sent one after the other.
    #[serde(default)]
    #[schemars(length(max = 64), inner(length(max = 16_384)))]
    pub send: Vec<String>,
    /// Replies to await after each message before the next one is sent.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1000))]
    pub replies: i32,
    /// How long a session lives: for one task, or for as long as its user runs.
    #[serde(default)]
    pub session: Session,
    /// Ends the session with a close handshake; otherwise the connection is dropped.
    #[serde(default = "default_true")]
    pub close: bool,
    /// Headers on top of the target's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "super::target::header_map")]
    pub headers: BTreeMap<String, String>,
    /// The longest a session may take, from when it was planned.
    #[serde(default = "default_timeout")]
    #[schemars(schema_with = "timeout")]
    pub timeout: Duration,
}

/// How long a WebSocket session lives.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum Session {
    /// For one task: each connects anew.
    #[default]
    PerTask,
    /// For as long as its user runs: a task goes on in the session that the one before it left,
    /// and connects anew only when that has ended.
    PerUser,
}

fn default_true() -> bool {
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

fn path(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "string",
        "maxLength": 4096,
        "x-kubernetes-validations": [{
            "rule": r"self.matches('^/[A-Za-z0-9._~:/?@!$&()*+,;=%|-]*$')",
            "messageExpression": "'\"' + self + '\" is not a path: start it with / and percent-encode what is not a letter, a digit or one of -._~:/?@!$&()*+,;=%|'",
        }],
    })
}

fn timeout(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schema_between("1ms", "1h")
}
