//! The protocols of the target: HTTP/1.1, HTTP/2, chat completions and WebSocket.
//!
//! Nothing here decides when a request is sent.

pub(crate) mod chat;
pub(crate) mod connection_pool;
pub(crate) mod gzip;
pub(crate) mod http;
pub(crate) mod http1;
pub(crate) mod http2;
pub(crate) mod upgrade;
pub(crate) mod websocket;
