//! The HTTP port without injected failures, and invalid requests.

use serde_json::{Value, json};

use crate::client::{Client, parse_events, start_simulator, wait_for_truth, wait_until_idle};

#[tokio::test]
async fn chat_without_streaming_returns_one_completion() {
    let simulator = start_simulator("{chat: {tokens: 5}}").await;
    let mut client = Client::connect(simulator.http_addr()).await;
    let (status, text) = client.request_chat(json!({})).await.unwrap();
    let completion: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status, 200);
    assert_eq!(completion["object"], "chat.completion");
    assert_eq!(completion["model"], "cell0-small");
    assert_eq!(completion["choices"][0]["message"]["role"], "assistant");
    assert_eq!(completion["choices"][0]["message"]["content"], "Hello! This is the");
    assert_eq!(completion["choices"][0]["finish_reason"], "stop");
    let usage = json!({"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8});
    assert_eq!(completion["usage"], usage);
    assert!(completion["id"].as_str().unwrap().starts_with("chatcmpl-"));
}

#[tokio::test]
async fn streamed_chat_has_role_tokens_reason_usage_and_done() {
    let simulator = start_simulator("{chat: {tokens: 4}}").await;
    let mut client = Client::connect(simulator.http_addr()).await;
    let more = json!({"stream": true, "stream_options": {"include_usage": true}});
    let (status, text) = client.request_chat(more).await.unwrap();
    assert_eq!(status, 200);
    let all = parse_events(&text);
    assert_eq!(all.last(), Some(&"[DONE]"));
    let chunks: Vec<Value> =
        all[..all.len() - 1].iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    assert!(chunks.iter().all(|chunk| chunk["object"] == "chat.completion.chunk"));
    assert!(chunks.iter().all(|chunk| chunk["id"] == chunks[0]["id"]));
    assert_eq!(chunks.len(), 1 + 4 + 1 + 1);
    let delta = |index: usize| chunks[index]["choices"][0]["delta"].clone();
    assert_eq!(delta(0), json!({"role": "assistant", "content": ""}));
    let content: String =
        (1..=4).map(|i| delta(i)["content"].as_str().unwrap().to_owned()).collect();
    assert_eq!(content, "Hello! This is");
    assert!(chunks[4]["choices"][0]["finish_reason"].is_null());
    assert_eq!(chunks[5]["choices"][0]["finish_reason"], "stop");
    assert_eq!(chunks[6]["choices"], json!([]));
    assert_eq!(chunks[6]["usage"]["completion_tokens"], 4);
}

#[tokio::test]
async fn max_tokens_limits_the_response() {
    let simulator = start_simulator("{chat: {tokens: 9}}").await;
    let mut client = Client::connect(simulator.http_addr()).await;
    let (_, text) = client.request_chat(json!({"stream": true, "max_tokens": 2})).await.unwrap();
    let all = parse_events(&text);
    assert_eq!(all.len(), 1 + 2 + 1 + 1);
    assert!(all[3].contains(r#""finish_reason":"length""#));
}

#[tokio::test]
async fn health_and_models_return_their_bodies() {
    let simulator = start_simulator("{modelIds: [one, two]}").await;
    let mut client = Client::connect(simulator.http_addr()).await;
    assert_eq!(client.request_json("GET", "/health", "").await, (200, json!({"status": "ok"})));
    let (status, models) = client.request_json("GET", "/v1/models", "").await;
    assert_eq!((status, &models["object"]), (200, &json!("list")));
    assert_eq!(
        (&models["data"][0]["id"], &models["data"][1]["id"]),
        (&json!("one"), &json!("two"))
    );
    assert_eq!(client.request("GET", "/", "").await.unwrap().0, 200);
}

#[tokio::test]
async fn invalid_requests_get_errors_in_openai_format() {
    let simulator = start_simulator("").await;
    let mut client = Client::connect(simulator.http_addr()).await;
    let chat = "/v1/chat/completions";
    let message = r#""messages":[{"role":"user","content":"x"}]"#;
    for (method, path, body, status, code) in [
        ("POST", chat, "{", 400, "invalid_request"),
        ("POST", chat, r#"{"model":"cell0-small"}"#, 400, "invalid_request"),
        ("POST", chat, r#"{"model":"cell0-small","messages":[]}"#, 400, "invalid_request"),
        ("POST", chat, &format!(r#"{{"model":"gpt",{message}}}"#), 404, "model_not_found"),
        ("POST", chat, &" ".repeat((1 << 20) + 1), 413, "bad_body"),
        ("GET", chat, "", 405, "method_not_allowed"),
        ("POST", "/health", "", 405, "method_not_allowed"),
        ("DELETE", "/", "", 405, "method_not_allowed"),
        ("GET", "/nothing", "", 404, "not_found"),
        ("POST", "/nothing", "", 404, "not_found"),
    ] {
        let (got, response) = client.request_json(method, path, body).await;
        assert_eq!((got, &response["error"]["code"]), (status, &json!(code)), "{method} {path}");
        assert!(response["error"]["message"].is_string());
        assert!(response["error"]["type"].is_string());
        if status == 413 {
            // The simulator closes a connection after a body that was not read completely.
            client = Client::connect(simulator.http_addr()).await;
        }
    }
    let counts = wait_until_idle(&simulator).await.totals.counts;
    assert_eq!((counts.received, counts.failed, counts.completed), (10, 10, 0));
}

#[tokio::test]
async fn message_content_may_be_parts_or_null() {
    let simulator = start_simulator("").await;
    let mut client = Client::connect(simulator.http_addr()).await;
    let parts =
        json!([{"type": "text", "text": "one two"}, {"type": "image_url", "image_url": {}}]);
    for (content, words) in [(parts, 2), (Value::Null, 0)] {
        let messages = json!([{"role": "user", "content": content}]);
        let (status, text) = client.request_chat(json!({"messages": messages})).await.unwrap();
        assert_eq!(status, 200);
        assert!(text.contains(&format!(r#""prompt_tokens":{words},"#)), "{text}");
    }
}

#[tokio::test]
async fn head_requests_get_a_response_and_are_counted() {
    let simulator = start_simulator("").await;
    let mut client = Client::connect(simulator.http_addr()).await;
    assert_eq!(client.request("HEAD", "/health", "").await.unwrap(), (405, String::new()));
    assert_eq!(wait_until_idle(&simulator).await.endpoints.health.counts.failed, 1);
}

#[tokio::test]
async fn requests_over_the_limits_get_429() {
    let simulator = start_simulator(
        "{health: {limits: {maxRate: 0.01/s}}, chat: {latency: 30s, limits: {maxConcurrent: 1}}}",
    )
    .await;
    let mut client = Client::connect(simulator.http_addr()).await;
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(client.request("GET", "/health", "").await.unwrap().0);
    }
    assert_eq!(statuses, [200, 429, 429, 429]);

    let mut first = Client::connect(simulator.http_addr()).await;
    let waiting = tokio::spawn(async move { first.request_chat(json!({})).await });
    wait_for_truth(&simulator, |counts| counts.in_flight == 1).await;
    assert_eq!(client.request_chat(json!({})).await.unwrap().0, 429);
    waiting.abort();
    wait_until_idle(&simulator).await;
    // The aborted request has released its place.
    simulator.replace_settings(simulator.current_settings().with_instant_responses()).unwrap();
    assert_eq!(client.request_chat(json!({})).await.unwrap().0, 200);
}
