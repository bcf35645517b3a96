//! WebSocket servers that end sessions, refuse them or send unasked messages, as real ones do.

use futures_util::{SinkExt, StreamExt};
use loadtest_core::metrics::{LatencyMetric, TaskMetrics};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

use crate::{
    harness::{only_task, run_plan},
    scripted_target::{ScriptedTarget, Step, chunk, send, wait},
};

/// How a server ends a session.
#[derive(Clone, Copy, Debug)]
enum End {
    /// It waits for the close frame of the client.
    Client,
    /// It closes with a code after this number of messages.
    Close(usize, u16),
    /// It drops the connection after this number of messages.
    Drop(usize),
}

/// Starts a server that replies to each message and ends sessions as `end` says. Returns the URL.
async fn start_server(end: End, replies: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(serve_session(socket, end, replies));
        }
    });
    url
}

async fn serve_session(socket: tokio::net::TcpStream, end: End, replies: bool) -> Option<()> {
    socket.set_nodelay(true).ok()?;
    let mut session = tokio_tungstenite::accept_async(socket).await.ok()?;
    let mut messages = 0;
    while let Some(Ok(message)) = session.next().await {
        if !message.is_text() {
            continue;
        }
        messages += 1;
        if replies {
            session.send(Message::text("reply")).await.ok()?;
        }
        match end {
            End::Close(after, code) if messages == after => {
                let reason = "limit reached".into();
                let frame = CloseFrame { code: CloseCode::from(code), reason };
                session.close(Some(frame)).await.ok()?;
            }
            End::Drop(after) if messages == after => return None,
            _ => {}
        }
    }
    Some(())
}

async fn run_against(url: String, task: Value) -> (TaskMetrics, Vec<String>) {
    let target = ScriptedTarget::start(vec![Step::Close]).await;
    let mut plan = target.plan(task);
    plan.test.target.web_socket = Some(url);
    let result = run_plan(plan).await;
    (only_task(&result.metrics).clone(), result.examples.into_values().collect())
}

