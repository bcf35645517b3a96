//! WebSocket tasks, prepared.

use http::{HeaderMap, Uri};
use loadtest_core::resource::{Session, WebSocketTask};
use tokio_tungstenite::tungstenite::Utf8Bytes;

use crate::prepare::{endpoint::Endpoint, error::PrepareError, headers::task_headers};

/// A WebSocket session, ready to be opened.
#[derive(Debug)]
pub(crate) struct PreparedWebSocket {
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    /// Text messages to send. All users share them.
    pub(crate) messages: Vec<Utf8Bytes>,
    /// Number of replies to each message.
    pub(crate) replies: u32,
    /// True when the session stays open from task to task.
    pub(crate) keep_open: bool,
    /// True when the session ends with a close frame.
    pub(crate) send_close: bool,
}

impl PreparedWebSocket {
    pub(super) fn new(
        task: &WebSocketTask,
        shared: &HeaderMap,
        endpoint: &Endpoint,
    ) -> Result<Self, PrepareError> {
        let scheme = if endpoint.tls.is_some() { "wss" } else { "ws" };
        let url = format!("{scheme}://{}{}{}", endpoint.authority, endpoint.base_path, task.path);
        let uri = url.parse().map_err(|_| PrepareError::Url {
            field: "webSocket.path",
            value: url,
            example: "/",
        })?;
        Ok(Self {
            uri,
            headers: task_headers(shared, endpoint, &task.headers)?,
            messages: task.send.iter().map(Utf8Bytes::from).collect(),
            replies: task.replies,
            keep_open: task.session == Session::PerUser,
            send_close: task.close,
        })
    }
}
