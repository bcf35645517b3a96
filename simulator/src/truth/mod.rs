//! The truth about each run: counts of all requests, and one record per request up to a limit.
//!
//! Connections write through [`RunStore::get_or_create`] and [`Run`]; readers get a [`RunTruth`].
//! This module knows no sockets and no protocols.

mod record;
mod report;
mod run;
mod run_store;

pub(crate) use self::{
    record::{Direction, Record},
    run::Run,
    run_store::RunStore,
};
pub use self::{
    record::{Endpoint, Outcome},
    report::{Counts, EndpointTruth, Endpoints, Quantiles, RunSummary, RunTruth, Times, Timestamp},
};
