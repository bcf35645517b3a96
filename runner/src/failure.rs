//! Why a request failed: kinds from a closed set, each a metric label.

use std::{fmt, io};

/// A kind of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ErrorKind {
    /// The target's name could not be resolved.
    Dns,
    /// No TCP connection.
    Connect,
    /// No local port left for another connection to this target.
    PortExhausted,
    /// This process may not open another socket.
    FileLimit,
    /// No TLS session.
    Tls,
    /// Timed out while connecting.
    TimeoutConnect,
    /// Timed out before the answer began.
    TimeoutResponse,
    /// Timed out within the answer.
    TimeoutBody,
    /// The connection ended before the answer was complete.
    Reset,
    /// An answer with a status that was not expected.
    Http(u16),
    /// An answer that is not in the protocol.
    Protocol,
    /// A redirect that was not followed: one too many, or out of the target.
    Redirect,
    /// A body without what a check wants of it.
    CheckBody,
    /// A header without what a check wants of it.
    CheckHeader,
    /// A JSON body without what a check wants of it.
    CheckJson,
    /// An error event inside a stream.
    StreamError,
    /// A stream that ended without its end mark.
    StreamCut,
    /// An event of a stream that can't be read.
    StreamMalformed,
    /// A WebSocket closed by the target before the session was over.
    WebSocketClose(u16),
}

impl ErrorKind {
    /// Kinds whose series exist at zero from the start.
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

    /// The kind of a failed connect.
    pub(crate) fn of_connect(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(24 | 23) => Self::FileLimit,
            _ if error.kind() == io::ErrorKind::AddrNotAvailable => Self::PortExhausted,
            _ => Self::Connect,
        }
    }
}

/// The label's value.
impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns => f.write_str("dns"),
            Self::Connect => f.write_str("connect"),
            Self::PortExhausted => f.write_str("port_exhausted"),
            Self::FileLimit => f.write_str("file_limit"),
            Self::Tls => f.write_str("tls"),
            Self::TimeoutConnect => f.write_str("timeout_connect"),
            Self::TimeoutResponse => f.write_str("timeout_response"),
            Self::TimeoutBody => f.write_str("timeout_body"),
            Self::Reset => f.write_str("reset"),
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
    /// Its kind.
    pub(crate) kind: ErrorKind,
    /// What happened, for people. Of an answer it holds the target's own error event, and what a
    /// check has found, cut short and without what sounds like a credential.
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(kind: ErrorKind, message: impl fmt::Display) -> Self {
        Self { kind, message: message.to_string() }
    }

    /// A failed read or write on an open connection.
    pub(crate) fn kind_of_io(error: &io::Error) -> ErrorKind {
        use io::ErrorKind::{
            BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof,
        };
        match error.kind() {
            BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof => {
                ErrorKind::Reset
            }
            _ => ErrorKind::Protocol,
        }
    }
}
