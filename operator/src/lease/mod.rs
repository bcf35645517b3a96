//! The Lease that says which replica of the operator may act.
//!
//! A thread of its own renews the Lease, so that work on LoadTests can't delay a renewal. The rest of the
//! operator asks a [`Leadership`].
//!
//! The times follow one rule: a leader stops acting [`HOLD`] after it sent its last successful renewal, and
//! another replica takes the Lease [`DURATION`] after it saw the last renewal. `HOLD` is shorter, so there
//! is no time at which both act. Only durations on one machine are compared; the clocks of two machines
//! are not.

mod keeper;
mod leadership;
mod record;

use std::time::Duration;

pub use self::{
    keeper::{Keeper, LeaseSettings, keep_lease},
    leadership::Leadership,
};

/// Time after which a Lease that was not renewed is free.
const DURATION: Duration = Duration::from_secs(8);
/// Time for which a leader may act after it sent a renewal.
const HOLD: Duration = Duration::from_secs(6);
/// Interval between two renewals.
const RENEW_INTERVAL: Duration = Duration::from_secs(2);
/// Interval between two looks of a replica that waits for the Lease.
const WAIT_INTERVAL: Duration = Duration::from_secs(1);
/// Time limit of a request for the Lease.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(4);
