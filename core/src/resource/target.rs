//! Where load goes: base URLs, shared headers, TLS.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::values::{Duration, schema_between};

/// Base URLs and what every request carries.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// Base URL of http and chat tasks, such as `http://cell0:18800`; tasks give paths.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048), extend("x-kubernetes-validations" = [
        {
            "rule": "self.matches('^https?://.')",
            "messageExpression": "'\"' + self + '\" must start with http:// or https://, as in http://cell0:18800'",
        },
        {
            "rule": r"!self.matches('^[a-z]+://') || self.matches('^[a-z]+://([A-Za-z0-9._~-]+|\\[[0-9A-Fa-f:.]+\\])(:[0-9]{1,5})?(/[A-Za-z0-9._~:@!$&()*+,;=%/-]*)?$')",
            "message": "must be a base URL of host, port and path, without credentials, query or fragment, as in http://cell0:18800; give credentials in target.headersFrom",
        },
    ]))]
    pub http: Option<String>,
    /// Base URL of webSocket tasks, such as `ws://cell0:18801`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048), extend("x-kubernetes-validations" = [
        {
            "rule": "self.matches('^wss?://.')",
            "messageExpression": "'\"' + self + '\" must start with ws:// or wss://, as in ws://cell0:18801'",
        },
        {
            "rule": r"!self.matches('^[a-z]+://') || self.matches('^[a-z]+://([A-Za-z0-9._~-]+|\\[[0-9A-Fa-f:.]+\\])(:[0-9]{1,5})?(/[A-Za-z0-9._~:@!$&()*+,;=%/-]*)?$')",
            "message": "must be a base URL of host, port and path, without credentials, query or fragment, as in ws://cell0:18801; give credentials in target.headersFrom",
        },
    ]))]
    pub web_socket: Option<String>,
    /// Headers of every request; a task's own come on top.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "super::target::header_map")]
    pub headers: BTreeMap<String, String>,
    /// Headers of every request whose values come from Secrets in the test's namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub headers_from: Vec<HeaderFrom>,
    /// How the target's certificate is judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// The version that http and chat tasks speak.
    #[serde(default)]
    pub http_version: HttpVersion,
    /// Whose the connections of http and chat tasks are.
    #[serde(default)]
    pub connections: Reuse,
    /// Asks for answers compressed by gzip.
    #[serde(default)]
    pub gzip: bool,
    /// How long parts of a request may take; a task's own timeout bounds the whole.
    #[serde(default)]
    pub timeouts: Timeouts,
}

/// A version of HTTP.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum HttpVersion {
    /// HTTP/1.1: one request at a time on a connection.
    #[default]
    Http1,
    /// HTTP/2: requests of all who share a connection at once on it. By ALPN with TLS, by prior
    /// knowledge without.
    Http2,
}

/// Whose connections are.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum Reuse {
    /// Each user's own, kept between its requests, as a browser's.
    #[default]
    PerUser,
    /// Shared by the users of a load thread, as a service's: HTTP/1.1 takes any that is free,
    /// HTTP/2 has one for all.
    Shared,
    /// A new one for each request.
    PerRequest,
}

/// How long parts of a request may take.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Timeouts {
    /// Until a connection is open: name, TCP and TLS, and a WebSocket's upgrade.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "part_length")]
    pub connect: Option<Duration>,
    /// From when a request is sent until its answer begins; of a WebSocket, until each message's
    /// replies are there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "part_length")]
    pub first_byte: Option<Duration>,
}

fn part_length(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schema_between("1ms", "1h")
}

/// One header whose value is a Secret's.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HeaderFrom {
    /// The header's name, such as `authorization`.
    #[schemars(length(min = 1, max = 128), extend("x-kubernetes-validations" = [{
        "rule": "self.matches('^[A-Za-z0-9!#$%&*+.^_|~-]+$')",
        "messageExpression": "'\"' + self + '\" is not a header name'",
    }, {
        "rule": "!self.lowerAscii().startsWith('x-loadtest-') && !(self.lowerAscii() in ['connection', 'content-length', 'transfer-encoding', 'upgrade'])",
        "messageExpression": "'\"' + self + '\" is set by the runner: connection, content-length, transfer-encoding, upgrade and x-loadtest-* are its own'",
    }]))]
    pub header: String,
    /// The Secret's name and key; the kubelet puts the value into the runner's environment.
    pub secret_key_ref: SecretKey,
}

/// A key of a Secret in the test's namespace.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKey {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The key in its data.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// How the target's certificate is judged.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!(self.insecureSkipVerify && has(self.caBundle))",
    "message": "caBundle and insecureSkipVerify exclude each other: remove one",
}]))]
pub struct Tls {
    /// PEM certificates trusted instead of the public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65_536), extend("x-kubernetes-validations" = [{
        "rule": "self.contains('-----BEGIN CERTIFICATE-----')",
        "message": "must hold at least one PEM block that starts with -----BEGIN CERTIFICATE-----",
    }]))]
    pub ca_bundle: Option<String>,
    /// Accepts any certificate. The test then says nothing about the target's TLS.
    #[serde(default)]
    pub insecure_skip_verify: bool,
}

/// A map of headers, with the names checked and ours kept for us.
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
                "message": "a header's value can't hold a line break or another control character",
            },
        ],
    })
}
