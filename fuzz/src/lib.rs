//! The bodies of the fuzz targets. Each takes arbitrary bytes, hands them to code that reads what a user
//! writes, a target sends or a cluster holds, and panics if a property does not hold.
//!
//! | target | what it reads |
//! |---|---|
//! | [`spec`] | a LoadTest as YAML |
//! | [`bounds`] | durations, quantities, bounds, statistics and thresholds |
//! | [`event_stream`] | a chat response |
//! | [`http_response`] | an HTTP/1.1 response |
//! | [`websocket`] | the frames of a WebSocket |
//! | [`exposition`] | the metrics of a runner |
//! | [`result`] | a result, and the objects that hold one |
//!
//! `fuzz/libfuzzer` runs them with libFuzzer. `fuzz/tests/seeds.rs` runs them with the kept inputs of
//! `fuzz/corpus`.

#![allow(clippy::missing_panics_doc, reason = "a panic is how a body reports what it found")]

mod bounds;
mod exposition;
mod pieces;
mod responses;
mod result;
mod spec;

pub use bounds::bounds;
pub use exposition::{exposition, judge_steps};
pub use responses::{event_stream, http_response, websocket};
pub use result::result;
pub use spec::spec;

/// The body of a target.
pub type Body = fn(&[u8]);

/// Every target, by the name of its folder in `fuzz/corpus`.
pub const TARGETS: [(&str, Body); 7] = [
    ("spec", spec),
    ("bounds", bounds),
    ("event_stream", event_stream),
    ("http_response", http_response),
    ("websocket", websocket),
    ("exposition", exposition),
    ("result", result),
];
