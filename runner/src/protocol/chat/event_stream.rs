//! Reads server-sent events as the WHATWG standard describes them (HTML, 9.2.6): lines that end with
//! LF, CR or CRLF, several `data:` lines in an event, comments, names, a byte order mark.
//!
//! In three places the reader takes more than the standard: the last event may lack its blank line;
//! two complete JSON values on neighbouring `data:` lines are two events; and `[DONE]` is an event
//! as soon as its line is there, even without the end of the line.

use std::{ops::ControlFlow, time::Instant};

use super::json_scanner;
use crate::failure::{ErrorKind, Failure};

/// Maximum length of an event.
const MAX_EVENT: usize = 16 << 20;

/// Number of bytes that are kept of a body that is not an event stream.
const MAX_OTHER_LINES: usize = 64 << 10;

/// The data that ends a chat stream.
const DONE: &[u8] = b"[done]";

/// An event of a stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ServerEvent<'a> {
    /// The value of its `event:` line; empty without one.
    pub(crate) name: &'a [u8],
    /// The values of its `data:` lines, joined by LF.
    pub(crate) data: &'a [u8],
    /// When its last `data:` line arrived.
    pub(crate) at: Instant,
}

/// What follows an event: the next event, or nothing because the response is complete.
pub(crate) type AfterEvent = Result<ControlFlow<()>, Failure>;

/// A stream of events that is being read.
#[derive(Debug, Default)]
pub(crate) struct EventStream {
    /// The incomplete current line.
    line: Vec<u8>,
    /// The data of the current event, and when its last line arrived.
    data: Vec<u8>,
    data_at: Option<Instant>,
    name: Vec<u8>,
    /// True after a CR: an LF that follows it is part of the same line end.
    after_cr: bool,
    /// True once a line was read.
    has_begun: bool,
    /// True once a line was a field of an event or a comment.
    has_fields: bool,
    /// The first bytes of a body without such a line.
    other_lines: Vec<u8>,
}

