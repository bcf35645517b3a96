use super::*;
use crate::{
    judge::breaking_point,
    metrics::{LatencyMetric, Outcome},
    resource::Verdict,
    testing::{load, valid_test},
    values::Duration,
};

/// Metrics after a number of seconds. Each second has ten responses of the latency that
/// `latency_at` returns, in seconds.
fn metrics_after(latency_at: impl Fn(u32) -> f64, seconds: u32) -> Metrics {
    let elapsed = f64::from(seconds);
    let mut metrics =
        Metrics { elapsed_seconds: elapsed, user_seconds: elapsed, ..Metrics::default() };
    let task = metrics.tasks.entry("chat".into()).or_default();
    for second in 0..seconds {
        task.requests[Outcome::Success.index()] += 10;
        task.successes_in_load += 10;
        for metric in [LatencyMetric::ResponseTime, LatencyMetric::ServiceTime] {
            task.latencies.get_mut(metric, Outcome::Success).record(latency_at(second), 10);
        }
    }
    metrics
}

fn judged_by(threshold: &str) -> ValidTest {
    let mut test = valid_test();
    test.thresholds = vec![crate::testing::yaml(threshold)];
    test
}

fn record_seconds(
    test: &ValidTest,
    latency_at: impl Fn(u32) -> f64,
    until: u32,
) -> (Timeline, Option<Aborted>) {
    let mut timeline = Timeline::default();
    for second in 1..=until {
        let aborted = timeline.record_snapshot(test, &metrics_after(&latency_at, second));
        if aborted.is_some() {
            return (timeline, aborted);
        }
    }
    (timeline, None)
}

/// Latency of a target that is slow from second 20 to 30.
fn stall(second: u32) -> f64 {
    if (20..30).contains(&second) { 3.0 } else { 0.1 }
}

const OVER_10_S: &str =
    r#"{metric: responseTime, statistic: p50, window: 10s, target: "< 1s", critical: "> 2s"}"#;

