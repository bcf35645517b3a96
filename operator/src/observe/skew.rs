//! Estimates the time between the first and the last start of a runner from scrapes. Pure.

use std::{collections::BTreeMap, time::Instant};

use loadtest_core::Duration;

/// Samples of a runner count for this long after its first one. Clocks of machines drift apart, by a few milliseconds in
/// this time.
const SAMPLED: f64 = 60.0;

/// Estimated start times of the runners on the clock of this process.
///
/// The clocks of the nodes don't matter, because a runner reports how long ago it started. It reads this age after its
/// work on the answer, and before the answer comes. So each answer bounds the start from both sides, and the bounds of all
/// answers together are narrow, even if each answer is slow.
#[derive(Clone, Debug, Default)]
pub(crate) struct StartEstimates {
    /// Time of the first request. All start times are relative to this origin.
    origin: Option<Instant>,
    /// By runner index.
    bounds: BTreeMap<u32, StartBounds>,
}

/// When a runner was asked, and when its answer came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RoundTrip {
    pub(crate) sent_at: Instant,
    pub(crate) received_at: Instant,
    /// Seconds that the runner says it worked on the answer.
    pub(crate) work_seconds: f64,
}

/// Seconds from the origin; negative before it.
#[derive(Clone, Copy, Debug)]
struct StartBounds {
    earliest: f64,
    latest: f64,
    /// Time of the first question.
    since: f64,
}

impl StartEstimates {
    /// Adds a sample of a running runner. `elapsed` is the time since its start in seconds.
    pub(crate) fn add_sample(&mut self, index: u32, round_trip: RoundTrip, elapsed: f64) {
        let RoundTrip { sent_at, received_at, work_seconds } = round_trip;
        let origin = *self.origin.get_or_insert(sent_at);
        let whole = received_at.saturating_duration_since(sent_at).as_secs_f64();
        // A runner is not trusted.
        let work = work_seconds.clamp(0.0, whole);
        let since = sent_at.saturating_duration_since(origin).as_secs_f64()
            - origin.saturating_duration_since(sent_at).as_secs_f64();
        let (earliest, latest) = (since + work - elapsed, since + whole - elapsed);
        let bounds = self.bounds.entry(index).or_insert(StartBounds { earliest, latest, since });
        if since - bounds.since <= SAMPLED {
            bounds.earliest = bounds.earliest.max(earliest);
            bounds.latest = bounds.latest.min(latest);
        }
    }

    /// Returns the time between the first and the last start.
    ///
    /// Returns `None` until each of these runners has a sample.
    pub(crate) fn start_skew(&self, runners: impl IntoIterator<Item = u32>) -> Option<Duration> {
        if !runners.into_iter().all(|index| self.bounds.contains_key(&index)) {
            return None;
        }
        let starts =
            || self.bounds.values().map(|bounds| f64::midpoint(bounds.earliest, bounds.latest));
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
        estimate(samples, 0)
    }

    /// Like [`estimated_skew`]. The runners work this many milliseconds on each answer.
    fn estimate(samples: &[(u32, u64, u64, f64)], work: u64) -> Option<f64> {
        let zero = Instant::now();
        let after = |millis: u64| zero + std::time::Duration::from_millis(millis);
        let mut estimates = StartEstimates::default();
        for &(index, sent_at, round_trip, share) in samples {
            let read_at = sent_at as f64 + round_trip as f64 * share;
            let elapsed = (read_at - 40.0 * f64::from(index)) / 1000.0;
            let round_trip = RoundTrip {
                sent_at: after(sent_at),
                received_at: after(sent_at + round_trip),
                work_seconds: work as f64 / 1000.0,
            };
            estimates.add_sample(index, round_trip, elapsed);
        }
        estimates.start_skew(0..2).map(|skew| skew.as_millis_f64().round())
    }

    #[test]
    fn start_skew_does_not_depend_on_the_time_of_scrapes() {
        assert_eq!(estimated_skew(&[(0, 1000, 2, 0.5), (1, 1500, 2, 0.5)]), Some(40.0));
        assert_eq!(estimated_skew(&[(1, 1000, 2, 0.5), (0, 900, 2, 0.5)]), Some(40.0));
    }

    #[test]
    fn all_answers_of_a_minute_narrow_the_estimate() {
        let (slow_back, slow_there) = ((1, 1000, 60, 0.0), (1, 2000, 60, 1.0));
        assert_eq!(estimated_skew(&[(0, 1000, 0, 0.5), slow_back]), Some(70.0));
        assert_eq!(estimated_skew(&[(0, 1000, 0, 0.5), slow_there]), Some(10.0));
        assert_eq!(estimated_skew(&[(0, 1000, 0, 0.5), slow_back, slow_there]), Some(40.0));
        let too_late = (1, 90_000, 60, 1.0);
        assert_eq!(estimated_skew(&[(0, 1000, 0, 0.5), slow_back, too_late]), Some(70.0));
    }

    #[test]
    fn work_of_a_runner_is_no_time_on_the_way() {
        let slow = (1, 1000, 60, 1.0);
        assert_eq!(estimate(&[(0, 1000, 60, 1.0), slow], 60), Some(40.0));
        // A runner that claims to have worked longer than it took to answer.
        assert_eq!(estimate(&[(0, 1000, 60, 1.0), slow], 9000), Some(40.0));
    }

    #[test]
    fn start_skew_is_unknown_without_a_sample_of_every_runner() {
        assert_eq!(estimated_skew(&[(0, 1000, 2, 0.5)]), None);
    }
}
