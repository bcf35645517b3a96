//! Measurements of requests.

pub(crate) mod in_flight;
pub(crate) mod recorder;
pub(crate) mod request_log;
