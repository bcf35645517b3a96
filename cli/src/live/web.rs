//! The live page on the viewer's own machine. It sends an update a second as server-sent events, and
//! takes the order to stop the test.

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{
        Html, IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::{get, post},
};
use futures_util::{
    future::BoxFuture,
    stream::{self, Stream},
};
use loadtest_report::{live_page, live_update};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{LiveFeed, LiveState};

/// The port of the page, as that of Locust's page.
const DEFAULT_PORT: u16 = 8089;
/// Time for which viewers get the last update of a test, before the command ends.
const LAST_UPDATE_TIMEOUT: Duration = Duration::from_secs(2);
/// The header of an order to stop.
const TOKEN_HEADER: &str = "x-stop-token";

/// Reads the address of `--web`: `8089`, `:8089`, `0.0.0.0:8089`. Without an IP address, the page is for
/// this machine only.
///
/// # Errors
/// When the text is no address; the error says which forms there are.
pub(crate) fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let port = text.strip_prefix(':').unwrap_or(text);
    if text.is_empty() {
        return Ok(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), DEFAULT_PORT));
    }
    if let Ok(port) = port.parse() {
        return Ok(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port));
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(address, DEFAULT_PORT));
    }
    text.strip_prefix("localhost:")
        .and_then(|port| port.parse().ok().map(|port| (Ipv4Addr::LOCALHOST, port).into()))
        .or_else(|| text.parse().ok())
        .ok_or_else(|| {
            "use a port, such as 8089, or an IP address and a port, such as 0.0.0.0:8089".to_owned()
        })
}

/// A viewer's order to stop the test.
pub(crate) type StopOrder = CancellationToken;

/// Stops the test when a viewer asks for it. The error says why it can't be stopped.
pub(crate) type StopAction = Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// An action that gives an order, and can't fail.
pub(crate) fn give_order(order: &StopOrder) -> StopAction {
    let order = order.clone();
    Arc::new(move || {
        order.cancel();
        Box::pin(async { Ok(()) })
    })
}

/// The button that stops the test. Its token is on the page only.
#[derive(Clone)]
struct StopButton {
    token: Arc<str>,
    action: StopAction,
}

/// The state that the handlers of the page share.
#[derive(Clone)]
struct Shared {
    page: Arc<str>,
    states: watch::Receiver<Option<LiveState>>,
    stop: Option<StopButton>,
    /// True if only this machine can open the page.
    is_local: bool,
    /// The host name of this machine.
    machine: Arc<str>,
}

/// A page that is being served.
#[derive(Debug)]
pub(crate) struct LivePage {
    /// The address of the page.
    pub(crate) address: SocketAddr,
    serving: JoinHandle<std::io::Result<()>>,
    end: CancellationToken,
}

impl LivePage {
    /// Serves the page of a test. Its button calls `stop`; without it, the page has no button.
    ///
    /// # Errors
    /// When the address can't be listened on.
    pub(crate) async fn serve(
        address: SocketAddr,
        name: &str,
        feed: &LiveFeed,
        stop: Option<StopAction>,
    ) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!("the live page can't be served on {address}: choose another port")
        })?;
        let address = listener.local_addr()?;
        let stop = stop.map(|action| {
            let token = format!("{:032x}", rand::random::<u128>()).into();
            StopButton { token, action }
        });
        let shared = Shared {
            page: live_page(name, stop.as_ref().map(|stop| &*stop.token)).into(),
            states: feed.subscribe(),
            stop,
            is_local: address.ip().is_loopback(),
            machine: machine_name(),
        };
        let end = CancellationToken::new();
        let router = Router::new()
            .route("/", get(send_page))
            .route("/events", get(send_updates))
            .route("/stop", post(stop_test))
            .layer(middleware::from_fn_with_state(shared.clone(), check_host))
            .with_state(shared);
        let shutdown = end.clone().cancelled_owned();
        let serving = tokio::spawn(async move {
            axum::serve(listener, router).with_graceful_shutdown(shutdown).await
        });
        Ok(Self { address, serving, end })
    }

    /// Ends the page after viewers had a moment to get the last update.
    pub(crate) async fn end(self) {
        self.end.cancel();
        // The command does not wait longer for a viewer that reads nothing.
        drop(tokio::time::timeout(LAST_UPDATE_TIMEOUT, self.serving).await);
    }
}

