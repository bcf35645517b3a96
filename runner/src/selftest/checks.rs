//! The checks: number of requests, schedule, response times, and a target that stalls.

use std::time::{Duration, Instant};

use loadtest_core::metrics::{LatencyHistogram, LatencyMetric, Outcome};

use crate::loopback::{
    run::{LoopbackError, LoopbackRun, run_on_loopback},
    target::ResponseTiming,
};

/// Time for the threads to get ready.
const LEAD_TIME: Duration = Duration::from_millis(300);
/// Lags up to this are normal. A generator with a larger one makes a verdict Inconclusive.
pub(super) const MAX_LAG: Duration = Duration::from_millis(5);
/// Maximum time that other work on the machine may add to a latency. A quiet machine adds a tenth
/// of a millisecond.
const MAX_ADDED: Duration = Duration::from_millis(10);

/// One line of the table.
#[derive(Clone, Debug)]
pub(super) struct Check {
    /// The quantity that was checked.
    pub(super) name: String,
    /// The expected value.
    pub(super) expected: String,
    /// The measured value.
    pub(super) measured: String,
    /// True when the measured value is within its bound.
    pub(super) passed: bool,
    /// True when nothing is wrong but a time that is too long. Other work on the machine can cause only
    /// that.
    pub(super) is_late: bool,
}

impl Check {
    fn new(name: impl Into<String>, expected: String, measured: String, passed: bool) -> Self {
        Self { name: name.into(), expected, measured, passed, is_late: false }
    }

    fn or_late(self, is_late: bool) -> Self {
        Self { is_late, ..self }
    }
}

fn format_duration(time: Duration) -> String {
    loadtest_core::Duration::from(time).rounded()
}

/// Returns the `p`-quantile of sorted values by nearest rank.
fn nearest_rank(sorted: &[Duration], p: f64) -> Duration {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank is at most the count"
    )]
    let rank = (p * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or_default()
}

/// Checks with 64 users at full speed that no request is lost or counted twice.
pub(super) async fn check_accounting() -> Result<Vec<Check>, LoopbackError> {
    let load = serde_json::json!({"users": {"users": 64, "spawnRate": 10_000, "duration": "2s"}});
    let LoopbackRun { metrics, requests, .. } =
        run_on_loopback(load, LEAD_TIME, |_| ResponseTiming::Immediate).await?;
    let total = metrics.all_tasks();
    let count = total.completed_requests() + total.requests_with(Outcome::Interrupted);
    Ok(vec![Check::new(
        "requests counted, 64 users without pause",
        format!("{} at the target", requests.len()),
        format!("{count}, {} failed", total.failed_requests()),
        count == requests.len() as u64
            && total.completed_requests() > 0
            && total.failed_requests() == 0,
    )])
}

/// Compares when requests reach the target with when the load model planned them.
pub(super) async fn check_schedule() -> Result<Vec<Check>, LoopbackError> {
    let load = serde_json::json!({"arrivals": {"rate": 1000, "maxUsers": 100, "duration": "3s"}});
    let LoopbackRun { requests, start, .. } =
        run_on_loopback(load, LEAD_TIME, |_| ResponseTiming::Immediate).await?;
    let mut errors: Vec<Duration> = (0_u32..)
        .zip(&requests)
        .map(|(k, request)| {
            let planned = start + Duration::from_millis(1) * k;
            request.arrived.saturating_duration_since(planned)
                + planned.saturating_duration_since(request.arrived)
        })
        .collect();
    errors.sort_unstable();
    let is_complete = is_almost_all(errors.len(), 3000);
    let row = |p: f64, name: &str, bound: Duration| {
        let found = nearest_rank(&errors, p);
        let name = format!("schedule error {name}, 1000/s, at the target's socket");
        let text = describe_value(found, is_complete, errors.len() as u64);
        let expected = format!("< {}", format_duration(bound));
        Check::new(name, expected, text, is_complete && found < bound).or_late(is_complete)
    };
    Ok(vec![row(0.5, "p50", MAX_LAG), row(0.99, "p99", MAX_LAG), row(1.0, "max", 20 * MAX_LAG)])
}

