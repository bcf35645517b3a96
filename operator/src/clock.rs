//! The clock of the operator: that of the API server, as far as its responses tell.
//!
//! Objects have the API server's times, and the next replica may run on another machine. With a clock that is
//! wrong, an operator would take new objects for old ones, or a start for one to come.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use http::HeaderValue;
use k8s_openapi::jiff::{SignedDuration, Timestamp, fmt::rfc2822};

use crate::fault_injection::machine_time;

/// A smaller difference is no error of a clock: a response tells whole seconds, and has been on its way.
const TOLERANCE: SignedDuration = SignedDuration::from_secs(3);
/// A response that took longer may tell a time that is over.
const MAX_RESPONSE_TIME: Duration = Duration::from_secs(2);

/// What the machine's clock lacks, in milliseconds. All clients of this process read the same API server.
static CORRECTION: AtomicI64 = AtomicI64::new(0);

/// Returns the time.
pub(crate) fn now() -> Timestamp {
    let correction = SignedDuration::from_millis(CORRECTION.load(Ordering::Relaxed));
    machine_time().saturating_add(correction).unwrap_or(Timestamp::MAX)
}

/// Learns the time from the header `Date` of a response of the API server.
pub(crate) fn observe_date(date: Option<&HeaderValue>, response_time: Duration) {
    let date = date.filter(|_| response_time < MAX_RESPONSE_TIME);
    let Some(found) = date.and_then(|date| lacking(date, machine_time())) else { return };
    let known = SignedDuration::from_millis(CORRECTION.load(Ordering::Relaxed));
    if let Some(correction) = corrected(known, found) {
        tracing::warn!(
            seconds = correction.as_secs(),
            "the clock of this machine differs from that of the API server, which counts"
        );
        let millis = i64::try_from(correction.as_millis()).unwrap_or_default();
        CORRECTION.store(millis, Ordering::Relaxed);
    }
}

/// Returns what a clock lacks that shows `machine_time` when the API server says `date`.
fn lacking(date: &HeaderValue, machine_time: Timestamp) -> Option<SignedDuration> {
    let date = rfc2822::parse(date.to_str().ok()?).ok()?.timestamp();
    // The header leaves out what is less than a second.
    Some(date.duration_since(machine_time) + SignedDuration::from_millis(500))
}

/// Returns the next correction if the known one is wrong.
fn corrected(known: SignedDuration, found: SignedDuration) -> Option<SignedDuration> {
    let is_right = |correction: SignedDuration| (correction - found).abs() <= TOLERANCE;
    if is_right(known) {
        return None;
    }
    Some(if is_right(SignedDuration::ZERO) { SignedDuration::ZERO } else { found })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: SignedDuration = SignedDuration::from_hours(1);

    #[test]
    fn a_date_tells_what_a_clock_lacks() {
        let date = HeaderValue::from_static("Sun, 29 Nov 2026 20:39:56 GMT");
        let machine: Timestamp = "2026-11-29T19:39:56.5Z".parse().unwrap();
        assert_eq!(lacking(&date, machine), Some(HOUR));
        assert_eq!(lacking(&HeaderValue::from_static("yesterday"), machine), None);
    }

    #[test]
    fn only_a_wrong_clock_is_corrected() {
        let seconds = SignedDuration::from_secs;
        assert_eq!(corrected(SignedDuration::ZERO, seconds(-2)), None);
        assert_eq!(corrected(SignedDuration::ZERO, HOUR), Some(HOUR));
        assert_eq!(corrected(HOUR, HOUR - seconds(2)), None);
        assert_eq!(corrected(HOUR, seconds(1)), Some(SignedDuration::ZERO), "it was set right");
    }
}
