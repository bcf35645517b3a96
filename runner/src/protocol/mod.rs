//! The protocols of the target: HTTP/1.1, HTTP/2, chat completions and WebSocket.
//!
//! Nothing here decides when a request is sent.

pub(crate) mod chat;
mod chunked;
pub(crate) mod connection_pool;
pub(crate) mod content_encoding;
pub(crate) mod http;
pub(crate) mod http1;
pub(crate) mod http2;
mod send;
mod send_error;
pub(crate) mod target_words;
pub(crate) mod upgrade;
pub(crate) mod websocket;
