//! Response bodies that tell the request tracker when their last byte is handed over.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

use super::{
    chat_stream::ChatStream,
    truncated_body::{IncompleteBody, TruncatedBody},
};
use crate::connection::RequestTracker;

/// The body of a response.
#[derive(Debug)]
pub(crate) enum ResponseBody {
    /// A body that is sent at once; `None` for an empty body.
    Complete {
        tracker: Arc<RequestTracker>,
        bytes: Option<Bytes>,
        /// The body contains content tokens.
        has_content: bool,
    },
    /// A body that ends before its promised length.
    Truncated(TruncatedBody),
    /// Server-sent events.
    Stream(Box<ChatStream>),
}

impl ResponseBody {
    /// Returns a complete body without content tokens.
    pub(crate) fn complete(tracker: &Arc<RequestTracker>, bytes: Bytes) -> Self {
        Self::Complete { tracker: tracker.clone(), bytes: Some(bytes), has_content: false }
    }

    /// Returns an empty body, for a connection that leaves HTTP after the response.
    pub(crate) fn empty(tracker: &Arc<RequestTracker>) -> Self {
        Self::Complete { tracker: tracker.clone(), bytes: None, has_content: false }
    }

    /// Returns the complete body of a chat response that is not streamed.
    pub(super) fn with_content(tracker: &Arc<RequestTracker>, bytes: Bytes) -> Self {
        Self::Complete { tracker: tracker.clone(), bytes: Some(bytes), has_content: true }
    }

    /// Returns a body that sends `part` and then closes the connection.
    pub(super) fn truncated(part: Bytes) -> Self {
        Self::Truncated(TruncatedBody::Part(part))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = IncompleteBody;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, IncompleteBody>>> {
        match self.get_mut() {
            Self::Complete { tracker, bytes, has_content } => {
                Poll::Ready(bytes.take().map(|bytes| {
                    if *has_content {
                        tracker.mark_content();
                    }
                    tracker.mark_response_complete();
                    Ok(Frame::data(bytes))
                }))
            }
            Self::Truncated(body) => body.poll_frame(cx),
            Self::Stream(stream) => stream.poll_event(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Complete { bytes, .. } => bytes.is_none(),
            Self::Truncated(_) => false,
            Self::Stream(stream) => stream.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Complete { bytes, .. } => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64)
            }
            Self::Truncated(_) | Self::Stream(_) => SizeHint::default(),
        }
    }
}
