//! Limits and stalls of the HTTP endpoints.

use http::{HeaderValue, Response, StatusCode, header};

use super::{body::ResponseBody, response::error_response};
use crate::{connection::Connection, settings::Limits, truth::Endpoint};

/// Admits a request to its endpoint. Returns a response with status 429 if a limit is reached.
pub(super) async fn refuse_over_limit(
    connection: &Connection,
    endpoint: Endpoint,
) -> Option<Response<ResponseBody>> {
    let limits = connection.choose_response(|settings, _| match endpoint {
        Endpoint::Chat => settings.chat.limits,
        Endpoint::Health => settings.health.limits,
        Endpoint::Models => settings.models.limits,
        Endpoint::WebSocket => settings.web_socket.limits,
        Endpoint::Other => Limits::default(),
    });
    let tracker = &connection.tracker;
    // Arrival times have no order across connections, so the limiter gets the current time.
    let now = connection.clock().now();
    if tracker.server.limiters.get(endpoint).try_acquire(limits, now) {
        tracker.mark_admitted();
        return None;
    }
    wait_for_stall_end(connection, endpoint).await;
    let status = StatusCode::TOO_MANY_REQUESTS;
    let mut response =
        error_response(connection, status, "rate limit reached", "rate_limit_exceeded");
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    Some(response)
}

/// Waits until no stall is in progress. During a stall, an endpoint sends no errors either.
pub(super) async fn wait_for_stall_end(connection: &Connection, endpoint: Endpoint) {
    let stall = connection.choose_response(|settings, _| match endpoint {
        Endpoint::Chat => settings.chat.stall,
        Endpoint::Health => settings.health.stall,
        Endpoint::Models => settings.models.stall,
        Endpoint::WebSocket => settings.web_socket.stall,
        Endpoint::Other => None,
    });
    if let Some(stall) = stall {
        let clock = connection.clock();
        clock.sleep_until(stall.send_time(clock.now())).await;
    }
}
