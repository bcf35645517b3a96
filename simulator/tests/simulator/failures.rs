//! Each kind of failure, as the client sees it and as the truth records it.

use cell0_simulator::Simulator;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::client::{
    Client, chat_body, parse_events, start_simulator, wait_for_truth, wait_until_idle,
};

async fn start_failing_simulator(kind: &str) -> (Simulator, Client) {
    let errors = format!("errors: {{rate: 100%, kinds: [{kind}]}}");
    let simulator = start_simulator(&format!("{{chat: {{tokens: 4, {errors}}}}}")).await;
    let client = Client::connect(simulator.http_addr()).await;
    (simulator, client)
}

async fn assert_one_failure(simulator: &Simulator) {
    let counts = wait_until_idle(simulator).await.endpoints.chat.counts;
    assert_eq!((counts.received, counts.failed), (1, 1), "{counts:?}");
}

/// Sends a chat request. Returns the bytes that the client reads until the connection ends.
async fn read_raw_response(simulator: &Simulator, more: Value) -> std::io::Result<Vec<u8>> {
    let mut socket = TcpStream::connect(simulator.http_addr()).await.unwrap();
    let body = chat_body(more);
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: s\r\nx-loadtest-run: run-1\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    let mut response = Vec::new();
    socket.read_to_end(&mut response).await?;
    Ok(response)
}

#[tokio::test]
async fn status_failure_has_an_error_body() {
    let (simulator, mut client) = start_failing_simulator("{status: 503}").await;
    let (status, text) = client.request_chat(json!({"stream": true})).await.unwrap();
    assert_eq!(status, 503);
    assert!(text.contains("injected"), "{text}");
    assert_one_failure(&simulator).await;
}

#[tokio::test]
async fn reset_failure_is_a_tcp_reset() {
    let (simulator, _) = start_failing_simulator("reset").await;
    let error = read_raw_response(&simulator, json!({})).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_one_failure(&simulator).await;
}

#[tokio::test]
async fn garbage_failure_is_not_http() {
    let (simulator, mut client) = start_failing_simulator("garbage").await;
    let response = read_raw_response(&simulator, json!({})).await.unwrap();
    assert!(!response.is_empty() && !response.starts_with(b"HTTP"));
    assert_one_failure(&simulator).await;
    let error = client.request_chat(json!({})).await.unwrap_err();
    assert!(error.is_parse(), "{error}");
}

#[tokio::test]
async fn hang_lasts_until_the_client_disconnects() {
    let simulator = start_simulator("{health: {errors: {rate: 100%, kinds: [hang]}}}").await;
    let mut client = Client::connect(simulator.http_addr()).await;
    let waiting = tokio::spawn(async move { client.request("GET", "/health", "").await });
    // The latency is zero, so a request without a body hangs as soon as it is counted.
    let hanging = wait_for_truth(&simulator, |counts| counts.in_flight == 1).await;
    assert_eq!(hanging.totals.counts.failed, 0);
    let mut other = Client::connect(simulator.http_addr()).await;
    assert_eq!(other.request("GET", "/v1/models", "").await.unwrap().0, 200);
    assert!(!waiting.is_finished());
    waiting.abort();
    let counts = wait_until_idle(&simulator).await.endpoints.health.counts;
    assert_eq!((counts.received, counts.failed, counts.aborted), (1, 1, 0));
}

#[tokio::test]
async fn stream_error_is_an_event_with_status_200() {
    let (simulator, mut client) = start_failing_simulator("streamError").await;
    let (status, text) = client.request_chat(json!({"stream": true})).await.unwrap();
    assert_eq!(status, 200);
    let all = parse_events(&text);
    // The events are the role, two of four tokens, and the error. There is no [DONE].
    assert_eq!(all.len(), 4);
    let error: Value = serde_json::from_str(all[3]).unwrap();
    assert_eq!(error["error"]["type"], "server_error");
    assert_one_failure(&simulator).await;
    assert_eq!(client.request_chat(json!({})).await.unwrap().0, 500);
}

#[tokio::test]
async fn malformed_event_is_in_the_middle_of_the_stream() {
    let (simulator, mut client) = start_failing_simulator("malformedEvent").await;
    let (status, text) = client.request_chat(json!({"stream": true})).await.unwrap();
    let all = parse_events(&text);
    assert_eq!((status, all.len(), *all.last().unwrap()), (200, 1 + 2 + 1 + 2 + 2, "[DONE]"));
    assert!(serde_json::from_str::<Value>(all[3]).is_err());
    assert_one_failure(&simulator).await;
    let (status, text) = client.request_chat(json!({})).await.unwrap();
    assert!(status == 200 && serde_json::from_str::<Value>(&text).is_err());
}

#[tokio::test]
async fn cut_short_stream_ends_in_the_middle_of_an_event() {
    let (simulator, _) = start_failing_simulator("cutShort").await;
    let response = read_raw_response(&simulator, json!({"stream": true})).await.unwrap();
    let text = String::from_utf8(response).unwrap();
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"));
    assert_eq!(text.matches("chat.completion.chunk").count(), 3);
    // The last chunk of the chunked body is missing.
    assert!(!text.ends_with("0\r\n\r\n"), "{text}");
    assert_one_failure(&simulator).await;
}

#[tokio::test]
async fn cut_short_body_is_shorter_than_its_length() {
    let (simulator, _) = start_failing_simulator("cutShort").await;
    let text = String::from_utf8(read_raw_response(&simulator, json!({})).await.unwrap()).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    assert!(body.starts_with(r#"{"id":"#) && body.len() < length.parse().unwrap(), "{text}");
    assert_one_failure(&simulator).await;
}

#[tokio::test]
async fn health_and_models_can_fail_too() {
    let simulator = start_simulator(
        "{health: {errors: {rate: 100%, kinds: [{status: 500}]}}, \
          models: {errors: {rate: 100%, kinds: [cutShort]}}}",
    )
    .await;
    let mut client = Client::connect(simulator.http_addr()).await;
    assert_eq!(client.request("GET", "/health", "").await.unwrap().0, 500);
    assert!(client.request("GET", "/v1/models", "").await.is_err());
    let truth = wait_until_idle(&simulator).await;
    assert_eq!(truth.endpoints.health.counts.failed, 1);
    assert_eq!(truth.endpoints.models.counts.failed, 1);
}

#[tokio::test]
async fn failure_counts_match_the_client() {
    let simulator = start_simulator("{seed: 3, health: {errors: {rate: 30%}}}").await;
    let mut client = Client::connect(simulator.http_addr()).await;
    let mut failed = 0;
    for _ in 0..300 {
        failed += u64::from(client.request("GET", "/health", "").await.unwrap().0 == 500);
    }
    assert!((60..120).contains(&failed), "{failed}");
    let counts = wait_until_idle(&simulator).await.endpoints.health.counts;
    assert_eq!((counts.failed, counts.completed), (failed, 300 - failed));
}
