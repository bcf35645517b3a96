//! Reads OpenAI-compatible chat responses: tokens, their times, and whether the response is
//! complete.
//!
//! Pure: the caller passes the bytes and the time at which they arrived.

mod chat_event;
pub(super) mod event_stream;
pub(super) mod json_scanner;
pub(crate) mod lenient_json;
mod token_times;
mod usage;

use std::{ops::ControlFlow, time::Instant};

use loadtest_core::metrics::Tokens;

use self::{
    chat_event::{ChatEvent, TokenKinds},
    event_stream::{AfterEvent, EventStream, ServerEvent, is_done},
    token_times::{EventTokens, TokenTimes},
    usage::Usage,
};
use crate::{
    failure::{ErrorKind, Failure},
    protocol::target_words::{describe_body, describe_other_body, shorten, with_words},
};

/// Maximum length of a response without a stream.
const MAX_RESPONSE: usize = 16 << 20;

/// A text of reasoning with fewer bytes for each token is a summary: tokens have about four.
const MIN_BYTES_PER_TOKEN: u64 = 2;

/// Maximum length of a finish reason, which is the value of a label.
const MAX_FINISH_REASON: usize = 32;

/// Maximum length of the head of an event that is remembered for the next one.
const MAX_HEAD: usize = 4096;

/// A chat response that is being read.
#[derive(Debug)]
pub(crate) enum ChatReader {
    Streamed(Box<StreamReader>),
    /// The bytes of a response without a stream.
    Whole(Vec<u8>),
}

/// A complete chat response.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ChatResponse {
    /// When the first token of any kind arrived; `None` for a response without tokens.
    pub(crate) first_token: Option<Instant>,
    /// When the first token of content arrived; `None` for a response without content.
    pub(crate) first_content: Option<Instant>,
    pub(crate) tokens: Tokens,
    /// When each event with a token arrived, and how many tokens it held. Empty without a stream.
    pub(crate) token_times: TokenTimes,
    /// Why the model stopped, as the target says it.
    pub(crate) finish_reason: Option<FinishReason>,
}

/// Why a model stopped: a short word such as `stop` or `length`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FinishReason {
    bytes: [u8; MAX_FINISH_REASON],
    length: u8,
}

/// A stream that is being read.
#[derive(Debug, Default)]
pub(crate) struct StreamReader {
    events: EventStream,
    state: StreamState,
}

#[derive(Debug, Default)]
struct StreamState {
    first_content: Option<Instant>,
    times: TokenTimes,
    /// Number of events with a token, by kind.
    event_tokens: Tokens,
    /// Length of all texts of reasoning, in bytes.
    reasoning_bytes: u64,
    /// Length of all content and tool calls, as JSON, in bytes.
    answer_bytes: u64,
    usage: Usage,
    finish_reason: Option<FinishReason>,
    /// The failure of a target that gave up.
    given_up: Option<Failure>,
    /// True when an event was part of a chat completion.
    is_chat: bool,
    /// True when an event held a choice.
    has_choice: bool,
    timed_choice: TimedChoice,
    is_done: bool,
    /// The first event that says nothing about a chat, or the latest one with a message for people.
    other_event: Option<OtherEvent>,
    /// The text before the value of `choices` in an earlier event. It holds nothing that counts.
    head: Vec<u8>,
}

/// The choice that the times between tokens are of: the first one with a token. With `n`, a response has several choices,
/// and a reader reads one of them.
#[derive(Debug, Default)]
struct TimedChoice {
    index: Option<u64>,
    has_others: bool,
}

impl TimedChoice {
    /// Returns true if an event with a token is one of this choice.
    fn is_in(&mut self, event: &ChatEvent<'_>) -> bool {
        let index = *self.index.get_or_insert(event.choice_index);
        self.has_others |= event.choice_count > 1 || event.choice_index != index;
        event.choice_index == index
    }
}

#[derive(Debug)]
struct OtherEvent {
    words: String,
    is_json: bool,
    /// True when it has a message for people, and no choice has come after it.
    may_be_the_end: bool,
}

impl FinishReason {
    /// Takes the first word of a reason: its letters, digits, `_` and `-`.
    fn new(reason: &[u8]) -> Self {
        let mut bytes = [0; MAX_FINISH_REASON];
        let is_letter = |b: &&u8| b.is_ascii_alphanumeric() || b"_-".contains(*b);
        let letters = reason.iter().skip_while(|b| !is_letter(b)).take_while(is_letter);
        let mut length = 0;
        for (slot, letter) in bytes.iter_mut().zip(letters) {
            *slot = letter.to_ascii_lowercase();
            length += 1;
        }
        Self { bytes, length }
    }

