//! What the simulator is told to do: how fast each endpoint answers, how it fails, what it refuses.
//!
//! Read with [`Settings::from_yaml`] and [`Settings::from_json`], which fill what is left out and
//! check the rest, so that settings in use are always valid. Knows no sockets.

mod failure;
mod latency;
mod read;

use loadtest_core::values::{Duration, Rate};
use serde::{Deserialize, Serialize};

pub use self::{
    failure::{Failure, Failures},
    latency::{Latency, LatencyError, Stall},
    read::SettingsError,
};

/// Everything that can be set while the simulator runs.
///
/// The default is a healthy Cell 0 that meets every row of its table of targets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Settings {
    /// What all random choices start from. Each connection draws from a generator of its own,
    /// seeded with this and the connection's number.
    pub seed: u64,
    /// The model ids that are known; any other one is answered 404.
    pub model_ids: Vec<String>,
    /// `POST /v1/chat/completions`.
    pub chat: ChatSettings,
    /// `GET /health`.
    pub health: HttpSettings,
    /// `GET /v1/models`.
    pub models: HttpSettings,
    /// The WebSocket port.
    pub web_socket: WebSocketSettings,
}

/// How chat completions are answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ChatSettings {
    /// From the request's arrival to its first content token. The role-only event that precedes
    /// the first token goes out after half of it. An answer that is not streamed goes out whole
    /// after this and one `tokenGap` per token.
    pub latency: Latency,
    /// Content tokens in an answer, unless the request's `max_tokens` is less.
    pub tokens: u32,
    /// Between two tokens of a stream.
    pub token_gap: Latency,
    /// When nothing is answered at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stall: Option<Stall>,
    /// Injected errors.
    pub errors: Failures,
    /// What is refused with 429.
    #[serde(default)]
    pub limits: Limits,
}

/// How a plain HTTP endpoint answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpSettings {
    /// From the request's arrival to its answer.
    pub latency: Latency,
    /// When nothing is answered at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stall: Option<Stall>,
    /// Injected errors.
    pub errors: Failures,
    /// What is refused with 429.
    #[serde(default)]
    pub limits: Limits,
}

/// How WebSocket sessions are answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WebSocketSettings {
    /// From the upgrade request to its answer.
    pub connect_latency: Latency,
    /// From a message to its reply. One session answers its messages one after the other.
    pub latency: Latency,
    /// When nothing is answered at all, neither upgrades nor messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stall: Option<Stall>,
    /// Injected errors, at most one a session. `rejectUpgrade` takes the upgrade's place, all
    /// others the place of the first reply.
    pub errors: Failures,
    /// What is refused with 429; a session counts from its upgrade request to its end.
    #[serde(default)]
    pub limits: Limits,
}

/// Where an endpoint starts to refuse with 429.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Limits {
    /// Requests in flight at one time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_concurrent: Option<u32>,
    /// Requests a second, as a token bucket that holds one second's worth (at least one).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rate: Option<Rate>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            seed: 0,
            model_ids: ["cell0-small", "cell0-medium", "cell0-large"].map(str::to_owned).to_vec(),
            chat: ChatSettings {
                latency: Latency::LogNormal {
                    median: Duration::from_millis(120),
                    sigma: 0.3,
                    max: Duration::from_millis(450),
                },
                tokens: 16,
                token_gap: Latency::millis(10),
                stall: None,
                errors: Failures::never(Failure::Status(500)),
                limits: Limits::default(),
            },
            health: HttpSettings::healthy(5),
            models: HttpSettings::healthy(10),
            web_socket: WebSocketSettings {
                connect_latency: Latency::millis(5),
                latency: Latency::millis(5),
                stall: None,
                errors: Failures::never(Failure::CloseCode(1011)),
                limits: Limits::default(),
            },
        }
    }
}

impl Settings {
    /// The same settings with every latency zero and no stall, error or limit: the fastest answers
    /// there are.
    #[must_use]
    pub fn instant(mut self) -> Self {
        let plain = HttpSettings::healthy(0);
        self.health = plain.clone();
        self.models = plain;
        let Self { chat: default_chat, web_socket: default_socket, .. } = Self::default();
        self.chat = ChatSettings {
            latency: Latency::millis(0),
            token_gap: Latency::millis(0),
            tokens: self.chat.tokens,
            ..default_chat
        };
        self.web_socket = WebSocketSettings {
            connect_latency: Latency::millis(0),
            latency: Latency::millis(0),
            ..default_socket
        };
        self
    }
}

impl HttpSettings {
    fn healthy(millis: u64) -> Self {
        Self {
            latency: Latency::millis(millis),
            stall: None,
            errors: Failures::never(Failure::Status(500)),
            limits: Limits::default(),
        }
    }
}
