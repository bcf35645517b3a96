//! Chat completions, as `OpenAI`'s API words them.

use std::{borrow::Cow, fmt, fmt::Write, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use rand::{SeedableRng, rngs::SmallRng};
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use super::{
    Answer, Struck, error, json_response, released,
    stream::{ChatStream, Pace, Step},
    strike,
};
use crate::{server::Connection, settings::Failure, truth::Endpoint};

/// More than any chat of a load test; a bound on what one request can make us hold.
const MAX_BODY: usize = 1 << 20;

/// What is said, over and over, one token each. No character needs escaping in JSON.
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

/// A request, as far as it matters; what else is in it is let pass.
#[derive(Deserialize)]
struct ChatRequest<'a> {
    #[serde(borrow)]
    model: Cow<'a, str>,
    messages: Vec<Message>,
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
struct Message {
    #[serde(rename = "role")]
    _role: IgnoredAny,
    #[serde(default)]
    content: Words,
}

/// How many words a message has: a string's, or those of all text parts of a list.
#[derive(Default)]
struct Words(usize);

/// What an answer says and is called.
#[derive(Debug)]
pub(super) struct Reply {
    id: u64,
    /// In seconds since 1970.
    created: u64,
    /// In JSON, with quotes.
    model: String,
    pub(super) tokens: u32,
    prompt_tokens: usize,
    finish_reason: &'static str,
    include_usage: bool,
}

/// How the settings in force have this request answered.
struct Script {
    reply: Reply,
    stream: bool,
    failure: Option<Failure>,
    latency: u64,
    pace: Pace,
}

/// The text of the token with this number.
pub(super) fn token(index: u32) -> &'static str {
    TOKENS[index as usize % TOKENS.len()]
}

pub(super) async fn answer(
    connection: &Arc<Connection>,
    request: Request<Incoming>,
    arrival: u64,
) -> Result<Response<Answer>, Struck> {
    let line = &connection.line;
    let Ok(body) = Limited::new(request.into_body(), MAX_BODY).collect().await else {
        released(connection, Endpoint::Chat).await;
        let message = "the body is incomplete, or larger than 1 MiB";
        return Ok(error(connection, StatusCode::PAYLOAD_TOO_LARGE, message, "bad_body"));
    };
    let body = body.to_bytes();
    let script = match read(connection, &body, arrival) {
        Ok(script) => script,
        Err((status, message, code)) => {
            released(connection, Endpoint::Chat).await;
            return Ok(error(connection, status, &message, code));
        }
    };
    let Script { reply, stream, failure, latency, mut pace } = script;
    if stream {
        let in_stream = failure.filter(|failure| {
            matches!(failure, Failure::StreamError | Failure::CutShort | Failure::MalformedEvent)
        });
        if let Some(failure) = failure.filter(|_| in_stream.is_none()) {
            line.server.clock.sleep_until(pace.first_token).await;
            return strike(connection, failure, Bytes::new()).await;
        }
        let events = ChatStream {
            line: line.clone(),
            due: pace.release(arrival + latency / 2),
            reply,
            pace,
            failure: in_stream,
            step: Step::Role,
            sleep: None,
        };
        return Ok(event_stream(Answer::Stream(Box::new(events))));
    }
    let gaps: u64 = (0..reply.tokens).map(|_| pace.gap.draw(&mut pace.rng)).sum();
    line.server.clock.sleep_until(pace.release(arrival + latency + gaps)).await;
    match failure {
        None => Ok(json_response(Answer::with_content(line, reply.whole()))),
        Some(failure) => strike(connection, failure, reply.whole()).await,
    }
}

