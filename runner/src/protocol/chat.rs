//! Reads OpenAI-compatible chat responses: tokens, their times, and whether the response is
//! complete.
//!
//! Pure: the caller passes the bytes and the time at which they arrived.

use std::{
    borrow::Cow,
    time::{Duration, Instant},
};

use loadtest_core::metrics::Tokens;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::failure::{ErrorKind, Failure};

/// Maximum length of a line of a stream, and of a response without a stream.
const MAX_LINE: usize = 4 << 20;

/// A chat response that is being read.
#[derive(Debug)]
pub(crate) struct ChatReader {
    stream: bool,
    /// The incomplete current line. Without a stream: the whole response so far.
    pending: Vec<u8>,
    /// When the first token of content or of a tool call arrived.
    first_token: Option<Instant>,
    /// When the first and the latest token of any kind arrived.
    generation_start: Option<Instant>,
    latest_token: Option<Instant>,
    /// Number of events with a token, by kind.
    event_tokens: Tokens,
    usage: Option<Usage>,
    /// True when the current event has the name `error`.
    in_error_event: bool,
    is_done: bool,
}

/// A complete chat response.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ChatResponse {
    /// When the first token of content or of a tool call arrived.
    pub(crate) first_token: Instant,
    pub(crate) tokens: Tokens,
    /// Mean time of each token after the first. `None` for a single token, and without a stream.
    pub(crate) time_per_token: Option<Duration>,
}

#[derive(Deserialize)]
struct Event<'a> {
    /// Some servers send null for no choices.
    #[serde(borrow, default)]
    choices: Option<Vec<Choice<'a>>>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
    /// Some servers send this field instead of `error`.
    #[serde(borrow, default)]
    error_code: Option<&'a RawValue>,
    #[serde(borrow, default)]
    object: Option<Cow<'a, str>>,
    #[serde(default)]
    usage: Option<Usage>,
}

impl Event<'_> {
    /// Returns true when the event reports an error.
    fn is_error(&self) -> bool {
        let is_set =
            |raw: Option<&RawValue>| raw.is_some_and(|raw| !matches!(raw.get(), "null" | "0"));
        is_set(self.error) || is_set(self.error_code) || self.object.as_deref() == Some("error")
    }
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow, default)]
    delta: Option<Delta<'a>>,
    #[serde(borrow, default)]
    message: Option<Delta<'a>>,
}

#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(borrow, default)]
    content: Option<Cow<'a, str>>,
    /// Some servers use this name, some use the next one, and some send both.
    #[serde(borrow, default)]
    reasoning_content: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    reasoning: Option<Cow<'a, str>>,
    /// The reason why the model refuses to answer. It counts as content.
    #[serde(borrow, default)]
    refusal: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    tool_calls: Option<&'a RawValue>,
    /// The older form of tool calls.
    #[serde(borrow, default)]
    function_call: Option<&'a RawValue>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: Option<u64>,
    #[serde(default)]
    completion_tokens: Option<u64>,
    #[serde(default)]
    completion_tokens_details: Option<TokenDetails>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct TokenDetails {
    #[serde(default)]
    reasoning_tokens: Option<u64>,
}

impl Delta<'_> {
    fn has_text(text: Option<&Cow<'_, str>>) -> bool {
        text.is_some_and(|text| !text.is_empty())
    }

    /// Returns which kinds of tokens the delta holds: content, reasoning, tool call.
    fn token_kinds(&self) -> (bool, bool, bool) {
        let has_value =
            |raw: Option<&RawValue>| raw.is_some_and(|raw| !matches!(raw.get(), "null" | "[]"));
        let tool = has_value(self.tool_calls) || has_value(self.function_call);
        (
            Self::has_text(self.content.as_ref()) || Self::has_text(self.refusal.as_ref()),
            Self::has_text(self.reasoning_content.as_ref())
                || Self::has_text(self.reasoning.as_ref()),
            tool,
        )
    }
}

impl ChatReader {
    pub(crate) const fn new(stream: bool) -> Self {
        Self {
            stream,
            pending: Vec::new(),
            first_token: None,
            generation_start: None,
            latest_token: None,
            event_tokens: Tokens { output: 0, reasoning: 0, tool: 0, prompt: 0 },
            usage: None,
            in_error_event: false,
            is_done: false,
        }
    }

    /// Returns when the first token arrived.
    pub(crate) const fn first_token(&self) -> Option<Instant> {
        self.first_token
    }

