//! Was the load generator itself fit to measure? Pure.
//!
//! A slow generator is no slow target: past these bounds a row is Inconclusive, with what to
//! change. A healthy run is far from all of them.

use crate::{
    metrics::Numbers,
    values::{Duration, Share},
};

/// A load thread busier than this has no room to be on time.
const BUSY: f64 = 0.9;
/// A CPU limit may keep a runner from running for this share of the time, and for one of its
/// periods in all: the shortest window has one.
const THROTTLED: f64 = 0.01;
const PERIOD: f64 = 0.1;
/// Close to its memory limit the kernel takes a program's own code from it, page by page, and
/// reads it again from the disk.
const MEMORY: f64 = 0.95;
/// Lag up to this never makes a latency row inconclusive.
const LAG_FLOOR: Duration = Duration::from_millis(5);
/// Nor does lag up to this share of the row's tightest bound.
const LAG_SHARE: f64 = 0.05;
/// Looks at the event loop's lag that its 99th percentile takes: five beyond it.
const LOOKS: u64 = 500;
/// Acts on the schedule that are beyond the percentile of their lag, at least: where there are
/// few, one that was late makes no weak generator.
const BEYOND: f64 = 5.0;
/// Counts stand a lag that latencies do not.
const LAG_OF_COUNTS: Duration = Duration::from_millis(100);

/// Why numbers say more of the generator than of the target, if they do. `tightest` is the
/// strictest duration that a latency row is judged by; `None` for a row of counts.
pub(crate) fn unfit(tightest: Option<Duration>, numbers: &Numbers) -> Option<String> {
    const DO: &str = "use fewer users per runner or give runners more CPU";
    let share = |value: f64| Share::of_one(value).rounded();
    let bound = tightest.map_or(LAG_OF_COUNTS, |tightest| {
        LAG_FLOOR.max(Duration::from_secs_f64(LAG_SHARE * tightest.as_secs_f64()))
    });
    // Of few looks the 99th percentile is the longest one, and one stall is no weakness.
    let looks = Some(&numbers.loop_lag).filter(|lag| lag.count() >= LOOKS);
    let lags = [("schedule", Some(&numbers.schedule_lag)), ("event loop", looks)];
    for (name, lag) in lags.into_iter().filter_map(|(name, lag)| Some((name, lag?))) {
        let share = (1.0 - BEYOND / lag.count().max(1) as f64).clamp(0.5, 0.99);
        let lag = lag.quantile(share).unwrap_or_default();
        if lag > bound {
            let (lag, percent) = (lag.rounded(), (share * 100.0).round());
            return Some(format!(
                "the load generator was itself late ({name} lag p{percent} {lag}): {DO}"
            ));
        }
    }
    if numbers.thread_busy() > BUSY {
        let busy = share(numbers.thread_busy().min(1.0));
        return Some(format!("the load generator's busiest thread used {busy} of a core: {DO}"));
    }
    let throttled = numbers.throttled_seconds / numbers.elapsed_seconds.max(1e-9);
    if throttled > THROTTLED && numbers.throttled_seconds > PERIOD {
        let time = share(throttled);
        return Some(format!(
            "a CPU limit held the load generator up for {time} of the time: raise or remove it"
        ));
    }
    (numbers.memory_ratio > MEMORY).then(|| {
        let used = share(numbers.memory_ratio);
        format!("a runner used {used} of its memory limit: raise it, or use fewer users per runner")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fit() -> Numbers {
        let mut numbers = Numbers { elapsed_seconds: 10.0, ..Numbers::default() };
        numbers.schedule_lag.record(0.0001, 1000);
        numbers.loop_lag.record(0.0001, 1000);
        numbers.busy_seconds = 5.0;
        numbers.memory_ratio = 0.4;
        numbers
    }

    #[test]
    fn a_healthy_generator_is_fit_for_any_bound() {
        assert_eq!(unfit(Some(Duration::from_millis(1)), &fit()), None);
        assert_eq!(unfit(None, &fit()), None);
    }

    #[test]
    fn each_limit_says_what_to_change() {
        let with = |change: fn(&mut Numbers)| {
            let mut numbers = fit();
            change(&mut numbers);
            unfit(Some(Duration::from_secs(1)), &numbers).unwrap()
        };
        assert!(with(|n| n.schedule_lag.record(0.2, 1000)).contains("schedule lag"));
        assert!(with(|n| n.loop_lag.record(0.2, 1000)).contains("event loop lag"));
        assert!(with(|n| n.busy_seconds = 9.7).contains("97% of a core"));
        assert!(with(|n| n.throttled_seconds = 1.0).contains("CPU limit"));
        assert!(with(|n| n.memory_ratio = 0.99).contains("memory limit"));
    }

    #[test]
    fn one_stall_among_few_looks_is_no_weakness() {
        let mut numbers = fit();
        numbers.loop_lag = crate::metrics::LatencyHistogram::default();
        numbers.loop_lag.record(0.0001, 60);
        numbers.loop_lag.record(0.2, 1);
        assert_eq!(unfit(Some(Duration::from_millis(50)), &numbers), None);
    }

    #[test]
    fn one_that_was_late_among_few_is_no_weakness_and_most_are() {
        let of = |late: u64, all: u64| {
            let mut numbers = fit();
            numbers.schedule_lag = crate::metrics::LatencyHistogram::default();
            numbers.schedule_lag.record(0.0001, all - late);
            numbers.schedule_lag.record(0.2, late);
            unfit(Some(Duration::from_secs(1)), &numbers)
        };
        assert_eq!((of(1, 20), of(5, 20), of(5, 400)), (None, None, None));
        assert!(of(6, 20).unwrap().contains("lag p75"));
        assert!(of(6, 400).is_some() && of(4, 6).is_some());
    }

    #[test]
    fn lag_counts_against_what_it_could_hide() {
        let mut numbers = fit();
        numbers.schedule_lag.record(0.02, 100_000);
        assert_eq!(unfit(Some(Duration::from_secs(1)), &numbers), None);
        assert!(unfit(Some(Duration::from_millis(100)), &numbers).is_some());
        assert_eq!(unfit(None, &numbers), None);
    }
}