type Refusal = (StatusCode, String, &'static str);

fn read(connection: &Connection, body: &[u8], arrival: u64) -> Result<Script, Refusal> {
    let bad = |message: String| (StatusCode::BAD_REQUEST, message, "invalid_request");
    let request: ChatRequest<'_> = serde_json::from_slice(body)
        .map_err(|error| bad(format!("the body is no chat request: {error}")))?;
    if request.messages.is_empty() {
        return Err(bad("messages must not be empty".to_owned()));
    }
    let limit = request.max_completion_tokens.or(request.max_tokens).unwrap_or(u32::MAX);
    if limit == 0 {
        return Err(bad("max_tokens must be at least 1".to_owned()));
    }
    // The line's lock and the script's are never held together.
    let id = connection.line.request_id();
    let created = connection.line.server.clock.origin_unix() / 1_000_000_000;
    connection.draw(|settings, rng| {
        if !settings.model_ids.iter().any(|id| *id == request.model) {
            let message = format!("The model `{}` does not exist", request.model);
            return Err((StatusCode::NOT_FOUND, message, "model_not_found"));
        }
        let chat = &settings.chat;
        let failure = chat.errors.draw(rng);
        let latency = chat.latency.draw(rng);
        let mut pace = Pace {
            first_token: arrival + latency,
            gap: chat.token_gap,
            stall: chat.stall,
            rng: SmallRng::from_rng(rng),
        };
        pace.first_token = pace.release(pace.first_token);
        let reply = Reply {
            id,
            created: created + arrival / 1_000_000_000,
            model: serde_json::Value::from(&*request.model).to_string(),
            tokens: chat.tokens.min(limit),
            prompt_tokens: request.messages.iter().map(|message| message.content.0).sum(),
            finish_reason: if limit < chat.tokens { "length" } else { "stop" },
            include_usage: request.stream_options.is_some_and(|options| options.include_usage),
        };
        let stream = request.stream.unwrap_or(false);
        Ok(Script { reply, stream, failure, latency, pace })
    })
}

impl Reply {
    /// One event with one choice.
    pub(super) fn event(&self, delta: &str, finish_reason: Option<&str>) -> Bytes {
        let mut text = String::with_capacity(256);
        self.write_event(&mut text, delta, finish_reason);
        text.into()
    }

    /// What follows the last token.
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

    /// The answer that is not streamed.
    fn whole(&self) -> Bytes {
        let head = self.head("chat.completion");
        let mut text = String::with_capacity(512);
        let _ = write!(
            text,
            r#"{head},"choices":[{{"index":0,"message":{{"role":"assistant","content":""#
        );
        text.extend((0..self.tokens).map(token));
        let _ = write!(
            text,
            r#""}},"logprobs":null,"finish_reason":"{}"}}],"usage":"#,
            self.finish_reason
        );
        self.write_usage(&mut text);
        text.push('}');
        text.into()
    }

    // Writing to a String can't fail, here and below.
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
        Head { reply: self, object }
    }
}

/// The fields every object begins with.
struct Head<'a> {
    reply: &'a Reply,
    object: &'static str,
}

impl fmt::Display for Head<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Reply { id, created, model, .. } = self.reply;
        let object = self.object;
        write!(
            f,
            r#"{{"id":"chatcmpl-{id:016x}","object":"{object}","created":{created},"model":{model}"#
        )
    }
}

fn event_stream(answer: Answer) -> Response<Answer> {
    let mut response = Response::new(answer);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Content;

        impl<'de> Visitor<'de> for Content {
            type Value = Words;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, or a list of parts")
            }

            fn visit_str<E>(self, text: &str) -> Result<Words, E> {
                Ok(Words(text.split_ascii_whitespace().count()))
            }

            // A message of a tool call has a null here.
            fn visit_unit<E>(self) -> Result<Words, E> {
                Ok(Words(0))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Words, A::Error> {
                let mut words = 0;
                while let Some(Words(more)) = parts.next_element()? {
                    words += more;
                }
                Ok(Words(words))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut part: A) -> Result<Words, A::Error> {
                let mut words = 0;
                while let Some(name) = part.next_key::<Cow<'de, str>>()? {
                    if name == "text" {
                        words = part.next_value::<Words>()?.0;
                    } else {
                        part.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(Words(words))
            }
        }

        deserializer.deserialize_any(Content)
    }
}
