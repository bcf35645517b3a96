//! The Lease that says which replica of the operator may act.
//!
//! A thread of its own renews the Lease, so that work on LoadTests can't delay a renewal. The rest of the
//! operator asks a [`Leadership`].
//!
//! The times follow one rule: a leader begins nothing more [`LEADER_TIME`] after it sent its last successful
//! renewal, and another replica takes the Lease [`DURATION`] after it saw the last renewal. The first time
//! is shorter, so two replicas never act at once, except after somebody has deleted the Lease. Only durations on one machine are compared; the clocks
//! of two machines are not.
//!
//! A leader keeps the Lease through one renewal that gets no answer: [`RENEW_INTERVAL`] and
//! [`REQUEST_TIMEOUT`] together are shorter than [`LEADER_TIME`].

mod authority;
mod keeper;
mod leadership;
mod record;

use std::time::Duration;

pub(crate) use self::authority::Authority;
pub use self::{
    keeper::{Keeper, LeaseSettings, keep_lease},
    leadership::Leadership,
};

/// Time after which a Lease that was not renewed is free.
const DURATION: Duration = Duration::from_secs(10);
/// Time for which a leader may act after it sent a renewal.
const LEADER_TIME: Duration = Duration::from_secs(8);
/// Interval between two renewals.
const RENEW_INTERVAL: Duration = Duration::from_secs(2);
/// Interval between two reads of the Lease by a replica that waits for it.
const WAIT_INTERVAL: Duration = Duration::from_secs(1);
/// Time limit of one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

const _: () = assert!(
    RENEW_INTERVAL.as_secs() + REQUEST_TIMEOUT.as_secs() < LEADER_TIME.as_secs()
        && LEADER_TIME.as_secs() < DURATION.as_secs()
);