impl EventStream {
    /// Reads bytes that arrived at `at`, and calls `on_event` with each event that they complete.
    /// Stops when `on_event` does.
    pub(crate) fn read(
        &mut self,
        bytes: &[u8],
        at: Instant,
        on_event: &mut impl FnMut(ServerEvent<'_>) -> AfterEvent,
    ) -> AfterEvent {
        let mut rest = bytes;
        if self.after_cr && !rest.is_empty() {
            self.after_cr = false;
            rest = rest.strip_prefix(b"\n").unwrap_or(rest);
        }
        while let Some(end) = memchr::memchr2(b'\n', b'\r', rest) {
            let line = &rest[..end];
            let is_cr = rest[end] == b'\r';
            rest = &rest[end + 1..];
            if is_cr {
                self.after_cr = rest.is_empty();
                rest = rest.strip_prefix(b"\n").unwrap_or(rest);
            }
            let flow = if self.line.is_empty() {
                // The usual event is one line of data and a blank line in the same read.
                let has_blank_line = matches!(rest.first(), Some(b'\n' | b'\r'));
                self.read_line(line, at, has_blank_line, on_event)?
            } else {
                let mut whole = std::mem::take(&mut self.line);
                whole.extend_from_slice(line);
                let flow = self.read_line(&whole, at, false, on_event)?;
                whole.clear();
                self.line = whole;
                flow
            };
            if flow.is_break() {
                return Ok(flow);
            }
        }
        self.line.extend_from_slice(rest);
        if self.line.len() + self.data.len() > MAX_EVENT {
            let message = "an event of the stream is over 16 MiB, the limit of the load generator";
            return Err(Failure::new(ErrorKind::SizeLimit, message));
        }
        // Some servers leave the stream open after `data: [DONE]` without a line end. The line of an event
        // that has begun may go on.
        if self.line.len() <= 16
            && (self.data_at.is_none() || json_scanner::is_complete(&self.data))
            && self.line.strip_prefix(b"data:").is_some_and(|data| is_done(data.trim_ascii()))
        {
            let line = std::mem::take(&mut self.line);
            return self.read_line(&line, at, false, on_event);
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Ends the stream: reads a line without an end, and an event without a blank line.
    pub(crate) fn finish(
        &mut self,
        at: Instant,
        on_event: &mut impl FnMut(ServerEvent<'_>) -> AfterEvent,
    ) -> AfterEvent {
        let line = std::mem::take(&mut self.line);
        if !line.is_empty() && self.read_line(&line, at, false, on_event)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        self.dispatch(on_event)
    }

    /// Returns the first lines that belong to no event.
    pub(crate) fn other_lines(&self) -> &[u8] {
        &self.other_lines
    }

    /// Returns true when a line was part of an event stream.
    pub(crate) const fn is_stream(&self) -> bool {
        self.has_fields
    }

    /// Reads one line. `is_whole_event` is true when a blank line follows it.
    fn read_line(
        &mut self,
        line: &[u8],
        at: Instant,
        is_whole_event: bool,
        on_event: &mut impl FnMut(ServerEvent<'_>) -> AfterEvent,
    ) -> AfterEvent {
        let line = if self.has_begun {
            line
        } else {
            self.has_begun = true;
            line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line)
        };
        if let Some(value) = line.strip_prefix(b"data:") {
            self.has_fields = true;
            let value = value.strip_prefix(b" ").unwrap_or(value);
            return self.read_data(value, at, is_whole_event, on_event);
        }
        if line.is_empty() {
            return self.dispatch(on_event);
        }
        let colon = memchr::memchr(b':', line);
        let (field, value) = match colon {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line, &[][..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"data" => {
                self.has_fields = true;
                return self.read_data(value, at, is_whole_event, on_event);
            }
            b"event" => {
                self.has_fields = true;
                self.name.clear();
                self.name.extend_from_slice(value.trim_ascii());
            }
            // A comment.
            b"" if colon.is_some() => self.has_fields = true,
            b"id" | b"retry" => self.has_fields = true,
            // Not a field of the standard, but some servers report an error so.
            b"error" if colon.is_some() => {
                self.has_fields = true;
                return on_event(ServerEvent { name: b"error", data: value, at });
            }
            _ => {
                let room = MAX_OTHER_LINES.saturating_sub(self.other_lines.len());
                self.other_lines.extend_from_slice(&line[..line.len().min(room)]);
                self.other_lines.push(b'\n');
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn read_data(
        &mut self,
        value: &[u8],
        at: Instant,
        is_whole_event: bool,
        on_event: &mut impl FnMut(ServerEvent<'_>) -> AfterEvent,
    ) -> AfterEvent {
        if let Some(held_at) = self.data_at {
            let begins_value = matches!(value.first(), Some(b'{')) || is_done(value.trim_ascii());
            if begins_value && json_scanner::is_complete(&self.data) {
                let name = std::mem::take(&mut self.name);
                let flow = on_event(ServerEvent { name: &name, data: &self.data, at: held_at })?;
                self.data.clear();
                self.data_at = None;
                if flow.is_break() {
                    return Ok(flow);
                }
                return self.read_data(value, at, is_whole_event, on_event);
            }
            self.data.push(b'\n');
        } else if is_whole_event || is_done(value.trim_ascii()) {
            // The blank line that follows finds no data.
            let flow = on_event(ServerEvent { name: &self.name, data: value, at })?;
            self.name.clear();
            return Ok(flow);
        }
        self.data.extend_from_slice(value);
        self.data_at = Some(at);
        Ok(ControlFlow::Continue(()))
    }

    /// Ends the current event. An event without a `data:` line is none.
    fn dispatch(&mut self, on_event: &mut impl FnMut(ServerEvent<'_>) -> AfterEvent) -> AfterEvent {
        let flow = match self.data_at.take() {
            Some(at) => on_event(ServerEvent { name: &self.name, data: &self.data, at })?,
            None => ControlFlow::Continue(()),
        };
        self.data.clear();
        self.name.clear();
        Ok(flow)
    }
}

/// Returns true for the data that ends a chat stream. Some servers write it as a JSON string.
pub(crate) fn is_done(data: &[u8]) -> bool {
    let text = data.strip_prefix(b"\"").and_then(|data| data.strip_suffix(b"\""));
    text.unwrap_or(data).eq_ignore_ascii_case(DONE)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads pieces of a stream. Returns each event as `name|data`, and the body if it is no
    /// stream.
    fn read_pieces(pieces: &[&[u8]]) -> (Vec<String>, Vec<u8>) {
        let (mut stream, mut events) = (EventStream::default(), Vec::new());
        let at = Instant::now();
        let mut on_event = |event: ServerEvent<'_>| {
            let text = String::from_utf8_lossy;
            events.push(format!("{}|{}", text(event.name), text(event.data)));
            Ok(ControlFlow::Continue(()))
        };
        for piece in pieces {
            let _ = stream.read(piece, at, &mut on_event).unwrap();
        }
        let _ = stream.finish(at, &mut on_event).unwrap();
        (events, if stream.is_stream() { Vec::new() } else { stream.other_lines().to_vec() })
    }

    fn read_text(text: &str) -> Vec<String> {
        read_pieces(&[text.as_bytes()]).0
    }

    #[test]
    fn events_are_read_as_the_standard_says() {
        for (text, events) in [
            // The examples of the standard.
            ("data: YHOO\ndata: +2\ndata: 10\n\n", vec!["|YHOO\n+2\n10"]),
            (
                ": test stream\n\ndata: first\nid: 1\n\ndata:second\nid\n\ndata:  third\n\n",
                vec!["|first", "|second", "| third"],
            ),
            ("data\n\ndata\ndata\n\ndata:", vec!["|", "|\n", "|"]),
            ("data:test\n\ndata: test\n\n", vec!["|test", "|test"]),
            ("event: add\ndata: 1\n\ndata: 2\n\n", vec!["add|1", "|2"]),
            // The name may follow the data.
            ("data: 1\nevent: add\n\n", vec!["add|1"]),
            ("event: nothing\n\ndata: 1\n\n", vec!["|1"]),
            ("data: {\ndata: \"a\": 1}\n\n", vec!["|{\n\"a\": 1}"]),
        ] {
            assert_eq!(read_text(text), events, "{text:?}");
            assert_eq!(read_text(&text.replace('\n', "\r\n")), events, "{text:?} with CRLF");
            assert_eq!(read_text(&text.replace('\n', "\r")), events, "{text:?} with CR");
            assert_eq!(read_text(&format!("\u{feff}{text}")), events, "{text:?} after a BOM");
        }
    }

    #[test]
    fn events_without_blank_lines_are_told_apart() {
        let text = "data: {\"a\":1}\ndata: {\"b\":2}\ndata: [DONE]\n";
        assert_eq!(read_text(text), ["|{\"a\":1}", "|{\"b\":2}", "|[DONE]"]);
    }

    #[test]
    fn the_end_mark_needs_no_line_end() {
        let (mut stream, mut events) = (EventStream::default(), 0);
        let mut on_event = |event: ServerEvent<'_>| {
            events += 1;
            Ok(if is_done(event.data.trim_ascii()) {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            })
        };
        let at = Instant::now();
        assert!(stream.read(b"data: 1\n\ndata: [DO", at, &mut on_event).unwrap().is_continue());
        assert!(stream.read(b"NE]", at, &mut on_event).unwrap().is_break());
        assert_eq!(events, 2);
        assert!(is_done(b"\"[DONE]\"") && !is_done(b"\"[DONE]"));
    }

    #[test]
    fn an_end_mark_within_an_event_is_no_event() {
        let pieces: [&[u8]; 2] = [b"data: {\ndata: [DONE]", b"\ndata: }\n\n"];
        assert_eq!(read_pieces(&pieces).0, ["|{\n[DONE]\n}"]);
    }

    #[test]
    fn the_time_of_an_event_is_that_of_its_data() {
        let (mut stream, start) = (EventStream::default(), Instant::now());
        let later = start + std::time::Duration::from_secs(1);
        let mut found = None;
        let mut on_event = |event: ServerEvent<'_>| {
            found = Some(event.at);
            Ok(ControlFlow::Continue(()))
        };
        let _ = stream.read(b"data: 1\n", start, &mut on_event).unwrap();
        let _ = stream.read(b"\n", later, &mut on_event).unwrap();
        assert_eq!(found, Some(start));
    }

    #[test]
    fn a_body_that_is_no_stream_is_kept() {
        let (events, body) = read_pieces(&[b"{\"error\":", b" \"no\"}"]);
        assert_eq!((events.len(), body.as_slice()), (0, b"{\"error\": \"no\"}\n".as_slice()));
        assert_eq!(read_pieces(&[b": ping\n\nhello\n"]).1, b"");
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_hold_the_same_events(
            lines in prop::collection::vec("(data|event|id|)(: ?|)[a-z{}\\[\\]]{0,5}", 0..12),
            ends in prop::collection::vec(prop::sample::select(vec!["\n", "\r", "\r\n", "\n\n"]), 12),
            cuts in prop::collection::vec(1_usize..9, 0..30),
        ) {
            let text: String = lines.iter().zip(&ends).flat_map(|(l, e)| [l.as_str(), *e]).collect();
            let (mut pieces, mut rest) = (Vec::new(), text.as_bytes());
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            pieces.push(rest);
            prop_assert_eq!(read_pieces(&pieces).0, read_text(&text));
        }
    }
}
