//! HTTP connections: reuse, HTTP/1.1 and HTTP/2, connect steps and connection timeouts.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use loadtest_core::{
    metrics::{LatencyMetric, Outcome, TaskMetrics},
    resource::{ConnectionReuse, HttpVersion},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::{
    harness::{load_model, only_task, outcome_counts, run_plan, think_time},
    target::{Limits, Target, Tls},
};

/// Runs eight users on one load thread for a second, and returns the metrics of their only task.
async fn run_users(
    target: &Target,
    path: &str,
    reuse: ConnectionReuse,
    version: HttpVersion,
) -> TaskMetrics {
    let mut plan = target.build_plan(8, json!({"path": path})).await;
    (plan.test.target.connections, plan.test.target.http_version) = (reuse, version);
    plan.threads = 1;
    let result = run_plan(plan).await;
    let task = only_task(&result.metrics).clone();
    assert_eq!(task.failed_requests(), 0, "{:?} {:?}", task.errors, result.examples);
    assert!(task.completed_requests() > 8, "{:?}", outcome_counts(&task));
    task
}

#[tokio::test]
async fn per_user_reuse_opens_one_connection_per_user() {
    let target = Target::start(Tls::None).await;
    let task = run_users(&target, "/slow", ConnectionReuse::PerUser, HttpVersion::Http1).await;
    assert_eq!((task.connections, task.reconnects), (8, 0));
    assert_eq!(target.count(|stats| &stats.connections), 8);
}

#[tokio::test]
async fn shared_pool_opens_only_as_many_connections_as_needed() {
    let target = Target::start(Tls::None).await;
    let mut plan = target.build_plan(40, json!({"path": "/ok"})).await;
    plan.test.target.connections = ConnectionReuse::Shared;
    plan.threads = 1;
    // Users start one after the other and pause most of the time, so few users need a connection
    // at the same moment.
    plan.test.load = load_model(json!({"users": 40, "spawnRate": 100, "duration": "1s"}));
    plan.test.scenario.pacing = think_time("400ms", "600ms");
    let result = run_plan(plan).await;
    let task = only_task(&result.metrics);
    let opened = target.count(|stats| &stats.connections);
    assert_eq!((task.failed_requests(), task.connections), (0, opened), "{:?}", result.examples);
    assert!(task.completed_requests() > 15, "{:?}", outcome_counts(task));
    assert!((1..40).contains(&opened), "{opened}");
}

#[tokio::test]
async fn per_request_reuse_opens_one_connection_per_request() {
    let target = Target::start(Tls::None).await;
    let task = run_users(&target, "/ok", ConnectionReuse::PerRequest, HttpVersion::Http1).await;
    assert_eq!(task.connections, task.completed_requests());
    assert_eq!(task.reconnects, 0);
    assert_eq!(target.count(|stats| &stats.requests), task.completed_requests());
}

#[tokio::test]
async fn connection_closed_by_the_target_is_a_reconnect() {
    let target = Target::start(Tls::None).await;
    let task = run_users(&target, "/close", ConnectionReuse::PerUser, HttpVersion::Http1).await;
    assert_eq!(task.connections, task.completed_requests());
    assert_eq!(task.reconnects, task.completed_requests() - 8);
}

/// Starts a target that sends `head` as its whole response and closes the connection 20 ms later.
/// Returns its URL and the number of connections that the runner closed first.
async fn start_closing_target(head: &'static str) -> (String, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let closed_by_runner: Arc<AtomicU64> = Arc::default();
    let server_count = Arc::clone(&closed_by_runner);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let closed_by_runner = Arc::clone(&server_count);
            tokio::spawn(async move {
                let mut request = [0; 1024];
                let read = socket.read(&mut request).await;
                if !read.is_ok_and(|n| n > 0) || socket.write_all(head.as_bytes()).await.is_err() {
                    return;
                }
                let delay = std::time::Duration::from_millis(20);
                if tokio::time::timeout(delay, socket.read(&mut request)).await.is_ok() {
                    closed_by_runner.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    (url, closed_by_runner)
}

#[tokio::test]
async fn runner_lets_the_target_close_a_finished_connection() {
    for (reuse, head) in [
        (ConnectionReuse::PerRequest, "HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"),
        (
            ConnectionReuse::PerUser,
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
        ),
        (ConnectionReuse::Shared, "HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n"),
    ] {
        let (url, closed_by_runner) = start_closing_target(head).await;
        let target = Target::start(Tls::None).await;
        let mut plan = target.build_plan(4, json!({"path": "/"})).await;
        (plan.test.target.http, plan.test.target.connections) = (Some(url), reuse);
        let result = run_plan(plan).await;
        let completed = only_task(&result.metrics).completed_requests();
        assert!(completed > 8, "{reuse:?}");
        // The runner waits up to 100 ms for the target to close, and the target closes after 20 ms.
        // When the machine stalls, both times can end at once.
        let early = closed_by_runner.load(Ordering::Relaxed);
        assert!(early * 4 < completed, "the runner closed {early} of {completed}, {reuse:?}");
    }
}

#[tokio::test]
async fn a_post_that_reaches_no_connection_is_sent_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let requests: Arc<AtomicU64> = Arc::default();
    let received = Arc::clone(&requests);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let received = Arc::clone(&received);
            tokio::spawn(async move {
                let mut request = [0; 1024];
                if socket.read(&mut request).await.is_ok_and(|n| n > 0) {
                    received.fetch_add(1, Ordering::Relaxed);
                    // The end of the connection leaves together with the response.
                    rustix::net::sockopt::set_tcp_cork(&socket, true).unwrap();
                    let response = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                    socket.write_all(response).await.unwrap();
                }
            });
        }
    });
    let target = Target::start(Tls::None).await;
    let mut plan = target.build_plan(4, json!({"path": "/", "method": "POST", "body": "x"})).await;
    plan.test.target.http = Some(url);
    let result = run_plan(plan).await;
    let task = only_task(&result.metrics);
    assert!(task.completed_requests() > 8 && task.failed_requests() == 0, "{:?}", task.errors);
    let received = requests.load(Ordering::Relaxed);
    assert!(task.completed_requests() <= received, "{received} {task:?}");
}

