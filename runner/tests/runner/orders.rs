//! What a runner takes from whom.

use std::sync::Arc;

use loadtest_core::metrics::{Format, Identity, RunnerState, decode};
use loadtest_runner::{
    Engine, PreparedPlan,
    server::{Control, router},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

use crate::load::{plan, simulator};

struct Runner {
    control: Arc<Control>,
    address: std::net::SocketAddr,
}

async fn runner() -> Runner {
    let simulator = simulator("{}").await;
    let plan = plan(&simulator, 2, "1s", &json!([{"name": "health", "http": {"path": "/health"}}]));
    let identity = Identity { run: plan.run.clone(), index: 0, pod: "pod".into() };
    let prepared = PreparedPlan::new(plan, |_| None).unwrap();
    let engine = Engine::new(prepared, 0).unwrap();
    let control = Arc::new(Control { engine, identity, released: watch::Sender::new(false) });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = router(Arc::clone(&control));
    tokio::spawn(async move {
        let _keep = simulator;
        axum::serve(listener, app).await
    });
    Runner { control, address }
}

/// Sends one request; the answer's status and body.
async fn ask(runner: &Runner, request: &str, headers: &str, body: &str) -> (u16, Vec<u8>) {
    let mut socket = TcpStream::connect(runner.address).await.unwrap();
    let text = format!(
        "{request} HTTP/1.1\r\nhost: runner\r\nconnection: close\r\n{headers}\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await.unwrap();
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer[end..].to_vec())
}

const TOKEN: &str = "authorization: Bearer secret\r\n";

#[tokio::test]
async fn orders_without_the_runs_token_are_refused_and_do_nothing() {
    let runner = runner().await;
    let orders = [
        ("/start", r#"{"inSeconds": 0}"#),
        ("/stop", r#"{"graceSeconds": 0}"#),
        ("/release", "{}"),
    ];
    for (path, body) in orders {
        for headers in ["", "authorization: Bearer wrong\r\n", "authorization: secret\r\n"] {
            let (status, _) = ask(&runner, &format!("POST {path}"), headers, body).await;
            assert_eq!(status, 401, "{path} with {headers:?}");
        }
    }
    assert_eq!(runner.control.engine.state(), RunnerState::Waiting);
    assert!(!*runner.control.released.borrow());
}

#[tokio::test]
async fn a_start_out_of_bounds_is_refused_by_name() {
    let runner = runner().await;
    for lead in ["-1", "1e9"] {
        let body = format!(r#"{{"inSeconds": {lead}}}"#);
        let (status, told) = ask(&runner, "POST /start", TOKEN, &body).await;
        assert_eq!(status, 400);
        assert!(String::from_utf8_lossy(&told).contains("inSeconds"), "{told:?}");
    }
    assert_eq!(runner.control.engine.state(), RunnerState::Waiting);
}

#[tokio::test]
async fn a_runner_stopped_before_its_start_is_done_and_never_starts() {
    let runner = runner().await;
    let (status, _) = ask(&runner, "POST /stop", TOKEN, r#"{"graceSeconds": 0}"#).await;
    assert_eq!(status, 204);
    runner.control.engine.wait_until_finished().await;
    assert_eq!(runner.control.engine.state(), RunnerState::Done);
    let (status, _) = ask(&runner, "POST /start", TOKEN, r#"{"inSeconds": 0}"#).await;
    assert_eq!(status, 204);
    let numbers = runner.control.engine.snapshot().await.numbers;
    assert_eq!((numbers.total().completed(), numbers.users_peak), (0, 0));
}

#[tokio::test]
async fn a_start_ordered_twice_starts_once() {
    let runner = runner().await;
    for _ in 0..2 {
        let (status, _) = ask(&runner, "POST /start", TOKEN, r#"{"inSeconds": 0}"#).await;
        assert_eq!(status, 204);
    }
    runner.control.engine.wait_until_finished().await;
    let (_, body) = ask(
        &runner,
        "GET /metrics",
        &format!("accept: {}\r\n", Format::Protobuf.content_type()),
        "",
    )
    .await;
    let numbers = decode(&body).unwrap();
    assert_eq!(numbers.state, RunnerState::Done);
    assert_eq!(numbers.numbers.users_peak, 2);
    assert!(numbers.numbers.total().completed() > 0);
}

#[tokio::test]
async fn the_text_exposition_has_series_at_zero_before_the_start() {
    let runner = runner().await;
    let (status, body) = ask(&runner, "GET /metrics", "", "").await;
    let text = String::from_utf8(body).unwrap();
    assert_eq!(status, 200);
    let requests = r#"loadtest_requests_total{loadtest="burst",outcome="success",task="health"} 0"#;
    assert!(text.contains(requests), "{text}");
    assert!(text.contains("loadtest_response_time_seconds_bucket"), "{text}");
}
