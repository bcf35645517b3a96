//! Whose connections are, what they speak, and what opening them takes.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use loadtest_core::{
    metrics::{ConnectStep, TaskNumbers},
    resource::{HttpVersion, Reuse},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::{
    load::{only, outcomes, run},
    target::{Bounds, Target, Tls},
};

async fn measured(target: &Target, path: &str, reuse: Reuse, version: HttpVersion) -> TaskNumbers {
    let mut plan = target.plan(8, json!({"path": path})).await;
    (plan.target.connections, plan.target.http_version) = (reuse, version);
    plan.workers = 1;
    let found = run(plan).await;
    let task = only(&found.numbers).clone();
    assert_eq!(task.failures(), 0, "{:?} {:?}", task.errors, found.examples);
    assert!(task.completed() > 8, "{:?}", outcomes(&task));
    task
}

#[tokio::test]
async fn each_user_keeps_its_own_connection() {
    let target = Target::start(Tls::None).await;
    let task = measured(&target, "/slow", Reuse::PerUser, HttpVersion::Http1).await;
    assert_eq!((task.connections.opened, task.connections.again), (8, 0));
    assert_eq!(target.count(|seen| &seen.connections), 8);
}

#[tokio::test]
async fn shared_connections_are_as_many_as_are_used_at_once() {
    let target = Target::start(Tls::None).await;
    let mut plan = target.plan(40, json!({"path": "/ok"})).await;
    plan.target.connections = Reuse::Shared;
    plan.workers = 1;
    // They come one after the other and pause for nearly all of their time.
    plan.load.spawn_rate = Some(100.0);
    plan.scenario.pause =
        Some(serde_json::from_value(json!({"min": "400ms", "max": "600ms"})).unwrap());
    let found = run(plan).await;
    let task = only(&found.numbers);
    let opened = target.count(|seen| &seen.connections);
    assert_eq!((task.failures(), task.connections.opened), (0, opened), "{:?}", found.examples);
    assert!(task.completed() > 15, "{:?}", outcomes(task));
    assert!((1..40).contains(&opened), "{opened}");
}

#[tokio::test]
async fn a_connection_for_each_request_is_one_for_each() {
    let target = Target::start(Tls::None).await;
    let task = measured(&target, "/ok", Reuse::PerRequest, HttpVersion::Http1).await;
    assert_eq!(task.connections.opened, task.completed());
    assert_eq!(task.connections.again, 0);
    assert_eq!(target.count(|seen| &seen.requests), task.completed());
}

#[tokio::test]
async fn connections_that_the_target_closes_are_opened_again() {
    let target = Target::start(Tls::None).await;
    let task = measured(&target, "/close", Reuse::PerUser, HttpVersion::Http1).await;
    assert_eq!(task.connections.opened, task.completed());
    assert_eq!(task.connections.again, task.completed() - 8);
}

