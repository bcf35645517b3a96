//! What reaches a target is what the spec says.

use std::sync::{Arc, Mutex};

use loadtest_core::plan::{Plan, header_variable};
use loadtest_runner::{Engine, PreparedPlan};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::load::{RUN, only, plan, simulator};

/// A server that gives every request one answer and keeps what it was sent.
async fn server(answer: &'static [u8]) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let kept = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let kept = Arc::clone(&kept);
            tokio::spawn(async move {
                let mut buffer = vec![0; 1 << 16];
                while let Ok(n @ 1..) = socket.read(&mut buffer).await {
                    let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
                    kept.lock().unwrap().push(text);
                    if socket.write_all(answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (url, seen)
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

async fn sent(task: Value, edit: impl FnOnce(&mut Plan)) -> String {
    let (url, seen) = server(OK).await;
    let simulator = simulator("{}").await;
    let mut task = task;
    task["name"] = "it".into();
    let mut plan = plan(&simulator, 1, "1s", &json!([task]));
    plan.target.http = Some(url);
    edit(&mut plan);
    let secret = |variable: &str| (variable == header_variable(0)).then(|| "s3cr3t\n".into());
    let prepared = PreparedPlan::new(plan, secret).unwrap();
    let engine = Engine::new(prepared, 0).unwrap();
    engine.start(std::time::Instant::now());
    engine.wait_until_finished().await;
    let numbers = engine.snapshot().await.numbers;
    assert_eq!(only(&numbers).failures(), 0, "{numbers:?}");
    seen.lock().unwrap()[0].clone()
}

#[tokio::test]
async fn method_path_headers_and_body_arrive() {
    let task = json!({"http": {
        "method": "PUT", "path": "/items/7?full=1", "body": "hello",
        "headers": {"content-type": "text/plain", "x-shared": "task"},
    }});
    let text = sent(task, |plan| {
        plan.target.http = plan.target.http.take().map(|url| format!("{url}/base/"));
        plan.target.headers = [("x-shared".into(), "target".into())].into();
        plan.target.headers_from = serde_json::from_value(json!([
            {"header": "Authorization", "secretKeyRef": {"name": "api", "key": "token"}}
        ]))
        .unwrap();
    })
    .await;
    assert!(text.starts_with("PUT /base/items/7?full=1 HTTP/1.1\r\n"), "{text}");
    for line in [
        &format!("x-loadtest-run: {RUN}"),
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
async fn a_post_without_a_body_says_that_it_has_none() {
    let text = sent(json!({"http": {"method": "POST", "path": "/"}}), |_| {}).await;
    assert!(text.contains("\r\ncontent-length: 0\r\n"), "{text}");
    let text = sent(json!({"http": {"path": "/"}}), |_| {}).await;
    assert!(!text.contains("content-length"), "{text}");
}

#[tokio::test]
async fn a_chat_carries_its_model_and_message() {
    let chat = json!({"models": ["m"], "messages": ["Hi"], "stream": false, "maxTokens": 9});
    let (url, seen) = server(
        b"HTTP/1.1 200 OK\r\ncontent-length: 46\r\n\r\n{\"choices\":[{\"message\":{\"content\":\"Hello\"}}]}",
    )
    .await;
    let simulator = simulator("{}").await;
    let mut plan = plan(&simulator, 1, "1s", &json!([{"name": "chat", "chat": chat}]));
    plan.target.http = Some(url);
    let numbers = crate::load::run(plan).await.numbers;
    assert_eq!(only(&numbers).failures(), 0, "{:?}", only(&numbers).errors);
    let text = seen.lock().unwrap()[0].clone();
    let body: Value = serde_json::from_str(text.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!(body["messages"], json!([{"role": "user", "content": "Hi"}]));
    assert_eq!((&body["model"], &body["max_tokens"]), (&json!("m"), &json!(9)));
}

#[tokio::test]
async fn a_port_that_is_none_is_refused_and_never_the_default_one() {
    let simulator = simulator("{}").await;
    let task = json!([{"name": "it", "http": {"path": "/"}}]);
    for url in ["http://127.0.0.1:188000", "http://127.0.0.1:18800o", "http://127.0.0.1:"] {
        let mut plan = plan(&simulator, 1, "1s", &task);
        plan.target.http = Some(url.into());
        let error = PreparedPlan::new(plan, |_| None).unwrap_err().to_string();
        assert!(error.contains("target.http") && error.contains(url), "{error}");
    }
}

#[tokio::test]
async fn a_server_that_drops_a_closed_session_has_closed_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut socket = tokio_tungstenite::accept_async(socket).await.unwrap();
                // The first frame is the client's Close: no answer to it but the end.
                let mut frame = [0; 64];
                let _ = socket.get_mut().read(&mut frame).await;
            });
        }
    });
    let simulator = simulator("{}").await;
    let task = json!([{"name": "ws", "webSocket": {"path": "/"}}]);
    let mut plan = plan(&simulator, 1, "1s", &task);
    plan.target.web_socket = Some(url);
    let numbers = crate::load::run(plan).await.numbers;
    let task = only(&numbers);
    assert!(task.completed() > 0 && task.failures() == 0, "{:?}", task.errors);
}

#[tokio::test]
async fn answers_that_never_came_count_as_late_first_tokens_and_late_upgrades() {
    let errors = "errors: {rate: 50%, kinds: [hang]}";
    let settings =
        format!("{{chat: {{tokens: 1, latency: 5ms, {errors}}}, webSocket: {{{errors}}}}}");
    let simulator = simulator(&settings).await;
    let tasks = json!([
        {"name": "chat", "chat": {"models": ["cell0-small"], "messages": ["Hi"], "stream": true, "timeout": "400ms"}},
        {"name": "ws", "webSocket": {"path": "/", "send": ["x"], "replies": 1, "timeout": "400ms"}},
    ]);
    let numbers = crate::load::run(plan(&simulator, 20, "2s", &tasks)).await.numbers;
    let chat = &numbers.tasks["chat"];
    let timeouts = chat.requests[2];
    assert!(timeouts > 5, "{:?}", chat.requests);
    assert_eq!(chat.first_response[2].count(), timeouts);
    assert!(chat.first_response[2].quantile(0.0).unwrap().as_secs_f64() > 0.39);
    // These were upgraded, and hung after it.
    let sessions = &numbers.tasks["ws"];
    assert_eq!(sessions.web_socket_connect[2].count(), sessions.requests[2]);
}

#[tokio::test]
async fn what_follows_an_answer_is_no_answer_to_the_next_request() {
    // A body that its head denies: a redirect to the same, on a connection that is then no good.
    let moved: &[u8] = b"HTTP/1.1 302 Found\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n<html>";
    let (url, seen) = server(moved).await;
    let simulator = simulator("{}").await;
    let task = json!([{"name": "it", "http": {"path": "/", "maxRedirects": 3}}]);
    let mut plan = plan(&simulator, 1, "1s", &task);
    plan.target.http = Some(url);
    let found = crate::load::run(plan).await;
    let task = only(&found.numbers);
    // Each is followed until it is one too many, and none is read as garbage.
    assert_eq!(task.completed(), task.errors["redirect"], "{:?}", task.errors);
    let count = seen.lock().unwrap().len() as u64;
    assert!((count - 4 * task.completed()) <= 4, "{count} for {}", task.completed());
}