    /// The reason in lower case.
    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.length)]).unwrap_or_default()
    }

    /// Returns true when the target gave up. It reports this with status 200, because the stream
    /// had begun.
    fn is_failure(&self) -> bool {
        const FIRST_WORDS: [&str; 15] = [
            "error",
            "abort",
            "aborted",
            "cancel",
            "cancelled",
            "canceled",
            "fail",
            "failed",
            "failure",
            "timeout",
            "timed",
            "exception",
            "interrupted",
            "overloaded",
            "unavailable",
        ];
        const LAST_WORDS: [&str; 4] = ["error", "timeout", "overloaded", "unavailable"];
        let reason = self.as_str();
        let words = || reason.split(['_', '-']);
        words().next().is_some_and(|word| FIRST_WORDS.contains(&word))
            || words().next_back().is_some_and(|word| LAST_WORDS.contains(&word))
            || matches!(reason, "insufficient_system_resource" | "time_out")
    }

    /// Returns the failure of a target that gave up, with what else `value` says, which holds the reason.
    fn failure(self, value: &[u8]) -> Option<Failure> {
        if !self.is_failure() {
            return None;
        }
        let mut message = format!("target gave up: finish_reason is {:?}", self.as_str());
        let words = describe_body(value);
        if let Some(words) = words.filter(|words| !words.eq_ignore_ascii_case(self.as_str())) {
            message += &format!(": {words}");
        }
        Some(Failure::new(ErrorKind::StreamError, message))
    }
}

impl ChatReader {
    pub(crate) fn new(stream: bool) -> Self {
        if stream { Self::Streamed(Box::default()) } else { Self::Whole(Vec::new()) }
    }

    /// Returns when the first token of any kind and the first token of content arrived.
    pub(crate) fn first_tokens(&self) -> (Option<Instant>, Option<Instant>) {
        match self {
            Self::Streamed(stream) => (stream.state.times.first(), stream.state.first_content),
            Self::Whole(_) => (None, None),
        }
    }

    /// Returns true when a stream has said why the model stopped.
    pub(crate) fn has_finish_reason(&self) -> bool {
        matches!(self, Self::Streamed(stream) if stream.state.finish_reason.is_some())
    }

    /// Reads bytes that arrived at `at`. Stops when the response is complete.
    pub(crate) fn read_bytes(&mut self, bytes: &[u8], at: Instant) -> AfterEvent {
        match self {
            Self::Streamed(stream) => {
                let StreamReader { events, state } = &mut **stream;
                events.read(bytes, at, &mut |event| state.read_event(&event))
            }
            Self::Whole(body) => {
                if body.len() + bytes.len() > MAX_RESPONSE {
                    let message = "response is over 16 MiB, the limit of the load generator";
                    return Err(Failure::new(ErrorKind::SizeLimit, message));
                }
                body.extend_from_slice(bytes);
                Ok(ControlFlow::Continue(()))
            }
        }
    }

    /// Returns the failure of a response that broke off at `last`. If the target had sent an error in place of a chat by then,
    /// it is that error.
    pub(crate) fn failure_of_early_end(self, failure: Failure, last: Instant) -> Failure {
        let error = match self {
            Self::Streamed(mut stream) => {
                let StreamReader { events, state } = &mut *stream;
                let rest = events.finish(last, &mut |event| state.read_event(&event));
                let end = rest.and_then(|_| state.check_complete(events));
                end.err().filter(|_| !state.is_chat)
            }
            Self::Whole(body) => read_whole(&body, last).err(),
        };
        error.filter(|error| error.kind == ErrorKind::StreamError).unwrap_or(failure)
    }

    /// Ends a response that was read completely at `last`.
    pub(crate) fn finish(self, last: Instant) -> Result<ChatResponse, Failure> {
        match self {
            Self::Streamed(mut stream) => {
                let StreamReader { events, state } = &mut *stream;
                if !state.is_done {
                    let _ = events.finish(last, &mut |event| state.read_event(&event))?;
                }
                state.check_complete(events)?;
                Ok(stream.state.into_response())
            }
            Self::Whole(body) => read_whole(&body, last),
        }
    }
}

