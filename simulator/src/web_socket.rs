//! The WebSocket port: accepts upgrades on any path, then echoes messages.
//!
//! The text message `{"type":"ping"}` gets the reply `{"type":"pong"}` instead of an echo.

use std::{
    future::poll_fn,
    sync::{Arc, OnceLock},
};

use futures_util::{FutureExt, SinkExt, StreamExt, future::BoxFuture};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use rand::Rng;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        handshake::derive_accept_key,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};

use crate::{
    connection::{Connection, ObservedSocket, RequestTracker},
    http::{InjectedFault, ResponseBody, error_response, http1_builder, injected_error},
    server::Server,
    settings::{Failure, Latency, Settings},
    truth::{Direction, Endpoint},
};

/// Size of the read buffer in bytes. It is small, because there can be thousands of idle sessions;
/// the library's default is 128 KiB.
const READ_BUFFER: usize = 4 * 1024;
/// Maximum size of a message in bytes.
const MAX_MESSAGE: usize = 1 << 20;

/// The failure of a session, chosen when its upgrade is accepted.
type SessionFailure = Option<Failure>;

/// Serves one connection until it ends.
pub(crate) async fn serve_connection(server: Arc<Server>, socket: TcpStream) {
    let connection = Arc::new(Connection::new(&server));
    let io = TokioIo::new(ObservedSocket::new(socket, connection.tracker.clone()));
    let accepted = Arc::new(OnceLock::<SessionFailure>::new());
    let service =
        service_fn(|request| handle_upgrade(connection.clone(), accepted.clone(), request));
    let mut http = http1_builder().serve_connection(io, service);
    let ended = poll_fn(|cx| http.poll_without_shutdown(cx)).await;
    let parts = http.into_parts();
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended before its upgrade");
        return;
    }
    let Some(&failure) = accepted.get() else { return };
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(0)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    let socket = parts.io.into_inner();
    let early_bytes = parts.read_buf.to_vec();
    let mut session =
        WebSocketStream::from_partially_read(socket, early_bytes, Role::Server, Some(config)).await;
    match echo_messages(&connection, &mut session, failure).await {
        SessionEnd::Closed => connection.tracker.mark_response_complete(),
        SessionEnd::Reset => {
            session.into_inner().reset();
            return;
        }
        SessionEnd::ClientGone => {}
    }
    connection.tracker.end_request();
}

/// The end of a session.
enum SessionEnd {
    /// The session ended with a closing handshake.
    Closed,
    /// The connection must be reset.
    Reset,
    /// The client closed the connection without a closing handshake.
    ClientGone,
}

async fn echo_messages(
    connection: &Connection,
    session: &mut WebSocketStream<ObservedSocket>,
    mut failure: SessionFailure,
) -> SessionEnd {
    let tracker = &connection.tracker;
    while let Some(message) = session.next().await {
        let reply = match message {
            Ok(Message::Text(text)) if is_ping(&text) => Message::text(r#"{"type":"pong"}"#),
            Ok(message @ (Message::Text(_) | Message::Binary(_))) => message,
            // The library itself replies to ping and close frames.
            Ok(_) => continue,
            Err(_) => return SessionEnd::ClientGone,
        };
        tracker.count_message(Direction::Received);
        let now = connection.clock().now();
        let due = connection.choose_response(|settings, rng| {
            choose_send_time(settings, &settings.web_socket.latency, rng, now)
        });
        connection.clock().sleep_until(due).await;
        match failure.take() {
            None => {
                tracker.count_message(Direction::Sent);
                if session.send(reply).await.is_err() {
                    return SessionEnd::ClientGone;
                }
            }
            Some(Failure::Reset) => {
                tracker.mark_injected_failure();
                return SessionEnd::Reset;
            }
            Some(Failure::CloseCode(code)) => {
                tracker.mark_injected_failure();
                let reason = "injected by the simulator".into();
                let frame = CloseFrame { code: CloseCode::from(code), reason };
                if session.close(Some(frame)).await.is_err() {
                    return SessionEnd::ClientGone;
                }
            }
            // A hang. `Settings::validate` excludes the remaining kinds.
            Some(_) => {
                tracker.mark_injected_failure();
                while let Some(Ok(_)) = session.next().await {}
                return SessionEnd::ClientGone;
            }
        }
    }
    SessionEnd::Closed
}

/// Returns the time at which a response may be sent, with a sampled latency from `start` on.
fn choose_send_time(settings: &Settings, latency: &Latency, rng: &mut impl Rng, start: u64) -> u64 {
    let due = start + latency.sample_nanos(rng);
    settings.web_socket.stall.map_or(due, |stall| stall.send_time(due))
}

fn is_ping(text: &str) -> bool {
    #[derive(Deserialize)]
    struct Typed<'a> {
        r#type: &'a str,
    }
    // The first byte excludes most texts without parsing them.
    text.starts_with('{')
        && serde_json::from_str::<Typed<'_>>(text).is_ok_and(|typed| typed.r#type == "ping")
}

