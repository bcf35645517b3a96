//! The HTTP server of a runner: metrics, probes, and orders that need the token of the run.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use loadtest_core::{
    control::{ErrorExample, MAX_ORDER_SECONDS, StartOrder, StopOrder, path},
    metrics::{ExpositionOptions, Format, Identity, RunnerMetrics, RunnerState, encode},
    plan::TaskKind,
    token,
};
use tokio::{net::TcpListener, sync::watch};

use crate::load::engine::Engine;

/// The state of the server.
#[derive(Debug)]
pub struct Control {
    /// The load.
    pub engine: Engine,
    /// Identity of this runner.
    pub identity: Identity,
    /// True after a release order.
    pub released: watch::Sender<bool>,
}

impl Control {
    /// Returns the metrics measured so far, with the identity and the state of this runner.
    async fn runner_metrics(&self) -> RunnerMetrics {
        // The state is read first, so that metrics with the state "done" are final.
        let state = match self.engine.state() {
            RunnerState::Done if *self.released.borrow() => RunnerState::Released,
            state => state,
        };
        let metrics = self.engine.snapshot().await.metrics;
        RunnerMetrics { identity: self.identity.clone(), state, metrics }
    }

    /// Returns the metrics, encoded in a format.
    ///
    /// # Errors
    /// When the encoder refuses a value.
    pub(crate) async fn encode_metrics(&self, format: Format) -> Result<Vec<u8>, std::fmt::Error> {
        encode(self.runner_metrics().await, self.exposition_options(), format)
    }

    fn exposition_options(&self) -> ExpositionOptions {
        let plan = self.engine.prepared().plan();
        let task_names = |wanted: fn(&TaskKind) -> bool| {
            let tasks = plan.test.scenario.tasks.iter();
            tasks.filter(|task| wanted(&task.kind)).map(|task| task.name.clone()).collect()
        };
        ExpositionOptions {
            loadtest: plan.name.clone(),
            chat_tasks: task_names(|kind| matches!(kind, TaskKind::Chat(_))),
            web_socket_tasks: task_names(|kind| matches!(kind, TaskKind::WebSocket(_))),
            after_each_histogram: Some(std::thread::yield_now),
        }
    }

    fn is_authorized(&self, headers: &HeaderMap) -> bool {
        let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = bearer.and_then(|value| value.strip_prefix("Bearer "));
        let expected = &self.engine.prepared().plan().token_sha256;
        token.is_some_and(|token| token::matches_fingerprint(token, expected))
    }
}

/// Listens at an address. The IPv6 address `::` also accepts IPv4. On a machine without IPv6,
/// `0.0.0.0` replaces it.
///
/// # Errors
/// When the address can't be bound.
pub(crate) async fn bind_listener(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(_) if address.ip() == Ipv6Addr::UNSPECIFIED => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        result => result,
    }
}

/// Returns the routes of a runner.
pub fn router(control: Arc<Control>) -> Router {
    Router::new()
        .route(path::METRICS, get(get_metrics))
        .route(path::ERRORS, get(get_errors))
        .route(path::LIVENESS, get(|| async { "ok\n" }))
        .route(path::READINESS, get(|| async { "ok\n" }))
        .route(path::START, post(post_start))
        .route(path::STOP, post(post_stop))
        .route(path::RELEASE, post(post_release))
        .with_state(control)
}

async fn get_metrics(State(control): State<Arc<Control>>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let format = Format::from_accept(accept.unwrap_or_default());
    match control.encode_metrics(format).await {
        Ok(body) => ([(header::CONTENT_TYPE, format.content_type())], body).into_response(),
        Err(error) => {
            tracing::error!(%error, "exposition could not be encoded");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn get_errors(State(control): State<Arc<Control>>) -> Json<Vec<ErrorExample>> {
    let examples = control.engine.snapshot().await.examples;
    let examples = examples
        .into_iter()
        .map(|((task, kind), message)| ErrorExample { task, kind, message })
        .collect();
    Json(examples)
}

fn unauthorized_response() -> Response {
    (StatusCode::UNAUTHORIZED, "this order needs the token of the run\n").into_response()
}

fn parse_seconds(value: f64) -> Option<Duration> {
    let is_valid = value.is_finite() && (0.0..=MAX_ORDER_SECONDS).contains(&value);
    is_valid.then(|| Duration::from_secs_f64(value))
}

async fn post_start(
    State(control): State<Arc<Control>>,
    headers: HeaderMap,
    Json(order): Json<StartOrder>,
) -> Response {
    if !control.is_authorized(&headers) {
        return unauthorized_response();
    }
    let Some(lead) = parse_seconds(order.in_seconds) else {
        let message =
            format!("inSeconds: {} is not between 0 and {MAX_ORDER_SECONDS}\n", order.in_seconds);
        return (StatusCode::BAD_REQUEST, message).into_response();
    };
    // A repeated start order changes nothing and gets the same response.
    if control.engine.start(Instant::now() + lead) {
        tracing::info!(in_seconds = order.in_seconds, "start ordered");
    }
    StatusCode::NO_CONTENT.into_response()
}

async fn post_stop(
    State(control): State<Arc<Control>>,
    headers: HeaderMap,
    Json(order): Json<StopOrder>,
) -> Response {
    if !control.is_authorized(&headers) {
        return unauthorized_response();
    }
    let Some(grace) = parse_seconds(order.grace_seconds) else {
        let message = format!(
            "graceSeconds: {} is not between 0 and {MAX_ORDER_SECONDS}\n",
            order.grace_seconds
        );
        return (StatusCode::BAD_REQUEST, message).into_response();
    };
    tracing::info!(grace_seconds = order.grace_seconds, "stop ordered");
    control.engine.stop(grace);
    StatusCode::NO_CONTENT.into_response()
}

async fn post_release(State(control): State<Arc<Control>>, headers: HeaderMap) -> Response {
    if !control.is_authorized(&headers) {
        return unauthorized_response();
    }
    tracing::info!("released");
    control.released.send_replace(true);
    StatusCode::NO_CONTENT.into_response()
}