impl StreamState {
    fn read_event(&mut self, event: &ServerEvent<'_>) -> AfterEvent {
        let data = event.data.trim_ascii();
        if event.name.eq_ignore_ascii_case(b"error") {
            return Err(error_event(data));
        }
        if is_done(data) {
            self.is_done = true;
            return Ok(ControlFlow::Break(()));
        }
        if data.first() != Some(&b'{') {
            // Keep-alive signs and texts of gateways.
            self.note_other_event(event, false, false);
            return Ok(ControlFlow::Continue(()));
        }
        let chat = ChatEvent::parse_after(data, &self.head).map_err(|error| {
            let text = shorten(&String::from_utf8_lossy(data));
            Failure::new(ErrorKind::StreamMalformed, format!("{error}: {text}"))
        })?;
        if let Some(head) = chat.head.filter(|head| head.len() <= MAX_HEAD) {
            self.head.clear();
            self.head.extend_from_slice(head);
        }
        // Events with a name of their own tell much that looks like an error.
        if let Some(error) = chat.error.filter(|_| chat.is_named_error || has_no_name(event)) {
            return Err(error_event(error));
        }
        if let Some(api) = chat.other_api.filter(|_| !chat.has_choices && !self.is_chat) {
            let message = format!("target streams {api}, and a chat task speaks chat completions");
            return Err(Failure::new(ErrorKind::Protocol, message));
        }
        if chat.has_choices || chat.usage != Usage::default() {
            self.is_chat |= chat.has_choices;
            self.has_choice |= chat.has_choice();
            if let Some(other) = self.other_event.as_mut().filter(|_| chat.has_choice()) {
                other.may_be_the_end = false;
            }
            self.read_chat(&chat, event.at);
        } else if data != b"{}" {
            self.note_other_event(event, true, chat.message.is_some());
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Remembers an event that says nothing about a chat. Events with a name of their own, such as `ping`, are none of
    /// ours.
    fn note_other_event(&mut self, event: &ServerEvent<'_>, is_json: bool, has_message: bool) {
        if has_no_name(event) && (has_message || self.other_event.is_none()) {
            let may_be_the_end = has_message;
            let words = describe_body(event.data);
            self.other_event = words.map(|words| OtherEvent { words, is_json, may_be_the_end });
        }
    }

    fn read_chat(&mut self, chat: &ChatEvent<'_>, at: Instant) {
        // Servers report the usage once at the end, or in every event with growing numbers.
        self.usage.update(chat.usage);
        // With several choices, one that failed counts.
        if let Some(reason) = chat.finish_reason.filter(|_| self.given_up.is_none()) {
            let reason = FinishReason::new(reason);
            self.given_up = reason.failure(chat.finish_value);
            self.finish_reason = Some(reason);
        }
        let TokenKinds { content, reasoning, tool } = chat.tokens;
        if !chat.tokens.any() {
            return;
        }
        self.event_tokens.output += u64::from(content);
        self.event_tokens.reasoning += u64::from(reasoning);
        self.event_tokens.tool += u64::from(tool);
        if content && self.first_content.is_none() {
            self.first_content = Some(at);
        }
        self.reasoning_bytes += chat.reasoning_bytes as u64;
        self.answer_bytes += chat.answer_bytes as u64;
        if self.timed_choice.is_in(chat) {
            let is_reasoning = reasoning && !content && !tool;
            // The target counts the tokens of all choices together.
            let reported = chat.usage.completion.filter(|_| !self.timed_choice.has_others);
            self.times.add(at, is_reasoning, reported);
        }
    }

    /// Returns an error unless the stream is complete: it ended with `[DONE]`, or cleanly after a
    /// finish reason.
    fn check_complete(&self, events: &EventStream) -> Result<(), Failure> {
        if self.finish_reason.is_some() {
            return self.given_up.clone().map_or(Ok(()), Err);
        }
        let other_lines = events.other_lines();
        if !self.is_chat && !events.is_stream() {
            return Err(not_a_stream(other_lines));
        }
        // A gateway has left out `data:`.
        if let Ok(ChatEvent { error: Some(error), .. }) = ChatEvent::parse(other_lines.trim_ascii())
        {
            return Err(error_event(error));
        }
        let is_whole = self.is_done && self.is_chat;
        let is_forgiven = |other: &OtherEvent| is_whole && other.is_json && !other.may_be_the_end;
        match &self.other_event {
            // Some servers send JSON of their own beside the chat.
            Some(other) if !is_forgiven(other) => {
                let words = &other.words;
                let message = format!("stream ended after an event that is no chat: {words}");
                Err(Failure::new(ErrorKind::StreamError, message))
            }
            _ if self.is_done && self.has_choice => Ok(()),
            _ if self.is_done => {
                Err(Failure::new(ErrorKind::Protocol, "stream ended without a choice"))
            }
            _ => {
                let message = "stream ended without a finish_reason and without data: [DONE]";
                let message = with_words(message.to_owned(), other_lines);
                Err(Failure::new(ErrorKind::StreamCut, message))
            }
        }
    }

    fn into_response(mut self) -> ChatResponse {
        let tokens = total_tokens(&self.usage, self.event_tokens);
        // Models that hide their reasoning report its tokens, and send none of them or a summary.
        let is_summary =
            tokens.reasoning.saturating_mul(MIN_BYTES_PER_TOKEN) > self.reasoning_bytes;
        // Some report the tokens of hidden reasoning as those of the answer. No token is shorter than a byte.
        let answer = tokens.output + tokens.tool;
        let is_known = !self.timed_choice.has_others;
        self.times.share_tokens(EventTokens {
            answer: Some(answer).filter(|tokens| is_known && *tokens <= self.answer_bytes),
            reasoning: Some(tokens.reasoning).filter(|_| is_known && !is_summary),
        });
        ChatResponse {
            first_token: self.times.first(),
            first_content: self.first_content,
            tokens,
            token_times: self.times,
            finish_reason: self.finish_reason,
        }
    }
}

/// Returns the number of tokens. The count of the target is preferred, because an event may hold
/// several tokens.
fn total_tokens(usage: &Usage, events: Tokens) -> Tokens {
    let prompt = usage.prompt.unwrap_or(0);
    let Some(completion) = usage.generated().filter(|tokens| *tokens > 0) else {
        return Tokens { prompt, ..events };
    };
    // Without a count of its own, reasoning has the share of its events.
    let share = || part_of(completion, events.reasoning, events.generated());
    let reasoning = usage.reasoning.unwrap_or_else(share).min(completion);
    let answer = completion - reasoning;
    let tool = part_of(answer, events.tool, events.output + events.tool);
    Tokens { output: answer - tool, reasoning, tool, prompt }
}

/// Returns the part of a number of tokens that belongs to `events` of `all` events, rounded down.
fn part_of(tokens: u64, events: u64, all: u64) -> u64 {
    u64::try_from(u128::from(tokens) * u128::from(events) / u128::from(all.max(1)))
        .unwrap_or(tokens)
}

/// Reads a response without a stream.
fn read_whole(body: &[u8], last: Instant) -> Result<ChatResponse, Failure> {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body).trim_ascii();
    if body.starts_with(b"data:") || body.starts_with(b"event:") {
        let message = "target sent an event stream, and the task has stream: false";
        return Err(Failure::new(ErrorKind::Protocol, message));
    }
    let not_chat =
        |what: &str| Failure::new(ErrorKind::Protocol, with_words(what.to_owned(), body));
    let chat = match ChatEvent::parse(body) {
        Ok(chat) => chat,
        Err(_) if body.is_empty() => return Err(not_chat("response has an empty body")),
        Err(error) if body.starts_with(b"{") => {
            return Err(not_chat(&format!("response is not chat JSON: {error}")));
        }
        Err(_) => return Err(not_chat("response is not chat JSON")),
    };
    if let Some(error) = chat.error {
        let words = describe_body(error).unwrap_or_default();
        return Err(Failure::new(
            ErrorKind::StreamError,
            format!("error in the response: {words}"),
        ));
    }
    if !chat.has_choice() {
        return Err(match chat.other_api {
            Some(api) => not_chat(&format!("response is of {api}, not of chat completions")),
            None => not_chat("response has no choices"),
        });
    }
    let finish_reason = chat.finish_reason.map(FinishReason::new);
    if let Some(failure) = finish_reason.and_then(|reason| reason.failure(chat.finish_value)) {
        return Err(failure);
    }
    let TokenKinds { content, reasoning, tool } = chat.tokens;
    let events = Tokens {
        output: u64::from(content),
        reasoning: u64::from(reasoning && !content),
        tool: u64::from(tool && !content),
        prompt: 0,
    };
    // Without a stream, the user sees the first token when the whole response is there.
    Ok(ChatResponse {
        first_token: chat.tokens.any().then_some(last),
        first_content: content.then_some(last),
        tokens: total_tokens(&chat.usage, events),
        token_times: TokenTimes::default(),
        finish_reason,
    })
}

fn has_no_name(event: &ServerEvent<'_>) -> bool {
    matches!(event.name, b"" | b"message")
}

fn error_event(data: &[u8]) -> Failure {
    let words = describe_body(data).unwrap_or_else(|| "without a message".to_owned());
    Failure::new(ErrorKind::StreamError, format!("error event: {words}"))
}

/// The failure of a body that should have been a stream.
fn not_a_stream(body: &[u8]) -> Failure {
    let body = body.trim_ascii();
    if let Ok(ChatEvent { error: Some(error), .. }) = ChatEvent::parse(body) {
        let words = describe_body(error).unwrap_or_default();
        let message = format!("target sent a JSON error in place of a stream: {words}");
        return Failure::new(ErrorKind::StreamError, message);
    }
    let message = format!("response is not an event stream but {}", describe_other_body(body));
    Failure::new(ErrorKind::Protocol, message)
}

#[cfg(test)]
mod tests;
