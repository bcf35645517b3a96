//! Was the load generator itself able to measure? Pure.
//!
//! A slow load generator must not look like a slow target. Beyond the limits here, a row is
//! Inconclusive and says what to change. A healthy run is far from all of them.

use crate::{
    metrics::{GeneratorMetrics, Metrics},
    values::{Duration, Percent},
};

/// A load thread that uses more than this share of a core can't be on time.
const MAX_THREAD_SHARE: f64 = 0.9;
/// A CPU limit may hold a runner up for this share of the time.
const MAX_THROTTLED_SHARE: f64 = 0.01;
/// A CPU limit may hold a runner up for one period of the kernel's scheduler, in seconds. The
/// shortest window has one such period.
const THROTTLING_PERIOD: f64 = 0.1;
/// Near its memory limit, a program loses its own code from memory and reads it again from disk.
const MAX_MEMORY_SHARE: f64 = 0.95;
/// A lag up to this never makes a latency row Inconclusive.
const MIN_LAG_LIMIT: Duration = Duration::from_millis(5);
/// A lag up to this share of the row's tightest bound doesn't either.
const MAX_LAG_SHARE: f64 = 0.05;
/// Minimum samples of event loop lag: five of them lie above the 99th percentile.
const MIN_LOOP_SAMPLES: u64 = 500;
/// At least this many samples of schedule lag must lie above the percentile used, so that one late
/// request among few does not condemn the generator.
const SAMPLES_BEYOND: f64 = 5.0;
/// With more of the users' time lost to lateness, the load was lighter than planned.
const MAX_LOST_TIME_SHARE: f64 = 0.01;
/// With a smaller share of the planned load, the load was lighter than planned.
const MIN_COVERAGE: f64 = 0.99;
/// Rows of counts tolerate a lag up to this.
const MAX_LAG_OF_COUNTS: Duration = Duration::from_millis(100);

/// Why the metrics may describe the load generator rather than the target; `None` for a healthy
/// generator. `tightest` is the strictest duration that a latency row is judged by; `None` for a
/// row of counts. `holds_if_late` is true for a row that meets its target, and that lateness can only
/// make worse: lateness does not spoil this row, if the load was really made.
///
/// Each runner is judged for itself: one that is a second late among 150 is invisible in the sum.
pub(crate) fn generator_problem(
    tightest: Option<Duration>,
    holds_if_late: bool,
    metrics: &Metrics,
    coverage: f64,
) -> Option<String> {
    let limit = lag_limit(tightest);
    let lag_spoils = !(holds_if_late && coverage >= MIN_COVERAGE && was_load_made(metrics));
    let problem_of = |generator: &GeneratorMetrics| {
        lag_spoils
            .then(|| lag_problem(limit, generator))
            .flatten()
            .or_else(|| cpu_problem(generator))
            .or_else(|| throttling_problem(generator))
            .or_else(|| memory_problem(generator))
    };
    if metrics.runners.len() < 2 {
        return problem_of(&metrics.generator());
    }
    let problems = metrics.runners.iter().filter_map(|(name, generator)| {
        let lag = generator.schedule_lag.quantile(0.99).unwrap_or_default();
        problem_of(generator).map(|problem| (lag, name, problem))
    });
    let (_, name, problem) = problems.max_by_key(|(lag, ..)| *lag)?;
    Some(format!("{name}: {problem}"))
}

/// True when a CPU limit or a memory limit kept a runner from running. Then requests that were sent on time
/// can look slow too: the runner may have stood still just before or after it sent them.
pub(crate) fn was_held_up(metrics: &Metrics) -> bool {
    let is_held_up = |generator: &GeneratorMetrics| {
        throttling_problem(generator).or_else(|| memory_problem(generator)).is_some()
    };
    is_held_up(&metrics.generator()) || metrics.runners.values().any(is_held_up)
}

/// The lag that a row tolerates. `tightest` is the strictest duration that it is judged by.
pub(crate) fn lag_limit(tightest: Option<Duration>) -> Duration {
    tightest.map_or(MAX_LAG_OF_COUNTS, |tightest| {
        MIN_LAG_LIMIT.max(Duration::from_secs_f64(MAX_LAG_SHARE * tightest.as_secs_f64()))
    })
}

/// True when lateness took so little of the users' time, and dropped no arrival, that the target got
/// the planned load.
fn was_load_made(metrics: &Metrics) -> bool {
    metrics.tasks.values().all(|task| task.dropped == 0)
        && metrics.schedule_lag.sum_seconds() <= MAX_LOST_TIME_SHARE * metrics.user_seconds
}

const USE_MORE_CPU: &str = "use fewer users per runner or give runners more CPU";