#[tokio::test]
async fn http2_multiplexes_requests_on_one_shared_connection() {
    for tls in [Tls::None, Tls::Http2] {
        let target = Target::start(tls).await;
        let task = run_users(&target, "/slow", ConnectionReuse::Shared, HttpVersion::Http2).await;
        assert_eq!(task.connections, 1, "{tls:?}");
        assert_eq!(target.count(|stats| &stats.connections), 1, "{tls:?}");
        let max_in_flight = target.count(|stats| &stats.max_in_flight);
        assert!(max_in_flight > 1, "{max_in_flight} in flight, {tls:?}");
        assert_eq!(target.count(|stats| &stats.requests), task.completed_requests(), "{tls:?}");
        assert_eq!(
            task.latencies.get(LatencyMetric::ServiceTime, Outcome::Success).count(),
            task.latencies.get(LatencyMetric::TimeToFirstByte, Outcome::Success).count()
        );
    }
}

#[tokio::test]
async fn waiting_for_an_http2_stream_is_not_service_time() {
    let limits = Limits { max_streams: Some(2), max_connection_age: None };
    let target = Target::start_limited(Tls::None, limits).await;
    let mut plan = target.build_plan(60, json!({"path": "/slow"})).await;
    (plan.test.target.connections, plan.test.target.http_version) =
        (ConnectionReuse::Shared, HttpVersion::Http2);
    plan.threads = 1;
    // The wait for a stream must not count for the connect or first byte timeout either, not even
    // for users that wait while the connection opens: the last users wait longer than both
    // timeouts.
    plan.test.load = load_model(json!({"users": 60, "spawnRate": 100_000, "duration": "1s"}));
    let limit = Some(loadtest_core::Duration::from_secs(1));
    (plan.test.target.timeouts.connect, plan.test.target.timeouts.first_byte) = (limit, limit);
    let result = run_plan(plan).await;
    let task = only_task(&result.metrics);
    assert_eq!(task.failed_requests(), 0, "{:?} {:?}", task.errors, result.examples);
    assert_eq!(target.count(|stats| &stats.max_in_flight), 2);
    // Two requests of 50 ms run at a time, so the last of 60 users waits for 29 pairs: 1.45 s.
    let p50 = |times: &loadtest_core::metrics::LatencyHistogram| {
        times.quantile(0.5).unwrap().as_secs_f64()
    };
    let (service, response) = (
        p50(task.latencies.get(LatencyMetric::ServiceTime, Outcome::Success)),
        p50(task.latencies.get(LatencyMetric::ResponseTime, Outcome::Success)),
    );
    assert!(service < 0.5 && response > 0.6, "{service} {response}");
}

#[tokio::test]
async fn http2_goaway_fails_no_request() {
    let max_connection_age = Some(std::time::Duration::from_millis(150));
    let limits = Limits { max_streams: None, max_connection_age };
    let target = Target::start_limited(Tls::None, limits).await;
    let task = run_users(&target, "/slow", ConnectionReuse::Shared, HttpVersion::Http2).await;
    let opened = target.count(|stats| &stats.connections);
    assert!(opened > 1, "{opened}");
    assert_eq!((task.connections, task.reconnects), (opened, opened - 1));
}

#[tokio::test]
async fn http2_per_user_opens_own_connections_and_sends_bodies() {
    let target = Target::start(Tls::None).await;
    let mut plan =
        target.build_plan(3, json!({"path": "/ok", "method": "POST", "body": "hello"})).await;
    plan.test.target.http_version = HttpVersion::Http2;
    let result = run_plan(plan).await;
    let task = only_task(&result.metrics);
    assert_eq!((task.failed_requests(), task.connections), (0, 3), "{:?}", result.examples);
    assert_eq!(target.latest_request(), "POST HTTP/2.0 5 bytes");
}

