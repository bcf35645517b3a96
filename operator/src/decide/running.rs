//! A test under load.

use std::collections::BTreeSet;

use k8s_openapi::{api::batch::v1::Job, jiff::Timestamp};
use loadtest_children::Settings;
use loadtest_core::{Duration, control, plan::ValidTest, resource::Phase};

use super::{
    decision::{CANCEL_GRACE_PERIOD, Decision, Reason, has_elapsed, signed_duration},
    starting::start_after_miss,
};
use crate::{
    collect::time_to_next_boundary,
    observe::start::{StartRecord, latest_start},
    observe::state::Observed,
};

/// Interval between two reconciliations while load runs.
pub(super) const COLLECT_INTERVAL: Duration = Duration::from_secs(2);
/// A status has times in microseconds, and a start record has finer ones.
const STATUS_TIME_STEP: Duration = Duration::from_millis(1);
/// Interval between two reconciliations while the test stops.
const STOPPING_POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Time without a response after which the operator gives up a runner at the end of the test.
const SILENT_RUNNER_TIMEOUT: Duration = Duration::from_secs(60);
/// Time after which the operator ends a test if no runner has ever responded.
const UNREACHABLE_TIMEOUT: Duration = Duration::from_secs(45);
/// Time after which a runner that has not taken its stop order is stopped by force.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn decide_running(
    observed: &Observed,
    valid: &ValidTest,
    settings: &Settings,
    now: Timestamp,
) -> Decision {
    let cancelled = observed.test.spec.cancel;
    let is_forced = observed.forced_stop_at().is_some();
    let known = if is_forced { observed.known_start() } else { observed.start_record() };
    let Some(start) = known else {
        let message = "the Job was deleted under load; delete the LoadTest and create it again";
        return Decision::Conclude { cancelled, failed: Some((Reason::JobLost, message.into())) };
    };
    // The status has the condition `StopForced` before the Job is deleted. Otherwise the next pass would report `JobLost`.
    let is_there = |job: &Job| job.metadata.deletion_timestamp.is_none();
    if is_forced && observed.job.as_ref().is_some_and(is_there) {
        return Decision::DeleteStoppedJob;
    }
    let collected = observed.collected_disrupted_pods(&start);
    if !collected.is_empty() {
        return Decision::SendRelease(collected);
    }
    let latest = latest_start(&start, valid);
    if !cancelled && let Some(next) = start_after_miss(observed, &start, latest, settings, now) {
        return Decision::PersistStart(next);
    }
    let reported = observed.status().start_time;
    if reported.is_some_and(|reported| has_elapsed(reported.0, start.at, STATUS_TIME_STEP)) {
        return Decision::ReportStarted(start);
    }
    let duration = valid.load.duration();
    let end = start.at.saturating_add(signed_duration(duration)).unwrap_or(Timestamp::MAX);
    let cache = &observed.cache;
    let lost = observed.lost_runners(&start, now);
    // Losses are reported before the test ends, also if no runner is left.
    if let Some(news) = unreported_losses(observed, &start, &lost) {
        return Decision::ReportLoss(news);
    }
    if all_runners_are_over(observed, &start, latest, now) {
        return Decision::Conclude { cancelled, failed: None };
    }
    // With a summary in the status, an earlier process of the operator has had a response.
    let any_response = cache.collection.has_answers()
        || !cache.start_accepted.is_empty()
        || observed.status().summary.is_some();
    let waiting_since = cache.first_seen.map_or(start.at, |first_seen| first_seen.max(start.at));
    if !any_response && has_elapsed(waiting_since, now, UNREACHABLE_TIMEOUT) {
        let mismatch = cache.collection.contract_mismatch().map(str::to_owned);
        let message = mismatch.unwrap_or_else(|| {
            format!(
                "no runner responds to the operator on port {}; allow traffic to this port from the operator's namespace (check network policies and the state of the pods)",
                control::PORT
            )
        });
        return Decision::Conclude { cancelled, failed: Some((Reason::Unreachable, message)) };
    }
    // A runner that responds ends by itself, even if its start order came late. So the test is
    // over only after every runner that is still missing has been silent for long enough.
    let latest_end = duration.plus(valid.graceful_stop);
    let stopped =
        observed.stop_sent_at().is_some_and(|at| has_elapsed(at, now, CANCEL_GRACE_PERIOD));
    if (stopped || has_elapsed(start.at, now, latest_end))
        && all_runners_are_silent(observed, &start, now)
    {
        return Decision::Conclude { cancelled, failed: None };
    }
    let is_reachable = |uid: &&String| {
        let pod = observed.runners.iter().find(|runner| runner.uid == **uid);
        pod.is_some_and(|pod| pod.termination.is_none() && pod.ip.is_some())
    };
    let reachable_without = |accepted: &BTreeSet<String>| -> Vec<String> {
        let reachable = start.pods.iter().filter(is_reachable);
        reachable.filter(|uid| !accepted.contains(*uid)).cloned().collect()
    };
    let reported = observed.test.status.as_ref().and_then(|status| status.aborted.as_ref());
    if let (None, Some(aborted)) = (reported, observed.aborted()) {
        // The status must contain the reason before any runner stops. Otherwise the reason is lost
        // if the operator restarts in between.
        return Decision::ReportAbort(aborted);
    }
    let too_many_lost = lost.len() as u64 > observed.tolerated_losses(&start);
    let stopping = cancelled || reported.is_some() || too_many_lost;
    // Stop orders go out before start orders, so a test that is being stopped starts no runner.
    // An unreachable runner does not delay the orders to the others.
    let not_stopped = reachable_without(&cache.stop_accepted);
    if stopping && !not_stopped.is_empty() && !is_forced {
        let is_overdue = cache.stop_sent_at.is_some_and(|at| has_elapsed(at, now, STOP_TIMEOUT));
        return if is_overdue || cache.token_has_changed {
            Decision::ForceStop(not_stopped)
        } else {
            Decision::SendStop(not_stopped)
        };
    }
    if stopping || now >= end {
        return Decision::ReportProgress(Phase::Stopping, STOPPING_POLL_INTERVAL);
    }
    // A runner that starts much later than the others makes another load than the one that was asked for.
    let not_started = reachable_without(&cache.start_accepted);
    if !not_started.is_empty() && now <= latest {
        return Decision::SendStart(start, not_started);
    }
    let until_boundary = time_to_next_boundary(valid, observed.load_elapsed(&start, now));
    Decision::ReportProgress(Phase::Running, COLLECT_INTERVAL.min(until_boundary))
}

