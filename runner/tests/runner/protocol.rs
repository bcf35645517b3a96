//! The bytes that the runner sends to a target, and the responses that it accepts.

use std::sync::{Arc, Mutex};

use loadtest_core::{
    control::variable,
    metrics::{LatencyMetric, Outcome},
    plan::Plan,
};
use loadtest_runner::{Engine, PreparedPlan};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::harness::{RUN_UID, build_plan, only_task, run_plan, start_simulator};

/// Starts a server that sends `response` to every request. Returns its URL and the requests that it
/// has read.
async fn start_server(response: &'static [u8]) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let requests: Arc<Mutex<Vec<String>>> = Arc::default();
    let server_requests = Arc::clone(&requests);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let requests = Arc::clone(&server_requests);
            tokio::spawn(async move {
                let mut buffer = vec![0; 1 << 16];
                while let Ok(n @ 1..) = socket.read(&mut buffer).await {
                    let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
                    requests.lock().unwrap().push(text);
                    if socket.write_all(response).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (url, requests)
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

/// Runs one user with one task, after `edit` has changed the plan. Returns the first request.
async fn first_request(mut task_spec: Value, edit: impl FnOnce(&mut Plan)) -> String {
    let (url, requests) = start_server(OK).await;
    let simulator = start_simulator("{}").await;
    task_spec["name"] = "it".into();
    let mut plan = build_plan(&simulator, 1, "1s", &json!([task_spec]));
    plan.test.target.http = Some(url);
    edit(&mut plan);
    let secret = |variable: &str| (variable == variable::header(0)).then(|| "s3cr3t\n".into());
    let prepared = PreparedPlan::new(plan, secret).unwrap();
    let engine = Engine::new(prepared, 0).unwrap();
    engine.start(std::time::Instant::now());
    engine.wait_until_finished().await;
    let metrics = engine.snapshot().await.metrics;
    assert_eq!(only_task(&metrics).failed_requests(), 0, "{metrics:?}");
    requests.lock().unwrap()[0].clone()
}

#[tokio::test]
async fn method_path_headers_and_body_reach_the_target() {
    let task = json!({"http": {
        "method": "PUT", "path": "/items/7?full=1", "body": "hello",
        "headers": {"content-type": "text/plain", "x-shared": "task"},
    }});
    let text = first_request(task, |plan| {
        plan.test.target.http = plan.test.target.http.take().map(|url| format!("{url}/base/"));
        plan.test.target.headers = [("x-shared".into(), "target".into())].into();
        plan.test.target.headers_from = serde_json::from_value(json!([
            {"header": "Authorization", "secretKeyRef": {"name": "api", "key": "token"}}
        ]))
        .unwrap();
    })
    .await;
    assert!(text.starts_with("PUT /base/items/7?full=1 HTTP/1.1\r\n"), "{text}");
    for line in [
        &format!("x-loadtest-run: {RUN_UID}"),
        "x-shared: task",
        "authorization: s3cr3t",
        "content-type: text/plain",
        "content-length: 5",
    ] {
        assert!(text.contains(&format!("\r\n{line}\r\n")), "{line} is not in {text}");
    }
    assert!(text.ends_with("\r\n\r\nhello"), "{text}");
}

#[tokio::test]
async fn post_without_a_body_sends_content_length_0() {
    let text = first_request(json!({"http": {"method": "POST", "path": "/"}}), |_| {}).await;
    assert!(text.contains("\r\ncontent-length: 0\r\n"), "{text}");
    let text = first_request(json!({"http": {"path": "/"}}), |_| {}).await;
    assert!(!text.contains("content-length"), "{text}");
}

#[tokio::test]
async fn chat_request_contains_model_and_message() {
    let chat = json!({"models": ["m"], "messages": ["Hi"], "stream": false, "maxTokens": 9});
    let (url, requests) = start_server(
        b"HTTP/1.1 200 OK\r\ncontent-length: 46\r\n\r\n{\"choices\":[{\"message\":{\"content\":\"Hello\"}}]}",
    )
    .await;
    let simulator = start_simulator("{}").await;
    let mut plan = build_plan(&simulator, 1, "1s", &json!([{"name": "chat", "chat": chat}]));
    plan.test.target.http = Some(url);
    let metrics = run_plan(plan).await.metrics;
    assert_eq!(only_task(&metrics).failed_requests(), 0, "{:?}", only_task(&metrics).errors);
    let text = requests.lock().unwrap()[0].clone();
    let body: Value = serde_json::from_str(text.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!(body["messages"], json!([{"role": "user", "content": "Hi"}]));
    assert_eq!((&body["model"], &body["max_tokens"]), (&json!("m"), &json!(9)));
}

#[tokio::test]
async fn invalid_port_never_becomes_the_default_port() {
    let simulator = start_simulator("{}").await;
    let task = json!([{"name": "it", "http": {"path": "/"}}]);
    for url in ["http://127.0.0.1:188000", "http://127.0.0.1:18800o", "http://127.0.0.1:"] {
        let mut plan = build_plan(&simulator, 1, "1s", &task);
        plan.test.target.http = Some(url.into());
        let error = PreparedPlan::new(plan, |_| None).unwrap_err().to_string();
        assert!(error.contains("target.http") && error.contains(url), "{error}");
    }
}

#[tokio::test]
async fn dropped_connection_after_close_is_a_clean_close() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut socket = tokio_tungstenite::accept_async(socket).await.unwrap();
                // The first frame is the client's Close. Drop the connection without a Close frame.
                let mut frame = [0; 64];
                let _ = socket.get_mut().read(&mut frame).await;
            });
        }
    });
    let simulator = start_simulator("{}").await;
    let task = json!([{"name": "ws", "webSocket": {"path": "/"}}]);
    let mut plan = build_plan(&simulator, 1, "1s", &task);
    plan.test.target.web_socket = Some(url);
    let metrics = run_plan(plan).await.metrics;
    let task = only_task(&metrics);
    assert!(task.completed_requests() > 0 && task.failed_requests() == 0, "{:?}", task.errors);
}

