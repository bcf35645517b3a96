use std::time::Duration;

use proptest::prelude::*;

use super::*;

const ROLE: &str =
    "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
const TOKEN: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"Hi\"}}]}\n\n";
const THOUGHT: &str = "data: {\"choices\":[{\"delta\":{\"reasoning_content\":\"Hm\"}}]}\n\n";
const CALL: &str =
    "data: {\"choices\":[{\"delta\":{\"content\":null,\"tool_calls\":[{\"index\":0}]}}]}\n\n";
const STOP: &str = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
const USAGE: &str = "data: {\"choices\":[],\"usage\":{\"completion_tokens\":1}}\n\n";
const DONE: &str = "data: [DONE]\n\n";

/// Reads events that arrive every 10 ms. Returns the response, and the start.
fn read_stream(events: &[&str]) -> Result<(ChatResponse, Instant), Failure> {
    let start = Instant::now();
    let (mut reader, mut at) = (ChatReader::new(true), start);
    for event in events {
        at += Duration::from_millis(10);
        if reader.read_bytes(event.as_bytes(), at)?.is_break() {
            break;
        }
    }
    Ok((reader.finish(at)?, start))
}

fn response_of(events: &[&str]) -> ChatResponse {
    read_stream(events).unwrap().0
}

fn failure_of(events: &[&str]) -> (ErrorKind, String) {
    let failure = read_stream(events).unwrap_err();
    (failure.kind, failure.message)
}

/// Returns the milliseconds from the start to the first token and to the first content.
fn first_millis(events: &[&str]) -> (Option<u128>, Option<u128>) {
    let (response, start) = read_stream(events).unwrap();
    let millis = |at: Option<Instant>| at.map(|at| (at - start).as_millis());
    (millis(response.first_token), millis(response.first_content))
}

/// Returns the gaps between tokens in milliseconds, each with its number of tokens.
fn gaps_of(events: &[&str]) -> Vec<(f64, u64)> {
    let (response, mut gaps) = (response_of(events), Vec::new());
    response.token_times.token_gaps(|gap, tokens| {
        gaps.push(((gap.as_secs_f64() * 1e5).round() / 100.0, tokens));
    });
    gaps
}

fn usage(completion: u64) -> String {
    format!("data: {{\"choices\":[],\"usage\":{{\"completion_tokens\":{completion}}}}}\n\n")
}

fn token_with_usage(completion: u64) -> String {
    format!(
        "data: {{\"choices\":[{{\"delta\":{{\"content\":\"Hi\"}}}}],\"usage\":{{\"completion_tokens\":{completion}}}}}\n\n"
    )
}

#[test]
fn gaps_are_measured_between_tokens_only() {
    let events = [ROLE, TOKEN, ": keep-alive\n\n", TOKEN, TOKEN, USAGE, DONE];
    assert_eq!(gaps_of(&events), [(20.0, 1), (10.0, 1)]);
    // The usage says 1 token, which three events can't share.
    let found = response_of(&events);
    let mean = Some(Duration::from_millis(15));
    assert_eq!((found.tokens.output, found.token_times.mean_gap()), (1, mean));
    let found = response_of(&[ROLE, TOKEN, TOKEN, TOKEN, DONE]);
    assert_eq!(found.token_times.mean_gap(), Some(Duration::from_millis(10)));
}

#[test]
fn tokens_of_one_event_share_its_gap() {
    // Twelve tokens in three events.
    let text = TOKEN.replace("Hi", "four tokens in it");
    assert_eq!(gaps_of(&[&text, &text, &text, &usage(12), DONE]), [(2.5, 4), (2.5, 4)]);
    // No text is so short: hidden reasoning counts as the answer.
    assert_eq!(gaps_of(&[TOKEN, TOKEN, TOKEN, &usage(12), DONE]), [(10.0, 1), (10.0, 1)]);
    // The target says at each event how many tokens it has sent.
    let (first, second, third) = (token_with_usage(2), token_with_usage(7), token_with_usage(8));
    assert_eq!(gaps_of(&[&first, &second, &third, DONE]), [(2.0, 5), (10.0, 1)]);
    // The mark of the end counts as a token, but no event holds it.
    assert_eq!(gaps_of(&[TOKEN, TOKEN, TOKEN, &usage(4), DONE]), [(10.0, 1), (10.0, 1)]);
    // The tokens of the first event are not in the mean: 10 ms for 5 tokens.
    let found = response_of(&[&token_with_usage(20), &token_with_usage(25), DONE]);
    assert_eq!(found.token_times.mean_gap(), Some(Duration::from_millis(2)));
}

