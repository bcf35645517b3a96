//! The HTTP port: Cell 0's chat, models and health endpoints.
//!
//! This module serves connections and routes requests. The `chat` module owns chat completions.

mod admission;
mod body;
mod chat;
mod chat_completion;
mod chat_request;
mod chat_stream;
mod injected_fault;
mod response;
mod truncated_body;

use std::{error::Error as _, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpStream;

use self::{
    admission::{refuse_over_limit, wait_for_stall_end},
    chat::respond_to_chat,
    injected_fault::{inject_failure, write_garbage},
    response::{json_response, response_of_type},
};
pub(crate) use self::{
    body::ResponseBody,
    injected_fault::{InjectedFault, injected_error},
    response::error_response,
};
use crate::{
    connection::{Connection, ObservedSocket},
    server::Server,
    settings::{Failure, HttpSettings},
    truth::Endpoint,
};

/// The planned response to a valid request of a plain endpoint.
struct ResponsePlan {
    failure: Option<Failure>,
    due: u64,
}

/// Serves one connection until it ends.
pub(crate) async fn serve_connection(server: Arc<Server>, socket: TcpStream) {
    let connection = Arc::new(Connection::new(&server));
    let io = TokioIo::new(ObservedSocket::new(socket, connection.tracker.clone()));
    let service = service_fn(|request| respond(connection.clone(), request));
    let mut http = http1_builder().serve_connection(io, service);
    let Err(error) = (&mut http).await else { return };
    let fault = error.source().and_then(|source| source.downcast_ref::<InjectedFault>()).copied();
    let socket = http.into_parts().io.into_inner();
    match fault {
        Some(InjectedFault::Reset) => socket.reset(),
        Some(InjectedFault::Garbage) => write_garbage(socket).await,
        None => tracing::debug!(%error, "connection ended"),
    }
}

/// Returns a builder for HTTP/1.1 with small buffers, because there can be thousands of connections.
pub(crate) fn http1_builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(16 * 1024).header_read_timeout(None);
    builder
}

async fn respond(
    connection: Arc<Connection>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, InjectedFault> {
    let is_head = *request.method() == Method::HEAD;
    let result = route_request(&connection, request).await;
    if let Ok(response) = &result {
        connection.tracker.start_response(response.status().as_u16());
        if is_head {
            // hyper never polls the body of this response, so the body can't mark the end.
            connection.tracker.mark_response_complete();
        }
    }
    result
}

async fn route_request(
    connection: &Arc<Connection>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, InjectedFault> {
    let (endpoint, method) = match request.uri().path() {
        "/v1/chat/completions" => (Endpoint::Chat, Method::POST),
        "/health" => (Endpoint::Health, Method::GET),
        "/v1/models" => (Endpoint::Models, Method::GET),
        _ => (Endpoint::Other, Method::GET),
    };
    let arrival = connection.tracker.start_request(endpoint, request.headers());
    if let Some(refusal) = refuse_over_limit(connection, endpoint).await {
        return Ok(refusal);
    }
    // An unknown path gets status 404 for all methods.
    let is_known = endpoint != Endpoint::Other || request.uri().path() == "/";
    if is_known && *request.method() != method {
        return Ok(refuse_method(connection, endpoint, &method).await);
    }
    match endpoint {
        Endpoint::Chat => respond_to_chat(connection, request, arrival).await,
        Endpoint::Health => {
            let plan = connection
                .choose_response(|settings, rng| plan_response(&settings.health, rng, arrival));
            send_planned(connection, plan, Bytes::from_static(br#"{"status":"ok"}"#)).await
        }
        Endpoint::Models => {
            let (plan, body) = connection.choose_response(|settings, rng| {
                let plan = plan_response(&settings.models, rng, arrival);
                (plan, list_models(&settings.model_ids))
            });
            send_planned(connection, plan, body).await
        }
        Endpoint::WebSocket | Endpoint::Other if request.uri().path() == "/" => {
            let text = Bytes::from_static(b"Cell 0 simulator\n");
            let body = ResponseBody::complete(&connection.tracker, text);
            Ok(response_of_type("text/plain", body))
        }
        Endpoint::WebSocket | Endpoint::Other => {
            let message = format!("no such path: {}", request.uri().path());
            Ok(error_response(connection, StatusCode::NOT_FOUND, &message, "not_found"))
        }
    }
}

fn plan_response(settings: &HttpSettings, rng: &mut impl rand::Rng, arrival: u64) -> ResponsePlan {
    let failure = settings.errors.choose_failure(rng);
    let due = arrival + settings.latency.sample_nanos(rng);
    let due = settings.stall.map_or(due, |stall| stall.send_time(due));
    ResponsePlan { failure, due }
}

/// Sends a JSON body, or fails, at the planned time.
async fn send_planned(
    connection: &Connection,
    plan: ResponsePlan,
    body: Bytes,
) -> Result<Response<ResponseBody>, InjectedFault> {
    connection.clock().sleep_until(plan.due).await;
    match plan.failure {
        None => Ok(json_response(ResponseBody::complete(&connection.tracker, body))),
        Some(failure) => inject_failure(connection, failure, body).await,
    }
}

async fn refuse_method(
    connection: &Connection,
    endpoint: Endpoint,
    allowed: &Method,
) -> Response<ResponseBody> {
    wait_for_stall_end(connection, endpoint).await;
    let message = format!("use {allowed}");
    let status = StatusCode::METHOD_NOT_ALLOWED;
    let mut response = error_response(connection, status, &message, "method_not_allowed");
    if let Ok(allow) = HeaderValue::from_str(allowed.as_str()) {
        response.headers_mut().insert(header::ALLOW, allow);
    }
    response
}

fn list_models(ids: &[String]) -> Bytes {
    let data: Vec<_> = ids
        .iter()
        .map(|id| json!({"id": id, "object": "model", "created": 0, "owned_by": "cell0"}))
        .collect();
    json!({"object": "list", "data": data}).to_string().into()
}
