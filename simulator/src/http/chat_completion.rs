//! A chat completion: its tokens, and its JSON in the format of `OpenAI`'s API.

use std::{fmt, fmt::Write};

use bytes::Bytes;

/// The tokens of all completions, repeated as often as needed. No character needs escaping in JSON.
const TOKENS: [&str; 16] = [
    "Hello",
    "!",
    " This",
    " is",
    " the",
    " simulator",
    " of",
    " Cell",
    " 0",
    ",",
    " and",
    " these",
    " words",
    " mean",
    " nothing",
    ".",
];

/// The content of a completion and its metadata.
#[derive(Debug)]
pub(super) struct ChatCompletion {
    pub(super) id: u64,
    /// In seconds since 1970.
    pub(super) created: u64,
    /// The model's id as JSON, with quotes.
    pub(super) model: String,
    pub(super) tokens: u32,
    pub(super) prompt_tokens: usize,
    pub(super) finish_reason: &'static str,
    pub(super) include_usage: bool,
}

/// The first fields of every JSON object.
struct Head<'a> {
    completion: &'a ChatCompletion,
    object: &'static str,
}

/// Returns the text of the token with this index.
pub(super) fn token_text(index: u32) -> &'static str {
    TOKENS[index as usize % TOKENS.len()]
}

impl ChatCompletion {
    /// Returns one event with one choice.
    pub(super) fn event(&self, delta: &str, finish_reason: Option<&str>) -> Bytes {
        let mut text = String::with_capacity(256);
        self.write_event(&mut text, delta, finish_reason);
        text.into()
    }

    /// Returns the events after the last token.
    pub(super) fn last_events(&self) -> Bytes {
        let mut text = String::with_capacity(512);
        self.write_event(&mut text, "{}", Some(self.finish_reason));
        if self.include_usage {
            let _ = write!(
                text,
                r#"data: {},"choices":[],"usage":"#,
                self.head("chat.completion.chunk")
            );
            self.write_usage(&mut text);
            text.push_str("}\n\n");
        }
        text.push_str("data: [DONE]\n\n");
        text.into()
    }

    /// Returns the body of a response that is not streamed.
    pub(super) fn json_body(&self) -> Bytes {
        let head = self.head("chat.completion");
        let mut text = String::with_capacity(512);
        let _ = write!(
            text,
            r#"{head},"choices":[{{"index":0,"message":{{"role":"assistant","content":""#
        );
        text.extend((0..self.tokens).map(token_text));
        let _ = write!(
            text,
            r#""}},"logprobs":null,"finish_reason":"{}"}}],"usage":"#,
            self.finish_reason
        );
        self.write_usage(&mut text);
        text.push('}');
        text.into()
    }

    // Writing to a String can't fail, so this module ignores the results of `write!`.
    fn write_event(&self, text: &mut String, delta: &str, finish_reason: Option<&str>) {
        let head = self.head("chat.completion.chunk");
        let _ = write!(text, r#"data: {head},"choices":[{{"index":0,"delta":{delta},"#);
        let _ = match finish_reason {
            Some(reason) => write!(text, r#""logprobs":null,"finish_reason":"{reason}"}}]}}"#),
            None => write!(text, r#""logprobs":null,"finish_reason":null}}]}}"#),
        };
        text.push_str("\n\n");
    }

    fn write_usage(&self, text: &mut String) {
        let Self { prompt_tokens, tokens, .. } = self;
        let total = prompt_tokens + *tokens as usize;
        let _ = write!(
            text,
            r#"{{"prompt_tokens":{prompt_tokens},"completion_tokens":{tokens},"total_tokens":{total}}}"#
        );
    }

    fn head(&self, object: &'static str) -> Head<'_> {
        Head { completion: self, object }
    }
}

impl fmt::Display for Head<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ChatCompletion { id, created, model, .. } = self.completion;
        let object = self.object;
        write!(
            f,
            r#"{{"id":"chatcmpl-{id:016x}","object":"{object}","created":{created},"model":{model}"#
        )
    }
}
