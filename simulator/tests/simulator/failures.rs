//! Every way to fail, as the client sees it, and as the truth has it.

use cell0_simulator::Simulator;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::client::{Client, chat_body, events, settled, simulator, truth_when};

async fn failing(kind: &str) -> (Simulator, Client) {
    let errors = format!("errors: {{rate: 100%, kinds: [{kind}]}}");
    let simulator = simulator(&format!("{{chat: {{tokens: 4, {errors}}}}}")).await;
    let client = Client::connect(simulator.http_addr()).await;
    (simulator, client)
}

async fn failed_once(simulator: &Simulator) {
    let counts = settled(simulator).await.endpoints.chat.counts;
    assert_eq!((counts.received, counts.failed), (1, 1), "{counts:?}");
}

/// What a client reads from a socket after a chat request, to the end of the connection.
async fn raw(simulator: &Simulator, more: Value) -> std::io::Result<Vec<u8>> {
    let mut socket = TcpStream::connect(simulator.http_addr()).await.unwrap();
    let body = chat_body(more);
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: s\r\nx-loadtest-run: run-1\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn a_status_is_answered_with_an_error_body() {
    let (simulator, mut client) = failing("{status: 503}").await;
    let (status, text) = client.chat(json!({"stream": true})).await.unwrap();
    assert_eq!(status, 503);
    assert!(text.contains("injected"), "{text}");
    failed_once(&simulator).await;
}

#[tokio::test]
async fn a_reset_is_a_tcp_reset() {
    let (simulator, _) = failing("reset").await;
    let error = raw(&simulator, json!({})).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    failed_once(&simulator).await;
}

#[tokio::test]
async fn garbage_is_no_http() {
    let (simulator, mut client) = failing("garbage").await;
    let answer = raw(&simulator, json!({})).await.unwrap();
    assert!(!answer.is_empty() && !answer.starts_with(b"HTTP"));
    failed_once(&simulator).await;
    let error = client.chat(json!({})).await.unwrap_err();
    assert!(error.is_parse(), "{error}");
}

#[tokio::test]
async fn a_hang_lasts_until_the_client_leaves() {
    let simulator = simulator("{health: {errors: {rate: 100%, kinds: [hang]}}}").await;
    let mut client = Client::connect(simulator.http_addr()).await;
    let waiting = tokio::spawn(async move { client.ask("GET", "/health", "").await });
    // A request without a body hangs as soon as it is counted: its latency is zero.
    let hanging = truth_when(&simulator, |counts| counts.in_flight == 1).await;
    assert_eq!(hanging.totals.counts.failed, 0);
    let mut other = Client::connect(simulator.http_addr()).await;
    assert_eq!(other.ask("GET", "/v1/models", "").await.unwrap().0, 200);
    assert!(!waiting.is_finished());
    waiting.abort();
    let counts = settled(&simulator).await.endpoints.health.counts;
    assert_eq!((counts.received, counts.failed, counts.aborted), (1, 1, 0));
}

#[tokio::test]
async fn a_stream_error_is_an_event_in_a_200() {
    let (simulator, mut client) = failing("streamError").await;
    let (status, text) = client.chat(json!({"stream": true})).await.unwrap();
    assert_eq!(status, 200);
    let all = events(&text);
    // Role, two of four tokens, the error; no [DONE].
    assert_eq!(all.len(), 4);
    let error: Value = serde_json::from_str(all[3]).unwrap();
    assert_eq!(error["error"]["type"], "server_error");
    failed_once(&simulator).await;
    assert_eq!(client.chat(json!({})).await.unwrap().0, 500);
}

#[tokio::test]
async fn a_malformed_event_sits_in_mid_stream() {
    let (simulator, mut client) = failing("malformedEvent").await;
    let (status, text) = client.chat(json!({"stream": true})).await.unwrap();
    let all = events(&text);
    assert_eq!((status, all.len(), *all.last().unwrap()), (200, 1 + 2 + 1 + 2 + 2, "[DONE]"));
    assert!(serde_json::from_str::<Value>(all[3]).is_err());
    failed_once(&simulator).await;
    let (status, text) = client.chat(json!({})).await.unwrap();
    assert!(status == 200 && serde_json::from_str::<Value>(&text).is_err());
}

#[tokio::test]
async fn a_stream_that_is_cut_short_ends_in_mid_event() {
    let (simulator, _) = failing("cutShort").await;
    let answer = raw(&simulator, json!({"stream": true})).await.unwrap();
    let text = String::from_utf8(answer).unwrap();
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"));
    assert_eq!(text.matches("chat.completion.chunk").count(), 3);
    // The end of a chunked body is missing.
    assert!(!text.ends_with("0\r\n\r\n"), "{text}");
    failed_once(&simulator).await;
}

#[tokio::test]
async fn a_body_that_is_cut_short_is_less_than_its_length() {
    let (simulator, _) = failing("cutShort").await;
    let text = String::from_utf8(raw(&simulator, json!({})).await.unwrap()).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    assert!(body.starts_with(r#"{"id":"#) && body.len() < length.parse().unwrap(), "{text}");
    failed_once(&simulator).await;
}

#[tokio::test]
async fn plain_endpoints_fail_too() {
    let simulator = simulator(
        "{health: {errors: {rate: 100%, kinds: [{status: 500}]}}, \
          models: {errors: {rate: 100%, kinds: [cutShort]}}}",
    )
    .await;
    let mut client = Client::connect(simulator.http_addr()).await;
    assert_eq!(client.ask("GET", "/health", "").await.unwrap().0, 500);
    assert!(client.ask("GET", "/v1/models", "").await.is_err());
    let truth = settled(&simulator).await;
    assert_eq!(truth.endpoints.health.counts.failed, 1);
    assert_eq!(truth.endpoints.models.counts.failed, 1);
}

#[tokio::test]
async fn a_share_of_errors_is_counted_as_the_client_sees_it() {
    let simulator = simulator("{seed: 3, health: {errors: {rate: 30%}}}").await;
    let mut client = Client::connect(simulator.http_addr()).await;
    let mut failed = 0;
    for _ in 0..300 {
        failed += u64::from(client.ask("GET", "/health", "").await.unwrap().0 == 500);
    }
    assert!((60..120).contains(&failed), "{failed}");
    let counts = settled(&simulator).await.endpoints.health.counts;
    assert_eq!((counts.failed, counts.completed), (failed, 300 - failed));
}
