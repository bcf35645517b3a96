//! The WebSocket handshake, against targets with unusual or wrong responses.

use std::time::Duration;

use loadtest_core::metrics::TaskMetrics;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::harness::{build_plan, only_task, run_plan, start_simulator, think_time};

/// A text frame from the server with the payload "hi".
const HI_FRAME: &[u8] = b"\x81\x02hi";

/// Reads a handshake request and returns its `Sec-WebSocket-Key`.
async fn read_handshake_key(socket: &mut TcpStream) -> Option<String> {
    let (mut text, mut buffer) = (String::new(), [0; 1024]);
    while !text.contains("\r\n\r\n") {
        match socket.read(&mut buffer).await {
            Ok(n @ 1..) => text.push_str(&String::from_utf8_lossy(&buffer[..n])),
            _ => return None,
        }
    }
    let key = text.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: "))?;
    Some(key.to_owned())
}

/// Starts a target that responds to each handshake with `head` and `body`, and to each message with
/// [`HI_FRAME`] if `body` is not empty. It writes `chunk_size` bytes at once. In `head`, `{key}`
/// stands for the correct accept key. Returns the URL.
async fn start_target(head: &'static str, body: &'static [u8], chunk_size: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Some(key) = read_handshake_key(&mut socket).await else { return };
                let head = head.replace("{key}", &derive_accept_key(key.as_bytes()));
                let response = [head.as_bytes(), body].concat();
                socket.set_nodelay(true).unwrap();
                for bytes in response.chunks(chunk_size) {
                    if socket.write_all(bytes).await.is_err() {
                        return;
                    }
                    tokio::task::yield_now().await;
                }
                let mut rest = [0; 64];
                while socket.read(&mut rest).await.is_ok_and(|n| n > 0) {
                    if !body.is_empty() && socket.write_all(HI_FRAME).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    url
}

/// An unmasked text frame. The text has at most 125 bytes.
fn text_frame(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len()).ok().filter(|length| *length < 126).unwrap();
    [&[0x81, length], text.as_bytes()].concat()
}

/// Starts a target that sends the texts of `greeting` together with its response to the handshake,
/// and those of `replies` after each message, every one 20 ms after the one before. Returns the URL.
pub(crate) async fn start_scripted(
    greeting: &'static [&'static str],
    replies: &'static [&'static str],
) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Some(key) = read_handshake_key(&mut socket).await else { return };
                let mut response =
                    ACCEPTED.replace("{key}", &derive_accept_key(key.as_bytes())).into_bytes();
                greeting.iter().for_each(|text| response.extend(text_frame(text)));
                socket.set_nodelay(true).unwrap();
                let mut sent = socket.write_all(&response).await;
                let mut frame = [0; 1024];
                while sent.is_ok() && socket.read(&mut frame).await.is_ok_and(|n| n > 0) {
                    // A close frame ends the session.
                    if frame[0] & 0x0f == 8 {
                        return;
                    }
                    for (index, text) in replies.iter().enumerate() {
                        if index > 0 {
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                        sent = sent.and(socket.write_all(&text_frame(text)).await);
                    }
                }
            });
        }
    });
    url
}

/// Runs two users against a target for a second and returns the metrics of their task. Each task
/// sends one message and waits for one reply; users pause for 20 ms.
async fn run_users(url: String, session: &str) -> TaskMetrics {
    let simulator = start_simulator("{}").await;
    let tasks = json!([{"name": "socket", "webSocket": {
        "send": ["hello"], "replies": 1, "close": false, "session": session, "timeout": "2s",
    }}]);
    let mut plan = build_plan(&simulator, 2, "1s", &tasks);
    plan.test.target.web_socket = Some(url);
    plan.test.scenario.pacing = think_time("20ms", "20ms");
    only_task(&run_plan(plan).await.metrics).clone()
}

/// A correct response. It follows an informational response and lists two `Connection` tokens.
const ACCEPTED: &str = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n\
    HTTP/1.1 101 Switching Protocols\r\nupgrade: WebSocket\r\n\
    connection: keep-alive, Upgrade\r\nsec-websocket-accept: {key}\r\n\r\n";

#[tokio::test]
async fn split_and_combined_handshake_responses_are_accepted() {
    for chunk_size in [1, 7, 1024] {
        let url = start_target(ACCEPTED, HI_FRAME, chunk_size).await;
        let task = run_users(url, "PerTask").await;
        assert_eq!(task.failed_requests(), 0, "{chunk_size}: {:?}", task.errors);
        assert!(task.completed_requests() > 2, "{chunk_size}: {:?}", task.requests);
        // A frame in the same read as the handshake response is no reply to a message that was sent
        // later, but it is counted.
        let completed = task.completed_requests();
        assert!(task.messages_received > completed, "{chunk_size}: {}", task.messages_received);
    }
}

#[tokio::test]
async fn rejected_handshakes_have_their_error_kinds() {
    let wrong_key = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\
        connection: Upgrade\r\nsec-websocket-accept: bm90IGl0\r\n\r\n";
    for (head, kind) in [
        ("HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n", "http_403"),
        (wrong_key, "protocol"),
        ("SSH-2.0-OpenSSH_9.2\r\n\r\n", "protocol"),
    ] {
        for session in ["PerTask", "PerUser"] {
            let task = run_users(start_target(head, b"", 1024).await, session).await;
            assert!(task.failed_requests() > 2, "{kind}");
            assert_eq!(task.errors.get(kind), Some(&task.failed_requests()), "{:?}", task.errors);
            // A failed handshake opens no session, so there is no reconnect either.
            assert_eq!((task.connections, task.reconnects), (0, 0));
        }
    }
}

#[tokio::test]
async fn an_endless_handshake_response_is_refused() {
    // A header field of 300 KB without a line end.
    let head: &'static str =
        Box::leak(format!("HTTP/1.1 101 OK\r\nx: {}", "y".repeat(300_000)).into_boxed_str());
    let task = run_users(start_target(head, b"", 1 << 20).await, "PerTask").await;
    assert_eq!(task.errors.get("size_limit"), Some(&task.failed_requests()), "{:?}", task.errors);
    assert!(task.failed_requests() > 2);
}
