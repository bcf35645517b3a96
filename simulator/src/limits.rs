//! Who is let in: requests in flight and requests a second, per endpoint.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::settings::Limits;

const SECOND: f64 = 1e9;

/// Counts what is in flight at one endpoint, and remembers how fast requests came.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    in_flight: AtomicU32,
    /// When the token bucket will be full again, in nanoseconds since the start (a GCRA's
    /// "theoretical arrival time", ITU-T I.371).
    full_at: AtomicU64,
}

impl Gate {
    /// Lets a request in, or refuses it. One that is let in must [leave](Self::leave).
    pub(crate) fn enter(&self, limits: Limits, now: u64) -> bool {
        let Limits { max_concurrent, max_rate } = limits;
        let before = self.in_flight.fetch_add(1, Ordering::Relaxed);
        let admitted = max_concurrent.is_none_or(|max| before < max)
            && max_rate.is_none_or(|rate| self.take_token(rate.value(), now));
        if !admitted {
            self.leave();
        }
        admitted
    }

    /// A request that was let in is over.
    pub(crate) fn leave(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    fn take_token(&self, per_second: f64, now: u64) -> bool {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "settings keep rates within 0.001/s and 1e9/s, so this is 1 to 1e12"
        )]
        let spacing = (SECOND / per_second).round() as u64;
        // The bucket holds one second's tokens, at least one.
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
    fn no_more_than_the_limit_are_inside() {
        let gate = Gate::default();
        let limits = Limits { max_concurrent: Some(2), ..Limits::default() };
        assert!(gate.enter(limits, 0) && gate.enter(limits, 0) && !gate.enter(limits, 0));
        gate.leave();
        assert!(gate.enter(limits, 0) && !gate.enter(limits, 0));
    }

    #[test]
    fn a_second_of_the_rate_may_come_at_once_and_then_only_the_rate() {
        let gate = Gate::default();
        let limits = Limits { max_rate: Some(Rate::per_second(10.0)), ..Limits::default() };
        let at = |now: u64| (0..100).filter(|_| gate.enter(limits, now)).count();
        assert_eq!(at(1), 10);
        assert_eq!(at(500_000_001), 5);
        assert_eq!(at(9_000_000_001), 10);
    }

    #[test]
    fn less_than_one_a_second_still_lets_one_in() {
        let gate = Gate::default();
        let limits = Limits { max_rate: Some(Rate::per_second(0.5)), ..Limits::default() };
        let at = |now: u64| (0..9).filter(|_| gate.enter(limits, now)).count();
        assert_eq!([at(1), at(1_500_000_000), at(2_500_000_000)], [1, 0, 1]);
    }
}
