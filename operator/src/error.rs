//! The error of a reconciliation, and how an error becomes text.

use std::time::Duration;

use loadtest_core::result::StoredResultError;

/// Reason why a reconciliation failed. The next reconciliation starts again from live reads.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server rejected a request, or the operator can't reach the API server.
    #[error("failed to {action} {name}")]
    Api {
        /// Verb and kind of object, such as `get job`.
        action: &'static str,
        /// Name of the object.
        name: String,
        /// Error of the Kubernetes client.
        source: Box<kube::Error>,
    },
    /// A child object can't be created because its name belongs to another owner.
    #[error(
        "{kind} {name} already exists and belongs to another owner; delete it or rename the LoadTest"
    )]
    NameTaken {
        /// Kind of the existing object.
        kind: String,
        /// Name of the existing object.
        name: String,
    },
    /// A value has no JSON form.
    #[error("failed to serialize {what} as JSON")]
    Serialize {
        /// The value, such as `the plan`.
        what: &'static str,
        /// Error of the serializer.
        source: serde_json::Error,
    },
    /// The test has changed since it was read.
    #[error("{0} has changed since it was read; trying again")]
    Conflict(String),
    /// This process does not hold the Lease, or holds it no longer.
    #[error("this replica does not lead")]
    NotLeader,
    /// The reconciliation took longer than this limit.
    #[error("reconciliation took longer than {} s", .0.as_secs())]
    Timeout(Duration),
}

impl Error {
    pub(crate) fn api(action: &'static str, name: &str, source: kube::Error) -> Self {
        Self::Api { action, name: name.to_owned(), source: Box::new(source) }
    }

    /// Returns the HTTP status code of the API server.
    fn status_code(&self) -> Option<u16> {
        let Self::Api { source, .. } = self else { return None };
        match &**source {
            kube::Error::Api(status) => Some(status.code),
            _ => None,
        }
    }

    /// Returns true if the API server will refuse the same object for ever. A conflict with another writer is over in a
    /// moment.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::NameTaken { .. })
            || matches!(self.status_code(), Some(400 | 403 | 422))
    }

    /// Returns true for an error that is no fault: the next reconciliation sees what has changed.
    pub(crate) const fn is_expected(&self) -> bool {
        matches!(self, Self::Conflict(_) | Self::NotLeader)
    }

    /// Returns true if the API server sent an object that this version can't read.
    fn is_undecodable(&self) -> bool {
        matches!(self, Self::Api { source, .. } if matches!(**source, kube::Error::SerdeError(_)))
    }

    /// Returns the value of the metric label `outcome`.
    pub(crate) const fn outcome_label(&self) -> &'static str {
        match self {
            Self::Api { .. } => "api_error",
            Self::NameTaken { .. } => "name_taken",
            Self::Serialize { .. } => "plan_error",
            Self::Conflict(_) => "conflict",
            Self::NotLeader => "not_leader",
            Self::Timeout(_) => "too_slow",
        }
    }
}

/// Why the result of a test can't be stored or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResultError {
    /// The API server rejected a request, or the operator can't reach the API server.
    #[error(transparent)]
    Api(#[from] Error),
    /// The data can't be written or read.
    #[error(transparent)]
    Document(#[from] StoredResultError),
    /// A thread panicked.
    #[error("the thread that compresses results panicked")]
    Panic(#[from] tokio::task::JoinError),
}

impl ResultError {
    /// Returns true if an object was changed or deleted since its version was read.
    pub(crate) fn is_outdated(&self) -> bool {
        matches!(self, Self::Api(error) if matches!(error.status_code(), Some(404 | 409)))
    }

    /// Returns the error of a request to the API server.
    pub(crate) fn into_api(self) -> Result<Error, Self> {
        match self {
            Self::Api(error) => Ok(error),
            other => Err(other),
        }
    }

    /// Returns the error if the API server may accept the same request later.
    pub(crate) fn into_transient(self) -> Result<Error, Self> {
        match self {
            Self::Api(error) => match error.status_code() {
                Some(code) if code != 409 && code != 429 && code < 500 => Err(Self::Api(error)),
                None if error.is_undecodable() => Err(Self::Api(error)),
                _ => Ok(error),
            },
            other => Err(other),
        }
    }
}

/// Returns the texts of an error and of all its sources on one line, joined with `: `.
pub(crate) fn format_error_chain(error: &dyn std::error::Error) -> String {
    let errors = std::iter::successors(Some(error), |error| error.source());
    errors.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stays_refused_is_a_refusal() {
        let api = |code: u16| {
            let status = kube::core::Status { code, ..kube::core::Status::default() };
            Error::api("create", "burst", kube::Error::Api(Box::new(status)))
        };
        let taken = Error::NameTaken { kind: "Job".into(), name: "burst".into() };
        for error in [api(400), api(403), api(422), taken] {
            assert!(error.is_refusal(), "{error:?}");
        }
        let timeout = Error::Timeout(Duration::from_secs(1));
        for error in [api(404), api(409), api(429), api(500), Error::Conflict("a".into()), timeout]
        {
            assert!(!error.is_refusal(), "{error:?}");
        }
    }
}
