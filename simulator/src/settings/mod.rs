//! Settings of the simulator: latencies, stalls, failures and limits of each endpoint.
//!
//! [`Settings::from_yaml`] and [`Settings::from_json`] use the defaults for missing fields and
//! check all values, so settings in force are always valid. This module knows no sockets.

mod error;
mod failure;
mod latency;
mod parse;
mod validate;

use loadtest_core::values::{Duration, Rate};
use serde::{Deserialize, Serialize};

pub use self::{
    error::SettingsError,
    failure::{Failure, Failures},
    latency::{Latency, LatencyError, Stall},
};

/// All settings. They can change while the simulator runs.
///
/// The default is a healthy Cell 0, which meets every row of its table of targets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Settings {
    /// The seed of all random choices. Each connection has its own random number generator, which
    /// is seeded with this value and the connection's number.
    pub seed: u64,
    /// The known model ids. Requests for another model get status 404.
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

/// Settings of chat completions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ChatSettings {
    /// Time from the request's arrival to its first content token.
    ///
    /// The event with the role, which precedes the first token, is sent after half of this time.
    /// A response that is not streamed is sent after this time plus one `tokenGap` per token.
    pub latency: Latency,
    /// Number of content tokens in a response, unless the request's `max_tokens` is smaller.
    pub tokens: u32,
    /// Time between two tokens of a stream.
    pub token_gap: Latency,
    /// Regular stalls, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stall: Option<Stall>,
    /// Injected errors.
    pub errors: Failures,
    /// Limits of the endpoint.
    #[serde(default)]
    pub limits: Limits,
}

/// Settings of a plain HTTP endpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpSettings {
    /// Time from the request's arrival to its response.
    pub latency: Latency,
    /// Regular stalls, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stall: Option<Stall>,
    /// Injected errors.
    pub errors: Failures,
    /// Limits of the endpoint.
    #[serde(default)]
    pub limits: Limits,
}

/// Settings of WebSocket sessions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WebSocketSettings {
    /// Time from the upgrade request to its response.
    pub connect_latency: Latency,
    /// Time from a message to its reply. A session handles its messages one after the other.
    pub latency: Latency,
    /// Regular stalls, if any. They delay upgrades and messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stall: Option<Stall>,
    /// Injected errors, at most one per session. `rejectUpgrade` replaces the upgrade; all other
    /// kinds replace the first reply.
    pub errors: Failures,
    /// Limits. A session counts from its upgrade request to its end.
    #[serde(default)]
    pub limits: Limits,
}

/// Limits of an endpoint. Requests above them get status 429.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Limits {
    /// Maximum number of requests in flight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_concurrent: Option<u32>,
    /// Maximum rate, enforced by a token bucket. The bucket holds the tokens of one second, and at
    /// least one token.
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
                token_gap: Latency::from_millis(10),
                stall: None,
                errors: Failures::never(Failure::Status(500)),
                limits: Limits::default(),
            },
            health: HttpSettings::with_latency_millis(5),
            models: HttpSettings::with_latency_millis(10),
            web_socket: WebSocketSettings {
                connect_latency: Latency::from_millis(5),
                latency: Latency::from_millis(5),
                stall: None,
                errors: Failures::never(Failure::CloseCode(1011)),
                limits: Limits::default(),
            },
        }
    }
}

impl Settings {
    /// Returns these settings with all latencies zero and without stalls, errors and limits.
    ///
    /// The simulator then responds as fast as possible.
    #[must_use]
    pub fn with_instant_responses(mut self) -> Self {
        let instant = HttpSettings::with_latency_millis(0);
        self.health = instant.clone();
        self.models = instant;
        let Self { chat: default_chat, web_socket: default_socket, .. } = Self::default();
        self.chat = ChatSettings {
            latency: Latency::from_millis(0),
            token_gap: Latency::from_millis(0),
            tokens: self.chat.tokens,
            ..default_chat
        };
        self.web_socket = WebSocketSettings {
            connect_latency: Latency::from_millis(0),
            latency: Latency::from_millis(0),
            ..default_socket
        };
        self
    }
}

impl HttpSettings {
    fn with_latency_millis(millis: u64) -> Self {
        Self {
            latency: Latency::from_millis(millis),
            stall: None,
            errors: Failures::never(Failure::Status(500)),
            limits: Limits::default(),
        }
    }
}
