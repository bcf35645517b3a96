//! The start of a test. Pure.

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use loadtest_core::{judge::max_start_skew, plan::ValidTest};
use serde::{Deserialize, Serialize};

/// Annotation of the Job that holds the [`StartRecord`] as JSON.
pub(crate) const START_ANNOTATION: &str = "loadtest.cell0.io/start";

/// Annotation of the `LoadTest` with the UID under which it was launched. Backups keep annotations, and not the
/// status: a test that is restored must not run again.
pub(crate) const RUN_UID_ANNOTATION: &str = "loadtest.cell0.io/run-uid";

/// The start of a test. It is written to the Job before any start order. Another one replaces it only if no
/// runner has started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StartRecord {
    /// Start time of the load on all runners.
    pub(crate) at: Timestamp,
    /// UIDs of the runner pods by index. Other pods never get a start order.
    pub(crate) pods: Vec<String>,
}

/// Returns the latest time at which a runner may start.
pub(crate) fn latest_start(start: &StartRecord, valid: &ValidTest) -> Timestamp {
    let skew = max_start_skew(valid.load.duration());
    let skew = SignedDuration::try_from(skew.to_std()).unwrap_or(SignedDuration::MAX);
    start.at.saturating_add(skew).unwrap_or(start.at)
}

/// Returns how long it takes to send a number of start orders.
pub(crate) fn time_for_orders(orders: usize) -> SignedDuration {
    SignedDuration::from_millis(10).saturating_mul(i32::try_from(orders).unwrap_or(i32::MAX))
}

/// Returns the start time in orders that are sent now. If the recorded time has passed, or is too near for so
/// many orders, all of these runners start together a bit later.
pub(crate) fn time_in_orders(start: &StartRecord, orders: usize, now: Timestamp) -> Timestamp {
    start.at.max(now.saturating_add(time_for_orders(orders)).unwrap_or(now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::noon;

    #[test]
    fn late_orders_name_one_start_for_all_runners() {
        let start = StartRecord { at: noon(), pods: Vec::new() };
        let millis_after_noon = |orders, sent_at| {
            let sent_at = noon() + SignedDuration::from_millis(sent_at);
            time_in_orders(&start, orders, sent_at).duration_since(noon()).as_millis()
        };
        assert_eq!(millis_after_noon(20, -200), 0);
        assert_eq!(millis_after_noon(20, -50), 150);
        assert_eq!(millis_after_noon(1000, 400), 10_400);
    }
}
