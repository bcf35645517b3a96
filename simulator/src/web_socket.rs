//! The WebSocket port: upgrades on any path, then an echo that knows one application ping.

use std::{
    future::poll_fn,
    sync::{Arc, OnceLock},
};

use futures::{FutureExt, SinkExt, StreamExt, future::BoxFuture};
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
    http::{Answer, Struck, builder, error},
    server::{Connection, Server},
    settings::{Failure, Latency, Settings},
    tap::Tap,
    truth::Endpoint,
};

/// Small, as thousands of idle sessions must fit; the library's own default is 128 KiB to read.
const BUFFER: usize = 4 * 1024;
/// The largest message taken, and with it echoed.
const MAX_MESSAGE: usize = 1 << 20;

/// What a session was told about its end when it began.
type Session = Option<Failure>;

/// Serves one connection to its end.
pub(crate) async fn serve(server: Arc<Server>, socket: TcpStream) {
    let connection = server.connect();
    let io = TokioIo::new(Tap::new(socket, connection.line.clone()));
    let accepted = Arc::new(OnceLock::<Session>::new());
    let service = service_fn(|request| upgrade(connection.clone(), accepted.clone(), request));
    let mut http = builder().serve_connection(io, service);
    let ended = poll_fn(|cx| http.poll_without_shutdown(cx)).await;
    let parts = http.into_parts();
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended before its upgrade");
        return;
    }
    let Some(&failure) = accepted.get() else { return };
    let config = WebSocketConfig::default()
        .read_buffer_size(BUFFER)
        .write_buffer_size(0)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    let tap = parts.io.into_inner();
    let early = parts.read_buf.to_vec();
    let mut session =
        WebSocketStream::from_partially_read(tap, early, Role::Server, Some(config)).await;
    match converse(&connection, &mut session, failure).await {
        End::Closed => connection.line.done(),
        End::Reset => {
            session.into_inner().reset();
            return;
        }
        End::Left => {}
    }
    connection.line.finish();
}

/// How a session ended.
enum End {
    /// With a closing handshake.
    Closed,
    /// It is to be reset.
    Reset,
    /// The client is gone.
    Left,
}

async fn converse(
    connection: &Connection,
    session: &mut WebSocketStream<Tap>,
    mut failure: Option<Failure>,
) -> End {
    let line = &connection.line;
    while let Some(message) = session.next().await {
        let reply = match message {
            Ok(Message::Text(text)) if is_ping(&text) => Message::text(r#"{"type":"pong"}"#),
            Ok(message @ (Message::Text(_) | Message::Binary(_))) => message,
            // The library answers pings and closes itself.
            Ok(_) => continue,
            Err(_) => return End::Left,
        };
        line.message(true);
        let now = line.server.clock.now();
        let due = connection.draw(|all, rng| due(all, &all.web_socket.latency, rng, now));
        line.server.clock.sleep_until(due).await;
        match failure.take() {
            None => {
                line.message(false);
                if session.send(reply).await.is_err() {
                    return End::Left;
                }
            }
            Some(Failure::Reset) => {
                line.inject();
                return End::Reset;
            }
            Some(Failure::CloseCode(code)) => {
                line.inject();
                let reason = "injected by the simulator".into();
                let frame = CloseFrame { code: CloseCode::from(code), reason };
                if session.close(Some(frame)).await.is_err() {
                    return End::Left;
                }
            }
            // A hang, and what settings keep away from here: silence.
            Some(_) => {
                line.inject();
                while let Some(Ok(_)) = session.next().await {}
                return End::Left;
            }
        }
    }
    End::Closed
}

/// When what would take `latency` from `now` may go out.
fn due(settings: &Settings, latency: &Latency, rng: &mut impl Rng, now: u64) -> u64 {
    let due = now + latency.draw(rng);
    settings.web_socket.stall.map_or(due, |stall| stall.release(due))
}

fn is_ping(text: &str) -> bool {
    #[derive(Deserialize)]
    struct Typed<'a> {
        r#type: &'a str,
    }
    // Most echoed texts are told apart by their first byte.
    text.starts_with('{')
        && serde_json::from_str::<Typed<'_>>(text).is_ok_and(|typed| typed.r#type == "ping")
}

/// Answers an upgrade; what it tells the session that follows goes into `accepted`.
///
/// Boxed, because taking the socket back from hyper wants a future that can be moved.
fn upgrade(
    connection: Arc<Connection>,
    accepted: Arc<OnceLock<Session>>,
    request: Request<Incoming>,
) -> BoxFuture<'static, Result<Response<Answer>, Struck>> {
    async move {
        let response = answer(&connection, &accepted, &request).await;
        connection.line.answering(response.status().as_u16());
        Ok(response)
    }
    .boxed()
}

async fn answer(
    connection: &Connection,
    accepted: &OnceLock<Session>,
    request: &Request<Incoming>,
) -> Response<Answer> {
    let line = &connection.line;
    let arrival = line.begin(Endpoint::WebSocket, request.headers());
    let admitted = connection.draw(|settings, _| {
        let gate = line.server.gates.get(Endpoint::WebSocket);
        gate.enter(settings.web_socket.limits, line.server.clock.now())
    });
    if admitted {
        line.admitted();
    }
    let key = upgrade_key(request.method(), request.headers());
    let well_formed = admitted && key.is_some();
    let (failure, due) = connection.draw(|all, rng| {
        let failure = if well_formed { all.web_socket.errors.draw(rng) } else { None };
        // A refusal takes no time of its own, but waits for the end of a stall.
        let latency = if well_formed { all.web_socket.connect_latency } else { Latency::millis(0) };
        (failure, due(all, &latency, rng, arrival))
    });
    line.server.clock.sleep_until(due).await;
    if !admitted {
        let status = StatusCode::TOO_MANY_REQUESTS;
        let mut response = error(connection, status, "too many sessions", "rate_limit_exceeded");
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        return response;
    }
    let Some(key) = key else {
        let message = "this port speaks WebSocket only: ask for an upgrade, version 13";
        let status = StatusCode::UPGRADE_REQUIRED;
        let mut response = error(connection, status, message, "upgrade_required");
        response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        return response;
    };
    if let Some(Failure::RejectUpgrade(code)) = failure {
        line.inject();
        let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        return error(connection, status, "injected by the simulator", "injected");
    }
    // Set once: a connection is upgraded once.
    let _ = accepted.set(failure);
    switching(line, &key)
}

fn switching(line: &Arc<crate::line::Line>, key: &str) -> Response<Answer> {
    let mut response = Response::new(Answer::nothing(line));
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

/// The key of a proper upgrade request (RFC 6455, section 4.2.1).
fn upgrade_key(method: &Method, headers: &HeaderMap) -> Option<String> {
    let has =
        |name, token: &str| {
            headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).any(|value| {
                value.split(',').any(|element| element.trim().eq_ignore_ascii_case(token))
            })
        };
    let proper = *method == Method::GET
        && has(header::CONNECTION, "upgrade")
        && has(header::UPGRADE, "websocket")
        && has(header::SEC_WEBSOCKET_VERSION, "13");
    let key = headers.get(header::SEC_WEBSOCKET_KEY)?.to_str().ok()?;
    proper.then(|| key.to_owned())
}
