//! The HTTP port: Cell 0's chat, models and health endpoints.

mod answer;
mod chat;
mod stream;

use std::{error::Error as _, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::{io::AsyncWriteExt, net::TcpStream};

pub(crate) use self::answer::Answer;
use crate::{
    server::{Connection, Server},
    settings::{Failure, HttpSettings},
    tap::Tap,
    truth::Endpoint,
};

/// What a client gets that is to get no HTTP: a TLS alert and noise.
const GARBAGE: &[u8] =
    b"\x15\x03\x01\x00\x02\x02\x50\xff\xfe\x00 this is not HTTP \x00\xff\r\n\r\n";

/// An answer that hyper is not to give: what becomes of the connection instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Struck {
    /// A TCP reset.
    #[error("the connection is to be reset")]
    Reset,
    /// Bytes that are no HTTP.
    #[error("the connection is to carry garbage")]
    Garbage,
}

/// How the answer to a request that is well-formed is to be given.
struct Fate {
    failure: Option<Failure>,
    due: u64,
}

/// Serves one connection to its end.
pub(crate) async fn serve(server: Arc<Server>, socket: TcpStream) {
    let connection = server.connect();
    let io = TokioIo::new(Tap::new(socket, connection.line.clone()));
    let service = service_fn(|request| answer(connection.clone(), request));
    let mut http = builder().serve_connection(io, service);
    let Err(error) = (&mut http).await else { return };
    let struck = error.source().and_then(|source| source.downcast_ref::<Struck>()).copied();
    let tap = http.into_parts().io.into_inner();
    match struck {
        Some(Struck::Reset) => tap.reset(),
        Some(Struck::Garbage) => write_garbage(tap).await,
        None => tracing::debug!(%error, "connection ended"),
    }
}

/// HTTP/1.1 with small buffers: thousands of connections must fit.
pub(crate) fn builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(16 * 1024).header_read_timeout(None);
    builder
}

async fn write_garbage(mut tap: Tap) {
    // A client that has left already can't be told anything.
    if tap.write_all(GARBAGE).await.is_ok() {
        let _ = tap.shutdown().await;
    }
}

async fn answer(
    connection: Arc<Connection>,
    request: Request<Incoming>,
) -> Result<Response<Answer>, Struck> {
    let head = *request.method() == Method::HEAD;
    let answered = route(&connection, request).await;
    if let Ok(response) = &answered {
        connection.line.answering(response.status().as_u16());
        if head {
            // There will be no body to say so.
            connection.line.done();
        }
    }
    answered
}