#[tokio::test]
async fn sessions_without_replies_fail_as_the_target_ends_them() {
    let task = json!({"webSocket": {"path": "/", "send": ["1", "2", "3"], "timeout": "2s"}});
    for (end, expected) in [
        (End::Client, None),
        (End::Close(1, 1000), None),
        (End::Close(1, 1003), Some(("websocket_close_1003", "code 1003: limit reached"))),
        (End::Close(3, 1011), Some(("websocket_close_1011", "code 1011: limit reached"))),
        (End::Close(2, 4403), Some(("websocket_close_4403", "code 4403: limit reached"))),
        (End::Drop(1), Some(("reset", ""))),
    ] {
        let (metrics, messages) = run_against(start_server(end, false).await, task.clone()).await;
        let failed = metrics.failed_requests();
        assert!(metrics.completed_requests() > 2, "{end:?}: {:?}", metrics.requests);
        match expected {
            None => assert_eq!((failed, messages), (0, vec![]), "{end:?}"),
            Some((kind, words)) => {
                assert_eq!(metrics.errors.get(kind), Some(&failed), "{end:?} {messages:?}");
                assert_eq!(failed, metrics.completed_requests(), "{end:?}");
                assert!(messages[0].contains(words), "{end:?}: {messages:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_target_that_answers_no_ping_fails_no_task() {
    let url = crate::web_socket_handshake::start_scripted(&[], &[]).await;
    let task = json!({"webSocket": {"path": "/", "send": ["1"], "timeout": "600ms"}});
    let (metrics, messages) = run_against(url, task).await;
    assert_eq!((metrics.failed_requests(), messages), (0, vec![]));
    assert!(metrics.completed_requests() > 20, "{:?}", metrics.requests);
}

#[tokio::test]
async fn kept_sessions_that_the_target_ends_are_counted_by_code() {
    let task = json!({"webSocket": {
        "path": "/", "send": ["1"], "replies": 1, "session": "PerUser", "timeout": "2s",
    }});
    let url = start_server(End::Close(1, 1011), true).await;
    let (metrics, messages) = run_against(url, task).await;
    assert_eq!((metrics.failed_requests(), messages), (0, vec![]));
    let closes = metrics.websocket_closes["1011"];
    assert!(closes > 2 && closes >= metrics.reconnects, "{:?}", metrics.websocket_closes);
}

#[tokio::test]
async fn a_refused_handshake_has_the_words_of_a_late_body() {
    let task = json!({"webSocket": {"path": "/", "send": ["1"], "replies": 1, "timeout": "2s"}});
    let head = "HTTP/1.1 503 Busy\r\ntransfer-encoding: chunked\r\n\r\n";
    let body = [chunk("no healthy "), chunk("upstream")].concat();
    for steps in [
        vec![send(head), wait(20), send(&body), Step::Hang],
        vec![send(format!("{head}{body}0\r\n\r\n"))],
    ] {
        let target = ScriptedTarget::start(steps).await;
        let (metrics, messages) = target.run(task.clone()).await;
        assert_eq!(metrics.errors["http_503"], metrics.completed_requests());
        assert_eq!(messages, ["the handshake got status 503: no healthy upstream"]);
    }
}

/// A WebSocket task that sends one message and waits for one reply, with more `settings`.
fn websocket_task(settings: &Value) -> Value {
    let mut task = json!({"path": "/", "send": ["{\"id\": 1}"], "replies": 1, "timeout": "2s"});
    for (name, value) in settings.as_object().unwrap() {
        task[name] = value.clone();
    }
    json!({"webSocket": task})
}

/// The median of a latency in milliseconds.
fn median(task: &TaskMetrics, metric: LatencyMetric) -> f64 {
    task.latencies.samples(metric).quantile(0.5).map_or(0.0, loadtest_core::Duration::as_millis_f64)
}

/// Runs a WebSocket task for a second. Each connection gets `greeting` with the response to the
/// handshake, and `replies` after each message, every one 20 ms after the one before.
async fn run_web_socket(
    settings: &Value,
    greeting: &'static [&'static str],
    replies: &'static [&'static str],
) -> (TaskMetrics, Vec<String>) {
    let url = crate::web_socket_handshake::start_scripted(greeting, replies).await;
    run_against(url, websocket_task(settings)).await
}

#[tokio::test]
async fn greetings_and_heartbeats_end_no_round_trip() {
    const WELCOME: &str = r#"{"type":"welcome"}"#;
    const PING: &str = r#"{"type":"ping"}"#;
    const REPLY: &str = r#"{"type":"reply","id":1}"#;
    for (settings, greeting, replies) in [
        (json!({}), &[WELCOME][..], &[PING, PING, REPLY][..]),
        (json!({"reply": {"contains": "reply"}}), &["a"], &["b", "c", REPLY]),
        (json!({"reply": {"regex": "\"id\":[0-9]"}}), &["a"], &["b", "c", REPLY]),
        (json!({"reply": {"jsonPath": "$.id", "equals": "1"}}), &["a"], &["b", "{}", REPLY]),
        (json!({"session": "PerUser", "reply": {"contains": "reply"}}), &["a"], &["b", "c", REPLY]),
    ] {
        let (task, messages) = run_web_socket(&settings, greeting, replies).await;
        assert_eq!((task.failed_requests(), messages), (0, vec![]), "{settings}");
        let round_trip = median(&task, LatencyMetric::WebSocketRoundTrip);
        assert!((39.0..90.0).contains(&round_trip), "{settings}: {round_trip} ms");
    }
}

#[tokio::test]
async fn a_session_that_only_gets_other_messages_says_so() {
    let settings = json!({"reply": {"contains": "reply"}, "timeout": "300ms"});
    let (task, messages) = run_web_socket(&settings, &[], &["other"]).await;
    assert_eq!(task.completed_requests(), task.failed_requests());
    assert!(task.errors["timeout_response"] > 0, "{:?} {messages:?}", task.errors);
    assert!(
        messages[0]
            .contains("does not count as a reply (webSocket.reply says which messages do): other"),
        "{messages:?}"
    );
}
