//! Starts a simulator, sends requests to it and reads its truth.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use cell0_simulator::{Counts, Listen, RunTruth, Settings, Simulator};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

/// Maximum time for a condition to become true. It is long enough for a busy machine.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The UID of the run of all clients.
pub(crate) const RUN_UID: &str = "run-1";

/// Starts a simulator that responds at once, except for the given settings.
pub(crate) async fn start_simulator(yaml: &str) -> Simulator {
    let settings = Settings::default().with_instant_responses();
    let patch = serde_saphyr::from_str(if yaml.is_empty() { "{}" } else { yaml }).unwrap();
    Simulator::start(settings.with_patch(patch).unwrap(), Listen::loopback()).await.unwrap()
}

/// A client with one keep-alive connection.
pub(crate) struct Client(SendRequest<Full<Bytes>>);

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).await.unwrap();
        let (sender, connection) = handshake(TokioIo::new(socket)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    pub(crate) async fn send_request(
        &mut self,
        method: &str,
        path: &str,
        body: &str,
    ) -> hyper::Result<Response<hyper::body::Incoming>> {
        self.0.ready().await?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "simulator")
            .header("x-loadtest-run", RUN_UID)
            .body(Full::from(body.to_owned()))
            .unwrap();
        self.0.send_request(request).await
    }

    /// Sends a request. Returns the status and the complete body.
    pub(crate) async fn request(
        &mut self,
        method: &str,
        path: &str,
        body: &str,
    ) -> hyper::Result<(u16, String)> {
        let response = self.send_request(method, path, body).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes();
        Ok((status, String::from_utf8(body.to_vec()).unwrap()))
    }

    /// Sends a request. Returns the status and the body as JSON, or as a JSON string.
    pub(crate) async fn request_json(
        &mut self,
        method: &str,
        path: &str,
        body: &str,
    ) -> (u16, Value) {
        let (status, text) = self.request(method, path, body).await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// Sends a chat request with more fields. Returns the status and the complete body.
    pub(crate) async fn request_chat(&mut self, more: Value) -> hyper::Result<(u16, String)> {
        self.request("POST", "/v1/chat/completions", &chat_body(more)).await
    }
}

/// Returns the body of a chat request with more fields.
pub(crate) fn chat_body(more: Value) -> String {
    let mut body = json!({
        "model": "cell0-small",
        "messages": [{"role": "user", "content": "Hello to you"}],
    });
    if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
        body.extend(more);
    }
    body.to_string()
}

/// Returns the data of all server-sent events in a text.
pub(crate) fn parse_events(text: &str) -> Vec<&str> {
    text.split_terminator("\n\n").map(|event| event.strip_prefix("data: ").unwrap()).collect()
}

/// Waits until `condition` is true for the run's counts. Returns the run's truth.
pub(crate) async fn wait_for_truth(
    simulator: &Simulator,
    condition: impl Fn(&Counts) -> bool,
) -> RunTruth {
    let start = Instant::now();
    loop {
        let truth = simulator.truth(RUN_UID);
        if condition(&truth.totals.counts) {
            return truth;
        }
        assert!(start.elapsed() < TIMEOUT, "{:?}", truth.totals.counts);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Waits until the run has requests and none is in flight. Returns the run's truth.
pub(crate) async fn wait_until_idle(simulator: &Simulator) -> RunTruth {
    wait_for_truth(simulator, |counts| counts.received > 0 && counts.in_flight == 0).await
}
