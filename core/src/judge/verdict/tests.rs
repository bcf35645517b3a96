use proptest::prelude::*;

use super::*;
use crate::metrics::LatencyHistogram;

fn threshold(yaml: &str) -> Threshold {
    crate::testing::yaml(yaml)
}

fn p95() -> Threshold {
    threshold(
        r#"{task: chat, metric: responseTime, statistic: p95, target: "< 1s", warning: "< 2s", critical: "> 5s"}"#,
    )
}

/// Judges a threshold under the planned load.
fn judge_fully(threshold: &Threshold, metrics: &Metrics) -> ThresholdRow {
    judge(threshold, metrics, 1.0)
}

fn responses(seconds: f64, outcome: Outcome, n: u64) -> Metrics {
    let mut metrics = Metrics { elapsed_seconds: 10.0, user_seconds: 10.0, ..Metrics::default() };
    let task = metrics.tasks.entry("chat".into()).or_default();
    task.requests[outcome.index()] = n;
    if outcome == Outcome::Success {
        task.successes_in_load = n;
    }
    task.latencies.get_mut(LatencyMetric::ResponseTime, outcome).record(seconds, n);
    metrics
}

fn verdict(seconds: f64) -> Verdict {
    judge_fully(&p95(), &responses(seconds, Outcome::Success, 1000)).verdict.known().unwrap()
}

#[test]
fn verdicts_follow_the_bounds() {
    assert_eq!(verdict(0.5), Verdict::Pass);
    assert_eq!(verdict(1.5), Verdict::Warning);
    assert_eq!(verdict(3.0), Verdict::Fail);
    assert_eq!(verdict(6.0), Verdict::Critical);
}

#[test]
fn missed_target_without_warning_bound_fails() {
    let alone = threshold("{metric: responseTime, statistic: p50, target: \"< 1s\"}");
    assert_eq!(judge_fully(&alone, &responses(1.5, Outcome::Success, 99)).verdict, Verdict::Fail);
}

#[test]
fn no_data_is_inconclusive_for_every_metric() {
    for threshold in crate::testing::spec().thresholds {
        let row = judge_fully(&threshold, &Metrics::default());
        assert_eq!((row.verdict.known().unwrap(), row.observed), (Verdict::Inconclusive, None));
    }
}

#[test]
fn percentiles_need_five_samples_above_them() {
    let few = judge_fully(&p95(), &responses(0.5, Outcome::Success, 99));
    assert_eq!(few.verdict, Verdict::Inconclusive);
    assert!(few.advice.unwrap().contains("needs 100"));
    assert_eq!(judge_fully(&p95(), &responses(0.5, Outcome::Success, 100)).verdict, Verdict::Pass);
    let mut eager = p95();
    eager.min_samples = std::num::NonZeroU32::new(3);
    assert_eq!(judge_fully(&eager, &responses(0.5, Outcome::Success, 3)).verdict, Verdict::Pass);
}

#[test]
fn fast_errors_are_not_latency_samples() {
    let row = judge_fully(&p95(), &responses(0.001, Outcome::Failure, 1000));
    assert_eq!((row.samples, row.verdict.known().unwrap()), (0, Verdict::Inconclusive));
}

