//! A task's connections, as the status shows them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The connections that a task's requests opened; the times are 95th percentiles.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ConnectionSummary {
    /// Connections opened.
    pub opened: i64,
    /// Those of them that took the place of one which the target, or a failure, had ended.
    pub reconnects: i64,
    /// From the name to its addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<String>,
    /// From the first packet to an open TCP connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<String>,
    /// The TLS handshake.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<String>,
    /// The WebSocket handshake.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<String>,
}
