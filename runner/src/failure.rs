//! Kinds of failures. Each kind is a metric label, so the set is closed.

use std::{fmt, io};

/// The kind of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ErrorKind {
    /// The name of the target could not be resolved.
    Dns,
    /// The TCP connection failed.
    Connect,
    /// No local port is left for another connection to the target.
    PortExhausted,
    /// This process may not open another socket.
    FileLimit,
    /// The response is larger than the load generator reads.
    SizeLimit,
    /// The TLS handshake failed, or TLS on an open connection.
    Tls,
    /// Timeout while connecting.
    TimeoutConnect,
    /// Timeout before the response began.
    TimeoutResponse,
    /// Timeout while reading the response.
    TimeoutBody,
    /// The connection ended before the response was complete.
    Reset,
    /// A kept connection ended before a byte of the response came: the target may have closed it
    /// while it was idle.
    StaleConnection,
    /// The response has an unexpected status.
    Http(u16),
    /// The response violates the protocol.
    Protocol,
    /// A redirect was not followed: over the limit, or out of the target.
    Redirect,
    /// The body of the response failed a check.
    CheckBody,
    /// A header of the response failed a check.
    CheckHeader,
    /// The JSON body of the response failed a check.
    CheckJson,
    /// A response with a successful status reports an error: an error event, a JSON error, or a finish reason
    /// with which the target gives up.
    StreamError,
    /// A stream ended without a finish reason and without its end mark.
    StreamCut,
    /// A stream held an event that can't be parsed.
    StreamMalformed,
    /// The target closed a WebSocket before the end of the session.
    WebSocketClose(u16),
}

impl ErrorKind {
    /// Kinds that are exposed from the start, with a count of zero.
    pub const COMMON: [Self; 8] = [
        Self::Dns,
        Self::Connect,
        Self::Tls,
        Self::TimeoutConnect,
        Self::TimeoutResponse,
        Self::TimeoutBody,
        Self::Reset,
        Self::Protocol,
    ];

    /// Returns the kind of a failed connect.
    pub(crate) fn from_connect_error(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(24 | 23) => Self::FileLimit,
            _ if error.kind() == io::ErrorKind::AddrNotAvailable => Self::PortExhausted,
            _ => Self::Connect,
        }
    }

    /// Returns the kind of a failed read or write on an open connection.
    pub(crate) fn from_io_error(error: &io::Error) -> Self {
        use io::ErrorKind::{
            BrokenPipe, ConnectionAborted, ConnectionReset, HostUnreachable, NetworkDown,
            NetworkUnreachable, NotConnected, TimedOut, UnexpectedEof,
        };
        let inner = error.get_ref();
        if inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()).is_some() {
            return Self::Tls;
        }
        match error.kind() {
            BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof
            | TimedOut | HostUnreachable | NetworkUnreachable | NetworkDown => Self::Reset,
            _ => Self::Protocol,
        }
    }
}

/// Prints the value of the label.
impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns => f.write_str("dns"),
            Self::Connect => f.write_str("connect"),
            Self::PortExhausted => f.write_str("port_exhausted"),
            Self::FileLimit => f.write_str("file_limit"),
            Self::SizeLimit => f.write_str("size_limit"),
            Self::Tls => f.write_str("tls"),
            Self::TimeoutConnect => f.write_str("timeout_connect"),
            Self::TimeoutResponse => f.write_str("timeout_response"),
            Self::TimeoutBody => f.write_str("timeout_body"),
            Self::Reset => f.write_str("reset"),
            Self::StaleConnection => f.write_str("stale_connection"),
            Self::Http(status) => write!(f, "http_{status}"),
            Self::Protocol => f.write_str("protocol"),
            Self::Redirect => f.write_str("redirect"),
            Self::CheckBody => f.write_str("check_body"),
            Self::CheckHeader => f.write_str("check_header"),
            Self::CheckJson => f.write_str("check_json"),
            Self::StreamError => f.write_str("stream_error"),
            Self::StreamCut => f.write_str("stream_cut"),
            Self::StreamMalformed => f.write_str("stream_malformed"),
            Self::WebSocketClose(code) => write!(f, "websocket_close_{code}"),
        }
    }
}

/// One failed request.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) kind: ErrorKind,
    /// Description for users. Parts of a response in it are truncated, and values that look like credentials are hidden.
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(kind: ErrorKind, message: impl fmt::Display) -> Self {
        Self { kind, message: message.to_string() }
    }

    /// The failure of a read or write on an open connection.
    pub(crate) fn from_io_error(error: &io::Error) -> Self {
        let mut message = error.to_string();
        // rustls adds the address of its manual.
        if let Some(at) = message.find(": https://docs.rs/") {
            message.truncate(at);
        }
        Self { kind: ErrorKind::from_io_error(error), message }
    }
}
