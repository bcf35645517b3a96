//! The control server of a runner: start, stop and release orders, `/metrics`, and the history.

use std::{sync::Arc, time::Instant};

use loadtest_core::metrics::{
    Format, Identity, Metrics, RunnerMetrics, RunnerState, apply_steps, decode, decode_steps,
};
use loadtest_runner::{
    Engine, ErrorKind, PreparedPlan,
    server::{Control, serve_control},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::harness::{build_plan, start_simulator};

struct Runner {
    control: Arc<Control>,
    address: std::net::SocketAddr,
}

async fn start_runner() -> Runner {
    let simulator = start_simulator("{}").await;
    let tasks = json!([{"name": "health", "http": {"path": "/health"}}]);
    let plan = build_plan(&simulator, 2, "1s", &tasks);
    let identity = Identity { run_uid: plan.run_uid.clone(), index: 0, pod_uid: "pod".into() };
    let prepared = PreparedPlan::new(plan, |_| None).unwrap();
    let engine = Engine::new(prepared, 0).unwrap();
    let control = Arc::new(Control::new(engine, identity));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let served = serve_control(listener, Arc::clone(&control));
    tokio::spawn(async move {
        let _simulator = simulator;
        served.await;
    });
    Runner { control, address }
}

/// Sends one request and returns the status and the body of the response.
async fn send(runner: &Runner, request: &str, headers: &str, body: &str) -> (u16, Vec<u8>) {
    let mut socket = TcpStream::connect(runner.address).await.unwrap();
    let text = format!(
        "{request} HTTP/1.1\r\nhost: runner\r\nconnection: close\r\n{headers}\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(text.as_bytes()).await.unwrap();
    let mut response = Vec::new();
    socket.read_to_end(&mut response).await.unwrap();
    let head_end = response.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    let head = String::from_utf8_lossy(&response[..head_end]).into_owned();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, response[head_end..].to_vec())
}

/// Reads the metrics as an operator does.
async fn scrape(runner: &Runner) -> RunnerMetrics {
    let accept = format!("accept: {}\r\n", Format::Protobuf.content_type());
    let (_, body) = send(runner, "GET /metrics", &accept, "").await;
    decode(&body).unwrap()
}

/// Header with the token that the plan's `token_sha256` accepts.
const TOKEN_HEADER: &str = "authorization: Bearer secret\r\n";

#[tokio::test]
async fn orders_without_a_valid_token_are_rejected() {
    let runner = start_runner().await;
    let orders = [
        ("/start", r#"{"inSeconds": 0}"#),
        ("/stop", r#"{"graceSeconds": 0}"#),
        ("/release", "{}"),
    ];
    for (path, body) in orders {
        for headers in ["", "authorization: Bearer wrong\r\n", "authorization: secret\r\n"] {
            let (status, _) = send(&runner, &format!("POST {path}"), headers, body).await;
            assert_eq!(status, 401, "{path} with {headers:?}");
        }
    }
    assert_eq!(runner.control.engine.state(), RunnerState::Waiting);
    assert!(!*runner.control.released.borrow());
    let (_, body) = send(&runner, "GET /metrics", "", "").await;
    let text = String::from_utf8_lossy(&body).into_owned();
    assert!(text.contains(r#"loadtest_refused_orders_total{loadtest="burst"} 9"#), "{text}");
}

#[tokio::test]
async fn common_errors_are_exposed_from_the_start() {
    let runner = start_runner().await;
    let (_, body) = send(&runner, "GET /metrics", "", "").await;
    let text = String::from_utf8_lossy(&body);
    for kind in ErrorKind::COMMON {
        let series = text.lines().find(|line| {
            line.starts_with("loadtest_errors_total") && line.contains(&format!("\"{kind}\""))
        });
        assert!(series.is_some_and(|line| line.ends_with(" 0")), "{kind}: {series:?}");
    }
}

#[tokio::test]
async fn out_of_range_start_order_is_rejected_by_field_name() {
    let runner = start_runner().await;
    for delay in ["-1", "1e9"] {
        let body = format!(r#"{{"inSeconds": {delay}}}"#);
        let (status, message) = send(&runner, "POST /start", TOKEN_HEADER, &body).await;
        assert_eq!(status, 400);
        assert!(String::from_utf8_lossy(&message).contains("inSeconds"), "{message:?}");
    }
    assert_eq!(runner.control.engine.state(), RunnerState::Waiting);
}

#[tokio::test]
async fn runner_stopped_before_its_start_never_starts() {
    let runner = start_runner().await;
    let (status, _) = send(&runner, "POST /stop", TOKEN_HEADER, r#"{"graceSeconds": 0}"#).await;
    assert_eq!(status, 204);
    runner.control.engine.wait_until_finished().await;
    assert_eq!(runner.control.engine.state(), RunnerState::Done);
    let (status, _) = send(&runner, "POST /start", TOKEN_HEADER, r#"{"inSeconds": 0}"#).await;
    assert_eq!(status, 204);
    let metrics = runner.control.engine.snapshot().await.metrics;
    assert_eq!((metrics.all_tasks().completed_requests(), metrics.users_peak), (0, 0));
}

#[tokio::test]
async fn repeated_start_order_starts_once() {
    let runner = start_runner().await;
    for _ in 0..2 {
        let (status, _) = send(&runner, "POST /start", TOKEN_HEADER, r#"{"inSeconds": 0}"#).await;
        assert_eq!(status, 204);
    }
    runner.control.engine.wait_until_finished().await;
    let scraped = scrape(&runner).await;
    assert_eq!(scraped.state, RunnerState::Done);
    assert_eq!(scraped.metrics.users_peak, 2);
    assert!(scraped.metrics.all_tasks().completed_requests() > 0);
}

#[tokio::test]
async fn the_earliest_start_of_all_orders_counts() {
    let runner = start_runner().await;
    let sent_at = Instant::now();
    for delay in ["600", "0.6", "3600"] {
        let body = format!(r#"{{"inSeconds": {delay}}}"#);
        assert_eq!(send(&runner, "POST /start", TOKEN_HEADER, &body).await.0, 204);
        assert_eq!(scrape(&runner).await.state, RunnerState::Running, "it has a start order");
    }
    runner.control.engine.wait_until_finished().await;
    // The load takes a second.
    let took = sent_at.elapsed().as_secs_f64();
    assert!((1.6..4.0).contains(&took), "{took} s");
}

#[tokio::test]
async fn runner_stopped_between_order_and_start_never_starts() {
    let runner = start_runner().await;
    let orders =
        [("POST /start", r#"{"inSeconds": 600}"#), ("POST /stop", r#"{"graceSeconds": 0}"#)];
    for (path, body) in orders {
        assert_eq!(send(&runner, path, TOKEN_HEADER, body).await.0, 204);
    }
    runner.control.engine.wait_until_finished().await;
    let scraped = scrape(&runner).await;
    assert_eq!((scraped.state, scraped.metrics.users_peak), (RunnerState::Done, 0));
}

#[tokio::test]
async fn orders_of_an_earlier_lease_are_refused() {
    let runner = start_runner().await;
    let stop = |lease: u64| format!(r#"{{"graceSeconds": 0, "leaseNumber": {lease}}}"#);
    // Without the token, nobody can say which Lease counts.
    let request = "GET /metrics/history?after=0&leaseNumber=90";
    assert_eq!(send(&runner, request, "", "").await.0, 200);
    let request = "GET /metrics/history?after=0&leaseNumber=7";
    assert_eq!(send(&runner, request, TOKEN_HEADER, "").await.0, 200);
    let (status, message) = send(&runner, "POST /stop", TOKEN_HEADER, &stop(6)).await;
    let message = String::from_utf8(message).unwrap();
    assert_eq!(
        (status, &*message),
        (409, "the order has lease number 6, but this runner has seen the higher number 7\n")
    );
    assert_eq!(runner.control.engine.state(), RunnerState::Waiting);
    assert_eq!(send(&runner, "POST /stop", TOKEN_HEADER, &stop(8)).await.0, 204);
    assert_eq!(send(&runner, "POST /release", TOKEN_HEADER, r#"{"leaseNumber": 7}"#).await.0, 409);
    assert_eq!(send(&runner, "POST /release", TOKEN_HEADER, r#"{"leaseNumber": 8}"#).await.0, 204);
}

#[tokio::test]
async fn a_runner_leaves_only_after_its_numbers_were_read() {
    let runner = start_runner().await;
    send(&runner, "POST /start", TOKEN_HEADER, r#"{"inSeconds": 0}"#).await;
    let (_, body) = send(&runner, "GET /metrics/history", "", "").await;
    let early = decode_steps(&body).unwrap().last().unwrap().number;
    runner.control.engine.wait_until_finished().await;
    let release = |step: u64| format!(r#"{{"lastStep": {step}}}"#);
    for _ in 0..2 {
        let (status, message) = send(&runner, "POST /release", TOKEN_HEADER, &release(early)).await;
        let message = String::from_utf8(message).unwrap();
        let problem = format!("this runner has metrics that are newer than step {early}\n");
        assert_eq!((status, message), (409, problem));
    }
    assert!(!*runner.control.released.borrow());
    let (_, body) = send(&runner, "GET /metrics/history", "", "").await;
    let last = decode_steps(&body).unwrap().last().unwrap().number;
    assert_eq!(send(&runner, "POST /release", TOKEN_HEADER, &release(last)).await.0, 204);
    assert!(*runner.control.released.borrow());
}

#[tokio::test]
async fn text_metrics_contain_zero_series_before_the_start() {
    let runner = start_runner().await;
    let (status, body) = send(&runner, "GET /metrics", "", "").await;
    let text = String::from_utf8(body).unwrap();
    assert_eq!(status, 200);
    let requests = r#"loadtest_requests_total{loadtest="burst",outcome="success",task="health"} 0"#;
    assert!(text.contains(requests), "{text}");
    assert!(text.contains("loadtest_response_time_seconds_bucket"), "{text}");
}

#[tokio::test]
async fn the_history_leads_to_the_same_metrics() {
    let runner = start_runner().await;
    send(&runner, "POST /start", TOKEN_HEADER, r#"{"inSeconds": 0}"#).await;
    let (mut reader, mut number, mut sizes) = (Metrics::default(), 0, Vec::new());
    while runner.control.engine.state() != RunnerState::Done || sizes.len() < 3 {
        let request = format!("GET /metrics/history?after={number}");
        let (status, body) = send(&runner, &request, "", "").await;
        assert_eq!(status, 200);
        let steps = decode_steps(&body).unwrap();
        assert!(steps.iter().all(|step| step.runner.identity.pod_uid == "pod"));
        assert_eq!(
            steps.iter().filter(|step| step.is_cumulative).count(),
            usize::from(number == 0)
        );
        number = steps.last().map_or(number, |step| step.number);
        apply_steps(&mut reader, &steps);
        sizes.push(body.len());
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let request = format!("GET /metrics/history?after={number}");
    let steps = decode_steps(&send(&runner, &request, "", "").await.1).unwrap();
    apply_steps(&mut reader, &steps);
    let accept = format!("accept: {}\r\n", Format::Protobuf.content_type());
    let whole = decode(&send(&runner, "GET /metrics", &accept, "").await.1).unwrap();
    let requests = |metrics: &Metrics| metrics.all_tasks().completed_requests();
    assert!(requests(&reader) > 0 && requests(&reader) == requests(&whole.metrics));
    assert!((reader.elapsed_seconds - whole.metrics.elapsed_seconds).abs() < 1e-9);

    let (status, problem) = send(&runner, "GET /metrics/history?after=x", "", "").await;
    assert_eq!(status, 400);
    assert!(String::from_utf8_lossy(&problem).starts_with("after: "), "{problem:?}");
}