#[test]
fn gaps_are_those_of_one_choice() {
    let choice = |index: u32| format!("{{\"index\":{index},\"delta\":{{\"content\":\"Hi\"}}}}");
    let event = |choices: &[String]| format!("data: {{\"choices\":[{}]}}\n\n", choices.join(","));
    let (first, second) = (event(&[choice(0)]), event(&[choice(1)]));
    // A step of the model every 20 ms. The usage counts the tokens of both choices.
    assert_eq!(
        gaps_of(&[&first, &second, &first, &second, &first, &second, &usage(6), DONE]),
        [(20.0, 1), (20.0, 1)]
    );
    let both = event(&[choice(0), choice(1)]);
    assert_eq!(gaps_of(&[&both, &both, &both, &usage(6), DONE]), [(10.0, 1), (10.0, 1)]);
    assert_eq!(response_of(&[&both, &both, &usage(4), DONE]).tokens.output, 4);
}

#[test]
fn tokens_that_are_never_sent_shorten_no_gap() {
    let hidden = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":93,\"total_tokens\":98,\"completion_tokens_details\":{\"reasoning_tokens\":90}}}\n\n";
    let apart = hidden.replace("\"completion_tokens\":93", "\"completion_tokens\":3");
    let rejected = hidden.replace("reasoning_tokens", "rejected_prediction_tokens");
    let each = [(10.0, 1), (10.0, 1)];
    for (usage, reasoning) in [(hidden, 90), (&apart, 90), (&rejected, 0)] {
        let events = [TOKEN, TOKEN, TOKEN, usage, DONE];
        let found = response_of(&events);
        assert_eq!((found.tokens.output, found.tokens.reasoning), (3, reasoning), "{usage}");
        assert_eq!(gaps_of(&events), each, "{usage}");
        assert_eq!(found.token_times.mean_gap(), Some(Duration::from_millis(10)), "{usage}");
    }
    // A summary of the reasoning has few bytes for each token.
    assert_eq!(
        gaps_of(&[THOUGHT, THOUGHT, TOKEN, TOKEN, TOKEN, hidden, DONE])[1..],
        [(10.0, 1); 3]
    );
    // All of the reasoning: two events of 4 tokens, and the content has one token in each event.
    let shown = hidden.replace(":93", ":11").replace(":90", ":8");
    let thought = THOUGHT.replace("Hm", "Let me see");
    let gaps = gaps_of(&[&thought, &thought, TOKEN, TOKEN, TOKEN, &shown, DONE]);
    assert_eq!(gaps, [(2.5, 4), (10.0, 1), (10.0, 1), (10.0, 1)]);
}

#[test]
fn a_stream_without_a_choice_is_a_failure() {
    let empty = "data: {\"choices\":[]}\n\n";
    for events in [&[DONE][..], &[USAGE, DONE], &[empty, DONE]] {
        let (kind, message) = failure_of(events);
        assert_eq!(kind, ErrorKind::Protocol, "{events:?}: {message}");
    }
    assert!(read_stream(&[STOP, DONE]).is_ok());
}

#[test]
fn the_share_of_tokens_until_a_moment_is_counted_by_events() {
    let (response, start) = read_stream(&[TOKEN, TOKEN, TOKEN, TOKEN, DONE]).unwrap();
    let share =
        |millis| response.token_times.share_until(start + Duration::from_millis(millis), start);
    let percent = [5, 25, 35, 90].map(|millis| (share(millis) * 100.0).round().to_string());
    assert_eq!(percent, ["0", "50", "75", "100"]);
}

