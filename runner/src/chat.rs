//! Reads an OpenAI-compatible answer: when its first content token came, and whether it
//! is whole. Pure: it is handed bytes and the moment they were read.

use std::{borrow::Cow, time::Instant};

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
    first: Option<Instant>,
    done: bool,
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow, default)]
    choices: Vec<Choice<'a>>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow, default)]
    delta: Option<Content<'a>>,
    #[serde(borrow, default)]
    message: Option<Content<'a>>,
}

#[derive(Deserialize)]
struct Content<'a> {
    #[serde(borrow, default)]
    content: Option<Cow<'a, str>>,
}

impl Chat {
    pub(crate) const fn new(stream: bool) -> Self {
        Self { stream, pending: Vec::new(), first: None, done: false }
    }

    /// When the first content token was read, if it was.
    pub(crate) const fn first(&self) -> Option<Instant> {
        self.first
    }

    /// Takes bytes that were read at `at`.
    pub(crate) fn read(&mut self, data: &[u8], at: Instant) -> Result<(), Failure> {
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
                self.line(line, at)?;
            } else {
                let mut whole = std::mem::take(&mut self.pending);
                whole.extend_from_slice(line);
                self.line(&whole, at)?;
            }
            rest = after;
        }
        self.pending.extend_from_slice(rest);
        Ok(())
    }

    /// One line of server-sent events. Comments, role-only events and `[DONE]` are no tokens.
    fn line(&mut self, line: &[u8], at: Instant) -> Result<(), Failure> {
        let Some(data) = line.strip_prefix(b"data:") else { return Ok(()) };
        let data = data.trim_ascii();
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
        if let Some(error) = event.error.filter(|error| error.get() != "null") {
            let text: String = error.get().chars().take(200).collect();
            return Err(Failure::new(ErrorKind::StreamError, format!("error event: {text}")));
        }
        let has_token = |choice: &Choice<'_>| {
            let content = choice.delta.as_ref().and_then(|delta| delta.content.as_ref());
            content.is_some_and(|text| !text.is_empty())
        };
        if self.first.is_none() && event.choices.iter().any(has_token) {
            self.first = Some(at);
        }
        Ok(())
    }

    /// The answer is over, read to its end at `last`: when its first content token came.
    pub(crate) fn finish(mut self, last: Instant) -> Result<Instant, Failure> {
        if self.stream {
            if !self.pending.is_empty() {
                let line = std::mem::take(&mut self.pending);
                self.line(&line, last)?;
            }
            if !self.done {
                let message = "stream ended without data: [DONE]";
                return Err(Failure::new(ErrorKind::StreamCut, message));
            }
            return self.first.ok_or_else(|| {
                Failure::new(ErrorKind::Protocol, "stream ended without a content token")
            });
        }
        let answer: Event<'_> = serde_json::from_slice(&self.pending).map_err(|error| {
            Failure::new(ErrorKind::Protocol, format!("answer is not chat JSON: {error}"))
        })?;
        match answer.choices.first().and_then(|choice| choice.message.as_ref()) {
            // The user sees an unstreamed answer when all of it is there.
            Some(_) => Ok(last),
            None => Err(Failure::new(ErrorKind::Protocol, "answer has no choices[0].message")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const ROLE: &str =
        "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
    const TOKEN: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"Hi\"}}]}\n\n";
    const USAGE: &str = "data: {\"choices\":[],\"usage\":{\"completion_tokens\":1}}\n\n";
    const DONE: &str = "data: [DONE]\n\n";

    fn read(events: &[&str]) -> Result<u64, ErrorKind> {
        let start = Instant::now();
        let mut chat = Chat::new(true);
        let mut at = start;
        for event in events {
            at += Duration::from_millis(10);
            chat.read(event.as_bytes(), at).map_err(|f| f.kind)?;
        }
        let first = chat.finish(at).map_err(|f| f.kind)?;
        Ok(u64::try_from((first - start).as_millis()).unwrap())
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
        chat.read(b"{\"choices\":[{\"message\":{\"content\":\"Hi", last).unwrap();
        chat.read(b" there\"}}]}", last).unwrap();
        assert_eq!(chat.finish(last).unwrap(), last);
        let mut cut = Chat::new(false);
        cut.read(b"{\"choices\":[", last).unwrap();
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
                chat.read(now, at).unwrap();
                rest = later;
            }
            chat.read(rest, at).unwrap();
            prop_assert!(chat.finish(at).is_ok());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), stream: bool) {
            let mut chat = Chat::new(stream);
            let at = Instant::now();
            if chat.read(&bytes, at).is_ok() {
                let _ = chat.finish(at);
            }
        }
    }
}
