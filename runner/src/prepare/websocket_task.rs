//! WebSocket tasks, prepared.

use std::{
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Uri, header};
use loadtest_core::resource::{MessageFormat, Session, WebSocketTask};

use crate::prepare::{
    endpoint::Endpoint,
    error::PrepareError,
    headers::task_headers,
    reply::ReplyMatcher,
    request::{write_header, write_request_line},
};
use crate::protocol::websocket::frames::OutgoingMessage;

/// No ping of the task has been answered or missed.
const PONG_UNKNOWN: u8 = 0;
/// The target has answered a ping.
const PONG_SEEN: u8 = 1;
/// The target has not answered the first ping.
const PONG_MISSING: u8 = 2;

/// A WebSocket session, ready to be opened.
pub(crate) struct PreparedWebSocket {
    /// The request for the upgrade as it is sent, up to the header `Sec-WebSocket-Key`, which
    /// differs from session to session.
    pub(crate) upgrade_request: Bytes,
    /// The subprotocols that the request offers.
    pub(crate) subprotocols: Vec<String>,
    /// Messages to send. All users share them.
    pub(crate) messages: Vec<OutgoingMessage>,
    /// Number of replies to each message.
    pub(crate) replies: u32,
    /// Which messages are replies.
    pub(crate) reply: ReplyMatcher,
    /// True when the session stays open from task to task.
    pub(crate) keep_open: bool,
    /// True when the session ends with a close frame.
    pub(crate) send_close: bool,
    /// Interval of pings while the session waits for its user.
    pub(crate) ping_interval: Option<Duration>,
    /// Whether the target answers pings: one of the constants `PONG_…`.
    pongs: AtomicU8,
}

/// Prints no headers, because they may hold credentials.
impl std::fmt::Debug for PreparedWebSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PreparedWebSocket({} messages)", self.messages.len())
    }
}

impl PreparedWebSocket {
    pub(super) fn new(
        task: &WebSocketTask,
        shared: &HeaderMap,
        endpoint: &Endpoint,
    ) -> Result<Self, PrepareError> {
        let path = format!("{}{}", endpoint.base_path, task.path);
        let uri = path.parse().map_err(|_| PrepareError::Url {
            field: "webSocket.path",
            value: path,
            example: "/",
        })?;
        let headers = task_headers(shared, endpoint, &task.headers)?;
        let subprotocols = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL);
        let subprotocols = subprotocols.iter().filter_map(|value| value.to_str().ok());
        // A user may ask for compression by its header too.
        let extensions = headers.get_all(header::SEC_WEBSOCKET_EXTENSIONS);
        let mut extensions = extensions.iter().filter_map(|value| value.to_str().ok());
        let compression =
            task.compression || extensions.any(|value| value.contains("permessage-deflate"));
        Ok(Self {
            upgrade_request: encode_upgrade(&uri, &headers, compression),
            subprotocols: subprotocols
                .flat_map(|value| value.split(','))
                .map(|name| name.trim().to_owned())
                .collect(),
            messages: task
                .send
                .iter()
                .map(|text| encode_message(text, task.format))
                .collect::<Result<_, _>>()?,
            replies: task.replies,
            reply: ReplyMatcher::new(task.reply.as_ref())?,
            keep_open: task.session == Session::PerUser,
            send_close: task.close,
            ping_interval: task.ping_interval.map(loadtest_core::Duration::to_std),
            pongs: AtomicU8::new(PONG_UNKNOWN),
        })
    }

    /// Returns true when the target has left the first ping of this task without an answer.
    pub(crate) fn ignores_pings(&self) -> bool {
        self.pongs.load(Ordering::Relaxed) == PONG_MISSING
    }

    /// Notes that the target has answered a ping of this task.
    pub(crate) fn note_pong(&self) {
        self.pongs.store(PONG_SEEN, Ordering::Relaxed);
    }

    /// Notes that the target has not answered a ping. A target that has answered one is only slow.
    pub(crate) fn note_missing_pong(&self) {
        let (unknown, missing) = (PONG_UNKNOWN, PONG_MISSING);
        let _ = self.pongs.compare_exchange(unknown, missing, Ordering::Relaxed, Ordering::Relaxed);
    }
}

fn encode_message(text: &str, format: MessageFormat) -> Result<OutgoingMessage, PrepareError> {
    match format {
        MessageFormat::Text => Ok(OutgoingMessage::Text(text.as_bytes().to_vec().into())),
        MessageFormat::Base64 => {
            let bytes = STANDARD.decode(text).map_err(|_| PrepareError::Base64 {
                message: loadtest_core::text::truncate(text, 60),
            })?;
            Ok(OutgoingMessage::Binary(bytes.into()))
        }
    }
}

/// Encodes a request for an upgrade without its key (RFC 6455, 4.1).
///
/// Names of headers have no case, but some servers know these only as the standard spells them.
fn encode_upgrade(uri: &Uri, headers: &HeaderMap, compression: bool) -> Bytes {
    let mut bytes = BytesMut::with_capacity(512);
    write_request_line(&mut bytes, &http::Method::GET, uri);
    for (name, value) in headers {
        let name = match *name {
            header::HOST => "Host",
            header::ORIGIN => "Origin",
            header::SEC_WEBSOCKET_PROTOCOL => "Sec-WebSocket-Protocol",
            // The request has its own.
            header::CONNECTION
            | header::UPGRADE
            | header::SEC_WEBSOCKET_VERSION
            | header::SEC_WEBSOCKET_KEY
            | header::SEC_WEBSOCKET_EXTENSIONS => continue,
            _ => name.as_str(),
        };
        write_header(&mut bytes, name, value.as_bytes());
    }
    write_header(&mut bytes, "Connection", b"Upgrade");
    write_header(&mut bytes, "Upgrade", b"websocket");
    write_header(&mut bytes, "Sec-WebSocket-Version", b"13");
    if compression {
        let offer = b"permessage-deflate; client_no_context_takeover";
        write_header(&mut bytes, "Sec-WebSocket-Extensions", offer);
    }
    bytes.freeze()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn upgrade_request_has_its_own_connection_headers() {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_static("cell0:18801"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        headers.insert("x-loadtest-run", HeaderValue::from_static("run-1"));
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("chat"));
        let request = encode_upgrade(&"/a?b".parse().unwrap(), &headers, false);
        let mut lines: Vec<_> = std::str::from_utf8(&request).unwrap().lines().collect();
        assert_eq!(lines.remove(0), "GET /a?b HTTP/1.1");
        lines.sort_unstable();
        let expected = [
            "Connection: Upgrade",
            "Host: cell0:18801",
            "Sec-WebSocket-Protocol: chat",
            "Sec-WebSocket-Version: 13",
            "Upgrade: websocket",
            "x-loadtest-run: run-1",
        ];
        assert_eq!(lines, expected);
    }
}
