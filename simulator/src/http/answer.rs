//! Response bodies that tell the line when their last byte is on its way.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

use super::stream::ChatStream;
use crate::line::Line;

/// The body of an answer.
#[derive(Debug)]
pub(crate) enum Answer {
    /// All at once.
    Whole {
        line: Arc<Line>,
        bytes: Option<Bytes>,
        /// It holds content tokens.
        content: bool,
    },
    /// Only a part of what was promised.
    Cut(Cut),
    /// Server-sent events.
    Stream(Box<ChatStream>),
}

/// A body that breaks off.
#[derive(Debug)]
pub(crate) enum Cut {
    Part(Bytes),
    /// The part was handed over and must get out before the end.
    Flush,
    End,
}

/// The body ended before its time, on purpose.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the answer is cut short on purpose")]
pub(crate) struct CutShort;

impl Answer {
    /// All of an answer that has no content tokens.
    pub(crate) fn whole(line: &Arc<Line>, bytes: Bytes) -> Self {
        Self::Whole { line: line.clone(), bytes: Some(bytes), content: false }
    }

    /// No body at all: what follows is no HTTP.
    pub(crate) fn nothing(line: &Arc<Line>) -> Self {
        Self::Whole { line: line.clone(), bytes: None, content: false }
    }

    /// All of a chat answer that is not streamed.
    pub(super) fn with_content(line: &Arc<Line>, bytes: Bytes) -> Self {
        Self::Whole { line: line.clone(), bytes: Some(bytes), content: true }
    }

    /// This part of an answer, and then the end of the connection.
    pub(super) fn cut(part: Bytes) -> Self {
        Self::Cut(Cut::Part(part))
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = CutShort;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, CutShort>>> {
        match self.get_mut() {
            Self::Whole { line, bytes, content } => Poll::Ready(bytes.take().map(|bytes| {
                if *content {
                    line.content();
                }
                line.done();
                Ok(Frame::data(bytes))
            })),
            Self::Cut(cut) => cut.poll(cx),
            Self::Stream(stream) => stream.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole { bytes, .. } => bytes.is_none(),
            Self::Cut(_) => false,
            Self::Stream(stream) => stream.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole { bytes, .. } => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64)
            }
            Self::Cut(_) | Self::Stream(_) => SizeHint::default(),
        }
    }
}

impl Cut {
    /// hyper throws away what it has not written when a body fails, but writes it all while a body
    /// is pending: so the body is pending once between its part and its end.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, CutShort>>> {
        match std::mem::replace(self, Self::End) {
            Self::Part(bytes) => {
                *self = Self::Flush;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Self::Flush => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Self::End => Poll::Ready(Some(Err(CutShort))),
        }
    }
}