#[test]
fn error_events_of_every_form_are_failures() {
    for event in [
        "data: {\"error\":{\"message\":\"out of memory\"}}\n\n",
        "data: {\"error_code\":50001,\"message\":\"out of memory\"}\n\n",
        "data: {\"object\":\"error\",\"message\":\"out of memory\"}\n\n",
        "event: error\ndata: {\"message\":\"out of memory\"}\n\n",
        "event:error\r\ndata: out of memory\r\n\r\n",
        "data: out of memory\nevent: error\n\n",
        "error: {\"code\":500,\"message\":\"out of memory\"}\n\n",
        "data: {\"detail\":\"out of memory\"}\n\n",
    ] {
        let (kind, message) = failure_of(&[TOKEN, event, DONE]);
        assert_eq!(
            (kind, message.as_str()),
            (ErrorKind::StreamError, "error event: out of memory"),
            "{event}"
        );
    }
    // A name without data is no event.
    assert!(read_stream(&["event: error\n\n", TOKEN, DONE]).is_ok());
}

#[test]
fn a_target_that_gives_up_is_a_failure() {
    for reason in [
        "error",
        "abort",
        "ABORTED",
        "network_error",
        "insufficient_system_resource",
        "error: CUDA out of memory",
        "timed_out",
        "server_overloaded",
    ] {
        let event = STOP.replace("stop", reason);
        assert_eq!(failure_of(&[TOKEN, &event, DONE]).0, ErrorKind::StreamError, "{reason}");
    }
    for reason in ["stop", "length", "tool_calls", "content_filter", "eos_token", "end_turn"] {
        let found = response_of(&[TOKEN, &STOP.replace("stop", reason), DONE]);
        assert_eq!(found.finish_reason.unwrap().as_str(), reason);
    }
}

#[test]
fn a_target_that_gives_up_has_its_own_words() {
    let message_of = |reason| failure_of(&[TOKEN, &STOP.replace("stop", reason), DONE]).1;
    assert!(message_of("error: CUDA out of memory").ends_with("error: CUDA out of memory"));
    assert_eq!(message_of("ABORTED"), "target gave up: finish_reason is \"aborted\"");
}

#[test]
fn a_finish_reason_may_be_an_object() {
    let event = |reason: &str| {
        STOP.replace(
            "\"stop\"",
            &format!("{{\"type\":\"{reason}\",\"message\":\"KV cache is full\"}}"),
        )
    };
    let (kind, message) = failure_of(&[TOKEN, &event("abort"), DONE]);
    assert_eq!(kind, ErrorKind::StreamError);
    assert_eq!(message, "target gave up: finish_reason is \"abort\": KV cache is full");
    let found = response_of(&[TOKEN, &event("length"), DONE]);
    assert_eq!(found.finish_reason.unwrap().as_str(), "length");
}

#[test]
fn a_message_at_the_end_of_a_stream_is_an_error() {
    let message = "data: {\"message\":\"upstream connect error\"}\n\n";
    let line = "{\"error\":{\"message\":\"upstream connect error\"}}\n\n";
    for end in [message, line] {
        let (kind, words) = failure_of(&[ROLE, TOKEN, end, DONE]);
        assert_eq!(kind, ErrorKind::StreamError, "{end}");
        assert!(words.contains("upstream connect error"), "{words}");
    }
    // The chat goes on, or has ended.
    assert!(read_stream(&[ROLE, message, TOKEN, DONE]).is_ok());
    assert!(read_stream(&[ROLE, TOKEN, STOP, message, DONE]).is_ok());
}

#[test]
fn events_beside_a_chat_are_no_errors() {
    for event in [
        "event: status\ndata: {\"status\":\"searching\",\"message\":\"Searching the web\"}\n\n",
        "event: progress\ndata: {\"type\":\"status\",\"detail\":\"reading 3 pages\"}\n\n",
        "data: {\"type\":\"message\",\"id\":1}\n\n",
    ] {
        assert!(read_stream(&[TOKEN, event, TOKEN, STOP, DONE]).is_ok(), "{event}");
    }
}

#[test]
fn the_tokens_of_a_tool_call_are_none_of_content() {
    let found = response_of(&[CALL, STOP, &usage(50), DONE]);
    assert_eq!((found.tokens.output, found.tokens.tool), (0, 50));
}

