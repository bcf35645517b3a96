//! Limits of an endpoint: requests in flight and requests per second.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::settings::Limits;

const NANOS_PER_SECOND: f64 = 1e9;

/// Counts the requests in flight at one endpoint and limits their rate.
#[derive(Debug, Default)]
pub(crate) struct Limiter {
    in_flight: AtomicU32,
    /// Time at which the token bucket is full again, in nanoseconds since the start. This is the
    /// "theoretical arrival time" of the generic cell rate algorithm (GCRA, ITU-T I.371).
    full_at: AtomicU64,
}

impl Limiter {
    /// Admits or refuses a request. An admitted request must call [`release`](Self::release).
    pub(crate) fn try_acquire(&self, limits: Limits, now: u64) -> bool {
        let Limits { max_concurrent, max_rate } = limits;
        let before = self.in_flight.fetch_add(1, Ordering::Relaxed);
        let admitted = max_concurrent.is_none_or(|max| before < max)
            && max_rate.is_none_or(|rate| self.take_token(rate.value(), now));
        if !admitted {
            self.release();
        }
        admitted
    }

    /// Releases the place of an admitted request that has ended.
    pub(crate) fn release(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    fn take_token(&self, per_second: f64, now: u64) -> bool {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "settings keep rates within 0.001/s and 1e9/s, so this is 1 to 1e12"
        )]
        let spacing = (NANOS_PER_SECOND / per_second).round() as u64;
        // The bucket holds the tokens of one second, and at least one token.
        let depth = spacing.max(1_000_000_000);
        self.full_at
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
                let next = full_at.max(now) + spacing;
                (next - now <= depth).then_some(next)
            })
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use loadtest_core::values::Rate;

    use super::*;

    #[test]
    fn concurrent_requests_stay_within_the_limit() {
        let limiter = Limiter::default();
        let limits = Limits { max_concurrent: Some(2), ..Limits::default() };
        assert!(limiter.try_acquire(limits, 0) && limiter.try_acquire(limits, 0));
        assert!(!limiter.try_acquire(limits, 0));
        limiter.release();
        assert!(limiter.try_acquire(limits, 0) && !limiter.try_acquire(limits, 0));
    }

    #[test]
    fn bursts_hold_one_second_of_the_rate() {
        let limiter = Limiter::default();
        let limits = Limits { max_rate: Some(Rate::per_second(10.0)), ..Limits::default() };
        let admitted_at = |now: u64| (0..100).filter(|_| limiter.try_acquire(limits, now)).count();
        assert_eq!(admitted_at(1), 10);
        assert_eq!(admitted_at(500_000_001), 5);
        assert_eq!(admitted_at(9_000_000_001), 10);
    }

    #[test]
    fn rates_below_one_per_second_admit_one_request() {
        let limiter = Limiter::default();
        let limits = Limits { max_rate: Some(Rate::per_second(0.5)), ..Limits::default() };
        let admitted_at = |now: u64| (0..9).filter(|_| limiter.try_acquire(limits, now)).count();
        let times = [1, 1_500_000_000, 2_500_000_000];
        assert_eq!(times.map(admitted_at), [1, 0, 1]);
    }
}
