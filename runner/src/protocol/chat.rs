//! Reads an OpenAI-compatible answer: when its first content token came, and whether it
//! is whole. Pure: it is handed bytes and the moment they were read.

use std::{
    borrow::Cow,
    time::{Duration, Instant},
};

use loadtest_core::metrics::Tokens;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::failure::{ErrorKind, Failure};

/// Longest line of a stream, and longest unstreamed answer that is looked into.
const LIMIT: usize = 4 << 20;

/// An answer under way.
#[derive(Debug)]
pub(crate) struct Chat {
    stream: bool,
    /// What is read of the current line, or of the whole answer when it is not streamed.
    pending: Vec<u8>,
    /// When the first token of content or of a tool call was read.
    first: Option<Instant>,
    /// When the first and the latest token of any kind were read.
    tokens_from: Option<Instant>,
    latest: Option<Instant>,
    /// Events with a token, by kind.
    counted: Tokens,
    usage: Option<Usage>,
    /// The event that is being read calls itself an error.
    error: bool,
    done: bool,
}

/// What an answer that is over amounts to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Answer {
    /// When its first token was read: of content, or of a tool call.
    pub(crate) first: Instant,
    pub(crate) tokens: Tokens,
    /// The mean time of each token after the first; `None` for one token, or no stream.
    pub(crate) each: Option<Duration>,
}

#[derive(Deserialize)]
struct Event<'a> {
    /// Some servers send null where there are none.
    #[serde(borrow, default)]
    choices: Option<Vec<Choice<'a>>>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
    /// What some servers send in place of an error.
    #[serde(borrow, default)]
    error_code: Option<&'a RawValue>,
    #[serde(borrow, default)]
    object: Option<Cow<'a, str>>,
    #[serde(default)]
    usage: Option<Usage>,
}

impl Event<'_> {
    /// True when it says that the target gave up.
    fn is_error(&self) -> bool {
        let is_set = |it: Option<&RawValue>| it.is_some_and(|it| !matches!(it.get(), "null" | "0"));
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
    /// Some servers name it so, some the other way, and some send both.
    #[serde(borrow, default)]
    reasoning_content: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    reasoning: Option<Cow<'a, str>>,
    /// Why the model won't answer: that is its answer.
    #[serde(borrow, default)]
    refusal: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    tool_calls: Option<&'a RawValue>,
    /// What tool calls were before.
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
    completion_tokens_details: Option<Details>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct Details {
    #[serde(default)]
    reasoning_tokens: Option<u64>,
}

impl Delta<'_> {
    fn has_text(text: Option<&Cow<'_, str>>) -> bool {
        text.is_some_and(|text| !text.is_empty())
    }

    /// The kinds of token in it: content, reasoning, tool call.
    fn kinds(&self) -> (bool, bool, bool) {
        let says = |raw: Option<&RawValue>| raw.is_some_and(|r| !matches!(r.get(), "null" | "[]"));
        let tool = says(self.tool_calls) || says(self.function_call);
        (
            Self::has_text(self.content.as_ref()) || Self::has_text(self.refusal.as_ref()),
            Self::has_text(self.reasoning_content.as_ref())
                || Self::has_text(self.reasoning.as_ref()),
            tool,
        )
    }
}

impl Chat {
    pub(crate) const fn new(stream: bool) -> Self {
        Self {
            stream,
            pending: Vec::new(),
            first: None,
            tokens_from: None,
            latest: None,
            counted: Tokens { output: 0, reasoning: 0, tool: 0, prompt: 0 },
            usage: None,
            error: false,
            done: false,
        }
    }

    /// When the first token was read, if it was.
    pub(crate) const fn first(&self) -> Option<Instant> {
        self.first
    }