async fn route(
    connection: &Arc<Connection>,
    request: Request<Incoming>,
) -> Result<Response<Answer>, Struck> {
    let (endpoint, method) = match request.uri().path() {
        "/v1/chat/completions" => (Endpoint::Chat, Method::POST),
        "/health" => (Endpoint::Health, Method::GET),
        "/v1/models" => (Endpoint::Models, Method::GET),
        _ => (Endpoint::Other, Method::GET),
    };
    let arrival = connection.line.begin(endpoint, request.headers());
    if let Some(refusal) = refuse(connection, endpoint).await {
        return Ok(refusal);
    }
    // An unknown path is unknown to all methods.
    let known = endpoint != Endpoint::Other || request.uri().path() == "/";
    if known && *request.method() != method {
        return Ok(wrong_method(connection, endpoint, &method).await);
    }
    match endpoint {
        Endpoint::Chat => chat::answer(connection, request, arrival).await,
        Endpoint::Health => {
            let fate = connection.draw(|settings, rng| fate(&settings.health, rng, arrival));
            plain(connection, fate, Bytes::from_static(br#"{"status":"ok"}"#)).await
        }
        Endpoint::Models => {
            let (fate, body) = connection.draw(|settings, rng| {
                (fate(&settings.models, rng, arrival), models(&settings.model_ids))
            });
            plain(connection, fate, body).await
        }
        Endpoint::WebSocket | Endpoint::Other if request.uri().path() == "/" => {
            let body = Bytes::from_static(b"Cell 0 simulator\n");
            let mut response = Response::new(Answer::whole(&connection.line, body));
            response
                .headers_mut()
                .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
            Ok(response)
        }
        Endpoint::WebSocket | Endpoint::Other => {
            let message = format!("no such path: {}", request.uri().path());
            Ok(error(connection, StatusCode::NOT_FOUND, &message, "not_found"))
        }
    }
}

/// Passes the endpoint's gate, or answers 429.
async fn refuse(connection: &Connection, endpoint: Endpoint) -> Option<Response<Answer>> {
    let limits = connection.draw(|settings, _| match endpoint {
        Endpoint::Chat => settings.chat.limits,
        Endpoint::Health => settings.health.limits,
        Endpoint::Models => settings.models.limits,
        Endpoint::WebSocket => settings.web_socket.limits,
        Endpoint::Other => crate::settings::Limits::default(),
    });
    let line = &connection.line;
    // By when it is looked at: moments of arrival are in no order across connections.
    if line.server.gates.get(endpoint).enter(limits, line.server.clock.now()) {
        line.admitted();
        return None;
    }
    released(connection, endpoint).await;
    let status = StatusCode::TOO_MANY_REQUESTS;
    let mut response = error(connection, status, "rate limit reached", "rate_limit_exceeded");
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    Some(response)
}

/// Waits for the end of a stall, if there is one: not even errors are answered in it.
async fn released(connection: &Connection, endpoint: Endpoint) {
    let stall = connection.draw(|settings, _| match endpoint {
        Endpoint::Chat => settings.chat.stall,
        Endpoint::Health => settings.health.stall,
        Endpoint::Models => settings.models.stall,
        Endpoint::WebSocket => settings.web_socket.stall,
        Endpoint::Other => None,
    });
    if let Some(stall) = stall {
        let clock = &connection.line.server.clock;
        clock.sleep_until(stall.release(clock.now())).await;
    }
}

fn fate(settings: &HttpSettings, rng: &mut impl rand::Rng, arrival: u64) -> Fate {
    let failure = settings.errors.draw(rng);
    let due = arrival + settings.latency.draw(rng);
    Fate { failure, due: settings.stall.map_or(due, |stall| stall.release(due)) }
}

/// Answers with a JSON body when it is due, or fails as fate has it.
async fn plain(
    connection: &Connection,
    fate: Fate,
    body: Bytes,
) -> Result<Response<Answer>, Struck> {
    let line = &connection.line;
    line.server.clock.sleep_until(fate.due).await;
    let Some(failure) = fate.failure else { return Ok(json_response(Answer::whole(line, body))) };
    strike(connection, failure, body).await
}

/// Fails instead of answering with this JSON body.
async fn strike(
    connection: &Connection,
    failure: Failure,
    body: Bytes,
) -> Result<Response<Answer>, Struck> {
    let line = &connection.line;
    line.inject();
    match failure {
        Failure::Reset => Err(Struck::Reset),
        Failure::Garbage => Err(Struck::Garbage),
        Failure::Hang => std::future::pending().await,
        Failure::CutShort => {
            let whole = body.len();
            let mut response = json_response(Answer::cut(body.slice(..whole / 2)));
            response.headers_mut().insert(header::CONTENT_LENGTH, whole.into());
            Ok(response)
        }
        Failure::MalformedEvent => {
            let half = body.slice(..body.len() / 2);
            Ok(json_response(Answer::whole(line, half)))
        }
        Failure::Status(code) => Ok(injected(connection, code)),
        // Only a stream can fail in mid-stream, and settings keep WebSocket's kinds away.
        Failure::StreamError | Failure::CloseCode(_) | Failure::RejectUpgrade(_) => {
            Ok(injected(connection, 500))
        }
    }
}

fn injected(connection: &Connection, code: u16) -> Response<Answer> {
    let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    error(connection, status, "injected by the simulator", "injected")
}

async fn wrong_method(
    connection: &Connection,
    endpoint: Endpoint,
    right: &Method,
) -> Response<Answer> {
    released(connection, endpoint).await;
    let message = format!("use {right}");
    let status = StatusCode::METHOD_NOT_ALLOWED;
    let mut response = error(connection, status, &message, "method_not_allowed");
    if let Ok(allow) = HeaderValue::from_str(right.as_str()) {
        response.headers_mut().insert(header::ALLOW, allow);
    }
    response
}

/// An error as `OpenAI`'s API words it.
pub(crate) fn error(
    connection: &Connection,
    status: StatusCode,
    message: &str,
    code: &str,
) -> Response<Answer> {
    let kind = if status.is_server_error() { "server_error" } else { "invalid_request_error" };
    let body = error_body(message, kind, code);
    let mut response = json_response(Answer::whole(&connection.line, body));
    *response.status_mut() = status;
    response
}

fn error_body(message: &str, kind: &str, code: &str) -> Bytes {
    let body = json!({"error": {"message": message, "type": kind, "param": null, "code": code}});
    body.to_string().into()
}

fn models(ids: &[String]) -> Bytes {
    let data: Vec<_> = ids
        .iter()
        .map(|id| json!({"id": id, "object": "model", "created": 0, "owned_by": "cell0"}))
        .collect();
    json!({"object": "list", "data": data}).to_string().into()
}

fn json_response(answer: Answer) -> Response<Answer> {
    let mut response = Response::new(answer);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
