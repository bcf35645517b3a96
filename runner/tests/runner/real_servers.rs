//! Responses of real servers that are unusual and valid, and failures in the words of the target.

use loadtest_core::{
    metrics::{LatencyMetric, Outcome, TaskMetrics},
    resource::ConnectionReuse,
};
use serde_json::{Value, json};

use crate::{
    harness::{load_model, only_task, run_plan},
    scripted_target::{ScriptedTarget, Step, chunk, respond, send, stream_of, stream_text, wait},
};

const TOKEN: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"Hi\"}}]}\n\n";
const THOUGHT: &str = "data: {\"choices\":[{\"delta\":{\"reasoning_content\":\"Hm\"}}]}\n\n";
const STOP: &str = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"length\"}]}\n\n";
const DONE: &str = "data: [DONE]\n\n";

fn get() -> Value {
    json!({"http": {"path": "/", "timeout": "3s"}})
}

fn chat() -> Value {
    json!({"chat": {"models": ["m"], "messages": ["Hi"], "stream": true, "timeout": "3s"}})
}

fn median(task: &TaskMetrics, metric: LatencyMetric) -> f64 {
    task.latencies.samples(metric).quantile(0.5).map_or(0.0, loadtest_core::Duration::as_millis_f64)
}

/// Runs a task against a target that always sends the same, and asserts that no request fails.
async fn run_good(task: Value, steps: Vec<Step>) -> TaskMetrics {
    let target = ScriptedTarget::start(steps).await;
    let (task, messages) = target.run(task).await;
    assert_eq!((task.failed_requests(), messages), (0, vec![]));
    assert!(task.completed_requests() > 2, "{:?}", task.requests);
    task
}

/// Runs a task that always fails. Returns the kind and the message of its only error.
async fn run_bad(task: Value, steps: Vec<Step>) -> (String, String) {
    let target = ScriptedTarget::start(steps).await;
    let (task, messages) = target.run(task).await;
    assert_eq!(task.completed_requests(), task.failed_requests(), "{:?}", task.errors);
    let kinds: Vec<_> = task.errors.iter().filter(|(_, count)| **count > 0).collect();
    assert_eq!((kinds.len(), messages.len()), (1, 1), "{messages:?}");
    (kinds[0].0.clone(), messages[0].clone())
}

#[tokio::test]
async fn the_first_byte_is_that_of_the_final_response() {
    let early_hints = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n";
    let task = run_good(get(), vec![send(early_hints), wait(100), respond("", "ok")]).await;
    let first_byte = median(&task, LatencyMetric::TimeToFirstByte);
    assert!((95.0..200.0).contains(&first_byte), "{first_byte}");
    assert_eq!(task.statuses["200"], task.completed_requests());
}

#[tokio::test]
async fn early_hints_do_not_begin_a_response() {
    let early_hints = send("HTTP/1.1 103 Early Hints\r\n\r\n");
    let target = ScriptedTarget::start(vec![early_hints, Step::Hang]).await;
    let mut plan = target.plan(get());
    plan.test.target.timeouts.first_byte = Some(loadtest_core::Duration::from_millis(200));
    let metrics = run_plan(plan).await.metrics;
    let task = only_task(&metrics);
    assert_eq!(task.errors["timeout_response"], task.failed_requests());
    assert!(task.failed_requests() > 2, "{:?}", task.requests);
}

#[tokio::test]
async fn a_switch_of_protocols_is_no_response() {
    let (kind, _) =
        run_bad(get(), vec![send("HTTP/1.1 101 Switching\r\nupgrade: x\r\n\r\n")]).await;
    assert_eq!(kind, "protocol");
}

#[tokio::test]
async fn responses_with_unusual_heads_are_read() {
    let many = "x: 1\r\n".repeat(200);
    for headers in [many.as_str(), "content-length: 2, 2\r\n", "x: a\r\n b\r\n", "x : 1\r\n"] {
        run_good(get(), vec![respond(headers, "ok")]).await;
    }
}

#[tokio::test]
async fn a_late_close_holds_up_no_user() {
    let steps = vec![respond("connection: close\r\n", "ok"), wait(500), Step::Close];
    let task = run_good(get(), steps).await;
    // Two users that pause for 10 ms on average make nearly 200 requests.
    assert!(task.completed_requests() > 100, "{}", task.completed_requests());
    assert_eq!(task.connections, task.completed_requests());
}