#[test]
fn usage_is_preferred_to_the_number_of_events() {
    let usage = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":11,\"completion_tokens_details\":{\"reasoning_tokens\":4}}}\n\n";
    let text = TOKEN.replace("Hi", "four tokens in it");
    let found = response_of(&[&text, &text, usage, DONE]);
    assert_eq!(found.tokens, Tokens { output: 7, reasoning: 4, tool: 0, prompt: 7 });
    // The second event holds 4 of the 7 tokens that were sent.
    assert_eq!(found.token_times.mean_gap(), Some(Duration::from_micros(2500)));
    // Without a count of its own, reasoning has the share of its events.
    let found = response_of(&[THOUGHT, THOUGHT, THOUGHT, TOKEN, &self::usage(8), DONE]);
    assert_eq!((found.tokens.reasoning, found.tokens.output), (6, 2));
}

#[test]
fn the_first_token_may_be_of_any_kind() {
    assert_eq!(first_millis(&[": x\n\n", ROLE, TOKEN, USAGE, DONE]), (Some(30), Some(30)));
    assert_eq!(first_millis(&[ROLE, THOUGHT, THOUGHT, TOKEN, DONE]), (Some(20), Some(40)));
    assert_eq!(first_millis(&[ROLE, CALL, DONE]), (Some(20), None));
    let found = response_of(&[ROLE, THOUGHT, CALL, DONE]);
    assert_eq!((found.tokens.reasoning, found.tokens.tool), (1, 1));
}

#[test]
fn responses_without_content_are_successes() {
    for (events, tokens) in [
        (vec![ROLE, STOP, DONE], 0),
        (vec![ROLE, DONE], 0),
        (vec![THOUGHT, STOP, DONE], 1),
        (vec![CALL, STOP, DONE], 1),
    ] {
        assert_eq!(response_of(&events).tokens.generated(), tokens, "{events:?}");
    }
}

#[test]
fn a_stream_is_complete_after_a_finish_reason_or_its_end_mark() {
    assert!(read_stream(&[ROLE, TOKEN, STOP]).is_ok());
    assert!(read_stream(&[ROLE, TOKEN, DONE, "data: {oops"]).is_ok());
    assert!(read_stream(&[ROLE, TOKEN, "data: [done]"]).is_ok());
    assert_eq!(failure_of(&[ROLE, TOKEN]).0, ErrorKind::StreamCut);
    // Some servers send a finish reason of nothing in each event.
    for none in ["", "null", "None"] {
        let token = STOP.replace("{}", "{\"content\":\"Hi\"}").replace("stop", none);
        assert_eq!(failure_of(&[&token, &token]).0, ErrorKind::StreamCut, "{none}");
    }
}

#[test]
fn malformed_events_fail() {
    let (kind, message) = failure_of(&[ROLE, "data: {oops\n\n", DONE]);
    assert_eq!((kind, message.contains("{oops")), (ErrorKind::StreamMalformed, true), "{message}");
    // Text that is no JSON fails unless the model has finished.
    let text = "data: upstream went away\n\n";
    assert_eq!(failure_of(&[TOKEN, text, DONE]).0, ErrorKind::StreamError);
    assert!(read_stream(&[TOKEN, text, STOP, DONE]).is_ok());
    assert!(read_stream(&[TOKEN, "event: ping\ndata: still here\n\n", DONE]).is_ok());
}

#[test]
fn bodies_that_are_no_stream_are_named() {
    for (body, kind, words) in [
        ("{\"error\":{\"message\":\"no such model\"}}", ErrorKind::StreamError, "no such model"),
        (
            "{\"choices\":[{\"message\":{\"content\":\"Hi\"}}]}",
            ErrorKind::Protocol,
            "a JSON response",
        ),
        ("{\"message\":{\"content\":\"a\"}}\n{\"done\":true}\n", ErrorKind::Protocol, "NDJSON"),
        ("<html><title>Sign in</title></html>", ErrorKind::Protocol, "Sign in"),
        ("busy, try later", ErrorKind::Protocol, "busy, try later"),
        ("", ErrorKind::Protocol, "an empty body"),
        ("data: {\"type\":\"message_start\"}\n\n", ErrorKind::Protocol, "Anthropic"),
        ("data: {\"type\":\"response.created\"}\n\n", ErrorKind::Protocol, "Responses"),
    ] {
        let (found, message) = failure_of(&[body]);
        assert!(found == kind && message.contains(words), "{body}: {found:?} {message}");
    }
}

