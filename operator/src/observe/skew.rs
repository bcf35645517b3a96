//! Estimates the time between the first and the last start of a runner from scrapes. Pure.

use std::{collections::BTreeMap, time::Instant};

use loadtest_core::Duration;

/// Estimated start times of the runners on the clock of this process.
///
/// The clocks of the nodes don't matter, because a runner reports how long ago it started. The
/// runner reads this age at some time between the request and the response of a scrape. The
/// midpoint of both is wrong by at most half the round trip, so the sample with the shortest round
/// trip counts for each runner.
#[derive(Clone, Debug, Default)]
pub(crate) struct StartEstimates {
    /// Time of the first request. All start times are relative to this origin.
    origin: Option<Instant>,
    /// Best sample of each runner, by runner index.
    samples: BTreeMap<u32, ClockSample>,
}

#[derive(Clone, Copy, Debug)]
struct ClockSample {
    /// Seconds from the request to the response.
    round_trip: f64,
    /// Seconds from the origin to the start of the runner. Negative if the start came first.
    start: f64,
}

impl StartEstimates {
    /// Adds a sample of a running runner. `elapsed` is the time since its start in seconds.
    pub(crate) fn add_sample(
        &mut self,
        index: u32,
        sent_at: Instant,
        received_at: Instant,
        elapsed: f64,
    ) {
        let origin = *self.origin.get_or_insert(sent_at);
        let round_trip = received_at.saturating_duration_since(sent_at).as_secs_f64();
        let offset = sent_at.saturating_duration_since(origin).as_secs_f64()
            - origin.saturating_duration_since(sent_at).as_secs_f64();
        let sample = ClockSample { round_trip, start: offset + round_trip / 2.0 - elapsed };
        let best = self.samples.entry(index).or_insert(sample);
        if sample.round_trip < best.round_trip {
            *best = sample;
        }
    }

    /// Returns the time between the first and the last start.
    ///
    /// Returns `None` until each of the `runners` runners has a sample.
    pub(crate) fn start_skew(&self, runners: usize) -> Option<Duration> {
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

    /// Returns the estimated skew in milliseconds. The true skew is 40 ms: runner 1 starts 40 ms
    /// after runner 0.
    ///
    /// A sample is (runner index, time of the request, round trip, share). Times are in
    /// milliseconds. `share` is the part of the round trip after which the runner reads its clock.
    fn estimated_skew(samples: &[(u32, u64, u64, f64)]) -> Option<f64> {
        let zero = Instant::now();
        let after = |millis: u64| zero + std::time::Duration::from_millis(millis);
        let mut estimates = StartEstimates::default();
        for &(index, sent_at, round_trip, share) in samples {
            let read_at = sent_at as f64 + round_trip as f64 * share;
            let elapsed = (read_at - 40.0 * f64::from(index)) / 1000.0;
            estimates.add_sample(index, after(sent_at), after(sent_at + round_trip), elapsed);
        }
        estimates.start_skew(2).map(|skew| skew.as_millis_f64().round())
    }

    #[test]
    fn start_skew_does_not_depend_on_the_time_of_scrapes() {
        assert_eq!(estimated_skew(&[(0, 1000, 2, 0.5), (1, 1500, 2, 0.5)]), Some(40.0));
        assert_eq!(estimated_skew(&[(1, 1000, 2, 0.5), (0, 900, 2, 0.5)]), Some(40.0));
    }

    #[test]
    fn sample_with_the_shortest_round_trip_counts() {
        let slow = (1, 1000, 60, 0.0);
        assert_eq!(estimated_skew(&[(0, 1000, 0, 0.5), slow]), Some(70.0));
        assert_eq!(estimated_skew(&[(0, 1000, 0, 0.5), slow, (1, 2000, 2, 0.5)]), Some(40.0));
        // A later sample with a longer round trip does not change the estimate.
        assert_eq!(
            estimated_skew(&[(0, 1000, 0, 0.5), (1, 2000, 2, 0.5), (1, 3000, 80, 1.0)]),
            Some(40.0)
        );
    }

    #[test]
    fn start_skew_is_unknown_without_a_sample_of_every_runner() {
        assert_eq!(estimated_skew(&[(0, 1000, 2, 0.5)]), None);
    }
}