#[test]
fn failures_count_even_if_the_generator_dropped_arrivals() {
    let rate = threshold(r#"{metric: errorRate, target: "< 1%", critical: "> 5%"}"#);
    let mut metrics = responses(0.1, Outcome::Success, 1000);
    metrics.throttled_seconds = 5.0;
    metrics.tasks.get_mut("chat").unwrap().dropped = 500;
    assert_eq!(judge_fully(&rate, &metrics).verdict, Verdict::Inconclusive);
    metrics.tasks.get_mut("chat").unwrap().requests[Outcome::Failure.index()] = 600;
    assert_eq!(judge_fully(&rate, &metrics).verdict, Verdict::Critical);
    // Only completed requests are judged: 30 of 2,000 failed.
    let ladder =
        threshold(r#"{metric: errorRate, target: "< 1%", warning: "< 3%", critical: "> 5%"}"#);
    metrics.tasks.get_mut("chat").unwrap().requests = [1470, 30, 0, 0];
    let judged = judge_fully(&ladder, &metrics);
    assert_eq!(
        (judged.verdict.known().unwrap(), judged.observed.as_deref()),
        (Verdict::Warning, Some("1.5%"))
    );
    metrics.tasks.get_mut("chat").unwrap().requests = [1000, 0, 0, 0];
    // With a healthy generator, arrivals are dropped because the target is slow.
    metrics.throttled_seconds = 0.0;
    assert_eq!(judge_fully(&rate, &metrics).verdict, Verdict::Critical);
}

#[test]
fn slow_generators_can_meet_a_rate_but_not_miss_it() {
    let rate = threshold(r#"{metric: throughput, target: "> 50/s", critical: "< 20/s"}"#);
    let mut metrics = responses(0.1, Outcome::Success, 1000);
    metrics.busy_seconds = 9.9;
    assert_eq!(judge_fully(&rate, &metrics).verdict, Verdict::Pass);
    (metrics.elapsed_seconds, metrics.busy_seconds) = (100.0, 99.0);
    assert_eq!(judge_fully(&rate, &metrics).verdict, Verdict::Inconclusive);
    metrics.busy_seconds = 50.0;
    assert_eq!(judge_fully(&rate, &metrics).verdict, Verdict::Critical);
}

#[test]
fn timeouts_and_interruptions_count_at_their_age() {
    for outcome in [Outcome::Timeout, Outcome::Interrupted] {
        assert_eq!(judge_fully(&p95(), &responses(6.0, outcome, 1000)).verdict, Verdict::Critical);
    }
}

#[test]
fn dropped_arrivals_are_slower_than_any_response() {
    // 1,000 responses and 10 drops: the p95 is the 960th response, the p99.9 is hidden.
    let mut metrics = responses(0.5, Outcome::Success, 950);
    let task = metrics.tasks.get_mut("chat").unwrap();
    task.requests[0] += 50;
    task.latencies.get_mut(LatencyMetric::ResponseTime, Outcome::Success).record(3.0, 50);
    assert_eq!(judge_fully(&p95(), &metrics).verdict, Verdict::Pass);
    metrics.tasks.get_mut("chat").unwrap().dropped = 10;
    let row = judge_fully(&p95(), &metrics);
    assert_eq!((row.verdict.known().unwrap(), row.samples), (Verdict::Fail, 1010));
    let mut tail = p95();
    (tail.statistic, tail.min_samples) =
        (Some(Statistic::Quantile(0.999)), std::num::NonZeroU32::new(1));
    let row = judge_fully(&tail, &metrics);
    assert_eq!(row.verdict, Verdict::Inconclusive);
    assert!(row.advice.unwrap().contains("10 arrivals were dropped"));
    // The lower limit of a hidden value may be critical already.
    tail.critical = Some("> 2.5s".parse().unwrap());
    tail.warning = None;
    assert_eq!(judge_fully(&tail, &metrics).verdict, Verdict::Critical);
}

#[test]
fn one_drop_of_a_thousand_does_not_hide_p99_9() {
    let mut metrics = responses(0.5, Outcome::Success, 999);
    metrics.tasks.get_mut("chat").unwrap().dropped = 1;
    let tail = threshold(
        r#"{task: chat, metric: responseTime, statistic: p99.9, target: "< 1s", minSamples: 1}"#,
    );
    assert_eq!(judge_fully(&tail, &metrics).verdict, Verdict::Pass);
    metrics.tasks.get_mut("chat").unwrap().dropped = 2;
    assert_eq!(judge_fully(&tail, &metrics).verdict, Verdict::Inconclusive);
}

#[test]
fn tokens_and_goodput_are_judged() {
    let mut metrics = responses(0.5, Outcome::Success, 90);
    let task = metrics.tasks.get_mut("chat").unwrap();
    task.requests[Outcome::Interrupted.index()] = 10;
    task.good = 80;
    (task.tokens.output, task.tokens_in_load) = (500, 500);
    task.latencies.get_mut(LatencyMetric::InterTokenLatency, Outcome::Success).record(0.02, 400);
    task.latencies.get_mut(LatencyMetric::TimePerOutputToken, Outcome::Success).record(0.03, 80);
    let mut silent = metrics.clone();
    silent.tasks.get_mut("chat").unwrap().tokens.output = 0;
    let uncounted = threshold(r#"{metric: tokensPerSecond, target: "> 10/s", critical: "< 5/s"}"#);
    assert_eq!(judge_fully(&uncounted, &silent).verdict, Verdict::Inconclusive);
    let observed = |yaml: &str| judge_fully(&threshold(yaml), &metrics).observed.unwrap();
    assert_eq!(observed(r#"{metric: goodput, target: "> 99%"}"#), "80%");
    assert_eq!(observed(r#"{metric: tokensPerSecond, target: "> 10/s"}"#), "50/s");
    let gap = observed(r#"{metric: interTokenLatency, statistic: p95, target: "< 50ms"}"#);
    let gap: Duration = gap.parse().unwrap();
    assert!((gap.as_secs_f64() / 0.02 - 1.0).abs() < 0.002, "{gap}");
    let per_token = observed(r#"{metric: timePerOutputToken, statistic: p95, target: "< 50ms"}"#);
    let per_token: Duration = per_token.parse().unwrap();
    assert!((per_token.as_secs_f64() / 0.03 - 1.0).abs() < 0.002, "{per_token}");
}

#[test]
fn rates_count_what_ended_while_load_was_on() {
    let mut metrics = responses(0.5, Outcome::Success, 90);
    metrics.tasks.get_mut("chat").unwrap().successes_in_load = 40;
    let rate = threshold(r#"{metric: throughput, target: "> 5/s"}"#);
    let row = judge_fully(&rate, &metrics);
    assert_eq!(
        (row.verdict.known().unwrap(), row.observed.as_deref()),
        (Verdict::Fail, Some("4/s"))
    );
}

#[test]
fn latencies_of_a_few_successes_are_inconclusive() {
    let mut metrics = responses(0.5, Outcome::Success, 1000);
    let failures = |n| {
        metrics.tasks.get_mut("chat").unwrap().requests[Outcome::Failure.index()] = n;
        judge_fully(&p95(), &metrics)
    };
    let mut failures = failures;
    assert_eq!(failures(900).verdict, Verdict::Pass);
    let row = failures(9000);
    assert_eq!(row.verdict, Verdict::Inconclusive);
    assert!(row.advice.unwrap().starts_with("90% of the requests failed"));
}

#[test]
fn dropped_arrivals_count_as_errors() {
    let mut metrics = responses(0.5, Outcome::Success, 90);
    metrics.tasks.get_mut("chat").unwrap().dropped = 10;
    let errors = threshold(r#"{metric: errorRate, target: "< 1%", critical: "> 5%"}"#);
    let judged = judge_fully(&errors, &metrics);
    assert_eq!(
        (judged.verdict.known().unwrap(), judged.observed.as_deref()),
        (Verdict::Critical, Some("10%"))
    );
}

#[test]
fn target_that_only_fails_has_a_throughput_of_zero() {
    let rate = threshold(r#"{metric: throughput, target: "> 10/s", critical: "< 2/s"}"#);
    let judged = judge_fully(&rate, &responses(0.001, Outcome::Failure, 1000));
    assert_eq!(
        (judged.verdict.known().unwrap(), judged.observed.as_deref()),
        (Verdict::Critical, Some("0/s"))
    );
}

#[test]
fn stalled_target_has_zero_throughput() {
    let rates = [
        r#"{metric: throughput, target: "> 10/s", critical: "< 2/s"}"#,
        r#"{metric: tokensPerSecond, task: chat, target: "> 10/s", critical: "< 2/s"}"#,
    ];
    // Ten users for ten seconds with `count` responses of `seconds` each, then ten without any.
    let judged = |yaml: &str, seconds: f64, count: u64, users: f64| {
        let mut whole =
            Metrics { elapsed_seconds: 20.0, user_seconds: 100.0 + users, ..Metrics::default() };
        let task = whole.tasks.entry("chat".into()).or_default();
        task.requests[Outcome::Success.index()] = count;
        let service_time = task.latencies.get_mut(LatencyMetric::ServiceTime, Outcome::Success);
        service_time.record(seconds, count);
        // A few outliers don't count.
        service_time.record(30.0, count / 20);
        task.tokens.output = count;
        let part = Metrics { elapsed_seconds: 10.0, user_seconds: users, ..Metrics::default() };
        let (row, _) = judge_interval(&threshold(yaml), &part, &whole);
        let scarce = has_too_few_samples(&self::threshold(yaml), &row);
        (row.verdict.known().unwrap(), row.observed.unwrap_or_default(), scarce)
    };
    let unknown = (Verdict::Inconclusive, String::new(), true);
    for rate in rates {
        assert_eq!(judged(rate, 0.1, 100, 100.0), (Verdict::Critical, "0/s".to_owned(), false));
        // Slow responses may all be in flight; of few responses, all may be missing by chance.
        assert_eq!(judged(rate, 12.0, 100, 100.0), unknown);
        assert_eq!(judged(rate, 0.1, 5, 100.0), unknown);
        assert_eq!(judged(rate, 0.1, 0, 100.0), unknown);
        // No users, or hardly any.
        assert_eq!(judged(rate, 0.1, 100, 0.0), unknown);
        assert_eq!(judged(rate, 0.1, 100, 5.0), unknown);
    }
    // At the end of a test, interrupted requests show that the target stalled.
    let mut hung = responses(9.0, Outcome::Interrupted, 20);
    for rate in rates.map(threshold) {
        assert_eq!(judge_fully(&rate, &hung).observed.as_deref(), Some("0/s"));
    }
    // In an interval, it is unknown how long they were in flight.
    let part = Metrics { elapsed_seconds: 5.0, ..hung.clone() };
    for rate in rates.map(threshold) {
        assert_eq!(judge_interval(&rate, &part, &hung).0.observed, None);
    }
    hung.tasks.clear();
    for rate in rates.map(threshold) {
        let judged = judge_fully(&rate, &hung);
        assert_eq!(
            (judged.verdict.known().unwrap(), judged.observed),
            (Verdict::Inconclusive, None)
        );
        assert!(judged.advice.unwrap().contains("0 samples, needs 1"));
    }
}

#[test]
fn late_generator_spoils_latency_but_not_errors() {
    let mut metrics = responses(0.5, Outcome::Success, 1000);
    metrics.schedule_lag.record(0.2, 1000);
    assert_eq!(judge_fully(&p95(), &metrics).verdict, Verdict::Inconclusive);
    let errors = threshold(r#"{metric: errorRate, target: "< 1%"}"#);
    assert_eq!(judge_fully(&errors, &metrics).verdict, Verdict::Pass);
}

#[test]
fn lateness_spoils_no_row_that_passes_under_the_full_load() {
    /// A thousand responses within 1,000 user-seconds. Each request began too late by `lag`.
    fn late_metrics(response_time: f64, lag: f64) -> Metrics {
        let mut metrics = responses(response_time, Outcome::Success, 1000);
        metrics.user_seconds = 1000.0;
        metrics.schedule_lag.record(lag, 1000);
        metrics
    }
    // The limit for lag is 5 ms. 0.9 % of the users' time was lost.
    let strict = threshold(r#"{metric: responseTime, statistic: p95, target: "< 100ms"}"#);
    assert_eq!(judge_fully(&strict, &late_metrics(0.09, 0.009)).verdict, Verdict::Pass);
    // A late read returns several tokens at once, so the times between them can be too short.
    let mut bunched = late_metrics(0.09, 0.009);
    if let Some(task) = bunched.tasks.get_mut("chat") {
        let gaps = task.latencies.get_mut(LatencyMetric::InterTokenLatency, Outcome::Success);
        gaps.record(0.001, 1000);
    }
    let gaps = threshold(r#"{metric: interTokenLatency, statistic: p95, target: "< 100ms"}"#);
    assert_eq!(judge_fully(&gaps, &bunched).verdict, Verdict::Inconclusive);
    // A row that misses its target may miss it because of the lateness.
    assert_eq!(judge_fully(&strict, &late_metrics(0.11, 0.009)).verdict, Verdict::Inconclusive);
    // The load was lighter than planned: 1.1 % of the users' time was lost.
    assert_eq!(judge_fully(&strict, &late_metrics(0.09, 0.011)).verdict, Verdict::Inconclusive);
    let mut dropped = late_metrics(0.09, 0.009);
    if let Some(task) = dropped.tasks.get_mut("chat") {
        task.dropped = 1;
    }
    assert_eq!(judge_fully(&strict, &dropped).verdict, Verdict::Inconclusive);
}

#[test]
fn generator_without_cpu_spoils_latency_but_not_errors() {
    let spoilers: [fn(&mut Metrics); 2] =
        [|metrics| metrics.busy_seconds = 9.5, |metrics| metrics.throttled_seconds = 0.2];
    for spoil in spoilers {
        let mut metrics = responses(0.5, Outcome::Success, 1000);
        spoil(&mut metrics);
        let row = judge_fully(&p95(), &metrics);
        assert_eq!(row.verdict, Verdict::Inconclusive);
        assert!(row.advice.unwrap().contains("load generator"));
        let errors = error_threshold();
        assert_eq!(judge_fully(&errors, &metrics).verdict, Verdict::Pass);
    }
    let mut metrics = responses(0.5, Outcome::Success, 1000);
    (metrics.busy_seconds, metrics.throttled_seconds) = (8.0, 0.05);
    assert_eq!(judge_fully(&p95(), &metrics).verdict, Verdict::Pass);
}

fn error_threshold() -> Threshold {
    threshold(r#"{metric: errorRate, target: "< 1%"}"#)
}

#[test]
fn lag_below_both_limits_is_tolerated() {
    let mut metrics = responses(0.5, Outcome::Success, 1000);
    // Above 5 ms, below 5 % of the 1 s target.
    metrics.schedule_lag.record(0.04, 1000);
    assert_eq!(judge_fully(&p95(), &metrics).verdict, Verdict::Pass);
}

#[test]
fn worst_row_decides_and_inconclusive_beats_warning() {
    let rows = |verdicts: &[Verdict]| -> Vec<ThresholdRow> {
        let row = judge_fully(&p95(), &responses(0.5, Outcome::Success, 1000));
        verdicts.iter().map(|v| ThresholdRow { verdict: (*v).into(), ..row.clone() }).collect()
    };
    use Verdict::{Critical, Fail, Inconclusive, NotJudged, Pass, Warning};
    assert_eq!(worst_verdict(&rows(&[Pass, Warning, Inconclusive])), Inconclusive);
    assert_eq!(worst_verdict(&rows(&[Inconclusive, Fail])), Fail);
    assert_eq!(worst_verdict(&rows(&[Fail, Critical, Pass])), Critical);
    assert_eq!(worst_verdict(&rows(&[Pass, Warning])), Warning);
    assert_eq!(worst_verdict(&rows(&[])), NotJudged);
}

proptest! {
    /// A generator that is late adds its lateness to what the target did, and knows which requests it
    /// sent late. Whatever it adds, a target that misses its bound never passes.
    #[test]
    fn lateness_never_turns_a_miss_into_a_pass(
        truth in prop::collection::vec(0.05_f64..2.0, 100..300),
        late_of_ten in 0_usize..9,
        lateness in 0.006_f64..3.0,
    ) {
        let row = threshold(
            "{metric: responseTime, statistic: p95, target: '< 1s', critical: '> 1500ms'}",
        );
        let mut metrics = Metrics { elapsed_seconds: 60.0, ..Metrics::default() };
        let mut true_metrics = metrics.clone();
        for (index, seconds) in truth.iter().enumerate() {
            // Spread over the test, as the stalls of a busy node are.
            let is_late = (index * 7) % 10 < late_of_ten;
            let lag = if is_late { lateness } else { 0.0 };
            for (metrics, lag) in [(&mut metrics, lag), (&mut true_metrics, 0.0)] {
                metrics.user_seconds += seconds + lag;
                metrics.schedule_lag.record(lag, 1);
                let task = metrics.tasks.entry("chat".into()).or_default();
                task.requests[Outcome::Success.index()] += 1;
                let latencies = &mut task.latencies;
                let of_all = latencies.get_mut(LatencyMetric::ResponseTime, Outcome::Success);
                of_all.record(seconds + lag, 1);
                if lag > 0.0 {
                    latencies.late_mut(LatencyMetric::ResponseTime).record(seconds + lag, 1);
                }
            }
        }
        let found = judge_fully(&row, &metrics).verdict.known().unwrap();
        let expected = judge_fully(&row, &true_metrics).verdict.known().unwrap();
        // Those that were sent on time are a sample of all, so other verdicts can differ a little.
        if found == Verdict::Pass {
            prop_assert_eq!(expected, Verdict::Pass);
        }
    }
}

#[test]
fn a_slow_target_fails_despite_a_late_generator() {
    let mut metrics = responses(3.0, Outcome::Success, 1000);
    metrics.schedule_lag.record(0.5, 1000);
    // Without a late sample, or with nothing else, it is unknown what lateness has done.
    assert_eq!(judge_fully(&p95(), &metrics).verdict, Verdict::Inconclusive);
    let task = metrics.tasks.get_mut("chat").unwrap();
    task.latencies.late_mut(LatencyMetric::ResponseTime).record(3.0, 1000);
    assert_eq!(judge_fully(&p95(), &metrics).verdict, Verdict::Inconclusive);
    // Half of them were sent on time, and they are as slow.
    let task = metrics.tasks.get_mut("chat").unwrap();
    *task.latencies.late_mut(LatencyMetric::ResponseTime) = LatencyHistogram::default();
    task.latencies.late_mut(LatencyMetric::ResponseTime).record(3.0, 500);
    let row = judge_fully(&p95(), &metrics);
    assert_eq!((row.verdict.known().unwrap(), row.samples), (Verdict::Fail, 500));
    // A runner without CPU time sends some requests on time, and still makes them slow.
    metrics.elapsed_seconds = 60.0;
    metrics.throttled_seconds = 30.0;
    assert_eq!(judge_fully(&p95(), &metrics).verdict, Verdict::Inconclusive);
    // So does one that reads its own code from disk again.
    metrics.throttled_seconds = 0.0;
    metrics.memory_ratio = 0.99;
    assert_eq!(judge_fully(&p95(), &metrics).verdict, Verdict::Inconclusive);
    // A light load proves nothing, even if all responses are fast.
    let mut metrics = responses(0.5, Outcome::Success, 1000);
    metrics.user_seconds = 1000.0;
    metrics.schedule_lag.record(0.2, 20);
    assert_eq!(judge(&p95(), &metrics, 1.0).verdict, Verdict::Pass);
    assert_eq!(judge(&p95(), &metrics, 0.9).verdict, Verdict::Inconclusive);
}

/// Returns metrics of a task with fast responses and with requests that timed out after 1 s.
fn fast_and_timed_out(fast: u64, timed_out: u64) -> Metrics {
    let mut metrics = responses(0.1, Outcome::Success, fast);
    metrics.merge(&responses(1.0, Outcome::Timeout, timed_out));
    metrics
}

#[test]
fn a_timeout_is_a_lower_bound_of_a_latency() {
    let row = |bound: &str, statistic: &str, fast, timed_out| {
        let yaml =
            format!(r#"{{metric: responseTime, statistic: {statistic}, target: "{bound}"}}"#);
        judge_fully(&threshold(&yaml), &fast_and_timed_out(fast, timed_out))
    };
    for (bound, statistic, fast, timed_out, expected) in [
        // The percentile falls on a timeout of 1 s.
        ("< 2s", "p95", 100, 900, Verdict::Inconclusive),
        ("< 2s", "p50", 100, 900, Verdict::Inconclusive),
        ("< 2s", "max", 999, 1, Verdict::Inconclusive),
        ("< 2s", "mean", 900, 100, Verdict::Inconclusive),
        ("< 500ms", "p95", 100, 900, Verdict::Fail),
        ("< 500ms", "max", 999, 1, Verdict::Fail),
        // The percentile falls on a response.
        ("< 2s", "p95", 960, 40, Verdict::Pass),
        ("< 2s", "mean", 995, 5, Verdict::Pass),
        ("< 2s", "min", 100, 900, Verdict::Pass),
        ("> 500ms", "p95", 100, 900, Verdict::Pass),
        ("> 2s", "p95", 100, 900, Verdict::Inconclusive),
        ("> 2s", "p95", 960, 40, Verdict::Fail),
    ] {
        let found = row(bound, statistic, fast, timed_out);
        assert_eq!(found.verdict, expected, "{statistic} {bound}: {:?}", found.advice);
    }
    let advice = row("< 2s", "p95", 100, 900).advice.unwrap();
    assert!(advice.starts_with("90% of the requests timed out"), "{advice}");
}