    /// Reads bytes that arrived at `at`. Calls `on_token_gap` with each time between two tokens.
    pub(crate) fn read_bytes(
        &mut self,
        data: &[u8],
        at: Instant,
        on_token_gap: &mut impl FnMut(Duration),
    ) -> Result<(), Failure> {
        if self.pending.len() + data.len() > MAX_LINE {
            return Err(Failure::new(ErrorKind::Protocol, "chat response has a line over 4 MiB"));
        }
        if !self.stream {
            self.pending.extend_from_slice(data);
            return Ok(());
        }
        let mut rest = data;
        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
            let (line, next) = (&rest[..end], &rest[end + 1..]);
            if self.pending.is_empty() {
                self.read_line(line, at, on_token_gap)?;
            } else {
                let mut whole = std::mem::take(&mut self.pending);
                whole.extend_from_slice(line);
                self.read_line(&whole, at, on_token_gap)?;
            }
            rest = next;
        }
        self.pending.extend_from_slice(rest);
        Ok(())
    }

    /// Reads one line of server-sent events. Comments, events with only a role and `[DONE]` hold no
    /// tokens.
    fn read_line(
        &mut self,
        line: &[u8],
        at: Instant,
        on_token_gap: &mut impl FnMut(Duration),
    ) -> Result<(), Failure> {
        if let Some(name) = line.strip_prefix(b"event:") {
            self.in_error_event = name.trim_ascii() == b"error";
            return Ok(());
        }
        let Some(data) = line.strip_prefix(b"data:") else {
            // An empty line ends an event and its name.
            self.in_error_event &= !line.trim_ascii().is_empty();
            return Ok(());
        };
        let data = data.trim_ascii();
        let error_event = |data: &[u8]| {
            let text: String = String::from_utf8_lossy(data).chars().take(200).collect();
            Failure::new(ErrorKind::StreamError, format!("error event: {text}"))
        };
        if self.in_error_event {
            return Err(error_event(data));
        }
        if data == b"[DONE]" {
            self.is_done = true;
            return Ok(());
        }
        if data.is_empty() {
            return Ok(());
        }
        let event: Event<'_> = serde_json::from_slice(data).map_err(|error| {
            Failure::new(ErrorKind::StreamMalformed, format!("event is not chat JSON: {error}"))
        })?;
        if event.is_error() {
            return Err(error_event(event.error.map_or(data, |error| error.get().as_bytes())));
        }
        // Servers send the usage once at the end, or in every event with growing numbers.
        self.usage = event.usage.or(self.usage);
        let deltas = event.choices.iter().flatten().filter_map(|choice| choice.delta.as_ref());
        let (mut content, mut reasoning, mut tool) = (false, false, false);
        for (has_content, has_reasoning, has_tool) in deltas.map(Delta::token_kinds) {
            content |= has_content;
            reasoning |= has_reasoning;
            tool |= has_tool;
        }
        if !(content || reasoning || tool) {
            return Ok(());
        }
        self.event_tokens.output += u64::from(content);
        self.event_tokens.reasoning += u64::from(reasoning);
        self.event_tokens.tool += u64::from(tool);
        if self.first_token.is_none() && (content || tool) {
            self.first_token = Some(at);
        }
        if let Some(before) = self.latest_token {
            on_token_gap(at.saturating_duration_since(before));
        }
        self.generation_start.get_or_insert(at);
        self.latest_token = Some(at);
        Ok(())
    }

    /// Returns the number of tokens. The count of the target is preferred, because an event may
    /// hold several tokens.
    fn total_tokens(&self) -> Tokens {
        let Some(usage) = self.usage else { return self.event_tokens };
        let Some(completion) = usage.completion_tokens.filter(|tokens| *tokens > 0) else {
            return Tokens { prompt: usage.prompt_tokens.unwrap_or(0), ..self.event_tokens };
        };
        let reported = usage.completion_tokens_details.and_then(|details| details.reasoning_tokens);
        let reasoning = reported.unwrap_or(self.event_tokens.reasoning).min(completion);
        let tool = self.event_tokens.tool.min(completion - reasoning);
        Tokens {
            output: completion - reasoning - tool,
            reasoning,
            tool,
            prompt: usage.prompt_tokens.unwrap_or(0),
        }
    }

    /// Ends a response that was read completely at `last`.
    pub(crate) fn finish(mut self, last: Instant) -> Result<ChatResponse, Failure> {
        if self.stream {
            if !self.pending.is_empty() {
                let line = std::mem::take(&mut self.pending);
                self.read_line(&line, last, &mut |_| {})?;
            }
            if !self.is_done {
                let message = "stream ended without data: [DONE]";
                return Err(Failure::new(ErrorKind::StreamCut, message));
            }
            let first_token = self.first_token.ok_or_else(|| {
                Failure::new(ErrorKind::Protocol, "stream ended without a content token")
            })?;
            let tokens = self.total_tokens();
            let took = self.generation_start.zip(self.latest_token).map(|(from, to)| to - from);
            let after_first =
                u32::try_from(tokens.generated().saturating_sub(1)).unwrap_or(u32::MAX);
            let time_per_token =
                took.filter(|_| after_first > 0).map(|took| took / after_first.max(1));
            return Ok(ChatResponse { first_token, tokens, time_per_token });
        }
        let completion: Event<'_> = serde_json::from_slice(&self.pending).map_err(|error| {
            Failure::new(ErrorKind::Protocol, format!("response is not chat JSON: {error}"))
        })?;
        self.usage = completion.usage;
        match completion.choices.iter().flatten().next().and_then(|choice| choice.message.as_ref())
        {
            // Without a stream, the user sees the first token when the whole response is there.
            Some(_) => Ok(ChatResponse {
                first_token: last,
                tokens: self.total_tokens(),
                time_per_token: None,
            }),
            None => Err(Failure::new(ErrorKind::Protocol, "response has no choices[0].message")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ROLE: &str =
        "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
    const TOKEN: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"Hi\"}}]}\n\n";
    const USAGE: &str = "data: {\"choices\":[],\"usage\":{\"completion_tokens\":1}}\n\n";
    const DONE: &str = "data: [DONE]\n\n";

    /// Reads events that arrive every 10 ms. Returns the response, the time of its first token and
    /// the gaps between tokens, both in milliseconds.
    fn read_stream(events: &[&str]) -> Result<(ChatResponse, u128, Vec<u128>), ErrorKind> {
        let start = Instant::now();
        let mut chat = ChatReader::new(true);
        let (mut at, mut gaps) = (start, Vec::new());
        for event in events {
            at += Duration::from_millis(10);
            let mut on_token_gap = |gap: Duration| gaps.push(gap.as_millis());
            chat.read_bytes(event.as_bytes(), at, &mut on_token_gap).map_err(|f| f.kind)?;
        }
        let response = chat.finish(at).map_err(|f| f.kind)?;
        Ok((response, (response.first_token - start).as_millis(), gaps))
    }

    fn first_token_millis(events: &[&str]) -> Result<u128, ErrorKind> {
        read_stream(events).map(|(_, first, _)| first)
    }

    #[test]
    fn gaps_are_measured_between_tokens_only() {
        let (found, _, gaps) =
            read_stream(&[ROLE, TOKEN, ": keep-alive\n\n", TOKEN, TOKEN, USAGE, DONE]).unwrap();
        assert_eq!(gaps, [20, 10]);
        // The usage says 1, and the count of the target is preferred.
        assert_eq!((found.tokens.output, found.time_per_token), (1, None));
        let (found, ..) = read_stream(&[ROLE, TOKEN, TOKEN, TOKEN, DONE]).unwrap();
        assert_eq!(
            (found.tokens.output, found.time_per_token),
            (3, Some(Duration::from_millis(10)))
        );
    }

    #[test]
    fn error_events_of_every_form_are_recognized() {
        for event in [
            "data: {\"error\":{\"message\":\"out of memory\"}}\n\n",
            "data: {\"error_code\":50001,\"text\":\"out of memory\"}\n\n",
            "data: {\"object\":\"error\",\"message\":\"out of memory\"}\n\n",
            "event: error\ndata: {\"message\":\"out of memory\"}\n\n",
            "event:error\r\ndata: out of memory\r\n\r\n",
        ] {
            assert_eq!(
                first_token_millis(&[TOKEN, event, DONE]),
                Err(ErrorKind::StreamError),
                "{event}"
            );
        }
        // Neither of the two events is an error.
        let no_error = "event: message\ndata: {\"error\":null,\"error_code\":0,\"object\":\"chat.completion.chunk\"}\n\n";
        assert_eq!(first_token_millis(&[no_error, TOKEN, "event: error\n\n", TOKEN, DONE]), Ok(20));
    }

    #[test]
    fn usage_is_preferred_to_the_number_of_events() {
        let usage = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":11,\"completion_tokens_details\":{\"reasoning_tokens\":4}}}\n\n";
        let (found, ..) = read_stream(&[TOKEN, TOKEN, usage, DONE]).unwrap();
        let expected = Tokens { output: 7, reasoning: 4, tool: 0, prompt: 7 };
        assert_eq!(
            (found.tokens, found.time_per_token),
            (expected, Some(Duration::from_millis(1)))
        );
    }

    #[test]
    fn nulls_and_refusals_are_valid_events() {
        let refusal = "data: {\"choices\":[{\"delta\":{\"refusal\":\"No.\"}}],\"usage\":null}\n\n";
        let nulls = "data: {\"choices\":null,\"usage\":{\"prompt_tokens\":null,\"completion_tokens\":null}}\n\n";
        let (found, ..) = read_stream(&[ROLE, refusal, nulls, DONE]).unwrap();
        assert_eq!(found.tokens.output, 1);
    }

    #[test]
    fn a_tool_call_is_a_first_token_and_reasoning_is_not() {
        let thought = "data: {\"choices\":[{\"delta\":{\"reasoning_content\":\"Hm\"}}]}\n\n";
        let call = "data: {\"choices\":[{\"delta\":{\"content\":null,\"tool_calls\":[{\"index\":0}]}}]}\n\n";
        let (found, first, gaps) = read_stream(&[ROLE, thought, thought, TOKEN, DONE]).unwrap();
        assert_eq!((first, gaps.len()), (40, 2));
        assert_eq!((found.tokens.reasoning, found.tokens.output), (2, 1));
        let (found, first, _) = read_stream(&[ROLE, thought, call, DONE]).unwrap();
        assert_eq!((first, found.tokens.tool), (30, 1));
    }

    #[test]
    fn the_first_token_is_the_first_event_with_content() {
        assert_eq!(
            first_token_millis(&[": keep-alive\n\n", ROLE, TOKEN, TOKEN, USAGE, DONE]),
            Ok(30)
        );
    }

    #[test]
    fn a_stream_without_its_end_mark_is_cut() {
        assert_eq!(first_token_millis(&[ROLE, TOKEN]), Err(ErrorKind::StreamCut));
    }

    #[test]
    fn an_error_event_fails_despite_a_good_status() {
        let error = "data: {\"error\":{\"message\":\"overloaded\"}}\n\n";
        assert_eq!(first_token_millis(&[ROLE, TOKEN, error, DONE]), Err(ErrorKind::StreamError));
        assert_eq!(
            first_token_millis(&["data: {\"choices\":[],\"error\":null}\n\n", TOKEN, DONE]),
            Ok(20)
        );
    }

    #[test]
    fn a_malformed_event_fails() {
        assert_eq!(
            first_token_millis(&[ROLE, "data: {oops\n\n", DONE]),
            Err(ErrorKind::StreamMalformed)
        );
    }

    #[test]
    fn a_stream_without_tokens_fails() {
        assert_eq!(first_token_millis(&[ROLE, DONE]), Err(ErrorKind::Protocol));
    }

    #[test]
    fn a_response_without_a_stream_must_be_complete() {
        let last = Instant::now();
        let mut chat = ChatReader::new(false);
        chat.read_bytes(b"{\"choices\":[{\"message\":{\"content\":\"Hi", last, &mut |_| {})
            .unwrap();
        chat.read_bytes(b" there\"}}],\"usage\":{\"completion_tokens\":5}}", last, &mut |_| {})
            .unwrap();
        let found = chat.finish(last).unwrap();
        assert_eq!((found.first_token, found.tokens.output), (last, 5));
        let mut cut = ChatReader::new(false);
        cut.read_bytes(b"{\"choices\":[", last, &mut |_| {}).unwrap();
        assert_eq!(cut.finish(last).unwrap_err().kind, ErrorKind::Protocol);
    }

    proptest! {
        #[test]
        fn a_stream_may_arrive_in_pieces_of_any_size(cuts in prop::collection::vec(1_usize..200, 0..12)) {
            let whole = [ROLE, TOKEN, TOKEN, USAGE, DONE].concat();
            let at = Instant::now();
            let mut chat = ChatReader::new(true);
            let mut rest = whole.as_bytes();
            for cut in cuts {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                chat.read_bytes(now, at, &mut |_| {}).unwrap();
                rest = later;
            }
            chat.read_bytes(rest, at, &mut |_| {}).unwrap();
            prop_assert!(chat.finish(at).is_ok());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), stream: bool) {
            let mut chat = ChatReader::new(stream);
            let at = Instant::now();
            if chat.read_bytes(&bytes, at, &mut |_| {}).is_ok() {
                let _ = chat.finish(at);
            }
        }
    }
}