#[tokio::test]
async fn requests_that_may_be_sent_twice_are_sent_again() {
    // Every second request on a connection finds it closed.
    let steps = |number: u64| {
        if number.is_multiple_of(2) { vec![respond("", "ok")] } else { vec![Step::Close] }
    };
    let target = ScriptedTarget::start_with(steps).await;
    let mut plan = target.plan(get());
    plan.threads = 1;
    plan.test.target.connections = ConnectionReuse::Shared;
    let result = run_plan(plan).await;
    let task = only_task(&result.metrics);
    assert!(task.resent > 0);
    // A new connection that ends is a failure of the target.
    assert!(task.errors.keys().all(|kind| kind != "stale_connection"), "{:?}", task.errors);

    let target = ScriptedTarget::start_with(steps).await;
    let post = json!({"http": {"path": "/", "method": "POST", "body": "x"}});
    let (task, messages) = target.run(post).await;
    assert_eq!(task.resent, 0);
    assert!(task.errors["stale_connection"] > 0, "{:?}", task.errors);
    assert!(messages.iter().any(|text| text.contains("kept connection ended")), "{messages:?}");
}

#[tokio::test]
async fn a_target_that_keeps_no_connection_is_learned() {
    let post = json!({"http": {"path": "/", "method": "POST", "body": "x"}});
    // Users pause for 15 ms at most, so each of their kept connections is still open.
    let closes = |_| vec![respond("", "ok"), wait(30), Step::Close];
    let target = ScriptedTarget::start_with(closes).await;
    let mut plan = target.plan(post.clone());
    plan.threads = 1;
    let result = run_plan(plan).await;
    let task = only_task(&result.metrics);
    // Three or four of about 70 requests. If each connection were used again, it would be half of them.
    let failed = task.errors["stale_connection"];
    assert!((1..task.completed_requests() / 4).contains(&failed), "{:?}", task.errors);

    // The target restarts, and keeps connections from then on.
    let restarts = move |number| if number < 8 { closes(number) } else { vec![respond("", "ok")] };
    let target = ScriptedTarget::start_with(restarts).await;
    let mut plan = target.plan(post);
    plan.threads = 1;
    let result = run_plan(plan).await;
    let task = only_task(&result.metrics);
    assert!(task.connections * 2 < task.completed_requests(), "{:?}", task.requests);
}

#[tokio::test]
async fn failures_have_the_words_of_the_target() {
    let refuse = |body: &str| {
        send(format!("HTTP/1.1 400 Bad Request\r\ncontent-length: {}\r\n\r\n{body}", body.len()))
    };
    let json = r#"{"error":{"message":"Unsupported parameter: 'max_tokens'","type":"x"}}"#;
    for (body, words) in [
        (json, "returned status 400: Unsupported parameter: 'max_tokens'"),
        ("queue is full\nmore", "returned status 400: queue is full"),
        ("<html><title>Bad gateway</title>", "HTML page \"Bad gateway\""),
        ("token=abc123def456", "returned status 400: token=***"),
        ("", "returned status 400"),
    ] {
        for task in [get(), chat()] {
            let (kind, message) = run_bad(task, vec![refuse(body)]).await;
            assert_eq!(kind, "http_400");
            assert!(message.contains(words), "{message}");
        }
    }
}

