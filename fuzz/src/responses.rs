//! The bytes of a target: chat responses, HTTP/1.1 responses and WebSocket frames. The result of reading them
//! must not depend on the pieces in which they arrive.

use std::time::{Duration, Instant};

use loadtest_runner::fuzzing::{read_chat, read_http_response, read_web_socket};

use crate::pieces::for_each_cut;

/// Reads a chat response, with a stream of events and without.
pub fn event_stream(data: &[u8]) {
    let start = Instant::now();
    for is_stream in [true, false] {
        let whole = read_chat(&[data], is_stream, start, Duration::ZERO);
        for_each_cut(
            data,
            |at| !is_after_end_mark(data, at),
            |pieces| {
                let found = read_chat(pieces, is_stream, start, Duration::ZERO);
                assert_eq!(found, whole, "{} pieces", pieces.len());
                let _ = read_chat(pieces, is_stream, start, Duration::from_millis(10));
            },
        );
    }
}

/// Returns true if the end of a stream is before a cut, and more of its line is after the cut. The reader
/// does not wait for the end of the line, so such a cut makes a difference.
fn is_after_end_mark(data: &[u8], at: usize) -> bool {
    let (before, after) = data.split_at(at);
    let is_line_end = |byte: &u8| matches!(byte, b'\n' | b'\r');
    let line = before.rsplit(is_line_end).next().unwrap_or_default();
    let mark = line.trim_ascii_end().to_ascii_lowercase();
    mark.ends_with(b"[done]") && !after.first().is_some_and(is_line_end)
}

/// Reads an HTTP/1.1 response to a GET and to a HEAD request, and decodes its body.
pub fn http_response(data: &[u8]) {
    for is_head_request in [false, true] {
        let whole = read_http_response(&[data], is_head_request, true, usize::MAX);
        for_each_cut(
            data,
            |_| true,
            |pieces| {
                let found = read_http_response(pieces, is_head_request, true, usize::MAX);
                assert_eq!(found, whole, "{} pieces", pieces.len());
                let _ = read_http_response(pieces, is_head_request, false, 10);
            },
        );
    }
}

/// Reads the frames of a target until it closes the connection, with and without compression.
pub fn websocket(data: &[u8]) {
    for deflate in [None, Some(false), Some(true)] {
        let whole = read_web_socket(&[data], deflate);
        for_each_cut(
            data,
            |_| true,
            |pieces| {
                let found = read_web_socket(pieces, deflate);
                assert_eq!(found, whole, "{} pieces", pieces.len());
            },
        );
    }
}