/// Refuses requests for other names than those of this machine: a page of another site could give its name
/// the address of this machine, and read the numbers or stop the test.
async fn check_host(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let machine = (!shared.is_local).then_some(&*shared.machine);
    if host.is_some_and(|host| is_name_of_this_machine(host, machine)) {
        return next.run(request).await;
    }
    let names = "this page is only served as localhost or 127.0.0.1";
    let text = match machine {
        None => format!("{names}\n"),
        Some(machine) => format!("{names}, by the address of this machine, or as {machine}\n"),
    };
    (StatusCode::FORBIDDEN, text).into_response()
}

/// Returns true for a name that only this machine has. `machine` is its host name if other machines can open the page:
/// then every address is good, because a site can't have one as its name.
fn is_name_of_this_machine(host: &str, machine: Option<&str>) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    let address = name.parse::<IpAddr>();
    let is_own_name = |machine: &str| {
        let first = name.split('.').next().unwrap_or_default();
        address.is_ok() || [name, first].iter().any(|name| name.eq_ignore_ascii_case(machine))
    };
    name.eq_ignore_ascii_case("localhost")
        || address.as_ref().is_ok_and(IpAddr::is_loopback)
        || machine.is_some_and(is_own_name)
}

/// Returns the host name of this machine.
fn machine_name() -> Arc<str> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().into()
}

async fn send_page(State(shared): State<Shared>) -> Response {
    // No page of another site may show this one in a frame, and make the viewer click in it.
    let headers = [(header::CONTENT_SECURITY_POLICY, "frame-ancestors 'none'")];
    (headers, Html(shared.page.to_string())).into_response()
}

async fn stop_test(State(shared): State<Shared>, headers: HeaderMap) -> Response {
    let found = headers.get(TOKEN_HEADER).map(axum::http::HeaderValue::as_bytes);
    match &shared.stop {
        Some(stop) if found == Some(stop.token.as_bytes()) => match (stop.action)().await {
            Ok(()) => StatusCode::NO_CONTENT.into_response(),
            Err(text) => (StatusCode::BAD_GATEWAY, text).into_response(),
        },
        _ => (StatusCode::FORBIDDEN, "the order has no valid token: load the page again\n")
            .into_response(),
    }
}

/// The part of the series that one viewer has.
struct Viewer {
    states: watch::Receiver<Option<LiveState>>,
    step_seconds: f64,
    /// Number of points that have come and don't change any more.
    points: usize,
    is_over: bool,
}

impl Viewer {
    /// Waits for the next state and makes an update of it. Returns `None` after the last one.
    async fn next_update(&mut self) -> Option<String> {
        while !self.is_over {
            self.states.changed().await.ok()?;
            let state = self.states.borrow_and_update().clone();
            if let Some(state) = state {
                return self.update(&state);
            }
        }
        None
    }

    fn update(&mut self, state: &LiveState) -> Option<String> {
        self.is_over = state.is_over;
        let series = state.series();
        // The last series may be another one, so it comes as a whole.
        if state.is_over || self.step_seconds.total_cmp(&series.step_seconds).is_ne() {
            self.step_seconds = series.step_seconds;
            self.points = 0;
        }
        let update = live_update(&state.result, &series, self.points, state.is_over);
        // The last point may still grow.
        self.points = series.points.len().saturating_sub(1);
        match update {
            Ok(update) => Some(update),
            Err(error) => {
                tracing::error!(%error, "the live page can't be updated");
                None
            }
        }
    }
}

async fn send_updates(
    State(shared): State<Shared>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let mut states = shared.states;
    // The first update is the latest state.
    states.mark_changed();
    let viewer = Viewer { states, step_seconds: 0.0, points: 0, is_over: false };
    let updates = stream::unfold(viewer, |mut viewer| async move {
        let update = viewer.next_update().await?;
        Some((Ok(Event::default().data(update)), viewer))
    });
    Sse::new(updates).keep_alive(KeepAlive::default())
}

#[cfg(test)]
mod tests;