/// Compares measured response times with the time that the target took. The difference is the
/// network and the generator.
pub(super) async fn check_latency(rate: u32) -> Result<Vec<Check>, LoopbackError> {
    let load = serde_json::json!({"arrivals": {"rate": rate, "maxUsers": 500, "duration": "2s"}});
    let delayed = |_| ResponseTiming::Delayed(Duration::from_millis(20));
    let LoopbackRun { metrics, requests, .. } = run_on_loopback(load, LEAD_TIME, delayed).await?;
    let mut at_target: Vec<Duration> = requests
        .iter()
        .map(|request| request.responded.saturating_duration_since(request.arrived))
        .collect();
    at_target.sort_unstable();
    let measured = metrics.all_tasks().latencies.samples(LatencyMetric::ResponseTime);
    let is_complete = is_almost_all(requests.len(), 2 * rate as usize);
    let count = requests.len() as u64;
    let row = |p: f64, name: &str| {
        let (at_target, measured) = (nearest_rank(&at_target, p), quantile_of(&measured, p));
        let bound = at_target.mul_f64(0.002) + MAX_ADDED;
        let added = measured.saturating_sub(at_target);
        let is_near =
            added <= bound && at_target.saturating_sub(measured) <= at_target.mul_f64(0.002);
        let name = format!("response time {name} at {rate}/s");
        let text = describe_value(measured, is_complete, count);
        let text = format!("{text} (+{})", format_duration(added));
        let expected = format!("{} at the target", format_duration(at_target));
        Check::new(name, expected, text, is_complete && is_near)
            .or_late(is_complete && measured > at_target)
    };
    Ok(vec![row(0.5, "p50"), row(0.99, "p99")])
}

fn quantile_of(histogram: &LatencyHistogram, p: f64) -> Duration {
    histogram.quantile(p).map_or(Duration::ZERO, loadtest_core::Duration::to_std)
}

/// Checks quantiles under a target that freezes for one second in ten (Gil Tene's test for
/// coordinated omission).
///
/// Arrivals at an even rate that fall into that second wait for its end. So for p above 0.9 the
/// quantile is 1 s × (p − 0.9) / 0.1. A generator that waits for a response before its next request
/// sees one slow request per user, and good percentiles.
pub(super) async fn check_stall() -> Result<Vec<Check>, LoopbackError> {
    let load = serde_json::json!({"arrivals": {"rate": 200, "maxUsers": 300, "duration": "10s"}});
    let frozen = |start: Instant| {
        let from = start + Duration::from_secs(5);
        ResponseTiming::Frozen(from, from + Duration::from_secs(1))
    };
    let LoopbackRun { metrics, .. } = run_on_loopback(load, LEAD_TIME, frozen).await?;
    let measured = metrics.all_tasks().latencies.samples(LatencyMetric::ResponseTime);
    let (is_complete, count) = (measured.count() == 2000, measured.count());
    let row = |p: f64, name: &str| {
        let expected = Duration::from_secs_f64((p - 0.9) / 0.1);
        let measured = quantile_of(&measured, p);
        let name = format!("target frozen 1 s in 10, 200/s: {name}");
        let error = (measured.as_secs_f64() / expected.as_secs_f64() - 1.0).abs();
        let text = describe_value(measured, is_complete, count);
        let text = format!("{text} ({:.2} % off)", error * 100.0);
        let passed = is_complete && is_near(measured, expected);
        let is_late = is_complete && measured > expected;
        Check::new(name, format_duration(expected), text, passed).or_late(is_late)
    };
    Ok(vec![row(0.95, "p95"), row(0.99, "p99"), row(0.999, "p99.9")])
}

/// Returns true when at least 99 % of the expected requests were found. Requests that are still
/// waiting at the end of the load are dropped.
const fn is_almost_all(found: usize, expected: usize) -> bool {
    found <= expected && found >= expected - expected / 100
}

/// Returns true for a value within 1 %. The target needs a moment for two hundred responses at the
/// same time, so a value may also be later by up to [`MAX_ADDED`].
fn is_near(measured: Duration, expected: Duration) -> bool {
    let error = measured.abs_diff(expected);
    error <= expected.mul_f64(0.01) || (measured > expected && error <= MAX_ADDED)
}

/// Returns a duration as text, with the number of requests when some of them are missing.
fn describe_value(value: Duration, is_complete: bool, count: u64) -> String {
    if is_complete {
        format_duration(value)
    } else {
        format!("{} of {count} requests", format_duration(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generator_with_coordinated_omission_fails_the_stall_check() {
        let millis = Duration::from_millis;
        for (found, near) in [(500, true), (496, true), (504, true), (494, false), (0, false)] {
            assert_eq!(is_near(millis(found), millis(500)), near, "{found}");
        }
        assert!(is_near(millis(500) + MAX_ADDED, millis(500)));
        assert!(!is_near(millis(501) + MAX_ADDED, millis(500)));
    }
}