fn lag_problem(limit: Duration, metrics: &GeneratorMetrics) -> Option<String> {
    // The 99th percentile of a few samples is the longest one, and one stall is not a weakness.
    let event_loop = Some(&metrics.event_loop_lag).filter(|lag| lag.count() >= MIN_LOOP_SAMPLES);
    let lags = [("schedule", Some(&metrics.schedule_lag)), ("event loop", event_loop)];
    lags.into_iter().filter_map(|(name, lag)| Some((name, lag?))).find_map(|(name, lag)| {
        let p = (1.0 - SAMPLES_BEYOND / lag.count().max(1) as f64).clamp(0.5, 0.99);
        let late = lag.quantile(p).filter(|lag| *lag > limit)?;
        let (late, percentile) = (late.rounded(), (p * 100.0).round());
        Some(format!(
            "the load generator was itself late ({name} lag p{percentile} {late}): {USE_MORE_CPU}"
        ))
    })
}

fn cpu_problem(metrics: &GeneratorMetrics) -> Option<String> {
    let share = metrics.busiest_thread_share();
    (share > MAX_THREAD_SHARE).then(|| {
        let used = Percent::from_fraction(share.min(1.0)).rounded();
        format!("the load generator's busiest thread used {used} of a core: {USE_MORE_CPU}")
    })
}

fn throttling_problem(metrics: &GeneratorMetrics) -> Option<String> {
    let share = metrics.throttled_seconds / metrics.elapsed_seconds.max(1e-9);
    (share > MAX_THROTTLED_SHARE && metrics.throttled_seconds > THROTTLING_PERIOD).then(|| {
        let time = Percent::from_fraction(share).rounded();
        format!("a CPU limit held the load generator up for {time} of the time: raise or remove it")
    })
}

fn memory_problem(metrics: &GeneratorMetrics) -> Option<String> {
    (metrics.memory_ratio > MAX_MEMORY_SHARE).then(|| {
        let used = Percent::from_fraction(metrics.memory_ratio).rounded();
        format!("a runner used {used} of its memory limit: raise the limit, or use fewer users per runner")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy() -> Metrics {
        let mut metrics = Metrics { elapsed_seconds: 10.0, ..Metrics::default() };
        metrics.schedule_lag.record(0.0001, 1000);
        metrics.event_loop_lag.record(0.0001, 1000);
        metrics.busy_seconds = 5.0;
        metrics.memory_ratio = 0.4;
        metrics
    }

    #[test]
    fn healthy_generators_have_no_problem() {
        assert_eq!(generator_problem(Some(Duration::from_millis(1)), false, &healthy(), 1.0), None);
        assert_eq!(generator_problem(None, false, &healthy(), 1.0), None);
    }

    #[test]
    fn each_problem_names_its_cause() {
        let problem_with = |change: fn(&mut Metrics)| {
            let mut metrics = healthy();
            change(&mut metrics);
            generator_problem(Some(Duration::from_secs(1)), false, &metrics, 1.0).unwrap()
        };
        assert!(problem_with(|n| n.schedule_lag.record(0.2, 1000)).contains("schedule lag"));
        assert!(problem_with(|n| n.event_loop_lag.record(0.2, 1000)).contains("event loop lag"));
        assert!(problem_with(|n| n.busy_seconds = 9.7).contains("97% of a core"));
        assert!(problem_with(|n| n.throttled_seconds = 1.0).contains("CPU limit"));
        assert!(problem_with(|n| n.memory_ratio = 0.99).contains("memory limit"));
    }

    #[test]
    fn one_stall_among_few_samples_is_tolerated() {
        let mut metrics = healthy();
        metrics.event_loop_lag = crate::metrics::LatencyHistogram::default();
        metrics.event_loop_lag.record(0.0001, 60);
        metrics.event_loop_lag.record(0.2, 1);
        assert_eq!(generator_problem(Some(Duration::from_millis(50)), false, &metrics, 1.0), None);
    }

    #[test]
    fn a_few_late_requests_are_tolerated_and_many_are_not() {
        let problem_of = |late: u64, all: u64| {
            let mut metrics = healthy();
            metrics.schedule_lag = crate::metrics::LatencyHistogram::default();
            metrics.schedule_lag.record(0.0001, all - late);
            metrics.schedule_lag.record(0.2, late);
            generator_problem(Some(Duration::from_secs(1)), false, &metrics, 1.0)
        };
        assert_eq!((problem_of(1, 20), problem_of(5, 20), problem_of(5, 400)), (None, None, None));
        assert!(problem_of(6, 20).unwrap().contains("lag p75"));
        assert!(problem_of(6, 400).is_some() && problem_of(4, 6).is_some());
    }

    #[test]
    fn the_tolerated_lag_depends_on_the_bound() {
        let mut metrics = healthy();
        metrics.schedule_lag.record(0.02, 100_000);
        assert_eq!(generator_problem(Some(Duration::from_secs(1)), false, &metrics, 1.0), None);
        assert!(
            generator_problem(Some(Duration::from_millis(100)), false, &metrics, 1.0).is_some()
        );
        assert_eq!(generator_problem(None, false, &metrics, 1.0), None);
    }
}
