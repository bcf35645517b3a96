//! The runner's HTTP side: metrics, probes, and orders that come with the run's token.

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
    metrics::{Format, Identity, RunnerNumbers, RunnerState, Shown, encode},
    resource::TaskKind,
    token,
};
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, sync::watch};

use crate::load::engine::Engine;

/// What the server needs to answer.
#[derive(Debug)]
pub struct Control {
    /// The load.
    pub engine: Engine,
    /// Who this runner is.
    pub identity: Identity,
    /// True once it was told to go.
    pub released: watch::Sender<bool>,
}

/// An order to start, as the operator sends it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StartOrder {
    /// Seconds left until the start, as of the order's sending.
    pub in_seconds: f64,
}

/// An order to stop.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StopOrder {
    /// Seconds that open requests may take yet.
    pub grace_seconds: f64,
}

/// One error's example, as `/errors` lists them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ErrorExample {
    /// The task.
    pub task: String,
    /// The kind.
    pub kind: String,
    /// One message.
    pub message: String,
}

/// The longest start order taken: a slip in units must not park a runner for a year.
const LONGEST_LEAD: f64 = 3600.0;

impl Control {
    /// Everything measured so far, with who measured it.
    pub async fn numbers(&self) -> RunnerNumbers {
        // The state first: numbers taken after "done" are final.
        let state = match self.engine.state() {
            RunnerState::Done if *self.released.borrow() => RunnerState::Released,
            state => state,
        };
        let numbers = self.engine.measured().await.numbers;
        RunnerNumbers { identity: self.identity.clone(), state, numbers }
    }

    /// The exposition in a format.
    ///
    /// # Errors
    /// When the encoder refuses a value.
    pub async fn exposition(&self, format: Format) -> Result<Vec<u8>, std::fmt::Error> {
        encode(self.numbers().await, self.shown(), format)
    }

    fn shown(&self) -> Shown {
        let plan = self.engine.prepared().plan();
        let names = |wanted: fn(TaskKind<'_>) -> bool| {
            let tasks = plan.scenario.tasks.iter();
            tasks
                .filter(|task| task.kind().is_some_and(wanted))
                .map(|task| task.name.clone())
                .collect()
        };
        Shown {
            loadtest: plan.name.clone(),
            chat: names(|kind| matches!(kind, TaskKind::Chat(_))),
            web_socket: names(|kind| matches!(kind, TaskKind::WebSocket(_))),
            breathe: Some(std::thread::yield_now),
        }
    }

    fn allows(&self, headers: &HeaderMap) -> bool {
        let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = bearer.and_then(|value| value.strip_prefix("Bearer "));
        let expected = &self.engine.prepared().plan().token_sha256;
        token.is_some_and(|token| token::matches(token, expected))
    }
}

/// Listens at an address. IPv6's "any", which takes IPv4 as well, gives way to IPv4's on a machine
/// without IPv6.
///
/// # Errors
/// When the address can't be bound.
pub async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(_) if address.ip() == Ipv6Addr::UNSPECIFIED => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        done => done,
    }
}

/// The routes of a runner.
pub fn router(control: Arc<Control>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/errors", get(errors))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(|| async { "ok\n" }))
        .route("/start", post(start))
        .route("/stop", post(stop))
        .route("/release", post(release))
        .with_state(control)
}

async fn metrics(State(control): State<Arc<Control>>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let format = Format::accepted(accept.unwrap_or_default());
    match control.exposition(format).await {
        Ok(body) => ([(header::CONTENT_TYPE, format.content_type())], body).into_response(),
        Err(error) => {
            tracing::error!(%error, "exposition could not be encoded");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn errors(State(control): State<Arc<Control>>) -> Json<Vec<ErrorExample>> {
    let examples = control.engine.measured().await.examples;
    let examples = examples
        .into_iter()
        .map(|((task, kind), message)| ErrorExample { task, kind, message })
        .collect();
    Json(examples)
}

fn refused() -> Response {
    (StatusCode::UNAUTHORIZED, "this order needs the run's token\n").into_response()
}

fn seconds(value: f64) -> Option<Duration> {
    let sane = value.is_finite() && (0.0..=LONGEST_LEAD).contains(&value);
    sane.then(|| Duration::from_secs_f64(value))
}

async fn start(
    State(control): State<Arc<Control>>,
    headers: HeaderMap,
    Json(order): Json<StartOrder>,
) -> Response {
    if !control.allows(&headers) {
        return refused();
    }
    let Some(lead) = seconds(order.in_seconds) else {
        let message = format!("inSeconds: {} is not between 0 and 3600\n", order.in_seconds);
        return (StatusCode::BAD_REQUEST, message).into_response();
    };
    // Sent twice, the first one stands: the second is told so and nothing more.
    if control.engine.start(Instant::now() + lead) {
        tracing::info!(in_seconds = order.in_seconds, "start ordered");
    }
    StatusCode::NO_CONTENT.into_response()
}

async fn stop(
    State(control): State<Arc<Control>>,
    headers: HeaderMap,
    Json(order): Json<StopOrder>,
) -> Response {
    if !control.allows(&headers) {
        return refused();
    }
    let Some(grace) = seconds(order.grace_seconds) else {
        let message = format!("graceSeconds: {} is not between 0 and 3600\n", order.grace_seconds);
        return (StatusCode::BAD_REQUEST, message).into_response();
    };
    tracing::info!(grace_seconds = order.grace_seconds, "stop ordered");
    control.engine.stop(grace);
    StatusCode::NO_CONTENT.into_response()
}

async fn release(State(control): State<Arc<Control>>, headers: HeaderMap) -> Response {
    if !control.allows(&headers) {
        return refused();
    }
    tracing::info!("released");
    control.released.send_replace(true);
    StatusCode::NO_CONTENT.into_response()
}