#[tokio::test]
async fn a_response_that_is_no_stream_is_named() {
    let error = r#"{"error":{"message":"Input validation error"}}"#;
    for (body, kind, words) in [
        (error, "stream_error", "Input validation error"),
        ("<html><title>Sign in</title>", "protocol", "Sign in"),
        (r#"{"choices":[{"message":{"content":"Hi"}}]}"#, "protocol", "a JSON response"),
    ] {
        let (found, message) = run_bad(chat(), vec![respond("", body)]).await;
        assert_eq!(found, kind);
        assert!(message.contains(words), "{message}");
    }
}

#[tokio::test]
async fn streams_end_as_real_servers_end_them() {
    let end = || send("0\r\n\r\n");
    for (name, events, steps) in [
        ("whole", vec![TOKEN, STOP, DONE], vec![end()]),
        ("end apart", vec![TOKEN, STOP, DONE], vec![wait(2), end()]),
        ("no mark", vec![TOKEN, STOP], vec![end()]),
        ("left open", vec![TOKEN, STOP, DONE], vec![Step::Hang]),
        ("cut after the mark", vec![TOKEN, DONE], vec![Step::Close]),
        ("reasoning only", vec![THOUGHT, STOP, DONE], vec![end()]),
        ("nothing", vec![STOP, DONE], vec![end()]),
    ] {
        let steps = std::iter::once(stream_of(&events)).chain(steps).collect();
        let task = run_good(chat(), steps).await;
        let response_time = median(&task, LatencyMetric::ResponseTime);
        assert!(response_time < 100.0, "{name}: {response_time} ms");
        let reason = if events.contains(&STOP) { "length" } else { "none" };
        assert_eq!(task.finish_reasons[reason], task.completed_requests(), "{name}");
    }
    let (kind, _) = run_bad(chat(), vec![stream_of(&[TOKEN, STOP]), Step::Close]).await;
    assert_eq!(kind, "stream_cut");
}

#[tokio::test]
async fn a_stream_whose_end_comes_apart_keeps_its_connection() {
    let mut connections = 0;
    // The next request waits 5 ms for the end. A busy machine can make the target that late.
    for _ in 0..5 {
        let steps = vec![stream_of(&[TOKEN, STOP, DONE]), wait(2), send("0\r\n\r\n")];
        let target = ScriptedTarget::start(steps).await;
        let (task, _) = target.run(chat()).await;
        assert_eq!(task.failed_requests(), 0);
        connections = target.connections();
        if connections == 2 {
            return;
        }
    }
    assert_eq!(connections, 2);
}

#[tokio::test]
async fn first_token_and_first_content_differ() {
    let steps = vec![
        stream_of(&[THOUGHT]),
        wait(50),
        send(chunk(THOUGHT)),
        wait(50),
        send([chunk(TOKEN), chunk(STOP), chunk(DONE), "0\r\n\r\n".to_owned()].concat()),
    ];
    let task = run_good(chat(), steps).await;
    let (token, content) = (
        median(&task, LatencyMetric::TimeToFirstToken),
        median(&task, LatencyMetric::TimeToFirstResponse),
    );
    assert!(token < 40.0 && (95.0..180.0).contains(&content), "{token} ms, {content} ms");
    // A response without content has no time to its first content.
    let task = run_good(chat(), vec![stream_of(&[THOUGHT, STOP, DONE]), send("0\r\n\r\n")]).await;
    assert!(!task.latencies.has_samples(LatencyMetric::TimeToFirstResponse));
    assert!(task.latencies.has_samples(LatencyMetric::TimeToFirstToken));
}

#[tokio::test]
async fn gaps_of_failed_streams_are_no_samples() {
    let error = "data: {\"error\":{\"message\":\"dead\"}}\n\n";
    let target = ScriptedTarget::start(vec![stream_of(&[TOKEN, TOKEN, error]), Step::Close]).await;
    let (task, messages) = target.run(chat()).await;
    assert_eq!(messages, ["error event: dead"]);
    assert!(!task.latencies.has_samples(LatencyMetric::InterTokenLatency));
}

#[tokio::test]
async fn large_and_compressed_bodies_are_checked() {
    let large = format!("[\"{}\", 7]", "x".repeat(2 << 20));
    let task = json!({"http": {"path": "/", "checks": [{"jsonPath": "$[1]", "equals": "7"}]}});
    run_good(task, vec![respond("", &large)]).await;
    let task = json!({"http": {"path": "/", "checks": [{"bodyContains": "hello"}]}});
    let brotli = [
        0x1b, 0x10, 0x00, 0xf8, 0x8d, 0x94, 0x6e, 0xde, 0x44, 0x55, 0x86, 0x96, 0x6c, 0x20, 0x6f,
        0x01, 0x4f, 0x1c, 0x60, 0x1c,
    ];
    run_good(task.clone(), vec![respond("content-encoding: br\r\n", brotli)]).await;
    let (kind, message) = run_bad(task, vec![respond("content-encoding: compress\r\n", "x")]).await;
    assert_eq!(kind, "check_body");
    assert!(message.contains("content-encoding"), "{message}");
}

#[tokio::test]
async fn what_ends_after_the_load_is_in_no_rate() {
    // The first responses take 100 ms, the others end after the load.
    let steps = |number: u64| vec![wait(if number < 4 { 100 } else { 1500 }), respond("", "ok")];
    let target = ScriptedTarget::start_with(steps).await;
    let (task, _) = target.run(get()).await;
    assert_eq!((task.requests_with(Outcome::Success), task.successes_in_load), (6, 4));
}

#[tokio::test]
async fn a_failed_request_holds_its_user_like_a_success() {
    let steps = |number: u64| {
        if number.is_multiple_of(2) {
            vec![wait(50), respond("", "ok")]
        } else {
            vec![send("HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n")]
        }
    };
    let target = ScriptedTarget::start_with(steps).await;
    target.run(get()).await;
    // Two users make at most one request in 50 ms each.
    assert!((20..=42).contains(&target.requests()), "{}", target.requests());
}

#[tokio::test]
async fn old_connections_are_replaced() {
    let target = ScriptedTarget::start(vec![respond("", "ok")]).await;
    let mut plan = target.plan(get());
    plan.test.target.connection_limits.max_age = Some(loadtest_core::Duration::from_millis(200));
    let metrics = run_plan(plan).await.metrics;
    let task = only_task(&metrics);
    assert!((8..=14).contains(&target.connections()), "{}", target.connections());
    assert_eq!((task.failed_requests(), task.reconnects), (0, 0));
    assert_eq!(task.addresses.values().sum::<u64>(), task.completed_requests());
}

#[tokio::test]
async fn hidden_tokens_shorten_no_gap() {
    // The second target does not say how many of its tokens are hidden.
    let cases = [
        (r#"{"completion_tokens":100,"completion_tokens_details":{"reasoning_tokens":97}}"#, 3, 97),
        (r#"{"completion_tokens":100}"#, 100, 0),
    ];
    for (usage, output, reasoning) in cases {
        let usage = format!("data: {{\"choices\":[],\"usage\":{usage}}}\n\n");
        let end = [chunk(TOKEN), chunk(STOP), chunk(&usage), chunk(DONE), "0\r\n\r\n".to_owned()];
        let steps =
            vec![stream_of(&[TOKEN]), wait(30), send(chunk(TOKEN)), wait(30), send(end.concat())];
        let task = run_good(chat(), steps).await;
        let requests = task.completed_requests();
        assert_eq!(task.tokens.output, output * requests);
        assert_eq!(task.tokens.reasoning, reasoning * requests);
        for metric in [LatencyMetric::InterTokenLatency, LatencyMetric::TimePerOutputToken] {
            let gap = median(&task, metric);
            assert!((29.0..45.0).contains(&gap), "{metric:?}: {gap} ms");
        }
    }
}

#[tokio::test]
async fn content_encodings_that_are_none_change_nothing() {
    let stream = [stream_text(&[TOKEN, STOP, DONE]), "0\r\n\r\n".to_owned()].concat();
    for encoding in ["none", "utf-8", "identity, none"] {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-encoding: {encoding}\r\n");
        run_good(chat(), vec![send(stream.replace("HTTP/1.1 200 OK\r\n", &head))]).await;
        let task = json!({"http": {"path": "/", "checks": [{"bodyContains": "hello"}]}});
        let header = format!("content-encoding: {encoding}\r\n");
        run_good(task, vec![respond(&header, "hello")]).await;
    }
}

#[tokio::test]
async fn an_error_keeps_its_status_when_its_body_breaks_off() {
    let head = "HTTP/1.1 503 Busy\r\ncontent-length: 50\r\n\r\n";
    let cut = &format!("{head}no upstream");
    for (steps, words) in [
        (vec![send(cut), Step::Close], "no upstream"),
        (vec![send(cut), Step::Hang], "no upstream"),
        (vec![send(head), Step::Close], "its body broke off"),
    ] {
        for task in [get(), chat()] {
            let (kind, message) = run_bad(task, steps.clone()).await;
            assert_eq!(kind, "http_503", "{message}");
            assert!(message.contains(words), "{message}");
        }
    }
}

#[tokio::test]
async fn an_error_in_place_of_a_chat_is_told_if_the_body_breaks_off() {
    let body = r#"{"error":{"message":"no such model"}}"#;
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let response = format!("{head}{:x}\r\n{body}\r\n", body.len());
    let whole = json!({"chat": {"models": ["m"], "messages": ["Hi"], "stream": false}});
    for task in [chat(), whole] {
        let (kind, message) = run_bad(task, vec![send(&response), Step::Close]).await;
        assert_eq!(kind, "stream_error", "{message}");
        assert!(message.contains("no such model"), "{message}");
    }
}

#[tokio::test]
async fn a_timeout_says_what_is_missing() {
    let slow = json!({"http": {"path": "/", "timeout": "300ms"}});
    let short = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nabc";
    let endless = "HTTP/1.1 503 Busy\r\n\r\nabc";
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n";
    for (head, kind, words) in [
        ("", "timeout_response", "300ms: nothing came"),
        (
            short,
            "timeout_body",
            "after status 200: fewer bytes of the body came than the content-length 4",
        ),
        (
            endless,
            "timeout_body",
            "after status 503: the response has no content-length, and the target has not",
        ),
        (chunked, "timeout_body", "after status 200: the body has not ended"),
    ] {
        let (found, message) = run_bad(slow.clone(), vec![send(head), Step::Hang]).await;
        assert_eq!(found, kind, "{message}");
        assert!(message.contains(words), "{message}");
    }
}

#[tokio::test]
async fn an_error_in_an_event_is_told_by_its_message() {
    let body = "event: error\ndata: {\"error\":{\"message\":\"too many requests\"}}\n\n";
    let busy = format!("HTTP/1.1 429 Busy\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let (kind, message) = run_bad(chat(), vec![send(busy)]).await;
    assert_eq!(kind, "http_429");
    assert!(message.ends_with("status 429: too many requests"), "{message}");
}

#[tokio::test]
async fn a_late_end_of_a_response_costs_one_connection() {
    // The end of the first response comes late, and that of all others at once.
    let events = stream_text(&[TOKEN, STOP, DONE]);
    let steps = move |number: u64| {
        let late = if number == 0 { vec![wait(40)] } else { Vec::new() };
        [vec![send(&events)], late, vec![send("0\r\n\r\n")]].concat()
    };
    let target = ScriptedTarget::start_with(steps).await;
    let (task, messages) = target.run(chat()).await;
    assert_eq!((task.failed_requests(), messages), (0, vec![]));
    // A user may ask again before its own response has ended.
    assert!(target.connections() <= 4, "{} connections", target.connections());
}

#[tokio::test]
async fn responses_without_a_choice_are_failures() {
    let empty = r#"{"id":"c","choices":[]}"#;
    let whole = json!({"chat": {"models": ["m"], "messages": ["Hi"], "stream": false}});
    for (task, step) in [
        (whole, respond("", empty)),
        (chat(), send([stream_text(&[DONE]), "0\r\n\r\n".to_owned()].concat())),
    ] {
        let (kind, message) = run_bad(task, vec![step]).await;
        assert_eq!(kind, "protocol", "{message}");
    }
}

#[tokio::test]
async fn a_finished_stream_that_does_not_end_says_so() {
    let task =
        json!({"chat": {"models": ["m"], "messages": ["Hi"], "stream": true, "timeout": "300ms"}});
    let (kind, message) = run_bad(task, vec![stream_of(&[TOKEN, STOP]), Step::Hang]).await;
    assert_eq!(kind, "timeout_body");
    assert!(message.contains("the finish_reason came"), "{message}");
}

#[tokio::test]
async fn redirects_and_other_protocols_are_named() {
    let strict = json!({"http": {"path": "/", "expectStatus": [200]}});
    let redirect = "HTTP/1.1 302 Found\r\nlocation: /login?next=/\r\ncontent-length: 0\r\n\r\n";
    for (task, bytes, kind, words) in [
        (strict, redirect.as_bytes(), "http_302", "status 302 (location: /login)"),
        (get(), b"SSH-2.0-OpenSSH_9.2\r\n", "protocol", "SSH-2.0-OpenSSH_9.2"),
        (get(), b"\x15\x03\x01\0\x02\x02\x46", "protocol", "speaks TLS on this port"),
        (get(), b"HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\nok", "protocol", "content-length"),
    ] {
        let (found, message) = run_bad(task, vec![send(bytes), Step::Close]).await;
        assert_eq!(found, kind, "{message}");
        assert!(message.contains(words), "{message}");
    }
}

#[tokio::test]
async fn the_first_byte_after_a_redirect_is_that_of_the_last_hop() {
    let redirect = "HTTP/1.1 302 Found\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n";
    let steps = move |number: u64| {
        let is_first = number.is_multiple_of(2);
        vec![wait(50), if is_first { send(redirect) } else { respond("", "ok") }]
    };
    let target = ScriptedTarget::start_with(steps).await;
    let mut plan = target.plan(json!({"http": {"path": "/", "maxRedirects": 1}}));
    plan.test.load = load_model(json!({"users": 1, "spawnRate": 1, "duration": "1s"}));
    let metrics = run_plan(plan).await.metrics;
    let task = only_task(&metrics);
    assert_eq!((task.failed_requests(), task.statuses.get("302")), (0, None));
    assert_eq!(target.requests(), 2 * task.completed_requests());
    let first_byte = median(task, LatencyMetric::TimeToFirstByte);
    assert!((99.0..180.0).contains(&first_byte), "{first_byte} ms");
}

#[tokio::test]
async fn a_body_over_the_limit_is_no_failed_check() {
    let task = json!({"http": {"path": "/", "checks": [{"bodyContains": "x"}]}});
    let (kind, message) = run_bad(task, vec![respond("", vec![b' '; 17 << 20])]).await;
    assert_eq!(kind, "size_limit");
    assert!(message.contains("16 MiB, the limit of the load generator"), "{message}");
}