/// Returns the descriptions of all lost runners if one of them is not reported yet.
fn unreported_losses(
    observed: &Observed,
    start: &StartRecord,
    lost: &[usize],
) -> Option<Vec<String>> {
    let reported = observed.status().measurement.map_or(0, |measurement| measurement.runners_lost);
    // Runners that end after a stop order are not reported as lost.
    let is_forced = observed.forced_stop_at().is_some();
    (lost.len() as u64 > reported && !is_forced)
        .then(|| lost.iter().map(|index| observed.describe_loss(start, *index)).collect())
}

/// Returns true if no runner can produce more load: each one is final, lost, or missed its start.
fn all_runners_are_over(
    observed: &Observed,
    start: &StartRecord,
    latest: Timestamp,
    now: Timestamp,
) -> bool {
    let missed_start =
        |index: usize| now > latest && observed.has_missed_start(start, index, latest);
    (0..start.pods.len()).all(|index| {
        observed.is_final(index) || observed.is_lost(start, index) || missed_start(index)
    })
}

/// Returns true if no more snapshots are expected: each runner is final, lost, or has not responded
/// for [`SILENT_RUNNER_TIMEOUT`].
fn all_runners_are_silent(observed: &Observed, start: &StartRecord, now: Timestamp) -> bool {
    (0..start.pods.len()).all(|index| {
        observed.is_final(index)
            || observed.is_lost(start, index)
            || observed.silence(start, index, now) >= signed_duration(SILENT_RUNNER_TIMEOUT)
    })
}
