//! The WebSocket port.

use cell0_simulator::Simulator;
use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{
        self, Bytes, Message, client::IntoClientRequest, protocol::frame::coding::CloseCode,
    },
};

use crate::client::{Client, RUN_UID, start_simulator, wait_for_truth, wait_until_idle};

type Socket = WebSocketStream<TcpStream>;

async fn open_session(simulator: &Simulator) -> tungstenite::Result<Socket> {
    let stream = TcpStream::connect(simulator.websocket_addr()).await.unwrap();
    let mut request = "ws://simulator/any/path".into_client_request().unwrap();
    request.headers_mut().insert("x-loadtest-run", RUN_UID.parse().unwrap());
    Ok(client_async(request, stream).await?.0)
}

async fn start_failing_simulator(kind: &str) -> Simulator {
    start_simulator(&format!("{{webSocket: {{errors: {{rate: 100%, kinds: [{kind}]}}}}}}")).await
}

#[tokio::test]
async fn messages_are_echoed_and_pings_get_pongs() {
    let simulator = start_simulator("").await;
    let mut socket = open_session(&simulator).await.unwrap();
    for (sent, reply) in [
        (Message::text("hello"), Message::text("hello")),
        (Message::text(r#"{"type":"ping"}"#), Message::text(r#"{"type":"pong"}"#)),
        (Message::text(r#"{"type":"other"}"#), Message::text(r#"{"type":"other"}"#)),
        (Message::binary(vec![7; 100_000]), Message::binary(vec![7; 100_000])),
        (Message::Ping(Bytes::from_static(b"x")), Message::Pong(Bytes::from_static(b"x"))),
    ] {
        socket.send(sent).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), reply);
    }
    socket.close(None).await.unwrap();
    assert!(matches!(socket.next().await, Some(Ok(Message::Close(_)))));
    assert!(socket.next().await.is_none());
    let truth = wait_until_idle(&simulator).await.endpoints.web_socket;
    assert_eq!((truth.counts.received, truth.counts.completed), (1, 1), "{truth:?}");
    assert_eq!((truth.counts.messages_received, truth.counts.messages_sent), (4, 4));
    assert_eq!(truth.successful.connect.count, 1);
}

#[tokio::test]
async fn upgrades_and_replies_have_their_latencies() {
    let simulator = start_simulator("{webSocket: {connectLatency: 30ms, latency: 20ms}}").await;
    let mut socket = open_session(&simulator).await.unwrap();
    socket.send(Message::text("hello")).await.unwrap();
    socket.next().await.unwrap().unwrap();
    socket.close(None).await.unwrap();
    while socket.next().await.is_some() {}
    let times = wait_until_idle(&simulator).await.endpoints.web_socket.successful;
    assert!(times.connect.min >= 30_000_000, "{times:?}");
    assert!(times.time_to_first_response.min >= times.connect.min + 20_000_000, "{times:?}");
    assert!(times.service_time.min >= times.time_to_first_response.min, "{times:?}");
}

#[tokio::test]
async fn session_without_a_close_frame_is_aborted() {
    let simulator = start_simulator("").await;
    let socket = open_session(&simulator).await.unwrap();
    wait_for_truth(&simulator, |counts| counts.in_flight == 1).await;
    drop(socket);
    assert_eq!(wait_until_idle(&simulator).await.endpoints.web_socket.counts.aborted, 1);
}

#[tokio::test]
async fn close_code_replaces_the_first_reply() {
    let simulator = start_failing_simulator("{closeCode: 1011}").await;
    let mut socket = open_session(&simulator).await.unwrap();
    socket.send(Message::text("hello")).await.unwrap();
    let Some(Ok(Message::Close(Some(frame)))) = socket.next().await else { panic!("no close") };
    assert_eq!(frame.code, CloseCode::Error);
    while socket.next().await.is_some() {}
    let counts = wait_until_idle(&simulator).await.endpoints.web_socket.counts;
    assert_eq!((counts.failed, counts.messages_sent), (1, 0));
}

#[tokio::test]
async fn reset_session_gets_a_tcp_reset() {
    let simulator = start_failing_simulator("reset").await;
    let mut socket = open_session(&simulator).await.unwrap();
    socket.send(Message::text("hello")).await.unwrap();
    let error = socket.next().await.unwrap().unwrap_err();
    let tungstenite::Error::Io(error) = error else { panic!("{error}") };
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(wait_until_idle(&simulator).await.endpoints.web_socket.counts.failed, 1);
}

#[tokio::test]
async fn hanging_session_sends_no_reply() {
    let simulator = start_failing_simulator("hang").await;
    let mut socket = open_session(&simulator).await.unwrap();
    socket.send(Message::text("hello")).await.unwrap();
    // The latency is zero, so the session hangs as soon as the message is counted.
    wait_for_truth(&simulator, |counts| counts.messages_received == 1).await;
    drop(socket);
    let counts = wait_until_idle(&simulator).await.endpoints.web_socket.counts;
    assert_eq!((counts.failed, counts.messages_sent), (1, 0));
}

#[tokio::test]
async fn rejected_upgrade_has_the_configured_status() {
    let simulator = start_failing_simulator("{rejectUpgrade: 503}").await;
    let Err(tungstenite::Error::Http(response)) = open_session(&simulator).await else {
        panic!("no HTTP error")
    };
    assert_eq!(response.status(), 503);
    let truth = wait_for_truth(&simulator, |counts| counts.failed == 1).await.endpoints.web_socket;
    assert_eq!(truth.all.connect.count, 0);
}

#[tokio::test]
async fn sessions_over_the_limit_get_429_until_one_ends() {
    let simulator = start_simulator("{webSocket: {limits: {maxConcurrent: 1}}}").await;
    let mut first = open_session(&simulator).await.unwrap();
    let Err(tungstenite::Error::Http(response)) = open_session(&simulator).await else {
        panic!("no HTTP error")
    };
    assert_eq!(response.status(), 429);
    first.close(None).await.unwrap();
    while first.next().await.is_some() {}
    wait_for_truth(&simulator, |counts| counts.in_flight == 0).await;
    open_session(&simulator).await.unwrap();
}

#[tokio::test]
async fn plain_http_request_gets_426() {
    let simulator = start_simulator("").await;
    let mut client = Client::connect(simulator.websocket_addr()).await;
    assert_eq!(client.request("GET", "/health", "").await.unwrap().0, 426);
    assert_eq!(wait_until_idle(&simulator).await.endpoints.web_socket.counts.failed, 1);
}
