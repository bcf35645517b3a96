//! The HTTP server of a runner: metrics, probes, and orders that need the token of the run.

use std::{
    convert::Infallible,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use loadtest_core::{
    control::{
        ErrorExample, HISTORY_HEADER, HistoryReply, MAX_ORDER_SECONDS, ReleaseOrder, StartOrder,
        StopOrder, path,
    },
    metrics::{
        ExpositionOptions, Format, Identity, RunnerHistory, RunnerMetrics, RunnerState, encode,
    },
    plan::TaskKind,
    token,
};
use serde::de::DeserializeOwned;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Mutex, watch},
    time::MissedTickBehavior,
};

use crate::load::engine::Engine;

/// Maximum length of an order's body.
const MAX_ORDER_BYTES: usize = 4 << 10;
/// Interval between two steps of the history. Each reader adds a step of its own.
const STEP_INTERVAL: Duration = Duration::from_secs(2);
/// Minimum time between two steps. A reader that comes earlier gets the steps that are there.
const MIN_STEP: Duration = Duration::from_millis(200);
/// The load threads learn their start this long before it. A later order does not change it any more.
const START_LEAD: Duration = Duration::from_millis(200);
/// Pause after a connection that could not be accepted, such as when no file can be opened.
const ACCEPT_RETRY: Duration = Duration::from_secs(1);

/// The state of the server.
#[derive(Debug)]
pub struct Control {
    /// The load.
    pub engine: Engine,
    /// Identity of this runner.
    pub identity: Identity,
    /// True once the runner is ready for its start order.
    pub(crate) ready: AtomicBool,
    /// The earliest start that an order has named.
    planned_start: watch::Sender<Option<Instant>>,
    /// True after a release order.
    pub released: watch::Sender<bool>,
    /// Number of orders without the token of the run, or of a Lease that is over.
    refused_orders: AtomicU32,
    /// Largest number of the operator's Lease that this runner has seen.
    lease_number: AtomicU64,
    /// The last minutes of this runner.
    history: Mutex<RunnerHistory>,
    /// Origin of the times in the history.
    created_at: Instant,
}

impl Control {
    /// Creates the state of a runner that waits for its start order.
    pub fn new(engine: Engine, identity: Identity) -> Self {
        Self {
            engine,
            history: Mutex::new(RunnerHistory::new(identity.clone(), Some(std::thread::yield_now))),
            identity,
            ready: AtomicBool::new(false),
            planned_start: watch::Sender::new(None),
            released: watch::Sender::new(false),
            refused_orders: AtomicU32::new(0),
            lease_number: AtomicU64::new(0),
            created_at: Instant::now(),
        }
    }

    /// Returns the state of the runner. It counts as running once it has a start order.
    pub(crate) fn state(&self) -> RunnerState {
        match self.engine.state() {
            RunnerState::Done if *self.released.borrow() => RunnerState::Released,
            RunnerState::Waiting if self.planned_start.borrow().is_some() => RunnerState::Running,
            state => state,
        }
    }

    /// Plans a start. An order is late by the time that it was on its way, so the earliest start counts. Returns true
    /// for the first one.
    fn plan_start(&self, at: Instant) -> bool {
        let mut is_first = false;
        self.planned_start.send_if_modified(|planned| {
            is_first = planned.is_none();
            let is_earlier = planned.is_none_or(|planned| at < planned);
            if is_earlier {
                *planned = Some(at);
            }
            is_earlier
        });
        is_first
    }

    /// Starts the load at the planned time.
    async fn start_as_planned(&self) {
        let mut planned = self.planned_start.subscribe();
        let Some(mut at) = *planned.borrow_and_update() else { return };
        while let Some(wait) = at.checked_duration_since(Instant::now() + START_LEAD)
            && tokio::time::timeout(wait, planned.changed()).await.is_ok()
        {
            at = planned.borrow_and_update().unwrap_or(at);
        }
        self.engine.start(at);
    }

    /// Adds a step to the history if the last one is at least this old, or of another state.
    async fn record_step(&self, min_age: Duration) {
        let mut history = self.history.lock().await;
        let now = self.created_at.elapsed();
        let is_recent = history.recorded_at().is_some_and(|at| now.saturating_sub(at) < min_age);
        if is_recent && history.state() == self.state() {
            return;
        }
        let snapshot = self.runner_metrics().await;
        if let Err(error) = history.record(&snapshot, self.created_at.elapsed()) {
            tracing::error!(%error, "a step of the history could not be encoded");
        }
    }

    /// Returns the encoded steps of the history after a number.
    ///
    /// # Errors
    /// When the encoder refuses a value.
    async fn encode_history(&self, after: u64) -> Result<Vec<u8>, std::fmt::Error> {
        self.record_step(MIN_STEP).await;
        self.history.lock().await.encode_after(after)
    }

