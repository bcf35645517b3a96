//! HTTP/2 targets that end a stream early, speak another protocol, or allow more streams later.

use std::time::Duration;

use bytes::Bytes;
use http::Response;
use loadtest_core::{
    metrics::{LatencyMetric, TaskMetrics},
    plan::Plan,
    resource::{ConnectionReuse, HttpVersion},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{
    harness::{load_model, only_task, plan_of_spec, run_plan},
    scripted_target::{ScriptedTarget, send},
};

/// Builds a plan of two users for a second, over HTTP/2 without TLS.
fn plan_for(url: &str) -> Plan {
    plan_of_spec(json!({
        "target": {"http": url, "httpVersion": "HTTP2"},
        "load": {"users": 2, "spawnRate": 1000, "duration": "1s", "gracefulStop": "5s"},
        "scenario": {
            "pause": {"min": "5ms", "max": "15ms"},
            "tasks": [{"name": "it", "http": {"path": "/", "timeout": "5s"}}],
        },
    }))
}

/// Starts a target that serves each connection with `serve`. Returns its URL.
async fn start_target<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> String
where
    F: Future<Output = Result<(), h2::Error>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(serve(socket));
        }
    });
    url
}

/// Runs a plan whose requests all fail. Returns the kind and the message of the only error.
async fn run_bad(plan: Plan) -> (String, String) {
    let result = run_plan(plan).await;
    let task = only_task(&result.metrics);
    assert!(task.completed_requests() > 2, "{:?}", task.requests);
    assert_eq!(task.completed_requests(), task.failed_requests(), "{:?}", task.errors);
    let kinds: Vec<_> = task.errors.iter().filter(|(_, count)| **count > 0).collect();
    assert_eq!(kinds.len(), 1, "{kinds:?}");
    (kinds[0].0.clone(), result.examples.into_values().next().unwrap())
}

#[tokio::test]
async fn a_response_that_a_proxy_resets_is_no_success() {
    // Envoy resets a stream like this when the server behind it dies.
    let url = start_target(async |socket| {
        let mut connection = h2::server::handshake(socket).await?;
        while let Some(stream) = connection.accept().await {
            let (_, mut respond) = stream?;
            let mut body = respond.send_response(Response::new(()), false)?;
            body.send_data(Bytes::from_static(b"half of "), false)?;
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(5)).await;
                body.send_reset(h2::Reason::NO_ERROR);
            });
        }
        Ok(())
    })
    .await;
    let (kind, message) = run_bad(plan_for(&url)).await;
    assert_eq!(kind, "reset", "{message}");
    assert!(message.contains("before the response was complete"), "{message}");
}

#[tokio::test]
async fn the_end_of_a_connection_has_the_words_of_the_target() {
    let frame = |kind: u8, payload: &[u8]| {
        let length = u8::try_from(payload.len()).unwrap();
        [&[0, 0, length, kind, 0, 0, 0, 0, 0], payload].concat()
    };
    let settings = frame(4, b"");
    // GOAWAY: the last stream that the target has processed is the first one, and the code is ENHANCE_YOUR_CALM.
    let go_away = frame(7, &[&[0, 0, 0, 1, 0, 0, 0, 11], b"too_many_pings".as_slice()].concat());
    let url = start_target(move |mut socket| {
        let (settings, go_away) = (settings.clone(), go_away.clone());
        async move {
            socket.write_all(&settings).await.unwrap();
            let mut received = [0; 4096];
            let _ = socket.read(&mut received).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            socket.write_all(&go_away).await.unwrap();
            socket.shutdown().await.unwrap();
            while socket.read(&mut received).await.is_ok_and(|n| n > 0) {}
            Ok(())
        }
    })
    .await;
    let (kind, message) = run_bad(plan_for(&url)).await;
    assert_eq!(kind, "reset", "{message}");
    assert!(message.contains("too_many_pings"), "{message}");
}

#[tokio::test]
async fn a_server_of_http1_is_no_reset() {
    let answer = "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let target = ScriptedTarget::start(vec![send(answer)]).await;
    let (kind, message) = run_bad(plan_for(&target.url)).await;
    assert_eq!(kind, "protocol", "{message}");
    assert!(message.contains("target.httpVersion"), "{message}");
}

#[tokio::test]
async fn settings_that_allow_more_streams_let_waiting_requests_go() {
    const SETTINGS_AFTER: Duration = Duration::from_millis(100);
    const RESPONSE_TIME: Duration = Duration::from_secs(1);
    let url = start_target(async |socket| {
        tokio::time::sleep(SETTINGS_AFTER).await;
        let mut builder = h2::server::Builder::new();
        builder.max_concurrent_streams(1000);
        let mut connection = builder.handshake::<_, Bytes>(socket).await?;
        while let Some(stream) = connection.accept().await {
            let (_, mut respond) = stream?;
            tokio::spawn(async move {
                tokio::time::sleep(RESPONSE_TIME).await;
                let _ = respond.send_response(Response::new(()), true);
            });
        }
        Ok(())
    })
    .await;
    let mut plan = plan_for(&url);
    plan.threads = 1;
    plan.test.target.connections = ConnectionReuse::Shared;
    assert_eq!(plan.test.target.http_version, HttpVersion::Http2);
    // All users begin at once, and 100 of them may send before the settings are known.
    plan.test.load = load_model(json!({"users": 150, "spawnRate": 1_000_000, "duration": "500ms"}));
    let result = run_plan(plan).await;
    let task: &TaskMetrics = only_task(&result.metrics);
    assert_eq!((task.failed_requests(), task.completed_requests()), (0, 150), "{:?}", task.errors);
    let slowest = task.latencies.samples(LatencyMetric::ResponseTime).quantile(1.0).unwrap();
    assert!(slowest.as_secs_f64() < 1.7, "{slowest}");
}

#[tokio::test]
async fn a_request_on_a_refused_stream_is_sent_again_and_counted() {
    let url = start_target(async |socket| {
        let mut connection = h2::server::handshake(socket).await?;
        let mut is_refused = false;
        while let Some(stream) = connection.accept().await {
            let (_, mut respond) = stream?;
            is_refused = !is_refused;
            if is_refused {
                respond.send_reset(h2::Reason::REFUSED_STREAM);
            } else {
                respond.send_response(Response::new(()), true)?;
            }
        }
        Ok(())
    })
    .await;
    let mut plan = plan_for(&url);
    // The requests of a user follow each other on its connection, so each is refused once.
    plan.test.target.connections = ConnectionReuse::PerUser;
    let result = run_plan(plan).await;
    let task = only_task(&result.metrics);
    assert_eq!(task.failed_requests(), 0, "{:?}", task.errors);
    assert!(task.completed_requests() > 20, "{:?}", task.requests);
    assert_eq!(task.resent, task.completed_requests());
}
