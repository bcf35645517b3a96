//! A simulator to test, and clients to test it with.

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

/// Longer than anything here takes, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// The run that clients here belong to.
pub(crate) const RUN: &str = "run-1";

pub(crate) async fn simulator(yaml: &str) -> Simulator {
    let settings = Settings::default().instant();
    let patch = serde_yaml::from_str(if yaml.is_empty() { "{}" } else { yaml }).unwrap();
    Simulator::start(settings.patched(patch).unwrap(), Listen::loopback()).await.unwrap()
}

/// One keep-alive connection.
pub(crate) struct Client(SendRequest<Full<Bytes>>);

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).await.unwrap();
        let (sender, connection) = handshake(TokioIo::new(socket)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    pub(crate) async fn send(
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
            .header("x-loadtest-run", RUN)
            .body(Full::from(body.to_owned()))
            .unwrap();
        self.0.send_request(request).await
    }

    /// Status and whole body.
    pub(crate) async fn ask(
        &mut self,
        method: &str,
        path: &str,
        body: &str,
    ) -> hyper::Result<(u16, String)> {
        let response = self.send(method, path, body).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes();
        Ok((status, String::from_utf8(body.to_vec()).unwrap()))
    }

    pub(crate) async fn json(&mut self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let (status, text) = self.ask(method, path, body).await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// A chat's answer.
    pub(crate) async fn chat(&mut self, more: Value) -> hyper::Result<(u16, String)> {
        self.ask("POST", "/v1/chat/completions", &chat_body(more)).await
    }
}

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

/// The data of all server-sent events in a text.
pub(crate) fn events(text: &str) -> Vec<&str> {
    text.split_terminator("\n\n").map(|event| event.strip_prefix("data: ").unwrap()).collect()
}

/// Waits until the run's truth is as wanted.
pub(crate) async fn truth_when(
    simulator: &Simulator,
    wanted: impl Fn(&Counts) -> bool,
) -> RunTruth {
    let start = Instant::now();
    loop {
        let truth = simulator.truth(RUN);
        if wanted(&truth.totals.counts) {
            return truth;
        }
        assert!(start.elapsed() < PATIENCE, "{:?}", truth.totals.counts);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The run's truth once nothing is in flight any more.
pub(crate) async fn settled(simulator: &Simulator) -> RunTruth {
    truth_when(simulator, |counts| counts.received > 0 && counts.in_flight == 0).await
}
