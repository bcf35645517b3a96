//! Everything about requests that can be made before the load starts: encoded requests, TLS
//! settings, parsed checks. All load threads share it.
//!
//! No file here opens a connection.

pub(crate) mod chat_task;
pub(crate) mod check;
pub(crate) mod endpoint;
pub(crate) mod error;
pub(crate) mod headers;
pub(crate) mod http_task;
pub(crate) mod plan;
pub(crate) mod redirects;
pub(crate) mod reply;
pub(crate) mod request;
pub(crate) mod tls;
pub(crate) mod websocket_task;