#[tokio::test]
async fn timeouts_count_as_late_first_tokens_and_upgrades() {
    let errors = "errors: {rate: 50%, kinds: [hang]}";
    let settings =
        format!("{{chat: {{tokens: 1, latency: 5ms, {errors}}}, webSocket: {{{errors}}}}}");
    let simulator = start_simulator(&settings).await;
    let tasks = json!([
        {"name": "chat", "chat": {"models": ["cell0-small"], "messages": ["Hi"], "stream": true, "timeout": "400ms"}},
        {"name": "ws", "webSocket": {"path": "/", "send": ["x"], "replies": 1, "timeout": "400ms"}},
    ]);
    let metrics = run_plan(build_plan(&simulator, 20, "2s", &tasks)).await.metrics;
    let chat = &metrics.tasks["chat"];
    let timeouts = chat.requests[2];
    assert!(timeouts > 5, "{:?}", chat.requests);
    assert_eq!(
        chat.latencies.get(LatencyMetric::TimeToFirstResponse, Outcome::Timeout).count(),
        timeouts
    );
    assert!(
        chat.latencies
            .get(LatencyMetric::TimeToFirstResponse, Outcome::Timeout)
            .quantile(0.0)
            .unwrap()
            .as_secs_f64()
            > 0.39
    );
    // The simulator upgrades these sessions and hangs after the upgrade, so their time to connect is
    // known.
    let sessions = &metrics.tasks["ws"];
    let connects = |outcome| sessions.latencies.get(LatencyMetric::WebSocketConnect, outcome);
    assert_eq!(connects(Outcome::Timeout).count(), 0);
    assert_eq!(connects(Outcome::Success).count(), sessions.connections);
}

#[tokio::test]
async fn extra_bytes_after_a_response_are_not_the_next_response() {
    // The head says that there is no body, but bytes follow. The runner must follow the redirect on
    // a new connection.
    let moved: &[u8] = b"HTTP/1.1 302 Found\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n<html>";
    let (url, requests) = start_server(moved).await;
    let simulator = start_simulator("{}").await;
    let task = json!([{"name": "it", "http": {"path": "/", "maxRedirects": 3}}]);
    let mut plan = build_plan(&simulator, 1, "1s", &task);
    plan.test.target.http = Some(url);
    let result = run_plan(plan).await;
    let task = only_task(&result.metrics);
    // Every request ends with one redirect too many. The extra bytes are never read as a response.
    assert_eq!(task.completed_requests(), task.errors["redirect"], "{:?}", task.errors);
    let count = requests.lock().unwrap().len() as u64;
    assert!(
        (count - 4 * task.completed_requests()) <= 4,
        "{count} requests, {} tasks",
        task.completed_requests()
    );
}