/// A target that answers each request with this head and, a moment later, closes; how often it did
/// not need to.
async fn closing(head: &'static str) -> (String, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let left: Arc<AtomicU64> = Arc::default();
    let told = Arc::clone(&left);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let left = Arc::clone(&told);
            tokio::spawn(async move {
                let mut request = [0; 1024];
                let read = socket.read(&mut request).await;
                if !read.is_ok_and(|n| n > 0) || socket.write_all(head.as_bytes()).await.is_err() {
                    return;
                }
                let moment = std::time::Duration::from_millis(20);
                if tokio::time::timeout(moment, socket.read(&mut request)).await.is_ok() {
                    left.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    (url, left)
}

#[tokio::test]
async fn a_connection_that_takes_no_more_is_the_targets_to_close() {
    for (reuse, head) in [
        (Reuse::PerRequest, "HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"),
        (Reuse::PerUser, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"),
        (Reuse::Shared, "HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n"),
    ] {
        let (url, left) = closing(head).await;
        let target = Target::start(Tls::None).await;
        let mut plan = target.plan(4, json!({"path": "/"})).await;
        (plan.target.http, plan.target.connections) = (Some(url), reuse);
        let found = run(plan).await;
        let completed = only(&found.numbers).completed();
        assert!(completed > 8, "{reuse:?}");
        // On a machine that stands still both sides' patience ends at once.
        let left = left.load(Ordering::Relaxed);
        assert!(left * 4 < completed, "{left} of {completed}, {reuse:?}");
    }
}

#[tokio::test]
async fn http2_sends_all_requests_of_a_worker_at_once_on_one_connection() {
    for tls in [Tls::None, Tls::Http2] {
        let target = Target::start(tls).await;
        let task = measured(&target, "/slow", Reuse::Shared, HttpVersion::Http2).await;
        assert_eq!(task.connections.opened, 1, "{tls:?}");
        assert_eq!(target.count(|seen| &seen.connections), 1, "{tls:?}");
        let most = target.count(|seen| &seen.most);
        assert!(most > 1, "{most} at once, {tls:?}");
        assert_eq!(target.count(|seen| &seen.requests), task.completed(), "{tls:?}");
        assert_eq!(task.service_time[0].count(), task.first_byte.count());
    }
}

#[tokio::test]
async fn waiting_for_room_on_an_http2_connection_is_no_service_time() {
    let bounds = Bounds { streams: Some(2), life: None };
    let target = Target::bounded(Tls::None, bounds).await;
    let mut plan = target.plan(60, json!({"path": "/slow"})).await;
    (plan.target.connections, plan.target.http_version) = (Reuse::Shared, HttpVersion::Http2);
    plan.workers = 1;
    // Nor is it a part of connecting or answering, also of those who come while it is opened: the
    // last of them wait longer than either may take.
    plan.load.spawn_rate = Some(100_000.0);
    let limit = Some(loadtest_core::Duration::from_secs(1));
    (plan.target.timeouts.connect, plan.target.timeouts.first_byte) = (limit, limit);
    let found = run(plan).await;
    let task = only(&found.numbers);
    assert_eq!(task.failures(), 0, "{:?} {:?}", task.errors, found.examples);
    assert_eq!(target.count(|seen| &seen.most), 2);
    // Two at a time have their turn: thirty answers, of 50 ms each.
    let p50 = |times: &loadtest_core::metrics::LatencyHistogram| {
        times.quantile(0.5).unwrap().as_secs_f64()
    };
    let (service, response) = (p50(&task.service_time[0]), p50(&task.response_time[0]));
    assert!(service < 0.5 && response > 0.6, "{service} {response}");
}

#[tokio::test]
async fn an_http2_connection_that_goes_away_fails_nothing() {
    let bounds = Bounds { streams: None, life: Some(std::time::Duration::from_millis(150)) };
    let target = Target::bounded(Tls::None, bounds).await;
    let task = measured(&target, "/slow", Reuse::Shared, HttpVersion::Http2).await;
    let opened = target.count(|seen| &seen.connections);
    assert!(opened > 1, "{opened}");
    assert_eq!((task.connections.opened, task.connections.again), (opened, opened - 1));
}

#[tokio::test]
async fn http2_per_user_has_a_connection_each_and_carries_bodies() {
    let target = Target::start(Tls::None).await;
    let mut plan = target.plan(3, json!({"path": "/ok", "method": "POST", "body": "hello"})).await;
    plan.target.http_version = HttpVersion::Http2;
    let found = run(plan).await;
    let task = only(&found.numbers);
    assert_eq!((task.failures(), task.connections.opened), (0, 3), "{:?}", found.examples);
    assert_eq!(target.latest(), "POST HTTP/2.0 5 bytes");
}

#[tokio::test]
async fn a_target_that_does_not_agree_to_http2_is_told_so() {
    let target = Target::start(Tls::Http1).await;
    let mut plan = target.plan(1, json!({"path": "/ok"})).await;
    plan.target.http_version = HttpVersion::Http2;
    let found = run(plan).await;
    assert_eq!(only(&found.numbers).completed(), only(&found.numbers).errors["protocol"]);
    let told = &found.examples[&("it".to_owned(), "protocol".to_owned())];
    assert!(told.contains("target.httpVersion"), "{told}");
}

#[tokio::test]
async fn the_steps_of_a_connection_are_measured() {
    let target = Target::start(Tls::Http1).await;
    let task = measured(&target, "/ok", Reuse::PerRequest, HttpVersion::Http1).await;
    let count = |step: ConnectStep| task.connections.steps[step.index()].count();
    assert_eq!(count(ConnectStep::Tcp), task.completed());
    assert_eq!(count(ConnectStep::Tls), task.completed());
    // The resolver's answer is used for a while.
    assert_eq!((count(ConnectStep::Dns), count(ConnectStep::Upgrade)), (1, 0));
    let sum = |step: ConnectStep| task.connections.steps[step.index()].sum_seconds();
    let service = task.response_time[0].sum_seconds();
    assert!(sum(ConnectStep::Tcp) + sum(ConnectStep::Tls) < service, "{service}");
}

#[tokio::test]
async fn the_first_byte_comes_before_the_last() {
    let target = Target::start(Tls::None).await;
    let task = measured(&target, "/slow", Reuse::PerUser, HttpVersion::Http1).await;
    assert_eq!(task.first_byte.count(), task.completed());
    let first = task.first_byte.quantile(0.0).unwrap().as_secs_f64();
    assert!(first >= 0.0499, "{first}");
    assert!(task.first_byte.sum_seconds() <= task.service_time[0].sum_seconds() + 1e-6);
}

#[tokio::test]
async fn a_fast_error_is_no_fast_first_byte() {
    let target = Target::start(Tls::None).await;
    let found = run(target.plan(2, json!({"path": "/nowhere"})).await).await;
    let task = only(&found.numbers);
    assert_eq!(task.completed(), task.errors["http_404"]);
    assert_eq!(task.first_byte.count(), task.requests[3]);
}

#[tokio::test]
async fn an_answer_that_does_not_begin_in_time_is_given_up() {
    let target = Target::start(Tls::None).await;
    let mut plan = target.plan(2, json!({"path": "/never"})).await;
    plan.target.timeouts.first_byte = Some(loadtest_core::Duration::from_millis(20));
    let found = run(plan).await;
    let task = only(&found.numbers);
    assert_eq!(task.completed(), task.errors["timeout_response"], "{:?}", task.errors);
    let told = &found.examples[&("it".to_owned(), "timeout_response".to_owned())];
    assert_eq!(told, "answer had not begun within 20ms");
    // A first byte that never came took at least so long.
    let waited = task.requests[2] + task.requests[3];
    assert_eq!(task.first_byte.count(), waited);
    assert!(task.first_byte.quantile(0.5).unwrap().as_secs_f64() >= 0.0199);
}

#[tokio::test]
async fn a_connection_that_does_not_open_in_time_is_given_up() {
    // Accepts nothing, and its backlog is full: packets to it are dropped.
    let listener = tokio::net::TcpSocket::new_v4().unwrap();
    listener.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener: TcpListener = listener.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut held = Vec::new();
    while let Ok(Ok(open)) = tokio::time::timeout(
        std::time::Duration::from_millis(100),
        tokio::net::TcpStream::connect(address),
    )
    .await
    {
        held.push(open);
    }
    let target = Target::start(Tls::None).await;
    let mut plan = target.plan(2, json!({"path": "/ok"})).await;
    plan.target.http = Some(format!("http://{address}"));
    plan.target.timeouts.connect = Some(loadtest_core::Duration::from_millis(50));
    let found = run(plan).await;
    let task = only(&found.numbers);
    assert_eq!(task.completed(), task.errors["timeout_connect"], "{:?}", task.errors);
    let told = &found.examples[&("it".to_owned(), "timeout_connect".to_owned())];
    assert_eq!(told, "connection was not open within 50ms");
}
