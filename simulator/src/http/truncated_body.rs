//! A response body that ends too early, on purpose.

use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::Frame;

/// A body that sends a part of its bytes and then fails.
#[derive(Debug)]
pub(crate) enum TruncatedBody {
    /// The part is sent next.
    Part(Bytes),
    /// The part was handed over. It must be written before the body fails.
    Flush,
    /// The body fails next.
    End,
}

/// The error with which a [`TruncatedBody`] ends.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the response is truncated on purpose")]
pub(crate) struct IncompleteBody;

impl TruncatedBody {
    /// Returns the part, then pending once, then an error.
    ///
    /// hyper writes everything while a body is pending, but discards unwritten bytes when a body
    /// fails.
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, IncompleteBody>>> {
        match std::mem::replace(self, Self::End) {
            Self::Part(bytes) => {
                *self = Self::Flush;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Self::Flush => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Self::End => Poll::Ready(Some(Err(IncompleteBody))),
        }
    }
}