/// Responds to an upgrade request. Stores the failure of an accepted session in `accepted`.
///
/// The future is boxed, because taking the socket back from hyper requires a future that can be
/// moved.
fn handle_upgrade(
    connection: Arc<Connection>,
    accepted: Arc<OnceLock<SessionFailure>>,
    request: Request<Incoming>,
) -> BoxFuture<'static, Result<Response<ResponseBody>, InjectedFault>> {
    async move {
        let response = respond_to_upgrade(&connection, &accepted, &request).await;
        connection.tracker.start_response(response.status().as_u16());
        Ok(response)
    }
    .boxed()
}

async fn respond_to_upgrade(
    connection: &Connection,
    accepted: &OnceLock<SessionFailure>,
    request: &Request<Incoming>,
) -> Response<ResponseBody> {
    let tracker = &connection.tracker;
    let arrival = tracker.start_request(Endpoint::WebSocket, request.headers());
    let is_admitted = connection.choose_response(|settings, _| {
        let limiter = tracker.server.limiters.get(Endpoint::WebSocket);
        limiter.try_acquire(settings.web_socket.limits, connection.clock().now())
    });
    if is_admitted {
        tracker.mark_admitted();
    }
    let key = upgrade_key(request.method(), request.headers());
    let is_accepted = is_admitted && key.is_some();
    let (failure, due) = connection.choose_response(|settings, rng| {
        let web_socket = &settings.web_socket;
        // A refusal has no latency, but it waits for the end of a stall.
        let (failure, latency) = if is_accepted {
            (web_socket.errors.choose_failure(rng), web_socket.connect_latency)
        } else {
            (None, Latency::from_millis(0))
        };
        (failure, choose_send_time(settings, &latency, rng, arrival))
    });
    connection.clock().sleep_until(due).await;
    if !is_admitted {
        let status = StatusCode::TOO_MANY_REQUESTS;
        let mut response =
            error_response(connection, status, "too many sessions", "rate_limit_exceeded");
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        return response;
    }
    let Some(key) = key else {
        let message = "this port speaks WebSocket only: send an upgrade request, version 13";
        let status = StatusCode::UPGRADE_REQUIRED;
        let mut response = error_response(connection, status, message, "upgrade_required");
        response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        return response;
    };
    if let Some(Failure::RejectUpgrade(code)) = failure {
        tracker.mark_injected_failure();
        return injected_error(connection, code);
    }
    // `set` can't fail: a connection is upgraded at most once.
    let _ = accepted.set(failure);
    switch_protocols(tracker, &key)
}

fn switch_protocols(tracker: &Arc<RequestTracker>, key: &str) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::empty(tracker));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    // Base64 is always a valid header value.
    if let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    response
}

/// Returns the key of a valid upgrade request (RFC 6455, section 4.2.1).
fn upgrade_key(method: &Method, headers: &HeaderMap) -> Option<String> {
    let has =
        |name, token: &str| {
            headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).any(|value| {
                value.split(',').any(|element| element.trim().eq_ignore_ascii_case(token))
            })
        };
    let is_valid = *method == Method::GET
        && has(header::CONNECTION, "upgrade")
        && has(header::UPGRADE, "websocket")
        && has(header::SEC_WEBSOCKET_VERSION, "13");
    let key = headers.get(header::SEC_WEBSOCKET_KEY)?.to_str().ok()?;
    is_valid.then(|| key.to_owned())
}
