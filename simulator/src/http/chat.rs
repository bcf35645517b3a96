//! The chat endpoint: reads a request, plans the response and sends it.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use rand::{SeedableRng, rngs::SmallRng};

use super::{
    admission::wait_for_stall_end,
    body::ResponseBody,
    chat_completion::ChatCompletion,
    chat_request::ChatRequest,
    chat_stream::{ChatStream, TokenSchedule},
    injected_fault::{InjectedFault, inject_failure},
    response::{error_response, json_response, response_of_type},
};
use crate::{connection::Connection, settings::Failure, truth::Endpoint};

/// Maximum size of a request's body in bytes. A chat of a load test is smaller.
const MAX_BODY: usize = 1 << 20;

/// The planned response to one request.
struct ChatPlan {
    completion: ChatCompletion,
    is_streamed: bool,
    failure: Option<Failure>,
    latency: u64,
    schedule: TokenSchedule,
}

/// Status, message and code of an error response.
type RequestError = (StatusCode, String, &'static str);

/// Responds to a chat request that arrived at `arrival`.
pub(super) async fn respond_to_chat(
    connection: &Arc<Connection>,
    request: Request<Incoming>,
    arrival: u64,
) -> Result<Response<ResponseBody>, InjectedFault> {
    let tracker = &connection.tracker;
    let Ok(body) = Limited::new(request.into_body(), MAX_BODY).collect().await else {
        wait_for_stall_end(connection, Endpoint::Chat).await;
        let message = "the body is incomplete, or larger than 1 MiB";
        let status = StatusCode::PAYLOAD_TOO_LARGE;
        return Ok(error_response(connection, status, message, "bad_body"));
    };
    let body = body.to_bytes();
    let plan = match plan_response(connection, &body, arrival) {
        Ok(plan) => plan,
        Err((status, message, code)) => {
            wait_for_stall_end(connection, Endpoint::Chat).await;
            return Ok(error_response(connection, status, &message, code));
        }
    };
    let ChatPlan { completion, is_streamed, failure, latency, mut schedule } = plan;
    if is_streamed {
        let stream_failure = failure.filter(|failure| {
            matches!(failure, Failure::StreamError | Failure::CutShort | Failure::MalformedEvent)
        });
        if let Some(failure) = failure.filter(|_| stream_failure.is_none()) {
            connection.clock().sleep_until(schedule.first_token).await;
            return inject_failure(connection, failure, Bytes::new()).await;
        }
        let role_due = arrival + latency / 2;
        let stream = ChatStream::new(tracker, completion, schedule, role_due, stream_failure);
        return Ok(event_stream(stream));
    }
    let gaps: u64 = (0..completion.tokens).map(|_| schedule.sample_gap()).sum();
    let due = schedule.send_time(arrival + latency + gaps);
    connection.clock().sleep_until(due).await;
    let body = completion.json_body();
    match failure {
        None => Ok(json_response(ResponseBody::with_content(tracker, body))),
        Some(failure) => inject_failure(connection, failure, body).await,
    }
}

fn plan_response(
    connection: &Connection,
    body: &[u8],
    arrival: u64,
) -> Result<ChatPlan, RequestError> {
    let invalid = |message: String| (StatusCode::BAD_REQUEST, message, "invalid_request");
    let request: ChatRequest<'_> = serde_json::from_slice(body)
        .map_err(|error| invalid(format!("the body is not a chat request: {error}")))?;
    if request.messages.is_empty() {
        return Err(invalid("messages must not be empty".to_owned()));
    }
    let max_tokens = request.max_tokens();
    if max_tokens == 0 {
        return Err(invalid("max_tokens must be at least 1".to_owned()));
    }
    // `request_id` locks the tracker, so it must not be called while `choose_response` holds the
    // connection's lock.
    let id = connection.tracker.request_id();
    let started = connection.clock().start_unix() / 1_000_000_000;
    connection.choose_response(|settings, rng| {
        if !settings.model_ids.iter().any(|id| *id == request.model) {
            let message = format!("The model `{}` does not exist", request.model);
            return Err((StatusCode::NOT_FOUND, message, "model_not_found"));
        }
        let chat = &settings.chat;
        let failure = chat.errors.choose_failure(rng);
        let latency = chat.latency.sample_nanos(rng);
        let mut schedule = TokenSchedule {
            first_token: arrival + latency,
            gap: chat.token_gap,
            stall: chat.stall,
            rng: SmallRng::from_rng(rng),
        };
        schedule.first_token = schedule.send_time(schedule.first_token);
        let completion = ChatCompletion {
            id,
            created: started + arrival / 1_000_000_000,
            model: serde_json::Value::from(&*request.model).to_string(),
            tokens: chat.tokens.min(max_tokens),
            prompt_tokens: request.count_words(),
            finish_reason: if max_tokens < chat.tokens { "length" } else { "stop" },
            include_usage: request.includes_usage(),
        };
        let is_streamed = request.is_streamed();
        Ok(ChatPlan { completion, is_streamed, failure, latency, schedule })
    })
}

fn event_stream(stream: ChatStream) -> Response<ResponseBody> {
    let body = ResponseBody::Stream(Box::new(stream));
    let mut response = response_of_type("text/event-stream", body);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}
