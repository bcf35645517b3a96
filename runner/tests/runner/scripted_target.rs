//! A target that sends exactly the bytes that a test gives it, at the times that the test gives it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use loadtest_core::{metrics::TaskMetrics, plan::Plan};
use loadtest_runner::Snapshot;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::harness::{only_task, plan_of_spec, run_plan};

/// A step of the response to a request.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Send(Vec<u8>),
    Wait(Duration),
    /// Closes the connection.
    Close,
    /// Leaves the connection open and reads nothing more.
    Hang,
}

/// A running target.
#[derive(Debug)]
pub(crate) struct ScriptedTarget {
    pub(crate) url: String,
    requests: Arc<AtomicU64>,
    connections: Arc<AtomicU64>,
}

pub(crate) fn send(text: impl AsRef<[u8]>) -> Step {
    Step::Send(text.as_ref().to_vec())
}

pub(crate) const fn wait(millis: u64) -> Step {
    Step::Wait(Duration::from_millis(millis))
}

/// A whole response with status 200 and a body.
pub(crate) fn respond(headers: &str, body: impl AsRef<[u8]>) -> Step {
    let body = body.as_ref();
    let head = format!("HTTP/1.1 200 OK\r\n{headers}content-length: {}\r\n\r\n", body.len());
    Step::Send([head.as_bytes(), body].concat())
}

/// The head of a chunked event stream, and a chunk for each event.
pub(crate) fn stream_of(events: &[&str]) -> Step {
    send(stream_text(events))
}

/// The bytes of [`stream_of`].
pub(crate) fn stream_text(events: &[&str]) -> String {
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_owned();
    let chunks = events.iter().map(|event| chunk(event));
    std::iter::once(head).chain(chunks).collect()
}

/// A chunk of a chunked body.
pub(crate) fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

impl ScriptedTarget {
    /// Starts a target that responds to each request with the same steps.
    pub(crate) async fn start(steps: Vec<Step>) -> Self {
        Self::start_with(move |_| steps.clone()).await
    }

    /// Starts a target that responds to each request with the steps for its number.
    pub(crate) async fn start_with(
        steps: impl Fn(u64) -> Vec<Step> + Clone + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (requests, connections) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let counters = (Arc::clone(&requests), Arc::clone(&connections));
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                counters.1.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(serve(socket, steps.clone(), Arc::clone(&counters.0)));
            }
        });
        Self { url, requests, connections }
    }

    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub(crate) fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Builds a plan of two users for a second. Its only task is `it`.
    pub(crate) fn plan(&self, mut task: Value) -> Plan {
        task["name"] = "it".into();
        plan_of_spec(json!({
            "target": {"http": self.url, "webSocket": self.url.replace("http", "ws")},
            "load": {"users": 2, "spawnRate": 1000, "duration": "1s", "gracefulStop": "5s"},
            "scenario": {"pause": {"min": "5ms", "max": "15ms"}, "tasks": [task]},
        }))
    }

    /// Runs one task for a second. Returns its metrics and the messages of its errors.
    pub(crate) async fn run(&self, task: Value) -> (TaskMetrics, Vec<String>) {
        let Snapshot { metrics, examples } = run_plan(self.plan(task)).await;
        (only_task(&metrics).clone(), examples.into_values().collect())
    }
}

async fn serve(
    mut socket: TcpStream,
    steps: impl Fn(u64) -> Vec<Step>,
    requests: Arc<AtomicU64>,
) -> Option<()> {
    socket.set_nodelay(true).ok()?;
    loop {
        read_request(&mut socket).await?;
        for step in steps(requests.fetch_add(1, Ordering::Relaxed)) {
            match step {
                Step::Send(bytes) => socket.write_all(&bytes).await.ok()?,
                Step::Wait(time) => tokio::time::sleep(time).await,
                Step::Close => return None,
                Step::Hang => tokio::time::sleep(Duration::from_secs(20)).await,
            }
        }
    }
}

/// Reads a request with its body. `None` at the end of the connection.
async fn read_request(socket: &mut TcpStream) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.ok()?);
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    socket.read_exact(&mut vec![0; length.unwrap_or(0)]).await.ok()?;
    Some(())
}
