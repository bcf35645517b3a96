//! Injected failures of HTTP responses.

use bytes::Bytes;
use http::{Response, StatusCode, header};
use tokio::io::AsyncWriteExt;

use super::{
    body::ResponseBody,
    response::{error_response, json_response},
};
use crate::{
    connection::{Connection, ObservedSocket},
    settings::Failure,
};

/// Bytes that are not HTTP: a TLS alert and noise.
const GARBAGE: &[u8] =
    b"\x15\x03\x01\x00\x02\x02\x50\xff\xfe\x00 this is not HTTP \x00\xff\r\n\r\n";

/// A fault of the connection. hyper sends no response; the connection's owner acts instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InjectedFault {
    /// Reset the TCP connection.
    #[error("the connection must be reset")]
    Reset,
    /// Send bytes that are not HTTP.
    #[error("the connection must send garbage")]
    Garbage,
}

/// Fails in the way of `failure`, instead of sending this JSON body.
pub(super) async fn inject_failure(
    connection: &Connection,
    failure: Failure,
    body: Bytes,
) -> Result<Response<ResponseBody>, InjectedFault> {
    let tracker = &connection.tracker;
    tracker.mark_injected_failure();
    match failure {
        Failure::Reset => Err(InjectedFault::Reset),
        Failure::Garbage => Err(InjectedFault::Garbage),
        Failure::Hang => std::future::pending().await,
        Failure::CutShort => {
            let length = body.len();
            let mut response = json_response(ResponseBody::truncated(body.slice(..length / 2)));
            response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
            Ok(response)
        }
        Failure::MalformedEvent => {
            let half = body.slice(..body.len() / 2);
            Ok(json_response(ResponseBody::complete(tracker, half)))
        }
        Failure::Status(code) => Ok(injected_error(connection, code)),
        // Only a stream can fail in the middle, and `Settings::validate` allows the WebSocket
        // kinds for WebSocket only.
        Failure::StreamError | Failure::CloseCode(_) | Failure::RejectUpgrade(_) => {
            Ok(injected_error(connection, 500))
        }
    }
}

/// Returns an error response with this status.
pub(crate) fn injected_error(connection: &Connection, code: u16) -> Response<ResponseBody> {
    let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    error_response(connection, status, "injected by the simulator", "injected")
}

/// Writes bytes that are not HTTP and closes the connection.
pub(super) async fn write_garbage(mut socket: ObservedSocket) {
    // A failed write means that the client closed the connection already.
    if socket.write_all(GARBAGE).await.is_ok() {
        let _ = socket.shutdown().await;
    }
}
