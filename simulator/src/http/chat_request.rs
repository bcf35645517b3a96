//! The JSON of a chat request.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};

/// The fields of a chat request that the simulator uses. It ignores all other fields.
#[derive(Deserialize)]
pub(super) struct ChatRequest<'a> {
    #[serde(borrow)]
    pub(super) model: Cow<'a, str>,
    pub(super) messages: Vec<Message>,
    #[serde(default)]
    stream: Option<bool>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    stream_options: Option<StreamOptions>,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

#[derive(Deserialize)]
pub(super) struct Message {
    #[serde(rename = "role")]
    _role: IgnoredAny,
    #[serde(default)]
    content: WordCount,
}

/// The number of words of a message: in its string, or in all text parts of its list.
#[derive(Default)]
struct WordCount(usize);

impl ChatRequest<'_> {
    /// Returns the maximum number of tokens in the response.
    pub(super) fn max_tokens(&self) -> u32 {
        self.max_completion_tokens.or(self.max_tokens).unwrap_or(u32::MAX)
    }

    /// Returns true if the response must be streamed.
    pub(super) fn is_streamed(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    /// Returns true if a stream must end with the token counts.
    pub(super) fn includes_usage(&self) -> bool {
        self.stream_options.as_ref().is_some_and(|options| options.include_usage)
    }

    /// Returns the number of words of all messages.
    pub(super) fn count_words(&self) -> usize {
        self.messages.iter().map(|message| message.content.0).sum()
    }
}

impl<'de> Deserialize<'de> for WordCount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ContentVisitor;

        impl<'de> Visitor<'de> for ContentVisitor {
            type Value = WordCount;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, or a list of parts")
            }

            fn visit_str<E>(self, text: &str) -> Result<WordCount, E> {
                Ok(WordCount(text.split_ascii_whitespace().count()))
            }

            // The content of a message with a tool call is null.
            fn visit_unit<E>(self) -> Result<WordCount, E> {
                Ok(WordCount(0))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<WordCount, A::Error> {
                let mut words = 0;
                while let Some(WordCount(more)) = parts.next_element()? {
                    words += more;
                }
                Ok(WordCount(words))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut part: A) -> Result<WordCount, A::Error> {
                let mut words = 0;
                while let Some(name) = part.next_key::<Cow<'de, str>>()? {
                    if name == "text" {
                        words = part.next_value::<WordCount>()?.0;
                    } else {
                        part.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(WordCount(words))
            }
        }

        deserializer.deserialize_any(ContentVisitor)
    }
}