    /// Returns the metrics measured so far, with the identity and the state of this runner.
    async fn runner_metrics(&self) -> RunnerMetrics {
        // The state is read first, so that metrics with the state "done" are final.
        let state = self.state();
        let mut metrics = self.engine.snapshot().await.metrics;
        metrics.refused_orders = f64::from(self.refused_orders.load(Ordering::Relaxed));
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

    /// Refuses an order of an operator that no longer leads, because this runner has seen a larger number
    /// of the Lease.
    fn check_lease(&self, number: Option<u64>) -> Result<(), (StatusCode, String)> {
        let Some(number) = number else { return Ok(()) };
        let seen = self.lease_number.fetch_max(number, Ordering::Relaxed);
        if number >= seen {
            return Ok(());
        }
        self.refused_orders.fetch_add(1, Ordering::Relaxed);
        let problem = format!(
            "the order has lease number {number}, but this runner has seen the higher number {seen}"
        );
        Err((StatusCode::CONFLICT, problem))
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

/// Serves the control port. Never returns.
pub async fn serve_control(listener: TcpListener, control: Arc<Control>) {
    loop {
        match listener.accept().await {
            Ok((socket, _)) => {
                tokio::spawn(serve_connection(socket, Arc::clone(&control)));
            }
            Err(error) => {
                tracing::warn!(%error, "a control connection could not be accepted");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// Adds a step to the history every [`STEP_INTERVAL`]. Never returns.
pub(crate) async fn record_history(control: Arc<Control>) {
    let mut ticks = tokio::time::interval(STEP_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // A step of a reader just before the tick counts as this one.
        control.record_step(STEP_INTERVAL / 2).await;
    }
}

async fn serve_connection(socket: TcpStream, control: Arc<Control>) {
    let service = service_fn(|request| {
        let control = Arc::clone(&control);
        async move { Ok::<_, Infallible>(respond(&control, request).await) }
    });
    if let Err(error) = http1::Builder::new().serve_connection(TokioIo::new(socket), service).await
    {
        tracing::debug!(%error, "a control connection failed");
    }
}

type Reply = Response<Full<Bytes>>;

async fn respond(control: &Arc<Control>, request: Request<Incoming>) -> Reply {
    let (head, body) = request.into_parts();
    let allowed = match head.uri.path() {
        path::METRICS | path::HISTORY | path::ERRORS | path::LIVENESS | path::READINESS => {
            "GET, HEAD"
        }
        path::START | path::STOP | path::RELEASE => "POST",
        unknown => return text_reply(StatusCode::NOT_FOUND, format!("no path {unknown:?}\n")),
    };
    if !allowed.split(", ").any(|method| method == head.method.as_str()) {
        let mut reply = text_reply(StatusCode::METHOD_NOT_ALLOWED, format!("use {allowed}\n"));
        reply.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
        return reply;
    }
    match head.uri.path() {
        path::METRICS => metrics_reply(control, &head.headers).await,
        path::HISTORY => {
            history_reply(control, &head.headers, head.uri.query().unwrap_or_default()).await
        }
        path::ERRORS => errors_reply(control).await,
        path::READINESS if !control.ready.load(Ordering::Relaxed) => {
            let problem = "the target has not accepted a connection yet\n";
            text_reply(StatusCode::SERVICE_UNAVAILABLE, problem)
        }
        path::LIVENESS | path::READINESS => text_reply(StatusCode::OK, "ok\n"),
        order => match obey_order(control, order, &head.headers, body).await {
            Ok(()) => empty_reply(StatusCode::NO_CONTENT),
            Err((status, problem)) => text_reply(status, problem + "\n"),
        },
    }
}

fn empty_reply(status: StatusCode) -> Reply {
    let mut reply = Response::new(Full::default());
    *reply.status_mut() = status;
    reply
}

fn reply_with(content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}

fn text_reply(status: StatusCode, text: impl Into<Bytes>) -> Reply {
    let mut reply = reply_with("text/plain; charset=utf-8", text);
    *reply.status_mut() = status;
    reply
}

async fn metrics_reply(control: &Control, headers: &HeaderMap) -> Reply {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let format = Format::from_accept(accept.unwrap_or_default());
    match control.encode_metrics(format).await {
        Ok(body) => reply_with(format.content_type(), body),
        Err(error) => {
            tracing::error!(%error, "exposition could not be encoded");
            empty_reply(StatusCode::INTERNAL_SERVER_ERROR)
        }
    }
}

async fn history_reply(control: &Control, headers: &HeaderMap, query: &str) -> Reply {
    let asked_at = Instant::now();
    let value_of = |name: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let value = pairs.find(|(found, _)| *found == name);
        let value = value.map_or("0", |(_, value)| value);
        value.parse::<u64>().map_err(|_| format!("{name}: {value:?} is not a whole number\n"))
    };
    let (after, lease_number) = match (value_of("after"), value_of("leaseNumber")) {
        (Ok(after), Ok(lease_number)) => (after, lease_number),
        (Err(problem), _) | (_, Err(problem)) => {
            return text_reply(StatusCode::BAD_REQUEST, problem);
        }
    };
    // Everybody may read. Only an operator may say which Lease counts.
    if control.is_authorized(headers) {
        control.lease_number.fetch_max(lease_number, Ordering::Relaxed);
    }
    match control.encode_history(after).await {
        Ok(body) => {
            let mut reply = reply_with(Format::Protobuf.content_type(), body);
            let about = HistoryReply {
                identity: control.identity.clone(),
                elapsed_seconds: control.engine.elapsed().as_secs_f64(),
                work_seconds: asked_at.elapsed().as_secs_f64(),
            };
            if let Ok(about) = HeaderValue::from_str(&about.to_string()) {
                reply.headers_mut().insert(HISTORY_HEADER, about);
            }
            reply
        }
        Err(error) => {
            tracing::error!(%error, "history could not be encoded");
            empty_reply(StatusCode::INTERNAL_SERVER_ERROR)
        }
    }
}

async fn errors_reply(control: &Control) -> Reply {
    let examples = control.engine.snapshot().await.examples;
    let examples: Vec<_> = examples
        .into_iter()
        .map(|((task, kind), message)| ErrorExample { task, kind, message })
        .collect();
    match serde_json::to_vec(&examples) {
        Ok(body) => reply_with("application/json", body),
        Err(error) => {
            tracing::error!(%error, "error examples could not be encoded");
            empty_reply(StatusCode::INTERNAL_SERVER_ERROR)
        }
    }
}

/// Obeys an order that carries the token of the run. A repeated order changes nothing.
///
/// # Errors
/// The status and the problem of an order that is refused.
async fn obey_order(
    control: &Arc<Control>,
    order: &str,
    headers: &HeaderMap,
    body: Incoming,
) -> Result<(), (StatusCode, String)> {
    if !control.is_authorized(headers) {
        control.refused_orders.fetch_add(1, Ordering::Relaxed);
        let problem = "this order needs the token of the run".to_owned();
        return Err((StatusCode::UNAUTHORIZED, problem));
    }
    match order {
        path::START => {
            let StartOrder { lease_number, in_seconds } = parse_order(body).await?;
            control.check_lease(lease_number)?;
            let lead = parse_seconds("inSeconds", in_seconds)?;
            if control.plan_start(Instant::now() + lead) {
                tracing::info!(in_seconds, "start ordered");
                let control = Arc::clone(control);
                tokio::spawn(async move { control.start_as_planned().await });
            }
        }
        path::STOP => {
            let StopOrder { lease_number, grace_seconds } = parse_order(body).await?;
            control.check_lease(lease_number)?;
            let grace = parse_seconds("graceSeconds", grace_seconds)?;
            tracing::info!(grace_seconds, "stop ordered");
            control.engine.stop(grace);
        }
        _ => {
            let ReleaseOrder { lease_number, last_step } = parse_order(body).await?;
            control.check_lease(lease_number)?;
            if let Some(step) = last_step
                && !control.history.lock().await.is_complete_at(step)
            {
                let problem = format!("this runner has metrics that are newer than step {step}");
                return Err((StatusCode::CONFLICT, problem));
            }
            tracing::info!("released");
            control.released.send_replace(true);
        }
    }
    Ok(())
}

async fn parse_order<T: DeserializeOwned>(body: Incoming) -> Result<T, (StatusCode, String)> {
    let problem = |error: &dyn std::fmt::Display| {
        (StatusCode::BAD_REQUEST, format!("the order can't be read: {error}"))
    };
    let body = Limited::new(body, MAX_ORDER_BYTES).collect().await;
    let body = body.map_err(|error| problem(&error))?.to_bytes();
    let body: &[u8] = if body.is_empty() { b"{}" } else { &body };
    serde_json::from_slice(body).map_err(|error| problem(&error))
}

fn parse_seconds(field: &str, value: f64) -> Result<Duration, (StatusCode, String)> {
    if (0.0..=MAX_ORDER_SECONDS).contains(&value) {
        return Ok(Duration::from_secs_f64(value));
    }
    let problem = format!("{field}: {value} is not between 0 and {MAX_ORDER_SECONDS}");
    Err((StatusCode::BAD_REQUEST, problem))
}
