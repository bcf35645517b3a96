//! The errors of preparing a plan.

/// A plan that a runner can't carry out. The message names the field to change.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// A base URL is not a valid URL.
    #[error("{field}: {value:?} is not a URL such as {example}")]
    Url {
        /// The field of the spec.
        field: &'static str,
        /// The value of the field.
        value: String,
        /// A valid value.
        example: &'static str,
    },
    /// A task needs a base URL that the spec does not set.
    #[error("{field} is missing: task {task:?} needs it")]
    MissingUrl {
        /// The field of the spec.
        field: &'static str,
        /// The name of the task.
        task: String,
    },
    /// A header has an invalid name or value.
    #[error("header {name:?} is not valid: its name or its value can't be sent")]
    Header {
        /// The name of the header. The value may be a secret, so the message does not show it.
        name: String,
    },
    /// A header takes its value from a Secret, and the environment variable with the value is not
    /// set.
    #[error("environment variable {variable} is not set: it holds the value of header {name:?}")]
    Secret {
        /// The name of the header.
        name: String,
        /// The name of the variable.
        variable: String,
    },
    /// The CA bundle holds no certificate that can be read.
    #[error("target.tls.caBundle: no certificate could be read from it")]
    CaBundle,
    /// A check is not valid.
    #[error("{check}: not a valid check; jsonPath must be an RFC 9535 path such as $.data[0].id")]
    Check {
        /// The check.
        check: String,
    },
    /// The condition of a WebSocket reply is not valid.
    #[error("webSocket.{problem}")]
    Reply {
        /// The field and its problem.
        problem: String,
    },
    /// A binary message is not base64.
    #[error("webSocket.send: {message:?} is not base64: encode it, or set format to Text")]
    Base64 {
        /// The message.
        message: String,
    },
    /// The TLS library refuses its settings.
    #[error("TLS can't be set up")]
    Tls(#[source] rustls::Error),
}
