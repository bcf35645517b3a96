//! The target of a spec: base URLs, headers of all requests, TLS, connections.

use std::{collections::BTreeMap, num::NonZeroU32};

use serde::{Deserialize, Serialize};

use crate::values::Duration;

/// The system under test: its base URLs, and settings of all requests to it.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// Base URL of http and chat tasks, such as `http://cell0:18800`. Tasks add paths.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(length(max = 2048), extend("x-kubernetes-validations" = [
        {
            "rule": "self.matches('^https?://.')",
            "messageExpression": "'\"' + self + '\" must start with http:// or https://, as in http://cell0:18800'",
        },
        {
            "rule": r"!self.matches('^[a-z]+://') || self.matches('^[a-z]+://([A-Za-z0-9._~-]+|\\[[0-9A-Fa-f:.]+\\])(:[0-9]{1,5})?(/[A-Za-z0-9._~:@!$&()*+,;=%/-]*)?$')",
            "message": "must be a base URL of host, port and path, without credentials, query or fragment, as in http://cell0:18800; give credentials in target.headersFrom",
        },
    ])))]
    pub http: Option<String>,
    /// Base URL of webSocket tasks, such as `ws://cell0:18801`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(length(max = 2048), extend("x-kubernetes-validations" = [
        {
            "rule": "self.matches('^wss?://.')",
            "messageExpression": "'\"' + self + '\" must start with ws:// or wss://, as in ws://cell0:18801'",
        },
        {
            "rule": r"!self.matches('^[a-z]+://') || self.matches('^[a-z]+://([A-Za-z0-9._~-]+|\\[[0-9A-Fa-f:.]+\\])(:[0-9]{1,5})?(/[A-Za-z0-9._~:@!$&()*+,;=%/-]*)?$')",
            "message": "must be a base URL of host, port and path, without credentials, query or fragment, as in ws://cell0:18801; give credentials in target.headersFrom",
        },
    ])))]
    pub web_socket: Option<String>,
    /// Headers of every request. Tasks can add their own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[cfg_attr(feature = "crd", schemars(schema_with = "super::target::header_map"))]
    pub headers: BTreeMap<String, String>,
    /// Headers of every request with values from Secrets in the test's namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "crd", schemars(length(max = 16)))]
    pub headers_from: Vec<HeaderFrom>,
    /// How the target's certificate is verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// HTTP version of http and chat tasks.
    #[serde(default)]
    pub http_version: HttpVersion,
    /// How http and chat tasks reuse connections: `PerUser` (each user has its own, like a browser),
    /// `Shared` (a pool of each load thread) or `PerRequest`.
    #[serde(default)]
    pub connections: ConnectionReuse,
    /// How many connections there are, and how long they live.
    #[serde(default)]
    pub connection_limits: ConnectionLimits,
    /// Asks for responses that are compressed with gzip.
    #[serde(default)]
    pub gzip: bool,
    /// Timeouts of the parts of a request. The timeout of the task limits the whole.
    #[serde(default)]
    pub timeouts: Timeouts,
}

/// What a runner does before it reports that it is ready for load.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum Preflight {
    /// Opens one connection to each base URL that tasks use, and sends no request.
    #[default]
    Connect,
    /// Nothing.
    Skip,
}

/// A version of HTTP.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "UPPERCASE")]
pub enum HttpVersion {
    /// HTTP/1.1: one request at a time on a connection.
    #[default]
    Http1,
    /// HTTP/2: requests that share a connection are multiplexed. Negotiated by ALPN with TLS, and
    /// by prior knowledge without TLS.
    Http2,
}

/// How requests reuse connections.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum ConnectionReuse {
    /// Each user keeps its own connections between its requests, like a browser.
    #[default]
    PerUser,
    /// The users of a load thread share a connection pool, like the clients in a service: HTTP/1.1
    /// takes any idle connection, HTTP/2 has one connection for all.
    Shared,
    /// Each request opens a new connection.
    PerRequest,
}

/// How many connections there are, and how long they live.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ConnectionLimits {
    /// Maximum age of a connection of http and chat tasks. An older one is replaced before the next
    /// request, so that pods which an autoscaler adds get load. Ages differ by up to 10 %. Default:
    /// no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(schema_with = "connection_age"))]
    pub max_age: Option<Duration>,
    /// Number of HTTP/2 connections that the users of a load thread share with `connections:
    /// Shared`.
    #[serde(default = "one_connection")]
    #[cfg_attr(feature = "crd", schemars(range(min = 1, max = 64)))]
    pub per_thread: NonZeroU32,
}

const fn one_connection() -> NonZeroU32 {
    NonZeroU32::MIN
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self { max_age: None, per_thread: one_connection() }
    }
}

