//! The clock of the operator: that of the API server, as far as its responses tell.
//!
//! Objects have the API server's times, and the next replica may run on another machine. With a wrong clock, an
//! operator would take a new object for an old one.

use std::{
    sync::{LazyLock, Mutex, PoisonError},
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderValue, header};
use k8s_openapi::jiff::{SignedDuration, Timestamp, fmt::rfc2822};

use crate::fault_injection::machine_time;

/// A smaller difference is no error of a clock: a response tells whole seconds, and has been on its way.
const TOLERANCE: SignedDuration = SignedDuration::from_secs(3);
/// A response that took longer may tell a time that is over.
const MAX_RESPONSE_TIME: Duration = Duration::from_secs(2);
/// Number of responses in a row that must agree before the clock is corrected.
const MIN_AGREEING: u32 = 5;
/// The header that only the API server writes, and no load balancer before it.
const AUDIT_ID: &str = "audit-id";

/// The clock of this process. All its clients read the same API server.
static CLOCK: LazyLock<Mutex<Clock>> = LazyLock::new(|| Mutex::new(Clock::default()));
/// The start of the clock. The machine's clock may be set later, and this clock does not follow.
static START: LazyLock<(Timestamp, Instant)> = LazyLock::new(|| (machine_time(), Instant::now()));

/// What is added to the time since the start.
#[derive(Debug, Default)]
struct Clock {
    correction: SignedDuration,
    /// Another correction that the last responses asked for, and how many of them.
    candidate: SignedDuration,
    agreeing: u32,
}

/// Returns the time.
pub(crate) fn now() -> Timestamp {
    let correction = CLOCK.lock().unwrap_or_else(PoisonError::into_inner).correction;
    uncorrected().saturating_add(correction).unwrap_or(Timestamp::MAX)
}

fn uncorrected() -> Timestamp {
    let (start, instant) = *START;
    start.saturating_add(instant.elapsed()).unwrap_or(Timestamp::MAX)
}

/// Learns the time from the headers of a response of the API server.
pub(crate) fn observe_response(headers: &HeaderMap, response_time: Duration) {
    if response_time > MAX_RESPONSE_TIME || !headers.contains_key(AUDIT_ID) {
        return;
    }
    let date = headers.get(header::DATE);
    let Some(error) = date.and_then(|date| error_of(uncorrected(), date)) else { return };
    let corrected = CLOCK.lock().unwrap_or_else(PoisonError::into_inner).observe(error);
    if let Some(correction) = corrected {
        tracing::warn!(
            seconds = correction.as_secs(),
            "the clock of this machine is wrong; the operator uses the time of the API server"
        );
    }
}

/// Returns the time to add to a clock that shows `shown` when the API server says `date`.
fn error_of(shown: Timestamp, date: &HeaderValue) -> Option<SignedDuration> {
    let date = rfc2822::parse(date.to_str().ok()?).ok()?.timestamp();
    // The header leaves out what is less than a second.
    Some(date.duration_since(shown) + SignedDuration::from_millis(500))
}

impl Clock {
    /// Notes that a response asks for a correction. Returns the new correction, if it is made now.
    fn observe(&mut self, asked: SignedDuration) -> Option<SignedDuration> {
        let is_near = |other: SignedDuration| (other - asked).abs() <= TOLERANCE;
        if is_near(self.correction) {
            self.agreeing = 0;
            return None;
        }
        if self.agreeing == 0 || !is_near(self.candidate) {
            (self.candidate, self.agreeing) = (asked, 0);
        }
        self.agreeing += 1;
        if self.agreeing < MIN_AGREEING {
            return None;
        }
        self.agreeing = 0;
        self.correction = if is_near(SignedDuration::ZERO) { SignedDuration::ZERO } else { asked };
        Some(self.correction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: SignedDuration = SignedDuration::from_hours(1);

    #[test]
    fn a_date_tells_the_error_of_a_clock() {
        let date = HeaderValue::from_static("Sun, 29 Nov 2026 20:39:56 GMT");
        let machine: Timestamp = "2026-11-29T19:39:56.5Z".parse().unwrap();
        assert_eq!(error_of(machine, &date), Some(HOUR));
        assert_eq!(error_of(machine, &HeaderValue::from_static("yesterday")), None);
    }

    #[test]
    fn several_responses_that_agree_correct_the_clock() {
        let mut clock = Clock::default();
        let second = SignedDuration::from_secs(1);
        for asked in [HOUR, HOUR, HOUR, HOUR + second] {
            assert_eq!(clock.observe(asked), None);
        }
        assert_eq!(clock.observe(HOUR - second), Some(HOUR - second));
        assert_eq!(clock.observe(HOUR), None, "it is right now");
        let set_right: Vec<_> = (0..5).filter_map(|_| clock.observe(second)).collect();
        assert_eq!(set_right, [SignedDuration::ZERO]);
    }

    #[test]
    fn responses_that_differ_correct_nothing() {
        let mut clock = Clock::default();
        for _ in 0..20 {
            // One of two API servers is an hour ahead.
            assert_eq!((clock.observe(HOUR), clock.observe(SignedDuration::ZERO)), (None, None));
        }
    }
}