#[test]
fn windows_find_a_stall_that_the_whole_test_hides() {
    let test = judged_by(OVER_10_S);
    let (timeline, _) = record_seconds(&test, stall, 100);
    let all = metrics_after(stall, 100);
    let row = &timeline.rows_at_end(&test, &all, None)[0];
    assert_eq!((row.verdict.known().unwrap(), row.samples), (Verdict::Critical, 100));
    let whole = judged_by(r#"{metric: responseTime, statistic: p50, target: "< 1s"}"#);
    assert_eq!(timeline.rows_at_end(&whole, &all, None)[0].verdict, Verdict::Pass);
}

#[test]
fn responses_that_are_too_large_hide_no_later_errors() {
    let test = judged_by(r#"{metric: errorRate, window: 10s, target: "< 1%"}"#);
    let mut timeline = Timeline::default();
    let mut metrics = Metrics::default();
    for second in 1..=30 {
        metrics.elapsed_seconds += 1.0;
        let task = metrics.tasks.entry("chat".into()).or_default();
        task.requests[Outcome::Success.index()] += 5;
        task.requests[Outcome::Failure.index()] += 5;
        let kind = if second <= 15 { "size_limit" } else { "status_500" };
        *task.errors.entry(kind.into()).or_default() += 5;
        timeline.record_snapshot(&test, &metrics);
    }
    let row = &timeline.rows_at_end(&test, &metrics, None)[0];
    assert_eq!(row.observed.as_deref(), Some("50%"));
}

#[test]
fn test_shorter_than_its_window_is_inconclusive() {
    let test = judged_by(OVER_10_S);
    let (timeline, _) = record_seconds(&test, stall, 9);
    let row = &timeline.rows_at_end(&test, &metrics_after(stall, 9), None)[0];
    assert_eq!(row.verdict, Verdict::Inconclusive);
    assert!(row.advice.as_ref().unwrap().contains("no window of 10s was complete"));
}

#[test]
fn snapshots_are_kept_only_while_windows_need_them() {
    let (timeline, _) = record_seconds(&judged_by(OVER_10_S), stall, 100);
    assert!(
        timeline.window_starts.snapshots.len() <= 12,
        "{} snapshots",
        timeline.window_starts.snapshots.len()
    );
    let hour = judged_by(r#"{metric: errorRate, window: 1h, target: "< 1%"}"#);
    let (timeline, _) = record_seconds(&hour, stall, 7200);
    assert!(
        timeline.window_starts.snapshots.len() <= 52,
        "{} snapshots",
        timeline.window_starts.snapshots.len()
    );
    let (timeline, _) = record_seconds(&valid_test(), stall, 100);
    assert!(
        timeline.window_starts.snapshots.is_empty(),
        "{} snapshots",
        timeline.window_starts.snapshots.len()
    );
}

#[test]
fn lasting_critical_breach_aborts_the_test() {
    let test = judged_by(
        r#"{metric: responseTime, statistic: p50, window: 5s, target: "< 1s", critical: "> 2s", abort: {for: 3s}}"#,
    );
    let (timeline, aborted) = record_seconds(&test, stall, 100);
    let aborted = aborted.unwrap();
    // Slow from 20 s on: more than half of the window at 23 s, and for 3 s at 26 s.
    assert_eq!(aborted.elapsed, Duration::from_secs(26));
    assert_eq!(aborted.key.to_string(), "responseTime p50 over 5s");
    let rows = timeline.rows_at_end(&test, &metrics_after(|_| 0.1, 30), Some(&aborted));
    assert_eq!(rows[0].verdict, Verdict::Critical);
}

#[test]
fn early_or_short_breaches_do_not_abort() {
    let cases = ["abort: {after: 60s}", "abort: {for: 12s}"];
    for abort in cases {
        let test = judged_by(&format!(
            r#"{{metric: responseTime, statistic: p50, window: 5s, target: "< 1s", critical: "> 2s", {abort}}}"#
        ));
        assert_eq!(record_seconds(&test, stall, 100).1, None, "{abort}");
    }
}

#[test]
fn without_a_window_the_test_so_far_is_judged() {
    let test = judged_by(
        r#"{metric: responseTime, statistic: p95, target: "< 1s", critical: "> 2s", abort: {}}"#,
    );
    // The 12th slow answer of 212 is past the p95: in the 22nd second.
    let (_, aborted) = record_seconds(&test, stall, 100);
    assert_eq!(aborted.unwrap().elapsed, Duration::from_secs(22));
}

fn staged() -> ValidTest {
    let mut test = judged_by(r#"{metric: responseTime, statistic: p50, target: "< 1s"}"#);
    test.load = load(
        "{stages: [{duration: 10s, users: 50}, {duration: 10s, users: 100}, {duration: 10s, users: 150}]}",
    );
    test
}

#[test]
fn stages_are_judged_by_the_requests_that_ended_in_them() {
    let test = staged();
    let (timeline, _) = record_seconds(&test, stall, 30);
    let rows: Vec<_> = timeline
        .stages()
        .iter()
        .map(|r| (r.load.as_str(), r.requests, r.verdict.known().unwrap()))
        .collect();
    let wanted = [
        ("50 users", 100, Verdict::Pass),
        ("100 users", 100, Verdict::Pass),
        ("150 users", 100, Verdict::Fail),
    ];
    assert_eq!(rows, wanted);
    let found = breaking_point(&test, timeline.stages(), None).unwrap();
    assert_eq!(
        (found.last_passed.as_deref(), found.first_failed.as_deref()),
        (Some("100 users"), Some("150 users"))
    );
    assert_eq!(found.threshold.as_deref(), Some("responseTime p50"));
}

#[test]
fn target_that_passes_every_stage_has_no_first_failed() {
    let test = staged();
    let (timeline, _) = record_seconds(&test, |_| 0.1, 30);
    let found = breaking_point(&test, timeline.stages(), None).unwrap();
    let nothing = (Some("150 users"), None, None);
    assert_eq!((found.last_passed.as_deref(), found.undecided, found.first_failed), nothing);
}

#[test]
fn undecided_stages_did_not_pass() {
    let test = staged();
    // The load generator is throttled from the second stage on.
    let mut timeline = Timeline::default();
    let starved = |second: u32| {
        let mut metrics = metrics_after(|_| 0.1, second);
        metrics.throttled_seconds = f64::from(second.saturating_sub(10));
        metrics
    };
    for second in 1..=30 {
        timeline.record_snapshot(&test, &starved(second));
    }
    let point = |rows: &[StageRow]| {
        let found = breaking_point(&test, rows, None).unwrap();
        let [last_passed, undecided, first_failed] =
            [found.last_passed, found.undecided, found.first_failed].map(Option::unwrap_or_default);
        format!("{last_passed}, {undecided}, {first_failed}")
    };
    let mut rows = timeline.stages().to_vec();
    assert_eq!(point(&rows), "50 users, 100 users, ");
    // A stage that was cancelled before its end did not pass either.
    assert_eq!(point(&rows[..1]), "50 users, 100 users, ");
    rows[0].verdict = Verdict::Inconclusive.into();
    assert_eq!(point(&rows), ", 50 users, ");
    let (seen, _) = record_seconds(&test, stall, 30);
    rows[0].verdict = Verdict::Pass.into();
    rows[2] = seen.stages()[2].clone();
    assert_eq!(point(&rows), "50 users, 100 users, 150 users");
}

#[test]
fn good_windows_do_not_hide_a_spoiled_one() {
    let test = judged_by(OVER_10_S);
    let row = |spoil: fn(&mut Metrics)| {
        let mut timeline = Timeline::default();
        for second in 1..=60 {
            let mut metrics = metrics_after(|_| 0.1, second);
            if second > 40 {
                spoil(&mut metrics);
            }
            timeline.record_snapshot(&test, &metrics);
        }
        let row = timeline.rows_at_end(&test, &metrics_after(|_| 0.1, 60), None)[0].clone();
        // Another process that continues from the status agrees.
        let other = Timeline::from_status(&test, vec![], std::slice::from_ref(&row), 60.0);
        assert_eq!(other.rows_at_end(&test, &metrics_after(|_| 0.1, 60), None)[0], row);
        row.verdict.known().unwrap()
    };
    assert_eq!(row(|_| {}), Verdict::Pass);
    assert_eq!(row(|metrics| metrics.throttled_seconds = 5.0), Verdict::Inconclusive);
    let dropping = |metrics: &mut Metrics| metrics.tasks.get_mut("chat").unwrap().dropped = 500;
    assert_eq!(row(dropping), Verdict::Inconclusive);
    // A window with too few samples, as at the start of a test, is not the worst.
    let test = judged_by(
        r#"{metric: responseTime, statistic: p50, window: 10s, target: "< 1s", minSamples: 100}"#,
    );
    let mut timeline = Timeline::default();
    for second in 1..=30_u32 {
        let mut metrics = metrics_after(|_| 0.1, second.saturating_sub(5));
        metrics.elapsed_seconds = f64::from(second);
        timeline.record_snapshot(&test, &metrics);
    }
    let row = &timeline.rows_at_end(&test, &metrics_after(|_| 0.1, 25), None)[0];
    assert_eq!(row.verdict, Verdict::Pass);
}

#[test]
fn stalled_target_aborts_by_throughput() {
    let test = judged_by(
        r#"{metric: throughput, window: 10s, target: "> 5/s", critical: "< 2/s", abort: {for: 5s}}"#,
    );
    let mut timeline = Timeline::default();
    let aborted = (1..=90).find_map(|second: u32| {
        let mut metrics = metrics_after(|_| 0.1, second.min(60));
        (metrics.elapsed_seconds, metrics.user_seconds) = (f64::from(second), f64::from(second));
        timeline.record_snapshot(&test, &metrics)
    });
    // From second 69 on, a window of 10 s has fewer than 20 responses.
    let aborted = aborted.unwrap();
    assert_eq!((aborted.elapsed, aborted.observed.as_str()), (Duration::from_secs(74), "0/s"));
}

#[test]
fn short_windows_stay_short_beside_long_ones() {
    let mut test = judged_by(r#"{metric: errorRate, window: 1h, target: "< 50%"}"#);
    test.thresholds.push(crate::testing::yaml(OVER_10_S));
    let (timeline, _) = record_seconds(&test, stall, 7200);
    let row = &timeline.rows_at_end(&test, &metrics_after(stall, 7200), None)[1];
    assert_eq!((row.verdict.known().unwrap(), row.samples), (Verdict::Critical, 100));
    assert!(
        timeline.window_starts.snapshots.len() <= 65,
        "{} snapshots",
        timeline.window_starts.snapshots.len()
    );
    let gaps = timeline
        .window_starts
        .snapshots
        .iter()
        .zip(timeline.window_starts.snapshots.iter().skip(1));
    assert!(gaps.into_iter().all(|(a, b)| b.elapsed_seconds() - a.elapsed_seconds() <= 72.0));
}

#[test]
fn unobserved_breaches_do_not_last() {
    let test = judged_by(
        r#"{metric: responseTime, statistic: p50, window: 5s, target: "< 1s", critical: "> 2s", abort: {for: 20s}}"#,
    );
    // Slow from 20 s on. There is no snapshot from 25 s to 45 s.
    let slow = |second| if second >= 20 { 3.0 } else { 0.1 };
    let mut timeline = Timeline::default();
    let mut seconds = (1..=25).chain(45..=90_u32);
    let aborted =
        seconds.find_map(|second| timeline.record_snapshot(&test, &metrics_after(slow, second)));
    // Critical again from 45 s at the earliest.
    let elapsed = aborted.unwrap().elapsed;
    assert!(elapsed >= Duration::from_secs(65), "{elapsed}");
    // Three missing snapshots don't interrupt windows of 5 s, although some of these windows have
    // no observed start.
    let mut timeline = Timeline::default();
    let mut seconds = (1..=30).chain(34..=90_u32);
    let aborted =
        seconds.find_map(|second| timeline.record_snapshot(&test, &metrics_after(slow, second)));
    assert_eq!(aborted.unwrap().elapsed, Duration::from_secs(43));
}

#[test]
fn windows_that_were_not_observed_are_inconclusive() {
    let test = judged_by(OVER_10_S);
    let mut timeline = Timeline::default();
    // No snapshot from 15 s to 45 s; the stall is over by then.
    for second in (1..=15).chain(45..=60) {
        timeline.record_snapshot(&test, &metrics_after(stall, second));
    }
    let row = &timeline.rows_at_end(&test, &metrics_after(stall, 60), None)[0];
    assert_eq!((row.verdict.known().unwrap(), row.samples), (Verdict::Inconclusive, 100));
    assert_eq!(timeline.unobserved(), Duration::from_secs(30));
    // A row that had failed before stays as it is.
    let mut timeline = Timeline::default();
    for second in (1..=40).chain(55..=60) {
        timeline.record_snapshot(&test, &metrics_after(stall, second));
    }
    let row = &timeline.rows_at_end(&test, &metrics_after(stall, 60), None)[0];
    assert_eq!(row.verdict, Verdict::Critical);
}

#[test]
fn abort_is_judged_on_the_runners_that_respond() {
    let errors = judged_by(
        r#"{metric: errorRate, target: "< 1%", critical: "> 5%", abort: {after: 10s, for: 10s}}"#,
    );
    let rate = judged_by(
        r#"{metric: throughput, window: 10s, target: "> 5/s", critical: "< 2/s", abort: {for: 5s}}"#,
    );
    for coverage in [Coverage::Partial, Coverage::WithoutLost] {
        let run = |test: &ValidTest| {
            let mut timeline = Timeline::default();
            (1..=120).find_map(|second: u32| {
                // Every request fails from second 60 on.
                let mut metrics = metrics_after(|_| 0.1, second.min(60));
                let task = metrics.tasks.get_mut("chat").unwrap();
                task.requests[Outcome::Failure.index()] = u64::from(second.saturating_sub(60)) * 50;
                (metrics.elapsed_seconds, metrics.user_seconds) =
                    (f64::from(second), f64::from(second));
                timeline.record_snapshot_of(test, &metrics, coverage)
            })
        };
        assert_eq!(run(&errors).unwrap().elapsed, Duration::from_secs(71), "{coverage:?}");
        // A rate is lower without some runners.
        assert_eq!(run(&rate), None, "{coverage:?}");
    }
}

#[test]
fn windows_of_a_rate_after_a_loss_count_if_they_are_met() {
    let test = judged_by(r#"{metric: throughput, window: 10s, target: "> 5/s"}"#);
    // A runner is lost after 60 s, and no response comes after `stalled`.
    let row = |stalled: u32| {
        let mut timeline = Timeline::default();
        let mut metrics = Metrics::default();
        for second in 1..=120 {
            metrics = metrics_after(|_| 0.1, second.min(stalled));
            (metrics.elapsed_seconds, metrics.user_seconds) =
                (f64::from(second), f64::from(second));
            let coverage = if second < 60 { Coverage::All } else { Coverage::WithoutLost };
            timeline.record_snapshot_of(&test, &metrics, coverage);
        }
        timeline.rows_at_end(&test, &metrics, None).remove(0)
    };
    let verdicts = [120, 90, 30].map(|stalled| row(stalled).verdict.known().unwrap());
    assert_eq!(verdicts, [Verdict::Pass, Verdict::Inconclusive, Verdict::Fail]);
}

#[test]
fn stages_after_a_loss_are_judged_without_their_rates() {
    let mut test = staged();
    let rows = |test: &ValidTest| {
        let mut timeline = Timeline::default();
        for second in 1..=30 {
            let coverage = if second < 15 { Coverage::All } else { Coverage::WithoutLost };
            timeline.record_snapshot_of(test, &metrics_after(stall, second), coverage);
        }
        let rows = timeline.stages_at_end(test, &metrics_after(stall, 30));
        rows.into_iter().map(|row| row.verdict.known().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(rows(&test), [Verdict::Pass, Verdict::Pass, Verdict::Fail]);
    test.thresholds = vec![crate::testing::yaml(r#"{metric: throughput, target: "> 1000/s"}"#)];
    assert_eq!(rows(&test), [Verdict::Fail, Verdict::Inconclusive, Verdict::Inconclusive]);
}

#[test]
fn first_window_starts_at_the_start_of_the_test() {
    let test = judged_by(OVER_10_S);
    let mut timeline = Timeline::default();
    // Slow in the first second, before the first snapshot.
    for second in [2.5_f64, 5.0, 7.5, 10.5] {
        let mut metrics = metrics_after(|second| if second < 1 { 3.0 } else { 0.1 }, 10);
        metrics.elapsed_seconds = second;
        timeline.record_snapshot(&test, &metrics);
    }
    let metrics = metrics_after(|_| 0.1, 10);
    assert_eq!(timeline.rows_at_end(&test, &metrics, None)[0].samples, 100);
}

#[test]
fn load_that_does_not_grow_has_no_breaking_point() {
    let mut test = staged();
    test.load = load(
        "{stages: [{duration: 10s, users: 50}, {duration: 10s, users: 100}, {duration: 10s, users: 100}]}",
    );
    let (timeline, _) = record_seconds(&test, stall, 30);
    assert_eq!(breaking_point(&test, timeline.stages(), None), None);
}

#[test]
fn unobserved_stages_are_inconclusive() {
    let test = staged();
    let (seen, _) = record_seconds(&test, stall, 10);
    // Another operator continues at 22 s: the end of the second stage was not observed.
    let mut timeline = Timeline::from_status(&test, seen.stages().to_vec(), &[], 10.0);
    for second in 22..=30 {
        timeline.record_snapshot(&test, &metrics_after(stall, second));
    }
    let verdicts: Vec<_> =
        timeline.stages().iter().map(|row| row.verdict.known().unwrap()).collect();
    assert_eq!(verdicts, [Verdict::Pass, Verdict::Inconclusive, Verdict::Fail]);
}

#[test]
fn worst_windows_survive_a_restart() {
    let test = judged_by(OVER_10_S);
    let (seen, _) = record_seconds(&test, stall, 40);
    let rows = seen.rows_at_end(&test, &metrics_after(stall, 40), None);
    assert_eq!(rows[0].verdict, Verdict::Critical);
    // Another operator sees only fast windows.
    let mut timeline = Timeline::from_status(&test, vec![], &rows, 40.0);
    for second in 60..=100 {
        timeline.record_snapshot(&test, &metrics_after(stall, second));
    }
    assert_eq!(timeline.rows_at_end(&test, &metrics_after(stall, 100), None)[0], rows[0]);
}

#[test]
fn aborted_stage_is_the_first_failed() {
    let test = staged();
    let (timeline, _) = record_seconds(&test, |_| 0.1, 15);
    let aborted = Aborted {
        key: staged().thresholds[0].key(),
        observed: "3s".into(),
        bound: "> 2s".parse().unwrap(),
        elapsed: Duration::from_secs(15),
        samples: 100,
    };
    let found = breaking_point(&test, timeline.stages(), Some(&aborted)).unwrap();
    // Some stage before the abort may have no row.
    let without_rows = breaking_point(&test, &[], Some(&aborted)).unwrap();
    assert_eq!(without_rows.first_failed, found.first_failed);
    let wanted = (Some("50 users"), Some("100 users"), Some("3s"));
    let found =
        (found.last_passed.as_deref(), found.first_failed.as_deref(), found.observed.as_deref());
    assert_eq!(found, wanted);
}

#[test]
fn stages_are_not_judged_by_later_requests() {
    let test = staged();
    let mut timeline = Timeline::default();
    timeline.record_snapshot(&test, &metrics_after(stall, 5));
    // No snapshot until the third stage, which is slow.
    for second in 25..=30 {
        timeline.record_snapshot(&test, &metrics_after(stall, second));
    }
    let verdicts: Vec<_> =
        timeline.stages().iter().map(|row| row.verdict.known().unwrap()).collect();
    assert_eq!(verdicts, [Verdict::Inconclusive, Verdict::Inconclusive, Verdict::Inconclusive]);
}

#[test]
fn requests_in_the_graceful_stop_belong_to_the_last_stage() {
    let test = staged();
    let (timeline, _) = record_seconds(&test, |_| 0.1, 30);
    let mut all = metrics_after(|_| 0.1, 30);
    let task = all.tasks.get_mut("chat").unwrap();
    task.requests[Outcome::Timeout.index()] += 200;
    task.latencies.get_mut(LatencyMetric::ResponseTime, Outcome::Timeout).record(5.0, 200);
    let rows = timeline.stages_at_end(&test, &all);
    assert_eq!((rows[2].requests, rows[2].verdict.known().unwrap()), (300, Verdict::Fail));
    assert_eq!(rows[1], timeline.stages()[1]);
}