#[cfg(feature = "crd")]
fn connection_age(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    crate::values::schema_between("100ms", "24h")
}

/// Timeouts of the parts of a request.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Timeouts {
    /// Maximum time to open a connection: DNS, TCP and TLS, and the upgrade of a WebSocket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(schema_with = "part_length"))]
    pub connect: Option<Duration>,
    /// Maximum time from the sending of a request to the first byte of its response. For a
    /// WebSocket: from the sending of a message to its last awaited reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(schema_with = "part_length"))]
    pub first_byte: Option<Duration>,
}

#[cfg(feature = "crd")]
fn part_length(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    crate::values::schema_between("1ms", "1h")
}

/// A header with a value from a Secret.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct HeaderFrom {
    /// The header's name, such as `authorization`.
    #[cfg_attr(feature = "crd", schemars(length(min = 1, max = 128), extend("x-kubernetes-validations" = [{
        "rule": "self.matches('^[A-Za-z0-9!#$%&*+.^_|~-]+$')",
        "messageExpression": "'\"' + self + '\" is not a header name'",
    }, {
        "rule": "!self.lowerAscii().startsWith('x-loadtest-') && !(self.lowerAscii() in ['connection', 'content-length', 'transfer-encoding', 'upgrade'])",
        "messageExpression": "'\"' + self + '\" is reserved: the runner sets connection, content-length, transfer-encoding, upgrade and x-loadtest-*; choose another name'",
    }])))]
    pub header: String,
    /// The Secret's name and key. The kubelet puts the value into the runner's environment.
    pub secret_key_ref: SecretKey,
}

/// A key of a Secret in the test's namespace.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct SecretKey {
    /// The Secret's name.
    #[cfg_attr(feature = "crd", schemars(length(min = 1, max = 253)))]
    pub name: String,
    /// The key in its data.
    #[cfg_attr(feature = "crd", schemars(length(min = 1, max = 253)))]
    pub key: String,
}

/// How the target's certificate is verified.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "crd", schemars(extend("x-kubernetes-validations" = [{
    "rule": "!(self.insecureSkipVerify && has(self.caBundle))",
    "message": "caBundle and insecureSkipVerify exclude each other: remove one",
}])))]
pub struct Tls {
    /// PEM certificates to trust instead of the public certificate authorities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(length(max = 65_536), extend("x-kubernetes-validations" = [{
        "rule": "self.contains('-----BEGIN CERTIFICATE-----')",
        "message": "must hold at least one PEM block that starts with -----BEGIN CERTIFICATE-----",
    }])))]
    pub ca_bundle: Option<String>,
    /// Accepts any certificate. The test then does not verify the target's TLS.
    #[serde(default)]
    pub insecure_skip_verify: bool,
    /// The name that the target's certificate must carry, and that the handshake asks for (SNI).
    /// Default: the host of the base URL. Set it to test an ingress by its IP address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(length(min = 1, max = 253), extend("x-kubernetes-validations" = [{
        "rule": "self.matches('^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$')",
        "messageExpression": "'\"' + self + '\" is not a host name'",
    }])))]
    pub server_name: Option<String>,
    /// Scope of the resumption of TLS sessions: `PerUser` (each user its own, like a browser),
    /// `Shared` (all users of a runner, like the clients in a service) or `Never`. A resumed session
    /// spares the target most of the handshake.
    #[serde(default)]
    pub session_resumption: SessionResumption,
}

/// Scope of the resumption of TLS sessions.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum SessionResumption {
    /// Each user resumes its own sessions.
    #[default]
    PerUser,
    /// The users of a runner resume the sessions of each other.
    Shared,
    /// Every handshake is a full one.
    Never,
}

/// The schema of a map of headers. It refuses invalid names, and names that the runner sets.
#[cfg(feature = "crd")]
pub(super) fn header_map(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "maxProperties": 32,
        "additionalProperties": {"type": "string", "maxLength": 2048},
        "x-kubernetes-validations": [
            {
                "rule": "self.all(k, size(k) <= 128 && k.matches('^[A-Za-z0-9!#$%&*+.^_|~-]+$'))",
                "message": "every key must be a header name of at most 128 characters",
            },
            {
                "rule": "self.all(k, !k.lowerAscii().startsWith('x-loadtest-') && !(k.lowerAscii() in ['connection', 'content-length', 'transfer-encoding', 'upgrade']))",
                "message": "connection, content-length, transfer-encoding, upgrade and x-loadtest-* are set by the runner: remove them",
            },
            {
                "rule": r"self.all(k, !self[k].matches('[\\x00-\\x08\\x0a-\\x1f]'))",
                "message": "a header's value can't contain line breaks or other control characters",
            },
        ],
    })
}
