//! The HTTP port when all goes well, and requests that are wrong.

use serde_json::{Value, json};

use crate::client::{Client, events, settled, simulator};

#[tokio::test]
async fn a_chat_that_is_not_streamed_is_one_completion() {
    let simulator = simulator("{chat: {tokens: 5}}").await;
    let mut client = Client::connect(simulator.http_addr()).await;
    let (status, text) = client.chat(json!({})).await.unwrap();
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status, 200);
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], "cell0-small");
    assert_eq!(answer["choices"][0]["message"]["role"], "assistant");
    assert_eq!(answer["choices"][0]["message"]["content"], "Hello! This is the");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    let usage = json!({"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8});
    assert_eq!(answer["usage"], usage);
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
}

#[tokio::test]
async fn a_streamed_chat_is_role_tokens_reason_usage_done() {
    let simulator = simulator("{chat: {tokens: 4}}").await;
    let mut client = Client::connect(simulator.http_addr()).await;
    let more = json!({"stream": true, "stream_options": {"include_usage": true}});
    let (status, text) = client.chat(more).await.unwrap();
    assert_eq!(status, 200);
    let all = events(&text);
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
async fn max_tokens_caps_an_answer() {
    let simulator = simulator("{chat: {tokens: 9}}").await;
    let mut client = Client::connect(simulator.http_addr()).await;
    let (_, text) = client.chat(json!({"stream": true, "max_tokens": 2})).await.unwrap();
    let all = events(&text);
    assert_eq!(all.len(), 1 + 2 + 1 + 1);
    assert!(all[3].contains(r#""finish_reason":"length""#));
}

#[tokio::test]
async fn health_and_models_answer() {
    let simulator = simulator("{modelIds: [one, two]}").await;
    let mut client = Client::connect(simulator.http_addr()).await;
    assert_eq!(client.json("GET", "/health", "").await, (200, json!({"status": "ok"})));
    let (status, models) = client.json("GET", "/v1/models", "").await;
    assert_eq!((status, &models["object"]), (200, &json!("list")));
    assert_eq!(
        (&models["data"][0]["id"], &models["data"][1]["id"]),
        (&json!("one"), &json!("two"))
    );
    assert_eq!(client.ask("GET", "/", "").await.unwrap().0, 200);
}

#[tokio::test]
async fn wrong_requests_get_errors_like_openai_s() {
    let simulator = simulator("").await;
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
        let (got, answer) = client.json(method, path, body).await;
        assert_eq!((got, &answer["error"]["code"]), (status, &json!(code)), "{method} {path}");
        assert!(answer["error"]["message"].is_string() && answer["error"]["type"].is_string());
        if status == 413 {
            // A body that was not read to its end costs the connection.
            client = Client::connect(simulator.http_addr()).await;
        }
    }
    let counts = settled(&simulator).await.totals.counts;
    assert_eq!((counts.received, counts.failed, counts.completed), (10, 10, 0));
}

#[tokio::test]
async fn content_may_be_parts_or_nothing() {
    let simulator = simulator("").await;
    let mut client = Client::connect(simulator.http_addr()).await;
    let parts =
        json!([{"type": "text", "text": "one two"}, {"type": "image_url", "image_url": {}}]);
    for (content, words) in [(parts, 2), (Value::Null, 0)] {
        let messages = json!([{"role": "user", "content": content}]);
        let (status, text) = client.chat(json!({"messages": messages})).await.unwrap();
        assert_eq!(status, 200);
        assert!(text.contains(&format!(r#""prompt_tokens":{words},"#)), "{text}");
    }
}

#[tokio::test]
async fn a_head_request_is_answered_and_counted() {
    let simulator = simulator("").await;
    let mut client = Client::connect(simulator.http_addr()).await;
    assert_eq!(client.ask("HEAD", "/health", "").await.unwrap(), (405, String::new()));
    assert_eq!(settled(&simulator).await.endpoints.health.counts.failed, 1);
}

#[tokio::test]
async fn more_than_the_limits_get_429() {
    let simulator = simulator(
        "{health: {limits: {maxRate: 0.01/s}}, chat: {latency: 30s, limits: {maxConcurrent: 1}}}",
    )
    .await;
    let mut client = Client::connect(simulator.http_addr()).await;
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(client.ask("GET", "/health", "").await.unwrap().0);
    }
    assert_eq!(statuses, [200, 429, 429, 429]);

    let mut first = Client::connect(simulator.http_addr()).await;
    let waiting = tokio::spawn(async move { first.chat(json!({})).await });
    crate::client::truth_when(&simulator, |counts| counts.in_flight == 1).await;
    assert_eq!(client.chat(json!({})).await.unwrap().0, 429);
    waiting.abort();
    settled(&simulator).await;
    // The place of the one that left is free again.
    simulator.set(simulator.settings().instant()).unwrap();
    assert_eq!(client.chat(json!({})).await.unwrap().0, 200);
}