#[test]
fn a_response_without_a_stream_is_read_whole() {
    let last = Instant::now();
    let read = |body: &str| {
        let mut reader = ChatReader::new(false);
        let (now, later) = body.as_bytes().split_at(body.len() / 2);
        let _ = reader.read_bytes(now, last).unwrap();
        let _ = reader.read_bytes(later, last).unwrap();
        reader.finish(last)
    };
    let found = read("{\"choices\":[{\"message\":{\"content\":\"Hi\"},\"finish_reason\":\"stop\"}],\"usage\":{\"completion_tokens\":5}}").unwrap();
    assert_eq!((found.first_content, found.tokens.output), (Some(last), 5));
    for body in [
        "{\"choices\":[",
        "",
        "<html>",
        "{\"choices\":[{\"finish_reason\":\"error\"}]}",
        "{\"error\":\"dead\"}",
        "{\"id\":1}",
        "{\"choices\":[]}",
        "{\"choices\":null,\"message\":\"queue is full\"}",
        "data: [DONE]\n\n",
    ] {
        assert!(read(body).is_err(), "{body}");
    }
    let refused = read("{\"error\":{\"message\":\"no such model\"}}").unwrap_err();
    assert_eq!(refused.message, "error in the response: no such model");
}

proptest! {
    #[test]
    fn a_stream_may_arrive_in_pieces_of_any_size(
        cuts in prop::collection::vec(1_usize..200, 0..12),
    ) {
        let whole = [ROLE, TOKEN, TOKEN, USAGE, DONE].concat();
        let (at, mut reader) = (Instant::now(), ChatReader::new(true));
        let mut rest = whole.as_bytes();
        for cut in cuts {
            let (now, later) = rest.split_at(cut.min(rest.len()));
            let _ = reader.read_bytes(now, at).unwrap();
            rest = later;
        }
        let _ = reader.read_bytes(rest, at).unwrap();
        prop_assert_eq!(reader.finish(at).unwrap().tokens.output, 1);
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        stream: bool,
    ) {
        let (at, mut reader) = (Instant::now(), ChatReader::new(stream));
        if reader.read_bytes(&bytes, at).is_ok() {
            let _ = reader.finish(at);
        }
    }
}

#[test]
fn a_known_head_changes_nothing() {
    let heads = [
        "{",
        r#"{"id":"a","created":1,"code":0,"#,
        r#"{"id":"a","created":12,"#,
        r#" { "id" : "a" , "#,
        r#"{"object":"error","#,
        r#"{"error":{"message":"bad"},"#,
        r#"{"usage":{"completion_tokens":3},"#,
        r#"{"code":"x","message":"bad","#,
    ];
    let tails = [
        r#""choices":[]}"#,
        r#""choices" : [{"delta":{"content":"x"}}] } "#,
        r#""choices":null,"error":"bad"}"#,
        r#""choices":[],"choices":[{"text":"x"}]}"#,
        r#""choices":[{"delta":{}}"#,
        r#""message":"m"}"#,
    ];
    let events: Vec<String> = heads
        .iter()
        .flat_map(|head| tails.iter().map(move |tail| format!("{head}{tail}")))
        .collect();
    let mut known_heads = 0;
    for before in &events {
        let head = ChatEvent::parse(before.as_bytes()).ok().and_then(|event| event.head);
        known_heads += usize::from(head.is_some());
        for event in &events {
            let text = event.as_bytes();
            let without_head = |event| ChatEvent { head: None, ..event };
            let after = ChatEvent::parse_after(text, head.unwrap_or_default()).map(without_head);
            let expected = ChatEvent::parse(text).map(without_head);
            assert_eq!(after, expected, "{event} after {before}");
        }
    }
    assert_eq!(known_heads, 4 * 4, "heads that say nothing, and tails that are whole");
}
