//! What targets answer to the handshake of a WebSocket.

use loadtest_core::metrics::TaskNumbers;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::load::{only, plan, run, simulator};

/// A text frame of a server: "hi".
const HI: &[u8] = b"\x81\x02hi";

/// The key of the handshake that came.
async fn asked(socket: &mut TcpStream) -> Option<String> {
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

/// A target that answers each handshake with `head`, where `{key}` stands for the right key, and
/// `body`, so many bytes at a time, and reads what comes until the end.
async fn target(head: &'static str, body: &'static [u8], piece: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Some(key) = asked(&mut socket).await else { return };
                let head = head.replace("{key}", &derive_accept_key(key.as_bytes()));
                let answer = [head.as_bytes(), body].concat();
                socket.set_nodelay(true).unwrap();
                for bytes in answer.chunks(piece) {
                    if socket.write_all(bytes).await.is_err() {
                        return;
                    }
                    tokio::task::yield_now().await;
                }
                let mut rest = [0; 64];
                while socket.read(&mut rest).await.is_ok_and(|n| n > 0) {}
            });
        }
    });
    url
}

/// What two users make of it whose one message wants one reply, and who pause 20 ms.
async fn numbers(url: String, session: &str) -> TaskNumbers {
    let simulator = simulator("{}").await;
    let task = json!([{"name": "socket", "webSocket": {
        "send": ["hello"], "replies": 1, "close": false, "session": session, "timeout": "2s",
    }}]);
    let mut plan = plan(&simulator, 2, "1s", &task);
    plan.target.web_socket = Some(url);
    plan.scenario.pause =
        Some(serde_json::from_value(json!({"min": "20ms", "max": "20ms"})).unwrap());
    only(&run(plan).await.numbers).clone()
}

const YES: &str = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n\
    HTTP/1.1 101 Switching Protocols\r\nupgrade: WebSocket\r\n\
    connection: keep-alive, Upgrade\r\nsec-websocket-accept: {key}\r\n\r\n";

#[tokio::test]
async fn an_answer_in_pieces_or_in_one_with_a_message_makes_a_session() {
    for piece in [1, 7, 1024] {
        let numbers = numbers(target(YES, HI, piece).await, "PerTask").await;
        assert_eq!(numbers.failures(), 0, "{piece}: {:?}", numbers.errors);
        assert!(numbers.completed() > 2, "{piece}: {:?}", numbers.requests);
        // The message that came with the answer is the one the user waited for.
        assert_eq!(numbers.messages_received, numbers.completed(), "{piece}");
    }
}

#[tokio::test]
async fn an_answer_other_than_yes_is_a_failure_of_its_kind() {
    let wrong_key = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\
        connection: Upgrade\r\nsec-websocket-accept: bm90IGl0\r\n\r\n";
    for (head, kind) in [
        ("HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n", "http_403"),
        (wrong_key, "protocol"),
        ("SSH-2.0-OpenSSH_9.2\r\n\r\n", "protocol"),
    ] {
        for session in ["PerTask", "PerUser"] {
            let numbers = numbers(target(head, b"", 1024).await, session).await;
            assert!(numbers.failures() > 2, "{kind}");
            assert_eq!(numbers.errors.get(kind), Some(&numbers.failures()), "{:?}", numbers.errors);
            // No session was lost: there was none.
            assert_eq!((numbers.connections.opened, numbers.connections.again), (0, 0));
        }
    }
}

#[tokio::test]
async fn an_answer_without_an_end_is_not_kept() {
    // One header field of 100 KB.
    let long: &'static str =
        Box::leak(format!("HTTP/1.1 101 OK\r\nx: {}", "y".repeat(100_000)).into_boxed_str());
    let numbers = numbers(target(long, b"", 1 << 20).await, "PerTask").await;
    assert_eq!(numbers.errors.get("protocol"), Some(&numbers.failures()), "{:?}", numbers.errors);
    assert!(numbers.failures() > 2);
}
