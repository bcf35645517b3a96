use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> ChatEvent<'_> {
    ChatEvent::parse(text.as_bytes()).unwrap()
}

/// Returns the tokens of an event with this delta: content, reasoning, tool call.
fn tokens_of(delta: &str) -> (bool, bool, bool) {
    let text = format!("{{\"choices\":[{{\"index\":0,\"delta\":{delta}}}]}}");
    let TokenKinds { content, reasoning, tool } = parse(&text).tokens;
    (content, reasoning, tool)
}

#[test]
fn tokens_have_many_forms() {
    for delta in [
        r#"{"content":"a"}"#,
        r#"{"content":" "}"#,
        r#"{"content":[{"type":"text","text":"a"}]}"#,
        r#"{"content":["a"]}"#,
        r#"{"content":4}"#,
        r#"{"content":"\ud83d"}"#,
        r#"{"content":"a","content":"b"}"#,
        r#"{"refusal":"No."}"#,
        r#"{"audio":{"transcript":"a"}}"#,
    ] {
        assert_eq!(tokens_of(delta), (true, false, false), "{delta}");
    }
    for delta in [
        r#"{"reasoning_content":"a","content":""}"#,
        r#"{"reasoning":"a","content":null}"#,
        r#"{"reasoning_details":[{"type":"reasoning.text","text":"a"}]}"#,
        r#"{"content":[{"type":"thinking","thinking":[{"type":"text","text":"a"}]}]}"#,
    ] {
        assert_eq!(tokens_of(delta), (false, true, false), "{delta}");
    }
    assert_eq!(tokens_of(r#"{"tool_calls":[{"index":0}]}"#), (false, false, true));
    assert_eq!(tokens_of(r#"{"function_call":{"name":"f"}}"#), (false, false, true));
    for delta in [
        "null",
        "{}",
        r#"{"role":"assistant","content":""}"#,
        r#"{"content":null}"#,
        r#"{"content":[]}"#,
        r#"{"tool_calls":[],"reasoning":null}"#,
    ] {
        assert_eq!(tokens_of(delta), (false, false, false), "{delta}");
    }
    assert!(parse(r#"{"choices":[{"text":"a"}]}"#).tokens.content);
}

#[test]
fn errors_have_many_forms() {
    let words = |text| parse(text).error.map(|error| String::from_utf8_lossy(error).into_owned());
    for (text, error) in [
        (r#"{"error":{"message":"dead"}}"#, r#"{"message":"dead"}"#),
        (r#"{"choices":[],"error":"dead"}"#, r#""dead""#),
        (r#"{"choices":[{"finish_reason":"error","error":{"code":502}}]}"#, r#"{"code":502}"#),
        (r#"{"x_groq":{"error":"dead"}}"#, r#""dead""#),
        (r#"{"detail":"dead"}"#, r#""dead""#),
        (r#"{"code":500,"message":"dead"}"#, r#""dead""#),
        (r#"{"choices":[],"code":1302,"message":"dead"}"#, r#""dead""#),
        (r#"{"success":false,"message":"dead"}"#, r#""dead""#),
        (r#"{"status":"RESOURCE_EXHAUSTED","message":"dead"}"#, r#""dead""#),
        (r#"{"status":503,"message":"dead"}"#, r#""dead""#),
        (r#"{"object":"error","message":"dead"}"#, r#""dead""#),
        (r#"{"error":{"message":"","code":500}}"#, r#"{"message":"","code":500}"#),
        (r#"{"error":{"message":"dead","code":0}}"#, r#"{"message":"dead","code":0}"#),
        (r#"{"error":[{"message":"dead"}]}"#, r#"[{"message":"dead"}]"#),
        (r#"{"error":"Success","detail":"dead"}"#, r#""dead""#),
        (r#"{"type":"error"}"#, r#"{"type":"error"}"#),
        (r#"{"error_code":50001,"text":"dead"}"#, r#"{"error_code":50001,"text":"dead"}"#),
        (r#"{"choices":null,"base_resp":{"status_code":1002,"status_msg":"dead"}}"#, r#""dead""#),
    ] {
        assert_eq!(words(text).as_deref(), Some(error), "{text}");
    }
    for text in [
        "{}",
        r#"{"error":null}"#,
        r#"{"error":""}"#,
        r#"{"error":false}"#,
        r#"{"error":{}}"#,
        r#"{"error":[]}"#,
        r#"{"error":{"message":"","type":"","param":"","code":null}}"#,
        r#"{"error":{"message":"success","code":"0","details":[{}]}}"#,
        r#"{"choices":[{"delta":{"content":"a"},"error":{"code":0,"message":""}}]}"#,
        r#"{"error_code":"0"}"#,
        r#"{"error_code":0,"error_msg":""}"#,
        r#"{"choices":[],"code":200,"message":"success"}"#,
        r#"{"status":"pending","message":"waiting for a GPU"}"#,
        r#"{"status":"searching","message":"Searching the web"}"#,
        r#"{"status":201,"message":"created"}"#,
        r#"{"choices":[],"base_resp":{"status_code":0,"status_msg":"success"}}"#,
        r#"{"choices":[],"object":"chat.completion.chunk"}"#,
    ] {
        assert_eq!(words(text), None, "{text}");
    }
}

#[test]
fn deeply_nested_errors_end_no_stack() {
    let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let text = format!("{{\"error\":{nested}}}");
    assert_eq!(parse(&text).error.map(<[u8]>::len), Some(200_000));
}

#[test]
fn other_apis_are_recognized() {
    let api = |text| parse(text).other_api;
    assert!(api(r#"{"type":"message_start"}"#).unwrap().contains("Anthropic"));
    assert!(api(r#"{"type":"response.created"}"#).unwrap().contains("Responses"));
    assert_eq!(api(r#"{"type":"ping"}"#), None);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = ChatEvent::parse(&bytes);
    }

    #[test]
    fn members_of_any_type_are_accepted(
        name in prop::sample::select(vec!["choices", "usage", "x_groq", "object", "type", "id", "base_resp"]),
        value in prop::sample::select(vec!["null", "true", "[]", "{}", "1.5", "\"x\"", "[[1]]", "{\"a\":{}}"]),
    ) {
        let text = format!("{{\"{name}\":{value}}}");
        prop_assert!(ChatEvent::parse(text.as_bytes()).is_ok(), "{}", text);
    }
}
