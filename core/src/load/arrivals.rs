//! When each arrival of an open model is due. Pure.
//!
//! Arrival *k* (from 0) is due when the integral of the rate reaches *k*.

use super::profile::{LoadProfile, Segment};
use crate::values::Duration;

impl LoadProfile {
    /// The number of arrivals of an open model in the whole test.
    pub fn arrival_count(&self) -> u64 {
        let area: f64 = self.segments.iter().map(Segment::area).sum();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an area is not negative, and casts saturate"
        )]
        // An arrival that is due at the very end does not start; rounding must not add it.
        let count = (area - 1e-6).ceil().max(0.0) as u64;
        count
    }

    /// The arrivals `first`, `first + step`, … of an open model.
    pub fn arrivals(&self, first: u64, step: u64) -> Arrivals<'_> {
        Arrivals { profile: self, segment: 0, before: 0.0, next: first, step: step.max(1) }
    }
}

/// Iterates over arrivals in the order of their times.
#[derive(Clone, Debug)]
pub struct Arrivals<'a> {
    profile: &'a LoadProfile,
    segment: usize,
    /// Arrivals before the current segment.
    before: f64,
    next: u64,
    step: u64,
}

impl Iterator for Arrivals<'_> {
    /// The arrival's number, and when it is due from the test's start.
    type Item = (u64, Duration);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let segment = self.profile.segments.get(self.segment)?;
            let area = self.next as f64 - self.before;
            // An arrival that is due at a segment's end belongs to the next segment.
            if area >= segment.area() - 1e-6 {
                self.before += segment.area();
                self.segment += 1;
                continue;
            }
            // Solve ∫₀ᵗ (start_level + slope·τ) dτ = area for t, by the form of the quadratic
            // formula that has no cancellation.
            let area = area.max(0.0);
            let square = segment.start_level * segment.start_level + 2.0 * segment.slope() * area;
            let root = square.max(0.0).sqrt();
            let time = if area == 0.0 { 0.0 } else { 2.0 * area / (segment.start_level + root) };
            let number = self.next;
            self.next += self.step;
            let due = (segment.start + time).min(segment.end);
            return Some((number, Duration::from_secs_f64(due)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(yaml: &str) -> LoadProfile {
        LoadProfile::of(&crate::testing::load(yaml))
    }

    #[test]
    fn arrivals_of_a_constant_rate_are_evenly_spaced() {
        let profile = profile("{arrivalRate: 50/s, maxUsers: 1, duration: 2s}");
        let due: Vec<_> = profile.arrivals(0, 1).collect();
        assert_eq!((due.len(), profile.arrival_count()), (100, 100));
        assert_eq!(due[1].1.as_nanos(), 20_000_000);
        assert_eq!(due[99].1.as_nanos(), 1_980_000_000);
    }

    #[test]
    fn arrivals_of_a_ramp_accelerate() {
        let profile = profile("{stages: [{duration: 10s, rate: 20/s}], maxUsers: 1}");
        let due: Vec<_> = profile.arrivals(0, 1).map(|(_, at)| at.as_secs_f64()).collect();
        assert_eq!((due.len(), profile.arrival_count()), (100, 100));
        // The integral t² reaches 25 at 5 s, 81 at 9 s.
        assert!((due[25] - 5.0).abs() < 1e-6 && (due[81] - 9.0).abs() < 1e-6);
    }
}
