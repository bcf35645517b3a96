//! Limits writes of a status. If only the progress has changed, the write waits some seconds. Pure.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Condition, jiff::Timestamp};
use loadtest_core::{Duration, resource::LoadTestStatus};

use super::silence::RUNNERS_SILENT;
use crate::{
    decide::{Decision, signed_duration},
    observe::state::Observed,
};

/// Interval between two writes about a test, of its status or its result, if only the progress has changed.
const PROGRESS_WRITE_INTERVAL: Duration = Duration::from_secs(5);

/// Returns true if a status or a result was written so recently that a change of the progress waits.
pub(crate) fn is_recent(written_at: Option<Timestamp>, now: Timestamp) -> bool {
    written_at.is_some_and(|at| now.duration_since(at) < signed_duration(PROGRESS_WRITE_INTERVAL))
}

/// Returns true if a decision changes only the progress, and the status or the result was written just now. The next
/// status need not be made then.
pub(crate) fn can_skip_status(observed: &Observed, decision: &Decision, now: Timestamp) -> bool {
    let Decision::ReportProgress(phase, _) = decision else { return false };
    let Some(status) = &observed.test.status else { return false };
    let collection = &observed.cache.collection;
    let finished = collection.timeline().map_or(0, |timeline| timeline.stages().len());
    is_recent(observed.cache.written_at, now)
        && status.known_phase() == Some(*phase)
        // Users wait for the first summary, so it is written at once.
        && status.summary.is_some()
        && status.stages.len() >= finished
        && status.observed_generation == observed.test.metadata.generation
}

/// Returns true if only the progress has changed, and the status or the result was written just now.
pub(crate) fn is_throttled(
    old: &LoadTestStatus,
    new: &LoadTestStatus,
    written_at: Option<Timestamp>,
    now: Timestamp,
) -> bool {
    let first_summary = old.summary.is_none() && new.summary.is_some();
    let same_stages = old.stages.len() == new.stages.len() && old.aborted == new.aborted;
    is_recent(written_at, now)
        && !first_summary
        && same_stages
        && old.phase == new.phase
        && compared_conditions(old) == compared_conditions(new)
}

/// Returns the conditions. The message about silent runners, which may name other ones each time, is left out.
fn compared_conditions(status: &LoadTestStatus) -> Vec<Condition> {
    let mut conditions = status.conditions.clone();
    for condition in conditions.iter_mut().filter(|c| c.type_ == RUNNERS_SILENT) {
        condition.message.clear();
    }
    conditions
}
