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
