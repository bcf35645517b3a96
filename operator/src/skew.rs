//! How far apart the runners really started, from what their scrapes tell. Pure.

use std::{collections::BTreeMap, time::Instant};

use loadtest_core::Duration;

/// When runners started, on this process's clock, so that clocks of nodes don't matter.
///
/// A runner says how long ago it started; it said so at some moment between question and
/// answer. The middle of the two is off by half the round trip at most, so of all looks at
/// a runner the one with the shortest round trip counts.
#[derive(Clone, Debug, Default)]
pub struct StartEstimates {
    origin: Option<Instant>,
    samples: BTreeMap<u32, ClockSample>,
}

#[derive(Clone, Copy, Debug)]
struct ClockSample {
    /// Seconds from question to answer.
    round_trip: f64,
    /// Seconds from the origin to the runner's start; negative when it was earlier.
    start: f64,
}

impl StartEstimates {
    /// Takes one look at a running runner: `elapsed` seconds since its start.
    pub fn add_sample(&mut self, index: u32, asked: Instant, answered: Instant, elapsed: f64) {
        let origin = *self.origin.get_or_insert(asked);
        let round_trip = answered.saturating_duration_since(asked).as_secs_f64();
        let offset = asked.saturating_duration_since(origin).as_secs_f64()
            - origin.saturating_duration_since(asked).as_secs_f64();
        let sample = ClockSample { round_trip, start: offset + round_trip / 2.0 - elapsed };
        let best = self.samples.entry(index).or_insert(sample);
        if sample.round_trip < best.round_trip {
            *best = sample;
        }
    }

    /// The time between the first and the last start; `None` until all runners were looked at.
    pub fn skew(&self, runners: usize) -> Option<Duration> {
        if self.samples.len() < runners {
            return None;
        }
        let starts = || self.samples.values().map(|sample| sample.start);
        let (first, last) = (starts().reduce(f64::min)?, starts().reduce(f64::max)?);
        Some(Duration::from_secs_f64(last - first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runner 1 starts 40 ms after runner 0; looks are given as (index, asked, round trip,
    /// share of the round trip that had passed when it was answered), in milliseconds.
    fn spread(looks: &[(u32, u64, u64, f64)]) -> Option<f64> {
        let zero = Instant::now();
        let after = |millis: u64| zero + std::time::Duration::from_millis(millis);
        let mut estimates = StartEstimates::default();
        for &(index, asked, round_trip, share) in looks {
            let said = asked as f64 + round_trip as f64 * share;
            let elapsed = (said - 40.0 * f64::from(index)) / 1000.0;
            estimates.add_sample(index, after(asked), after(asked + round_trip), elapsed);
        }
        estimates.skew(2).map(|spread| spread.as_millis_f64().round())
    }

    #[test]
    fn the_spread_is_that_of_the_starts_whenever_runners_are_asked() {
        assert_eq!(spread(&[(0, 1000, 2, 0.5), (1, 1500, 2, 0.5)]), Some(40.0));
        assert_eq!(spread(&[(1, 1000, 2, 0.5), (0, 900, 2, 0.5)]), Some(40.0));
    }

    #[test]
    fn a_slow_answer_counts_only_until_there_is_a_faster_one() {
        let slow = (1, 1000, 60, 0.0);
        assert_eq!(spread(&[(0, 1000, 0, 0.5), slow]), Some(70.0));
        assert_eq!(spread(&[(0, 1000, 0, 0.5), slow, (1, 2000, 2, 0.5)]), Some(40.0));
        // Many noisy looks never make the spread smaller than it is.
        assert_eq!(spread(&[(0, 1000, 0, 0.5), (1, 2000, 2, 0.5), (1, 3000, 80, 1.0)]), Some(40.0));
    }

    #[test]
    fn a_runner_that_was_never_heard_leaves_the_spread_unknown() {
        assert_eq!(spread(&[(0, 1000, 2, 0.5)]), None);
    }
}