    /// Takes bytes that were read at `at`. Times between tokens are handed to `gap`.
    pub(crate) fn read(
        &mut self,
        data: &[u8],
        at: Instant,
        gap: &mut impl FnMut(Duration),
    ) -> Result<(), Failure> {
        if self.pending.len() + data.len() > LIMIT {
            return Err(Failure::new(ErrorKind::Protocol, "chat answer has a line over 4 MiB"));
        }
        if !self.stream {
            self.pending.extend_from_slice(data);
            return Ok(());
        }
        let mut rest = data;
        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
            let (line, after) = (&rest[..end], &rest[end + 1..]);
            if self.pending.is_empty() {
                self.line(line, at, gap)?;
            } else {
                let mut whole = std::mem::take(&mut self.pending);
                whole.extend_from_slice(line);
                self.line(&whole, at, gap)?;
            }
            rest = after;
        }
        self.pending.extend_from_slice(rest);
        Ok(())
    }

    /// One line of server-sent events. Comments, role-only events and `[DONE]` are no tokens.
    fn line(
        &mut self,
        line: &[u8],
        at: Instant,
        gap: &mut impl FnMut(Duration),
    ) -> Result<(), Failure> {
        if let Some(name) = line.strip_prefix(b"event:") {
            self.error = name.trim_ascii() == b"error";
            return Ok(());
        }
        let Some(data) = line.strip_prefix(b"data:") else {
            // An empty line ends an event, and its name with it.
            self.error &= !line.trim_ascii().is_empty();
            return Ok(());
        };
        let data = data.trim_ascii();
        let gave_up = |told: &[u8]| {
            let text: String = String::from_utf8_lossy(told).chars().take(200).collect();
            Failure::new(ErrorKind::StreamError, format!("error event: {text}"))
        };
        if self.error {
            return Err(gave_up(data));
        }
        if data == b"[DONE]" {
            self.done = true;
            return Ok(());
        }
        if data.is_empty() {
            return Ok(());
        }
        let event: Event<'_> = serde_json::from_slice(data).map_err(|error| {
            Failure::new(ErrorKind::StreamMalformed, format!("event is not chat JSON: {error}"))
        })?;
        if event.is_error() {
            return Err(gave_up(event.error.map_or(data, |error| error.get().as_bytes())));
        }
        // Sent once, at the end; or with every event, grown.
        self.usage = event.usage.or(self.usage);
        let deltas = event.choices.iter().flatten().filter_map(|choice| choice.delta.as_ref());
        let (mut content, mut reasoning, mut tool) = (false, false, false);
        for (has_content, has_reasoning, has_tool) in deltas.map(Delta::kinds) {
            content |= has_content;
            reasoning |= has_reasoning;
            tool |= has_tool;
        }
        if !(content || reasoning || tool) {
            return Ok(());
        }
        self.counted.output += u64::from(content);
        self.counted.reasoning += u64::from(reasoning);
        self.counted.tool += u64::from(tool);
        if self.first.is_none() && (content || tool) {
            self.first = Some(at);
        }
        if let Some(before) = self.latest {
            gap(at.saturating_duration_since(before));
        }
        self.tokens_from.get_or_insert(at);
        self.latest = Some(at);
        Ok(())
    }

    /// What the target counted, where it did: an event may hold several tokens.
    fn tokens(&self) -> Tokens {
        let Some(usage) = self.usage else { return self.counted };
        let Some(completion) = usage.completion_tokens.filter(|tokens| *tokens > 0) else {
            return Tokens { prompt: usage.prompt_tokens.unwrap_or(0), ..self.counted };
        };
        let told = usage.completion_tokens_details.and_then(|details| details.reasoning_tokens);
        let reasoning = told.unwrap_or(self.counted.reasoning).min(completion);
        let tool = self.counted.tool.min(completion - reasoning);
        Tokens {
            output: completion - reasoning - tool,
            reasoning,
            tool,
            prompt: usage.prompt_tokens.unwrap_or(0),
        }
    }

    /// The answer is over, read to its end at `last`.
    pub(crate) fn finish(mut self, last: Instant) -> Result<Answer, Failure> {
        if self.stream {
            if !self.pending.is_empty() {
                let line = std::mem::take(&mut self.pending);
                self.line(&line, last, &mut |_| {})?;
            }
            if !self.done {
                let message = "stream ended without data: [DONE]";
                return Err(Failure::new(ErrorKind::StreamCut, message));
            }
            let first = self.first.ok_or_else(|| {
                Failure::new(ErrorKind::Protocol, "stream ended without a content token")
            })?;
            let tokens = self.tokens();
            let took = self.tokens_from.zip(self.latest).map(|(from, to)| to - from);
            let after_first =
                u32::try_from(tokens.generated().saturating_sub(1)).unwrap_or(u32::MAX);
            let each = took.filter(|_| after_first > 0).map(|took| took / after_first.max(1));
            return Ok(Answer { first, tokens, each });
        }
        let answer: Event<'_> = serde_json::from_slice(&self.pending).map_err(|error| {
            Failure::new(ErrorKind::Protocol, format!("answer is not chat JSON: {error}"))
        })?;
        self.usage = answer.usage;
        match answer.choices.iter().flatten().next().and_then(|choice| choice.message.as_ref()) {
            // The user sees an unstreamed answer when all of it is there.
            Some(_) => Ok(Answer { first: last, tokens: self.tokens(), each: None }),
            None => Err(Failure::new(ErrorKind::Protocol, "answer has no choices[0].message")),
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

    /// Reads events that come every 10 ms; the answer, when its first token came in
    /// milliseconds, and the gaps between tokens.
    fn answer(events: &[&str]) -> Result<(Answer, u128, Vec<u128>), ErrorKind> {
        let start = Instant::now();
        let mut chat = Chat::new(true);
        let (mut at, mut gaps) = (start, Vec::new());
        for event in events {
            at += Duration::from_millis(10);
            let mut gap = |gap: Duration| gaps.push(gap.as_millis());
            chat.read(event.as_bytes(), at, &mut gap).map_err(|f| f.kind)?;
        }
        let answer = chat.finish(at).map_err(|f| f.kind)?;
        Ok((answer, (answer.first - start).as_millis(), gaps))
    }

    fn read(events: &[&str]) -> Result<u128, ErrorKind> {
        answer(events).map(|(_, first, _)| first)
    }

    #[test]
    fn gaps_are_those_between_tokens_and_nothing_else() {
        let (found, _, gaps) =
            answer(&[ROLE, TOKEN, ": keep-alive\n\n", TOKEN, TOKEN, USAGE, DONE]).unwrap();
        assert_eq!(gaps, [20, 10]);
        // The usage says 1: what the target counts is what there is.
        assert_eq!((found.tokens.output, found.each), (1, None));
        let (found, ..) = answer(&[ROLE, TOKEN, TOKEN, TOKEN, DONE]).unwrap();
        assert_eq!((found.tokens.output, found.each), (3, Some(Duration::from_millis(10))));
    }

    #[test]
    fn a_target_that_gives_up_says_so_in_one_of_several_ways() {
        for event in [
            "data: {\"error\":{\"message\":\"out of memory\"}}\n\n",
            "data: {\"error_code\":50001,\"text\":\"out of memory\"}\n\n",
            "data: {\"object\":\"error\",\"message\":\"out of memory\"}\n\n",
            "event: error\ndata: {\"message\":\"out of memory\"}\n\n",
            "event:error\r\ndata: out of memory\r\n\r\n",
        ] {
            assert_eq!(read(&[TOKEN, event, DONE]), Err(ErrorKind::StreamError), "{event}");
        }
        // Neither is one.
        let fine = "event: message\ndata: {\"error\":null,\"error_code\":0,\"object\":\"chat.completion.chunk\"}\n\n";
        assert_eq!(read(&[fine, TOKEN, "event: error\n\n", TOKEN, DONE]), Ok(20));
    }

    #[test]
    fn usage_is_preferred_to_counting_events() {
        let usage = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":11,\"completion_tokens_details\":{\"reasoning_tokens\":4}}}\n\n";
        let (found, ..) = answer(&[TOKEN, TOKEN, usage, DONE]).unwrap();
        let wanted = Tokens { output: 7, reasoning: 4, tool: 0, prompt: 7 };
        assert_eq!((found.tokens, found.each), (wanted, Some(Duration::from_millis(1))));
    }

    #[test]
    fn nulls_and_refusals_are_no_malformed_events() {
        let refusal = "data: {\"choices\":[{\"delta\":{\"refusal\":\"No.\"}}],\"usage\":null}\n\n";
        let nulls = "data: {\"choices\":null,\"usage\":{\"prompt_tokens\":null,\"completion_tokens\":null}}\n\n";
        let (found, ..) = answer(&[ROLE, refusal, nulls, DONE]).unwrap();
        assert_eq!(found.tokens.output, 1);
    }

    #[test]
    fn reasoning_is_no_first_response_and_a_tool_call_is() {
        let thought = "data: {\"choices\":[{\"delta\":{\"reasoning_content\":\"Hm\"}}]}\n\n";
        let call = "data: {\"choices\":[{\"delta\":{\"content\":null,\"tool_calls\":[{\"index\":0}]}}]}\n\n";
        let (found, first, gaps) = answer(&[ROLE, thought, thought, TOKEN, DONE]).unwrap();
        assert_eq!((first, gaps.len()), (40, 2));
        assert_eq!((found.tokens.reasoning, found.tokens.output), (2, 1));
        let (found, first, _) = answer(&[ROLE, thought, call, DONE]).unwrap();
        assert_eq!((first, found.tokens.tool), (30, 1));
    }

    #[test]
    fn the_first_content_token_counts_not_the_first_event() {
        assert_eq!(read(&[": keep-alive\n\n", ROLE, TOKEN, TOKEN, USAGE, DONE]), Ok(30));
    }

    #[test]
    fn a_stream_without_its_end_mark_was_cut() {
        assert_eq!(read(&[ROLE, TOKEN]), Err(ErrorKind::StreamCut));
    }

    #[test]
    fn an_error_event_inside_a_good_status_fails() {
        let error = "data: {\"error\":{\"message\":\"overloaded\"}}\n\n";
        assert_eq!(read(&[ROLE, TOKEN, error, DONE]), Err(ErrorKind::StreamError));
        assert_eq!(read(&["data: {\"choices\":[],\"error\":null}\n\n", TOKEN, DONE]), Ok(20));
    }

    #[test]
    fn a_malformed_event_fails() {
        assert_eq!(read(&[ROLE, "data: {oops\n\n", DONE]), Err(ErrorKind::StreamMalformed));
    }

    #[test]
    fn a_stream_without_tokens_is_no_answer() {
        assert_eq!(read(&[ROLE, DONE]), Err(ErrorKind::Protocol));
    }

    #[test]
    fn a_plain_answer_counts_when_it_is_whole() {
        let last = Instant::now();
        let mut chat = Chat::new(false);
        chat.read(b"{\"choices\":[{\"message\":{\"content\":\"Hi", last, &mut |_| {}).unwrap();
        chat.read(b" there\"}}],\"usage\":{\"completion_tokens\":5}}", last, &mut |_| {}).unwrap();
        let found = chat.finish(last).unwrap();
        assert_eq!((found.first, found.tokens.output), (last, 5));
        let mut cut = Chat::new(false);
        cut.read(b"{\"choices\":[", last, &mut |_| {}).unwrap();
        assert_eq!(cut.finish(last).unwrap_err().kind, ErrorKind::Protocol);
    }

    proptest! {
        #[test]
        fn where_the_network_cuts_the_stream_changes_nothing(cuts in prop::collection::vec(1_usize..200, 0..12)) {
            let whole = [ROLE, TOKEN, TOKEN, USAGE, DONE].concat();
            let at = Instant::now();
            let mut chat = Chat::new(true);
            let mut rest = whole.as_bytes();
            for cut in cuts {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                chat.read(now, at, &mut |_| {}).unwrap();
                rest = later;
            }
            chat.read(rest, at, &mut |_| {}).unwrap();
            prop_assert!(chat.finish(at).is_ok());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), stream: bool) {
            let mut chat = Chat::new(stream);
            let at = Instant::now();
            if chat.read(&bytes, at, &mut |_| {}).is_ok() {
                let _ = chat.finish(at);
            }
        }
    }
}