#[tokio::test]
async fn missing_http2_support_names_target_http_version() {
    let target = Target::start(Tls::Http1).await;
    let mut plan = target.build_plan(1, json!({"path": "/ok"})).await;
    plan.test.target.http_version = HttpVersion::Http2;
    let result = run_plan(plan).await;
    let task = only_task(&result.metrics);
    assert_eq!(task.completed_requests(), task.errors["protocol"]);
    let message = &result.examples[&("it".to_owned(), "protocol".to_owned())];
    assert!(message.contains("target.httpVersion"), "{message}");
}

#[tokio::test]
async fn each_connect_step_is_measured() {
    let target = Target::start(Tls::Http1).await;
    let task = run_users(&target, "/ok", ConnectionReuse::PerRequest, HttpVersion::Http1).await;
    let histogram = |step| task.latencies.get(step, Outcome::Success);
    let count = |step| histogram(step).count();
    assert_eq!(count(LatencyMetric::ConnectTcp), task.completed_requests());
    assert_eq!(count(LatencyMetric::ConnectTls), task.completed_requests());
    // The resolved address is cached, so all connections share one DNS lookup.
    assert_eq!((count(LatencyMetric::ConnectDns), count(LatencyMetric::ConnectUpgrade)), (1, 0));
    let sum = |step| histogram(step).sum_seconds();
    let response_seconds =
        task.latencies.get(LatencyMetric::ResponseTime, Outcome::Success).sum_seconds();
    let connect_seconds = sum(LatencyMetric::ConnectTcp) + sum(LatencyMetric::ConnectTls);
    assert!(connect_seconds < response_seconds, "{connect_seconds} {response_seconds}");
}

#[tokio::test]
async fn first_byte_comes_before_the_last_byte() {
    let target = Target::start(Tls::None).await;
    let task = run_users(&target, "/slow", ConnectionReuse::PerUser, HttpVersion::Http1).await;
    assert_eq!(
        task.latencies.get(LatencyMetric::TimeToFirstByte, Outcome::Success).count(),
        task.completed_requests()
    );
    let first = task
        .latencies
        .get(LatencyMetric::TimeToFirstByte, Outcome::Success)
        .quantile(0.0)
        .unwrap()
        .as_secs_f64();
    assert!(first >= 0.0499, "{first}");
    assert!(
        task.latencies.get(LatencyMetric::TimeToFirstByte, Outcome::Success).sum_seconds()
            <= task.latencies.get(LatencyMetric::ServiceTime, Outcome::Success).sum_seconds()
                + 1e-6
    );
}

#[tokio::test]
async fn failed_requests_record_no_first_byte() {
    let target = Target::start(Tls::None).await;
    let result = run_plan(target.build_plan(2, json!({"path": "/nowhere"})).await).await;
    let task = only_task(&result.metrics);
    assert_eq!(task.completed_requests(), task.errors["http_404"]);
    assert_eq!(
        task.latencies.get(LatencyMetric::TimeToFirstByte, Outcome::Success).count(),
        task.requests[3]
    );
}

#[tokio::test]
async fn late_first_byte_is_a_timeout_response_error() {
    let target = Target::start(Tls::None).await;
    let mut plan = target.build_plan(2, json!({"path": "/never"})).await;
    plan.test.target.timeouts.first_byte = Some(loadtest_core::Duration::from_millis(20));
    let result = run_plan(plan).await;
    let task = only_task(&result.metrics);
    assert_eq!(task.completed_requests(), task.errors["timeout_response"], "{:?}", task.errors);
    let message = &result.examples[&("it".to_owned(), "timeout_response".to_owned())];
    assert_eq!(message, "response had not begun within 20ms");
    // A missing first byte counts with the time that the user waited.
    assert_eq!(
        task.latencies.get(LatencyMetric::TimeToFirstByte, Outcome::Timeout).count(),
        task.requests[2]
    );
    assert!(
        task.latencies
            .get(LatencyMetric::TimeToFirstByte, Outcome::Timeout)
            .quantile(0.5)
            .unwrap()
            .as_secs_f64()
            >= 0.0199
    );
}

#[tokio::test]
async fn slow_connect_is_a_timeout_connect_error() {
    // This listener never accepts. Fill its backlog, so that the kernel drops further SYN packets.
    let listener = tokio::net::TcpSocket::new_v4().unwrap();
    listener.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener: TcpListener = listener.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut backlog = Vec::new();
    while let Ok(Ok(socket)) = tokio::time::timeout(
        std::time::Duration::from_millis(100),
        tokio::net::TcpStream::connect(address),
    )
    .await
    {
        backlog.push(socket);
    }
    let target = Target::start(Tls::None).await;
    let mut plan = target.build_plan(2, json!({"path": "/ok"})).await;
    plan.test.target.http = Some(format!("http://{address}"));
    plan.test.target.timeouts.connect = Some(loadtest_core::Duration::from_millis(50));
    let result = run_plan(plan).await;
    let task = only_task(&result.metrics);
    assert_eq!(task.completed_requests(), task.errors["timeout_connect"], "{:?}", task.errors);
    let message = &result.examples[&("it".to_owned(), "timeout_connect".to_owned())];
    assert_eq!(
        message,
        "connection was not open within 50ms: the target did not accept the TCP connection"
    );
}
