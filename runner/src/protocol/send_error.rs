//! Why a request has no response, and whether it may be sent again.

use crate::failure::Failure;

/// Why a request has no response.
#[derive(Debug)]
pub(crate) enum SendError {
    /// The target has not processed the request. Another connection may send it again.
    Unsent(Failure),
    /// The target has not processed the request, because too many streams were open. The limit was
    /// unknown until its settings arrived.
    Refused(Failure),
    /// The connection ended before the response began. The target may have processed the request.
    Ended(Failure),
    /// The target had closed the connection before the request reached it, as TCP proves.
    Missed(Failure),
    /// Any other failure.
    Failed(Failure),
}

impl SendError {
    pub(super) fn into_failure(self) -> Failure {
        match self {
            Self::Unsent(failure)
            | Self::Refused(failure)
            | Self::Ended(failure)
            | Self::Missed(failure)
            | Self::Failed(failure) => failure,
        }
    }
}
