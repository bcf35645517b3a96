//! Measurements of requests: times of the request in flight, recorders per task, snapshots and the
//! request log.
//!
//! Nothing here sends or receives.

pub(crate) mod duration_histogram;
pub(crate) mod in_flight;
pub(crate) mod recorder;
pub(crate) mod request_log;
pub(crate) mod snapshot;
