//! The WebSocket port.

use cell0_simulator::Simulator;
use futures::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{
        self, Bytes, Message, client::IntoClientRequest, protocol::frame::coding::CloseCode,
    },
};

use crate::client::{Client, RUN, settled, simulator, truth_when};

type Socket = WebSocketStream<TcpStream>;

async fn connect(simulator: &Simulator) -> tungstenite::Result<Socket> {
    let stream = TcpStream::connect(simulator.websocket_addr()).await.unwrap();
    let mut request = "ws://simulator/any/path".into_client_request().unwrap();
    request.headers_mut().insert("x-loadtest-run", RUN.parse().unwrap());
    Ok(client_async(request, stream).await?.0)
}

async fn failing(kind: &str) -> Simulator {
    simulator(&format!("{{webSocket: {{errors: {{rate: 100%, kinds: [{kind}]}}}}}}")).await
}

#[tokio::test]
async fn messages_are_echoed_and_pings_answered() {
    let simulator = simulator("").await;
    let mut socket = connect(&simulator).await.unwrap();
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
    let truth = settled(&simulator).await.endpoints.web_socket;
    assert_eq!((truth.counts.received, truth.counts.completed), (1, 1), "{truth:?}");
    assert_eq!((truth.counts.messages_received, truth.counts.messages_sent), (4, 4));
    assert_eq!(truth.successful.connect.count, 1);
}

#[tokio::test]
async fn connecting_and_replying_take_their_latencies() {
    let simulator = simulator("{webSocket: {connectLatency: 30ms, latency: 20ms}}").await;
    let mut socket = connect(&simulator).await.unwrap();
    socket.send(Message::text("hello")).await.unwrap();
    socket.next().await.unwrap().unwrap();
    socket.close(None).await.unwrap();
    while socket.next().await.is_some() {}
    let times = settled(&simulator).await.endpoints.web_socket.successful;
    assert!(times.connect.min >= 30_000_000, "{times:?}");
    assert!(times.time_to_first_response.min >= times.connect.min + 20_000_000, "{times:?}");
    assert!(times.service_time.min >= times.time_to_first_response.min, "{times:?}");
}

#[tokio::test]
async fn a_client_that_leaves_without_a_close_is_aborted() {
    let simulator = simulator("").await;
    let socket = connect(&simulator).await.unwrap();
    truth_when(&simulator, |counts| counts.in_flight == 1).await;
    drop(socket);
    assert_eq!(settled(&simulator).await.endpoints.web_socket.counts.aborted, 1);
}

#[tokio::test]
async fn a_close_code_comes_instead_of_the_first_reply() {
    let simulator = failing("{closeCode: 1011}").await;
    let mut socket = connect(&simulator).await.unwrap();
    socket.send(Message::text("hello")).await.unwrap();
    let Some(Ok(Message::Close(Some(frame)))) = socket.next().await else { panic!("no close") };
    assert_eq!(frame.code, CloseCode::Error);
    while socket.next().await.is_some() {}
    let counts = settled(&simulator).await.endpoints.web_socket.counts;
    assert_eq!((counts.failed, counts.messages_sent), (1, 0));
}

#[tokio::test]
async fn a_reset_session_is_a_tcp_reset() {
    let simulator = failing("reset").await;
    let mut socket = connect(&simulator).await.unwrap();
    socket.send(Message::text("hello")).await.unwrap();
    let error = socket.next().await.unwrap().unwrap_err();
    let tungstenite::Error::Io(error) = error else { panic!("{error}") };
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(settled(&simulator).await.endpoints.web_socket.counts.failed, 1);
}

#[tokio::test]
async fn a_hanging_session_never_replies() {
    let simulator = failing("hang").await;
    let mut socket = connect(&simulator).await.unwrap();
    socket.send(Message::text("hello")).await.unwrap();
    // The session hangs as soon as the message is counted: its latency is zero.
    truth_when(&simulator, |counts| counts.messages_received == 1).await;
    drop(socket);
    let counts = settled(&simulator).await.endpoints.web_socket.counts;
    assert_eq!((counts.failed, counts.messages_sent), (1, 0));
}

#[tokio::test]
async fn a_rejected_upgrade_has_its_status() {
    let simulator = failing("{rejectUpgrade: 503}").await;
    let Err(tungstenite::Error::Http(response)) = connect(&simulator).await else {
        panic!("no HTTP error")
    };
    assert_eq!(response.status(), 503);
    let truth = truth_when(&simulator, |counts| counts.failed == 1).await.endpoints.web_socket;
    assert_eq!(truth.all.connect.count, 0);
}

#[tokio::test]
async fn sessions_beyond_the_limit_get_429_until_one_ends() {
    let simulator = simulator("{webSocket: {limits: {maxConcurrent: 1}}}").await;
    let mut first = connect(&simulator).await.unwrap();
    let Err(tungstenite::Error::Http(response)) = connect(&simulator).await else {
        panic!("no HTTP error")
    };
    assert_eq!(response.status(), 429);
    first.close(None).await.unwrap();
    while first.next().await.is_some() {}
    truth_when(&simulator, |counts| counts.in_flight == 0).await;
    connect(&simulator).await.unwrap();
}

#[tokio::test]
async fn plain_http_is_told_to_upgrade() {
    let simulator = simulator("").await;
    let mut client = Client::connect(simulator.websocket_addr()).await;
    assert_eq!(client.ask("GET", "/health", "").await.unwrap().0, 426);
    assert_eq!(settled(&simulator).await.endpoints.web_socket.counts.failed, 1);
}
