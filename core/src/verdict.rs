//! Did the target pass: thresholds against numbers. Pure.

use crate::{
    health,
    metrics::{LatencyHistogram, Numbers, TaskNumbers, judged},
    resource::{Metric, Statistic, Threshold, ThresholdRow, Verdict},
    values::{Bound, Duration, Quantity, Rate, Share},
};

/// Judges one threshold.
///
/// *Pass* when the target bound holds, *Critical* when the critical bound holds, *Warning*
/// when only the warning bound holds, *Fail* otherwise. Too few samples, or a generator
/// that was itself late, are *Inconclusive*.
pub fn judge(threshold: &Threshold, numbers: &Numbers) -> ThresholdRow {
    judge_value(threshold, numbers).0
}

/// The same, with the observed value as a number.
pub(crate) fn judge_value(
    threshold: &Threshold,
    numbers: &Numbers,
) -> (ThresholdRow, Option<Quantity>) {
    let scope = match &threshold.task {
        Some(task) => numbers.tasks.get(task).cloned().unwrap_or_default(),
        None => together(threshold.metric, numbers),
    };
    let observed = observe(threshold, &scope, numbers.elapsed_seconds);
    let (verdict, bound, advice) = decide(threshold, &observed, numbers);
    let row = ThresholdRow {
        task: threshold.task.clone(),
        metric: threshold.metric,
        statistic: threshold.statistic,
        window: threshold.window,
        observed: observed.value.map(|value| value.rounded()),
        bound,
        samples: i64::try_from(observed.samples).unwrap_or(i64::MAX),
        verdict,
        advice,
    };
    (row, observed.value)
}

/// How bad a verdict is: the worst row decides.
pub(crate) const fn badness(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Critical => 5,
        Verdict::Fail => 4,
        Verdict::Inconclusive => 3,
        Verdict::Warning => 2,
        Verdict::Pass => 1,
        Verdict::NotJudged => 0,
    }
}

/// The verdict of a whole table: its worst row, in the order Critical, Fail, Inconclusive,
/// Warning, Pass; *NotJudged* without rows.
pub fn worst<'a>(rows: impl IntoIterator<Item = &'a ThresholdRow>) -> Verdict {
    rows.into_iter()
        .map(|row| row.verdict)
        .max_by_key(|v| badness(*v))
        .unwrap_or(Verdict::NotJudged)
}

struct Observation {
    value: Option<Quantity>,
    samples: u64,
    /// Arrivals among the samples that were dropped.
    dropped: u64,
    /// True when they hide the value: it is at least this.
    hidden: bool,
    /// An error rate by answers alone, as if what was dropped had gone well.
    answered: Option<Quantity>,
}

fn observe(threshold: &Threshold, scope: &TaskNumbers, elapsed: f64) -> Observation {
    let latency = |by_outcome: &[LatencyHistogram; 4]| {
        let all = judged(by_outcome);
        latency_of(&all, scope.dropped, threshold.statistic)
    };
    let seen = |value, samples| Observation {
        value,
        samples,
        dropped: scope.dropped,
        hidden: false,
        answered: None,
    };
    let wanted = scope.wanted();
    match threshold.metric {
        Metric::ResponseTime => latency(&scope.response_time),
        Metric::ServiceTime => latency(&scope.service_time),
        Metric::TimeToFirstByte => {
            latency_of(&scope.first_byte, scope.dropped, threshold.statistic)
        }
        Metric::TimeToFirstResponse => latency(&scope.first_response),
        Metric::WebSocketConnect => latency(&scope.web_socket_connect),
        // Of answers and messages there were: an arrival that was dropped has none.
        Metric::InterTokenLatency => latency_of(&scope.inter_token, 0, threshold.statistic),
        Metric::WebSocketRoundTrip => latency_of(&scope.round_trip, 0, threshold.statistic),
        Metric::TokensPerSecond => {
            let rate =
                || Quantity::Rate(Rate::per_second(scope.tokens.generated() as f64 / elapsed));
            // Answers without tokens: nobody has counted them.
            let known =
                scope.tokens.generated() > 0 || scope.of(crate::metrics::Outcome::Success) == 0;
            seen((elapsed > 0.0 && wanted > 0 && known).then(rate), wanted)
        }
        Metric::Goodput => {
            // What was still open at the end was not good either.
            let all = wanted + scope.of(crate::metrics::Outcome::Interrupted);
            seen((all > 0).then(|| Quantity::Share(Share::of(scope.good, all))), all)
        }
        Metric::ErrorRate => {
            let share = |n| (wanted > 0).then(|| Quantity::Share(Share::of(n, wanted)));
            let answered = share(scope.failures());
            Observation { answered, ..seen(share(scope.missed()), wanted) }
        }
        Metric::Throughput => {
            let successes = scope.of(crate::metrics::Outcome::Success) as f64;
            let rate = || Quantity::Rate(Rate::per_second(successes / elapsed));
            seen((elapsed > 0.0 && wanted > 0).then(rate), wanted)
        }
    }
}

/// All tasks as one; of a metric that only some kinds of task have, those that have it.
fn together(metric: Metric, numbers: &Numbers) -> TaskNumbers {
    let has = |by_outcome: &[LatencyHistogram; 4]| by_outcome.iter().any(|h| h.count() > 0);
    let counts = |task: &&TaskNumbers| match metric {
        Metric::TimeToFirstResponse => has(&task.first_response),
        Metric::InterTokenLatency => task.inter_token.count() > 0,
        Metric::TimeToFirstByte => task.first_byte.count() > 0,
        Metric::WebSocketRoundTrip => task.round_trip.count() > 0,
        Metric::TokensPerSecond => task.tokens.generated() > 0 || has(&task.first_response),
        Metric::WebSocketConnect => has(&task.web_socket_connect),
        _ => true,
    };
    numbers.tasks.values().filter(counts).fold(TaskNumbers::default(), |mut all, task| {
        all.merge(task);
        all
    })
}

/// A statistic of answers and of arrivals that were dropped, which count as slower than any
/// answer: nobody waited to see how slow. A value among them is hidden.
fn latency_of(
    answers: &LatencyHistogram,
    dropped: u64,
    statistic: Option<Statistic>,
) -> Observation {
    let statistic = statistic.unwrap_or(Statistic::Mean);
    let samples = answers.count() + dropped;
    let (statistic, hidden) = match statistic {
        Statistic::Quantile(p) => {
            let within = p * samples as f64 / answers.count().max(1) as f64;
            (Statistic::Quantile(within.min(1.0)), within > 1.0)
        }
        other => (other, dropped > 0 && other != Statistic::Min),
    };
    let value = answers.statistic(statistic).map(Quantity::Time);
    Observation { value, samples, dropped, hidden, answered: None }
}

fn decide(
    threshold: &Threshold,
    observed: &Observation,
    numbers: &Numbers,
) -> (Verdict, Bound, Option<String>) {
    let Threshold { target, warning, critical, .. } = threshold;
    let inconclusive = |why: String| (Verdict::Inconclusive, *target, Some(why));
    let needed = samples_needed(threshold);
    let samples = observed.samples;
    if samples < needed {
        return inconclusive(format!(
            "{samples} samples, needs {needed}: run longer, with more users, or set minSamples"
        ));
    }
    let Some(value) = observed.value else {
        let why = if threshold.metric == Metric::TokensPerSecond {
            "the target does not count its tokens: set chat.stream, or let its answers have a usage"
                .to_owned()
        } else {
            format!("no answer came: all {samples} arrivals were dropped")
        };
        return inconclusive(why);
    };
    let holds = |bound: &Bound| bound.holds(value).unwrap_or(false);
    // A count that is good enough in spite of the generator is good enough.
    let in_doubt = threshold.metric.is_latency()
        || (!holds(target) && (threshold.metric.needs_pace() || observed.dropped > 0));
    let unfit = in_doubt.then(|| health::unfit(tightest(threshold), numbers)).flatten();
    // What failed has failed, whoever dropped the rest.
    let value = match (
        unfit,
        observed.answered.filter(|answered| !target.holds(*answered).unwrap_or(true)),
    ) {
        (None, _) => value,
        (Some(_), Some(answered)) => answered,
        (Some(why), None) => return inconclusive(why),
    };
    if let Some(critical) = critical.filter(holds) {
        return (Verdict::Critical, critical, Some(advice(threshold.metric)));
    }
    if observed.hidden {
        return inconclusive(format!(
            "{} arrivals were dropped, so it is at least {}: raise load.maxUsers, or see whether the target takes this rate at all",
            observed.dropped,
            value.rounded()
        ));
    }
    if holds(target) {
        (Verdict::Pass, *target, None)
    } else if warning.as_ref().is_some_and(holds) {
        (Verdict::Warning, *target, Some(advice(threshold.metric)))
    } else {
        (Verdict::Fail, warning.unwrap_or(*target), Some(advice(threshold.metric)))
    }
}

/// A percentile needs 5/(1−p) samples, so that about five lie beyond it.
fn samples_needed(threshold: &Threshold) -> u64 {
    if let Some(asked) = threshold.min_samples {
        return u64::try_from(asked).unwrap_or(1).max(1);
    }
    match threshold.statistic {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "p < 1, so the quotient is a small positive number"
        )]
        // 5 / (1 − 0.95) is a hair above 100 in binary.
        Some(Statistic::Quantile(p)) => (5.0 / (1.0 - p) - 1e-6).ceil() as u64,
        _ => 1,
    }
}

/// The strictest duration among a row's bounds.
fn tightest(threshold: &Threshold) -> Option<Duration> {
    let bounds = [Some(threshold.target), threshold.warning, threshold.critical];
    let times = bounds.into_iter().flatten().filter_map(|bound| match bound.quantity {
        Quantity::Time(time) => Some(time),
        _ => None,
    });
    times.min()
}

pub(crate) fn advice(metric: Metric) -> String {
    match metric {
        Metric::ResponseTime | Metric::ServiceTime => {
            "look at the target's CPU, queues and downstream calls at this load; responseTime far above serviceTime means requests waited to be sent"
        }
        Metric::TimeToFirstResponse => {
            "look at queueing and prompt processing in the model server; more replicas or smaller batches shorten the wait for the first token"
        }
        Metric::InterTokenLatency | Metric::TokensPerSecond => {
            "look at the model server's batch size and the share of time it spends on prompts: decoding waits for both"
        }
        Metric::Goodput => {
            "see which latency row is missed; goodput is the share of requests that meet all of their task's"
        }
        Metric::TimeToFirstByte => {
            "look at what the target does before it answers; a large gap to responseTime is the time that answers take to come"
        }
        Metric::WebSocketRoundTrip => {
            "look at the target's message loop and what it waits for; one slow handler delays all messages behind it"
        }
        Metric::WebSocketConnect => {
            "look at the target's accept queue, proxy and TLS handshakes; each new session pays for them"
        }
        Metric::ErrorRate => "see status.errors for what failed, and the target's log for why",
        Metric::Throughput => {
            "the target answered too slowly or too rarely for these users: see the latency rows, or raise users if they hold"
        }
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Outcome;

    fn row(yaml: &str) -> Threshold {
        serde_yaml::from_str(yaml).unwrap()
    }

    fn p95() -> Threshold {
        row(
            r#"{task: chat, metric: responseTime, statistic: p95, target: "< 1s", warning: "< 2s", critical: "> 5s"}"#,
        )
    }

    fn answers(seconds: f64, outcome: Outcome, n: u64) -> Numbers {
        let mut numbers = Numbers { elapsed_seconds: 10.0, ..Numbers::default() };
        let task = numbers.tasks.entry("chat".into()).or_default();
        task.requests[outcome.index()] = n;
        task.response_time[outcome.index()].record(seconds, n);
        numbers
    }

    fn verdict(seconds: f64) -> Verdict {
        judge(&p95(), &answers(seconds, Outcome::Success, 1000)).verdict
    }

    #[test]
    fn the_ladder_has_four_steps() {
        assert_eq!(verdict(0.5), Verdict::Pass);
        assert_eq!(verdict(1.5), Verdict::Warning);
        assert_eq!(verdict(3.0), Verdict::Fail);
        assert_eq!(verdict(6.0), Verdict::Critical);
    }

    #[test]
    fn a_missed_target_without_warning_bound_fails() {
        let alone = row("{metric: responseTime, statistic: p50, target: \"< 1s\"}");
        assert_eq!(judge(&alone, &answers(1.5, Outcome::Success, 99)).verdict, Verdict::Fail);
    }

    #[test]
    fn no_data_is_inconclusive_for_every_metric() {
        for threshold in crate::testing::spec().thresholds {
            let row = judge(&threshold, &Numbers::default());
            assert_eq!((row.verdict, row.observed), (Verdict::Inconclusive, None));
        }
    }

    #[test]
    fn a_percentile_needs_five_samples_beyond_it() {
        let few = judge(&p95(), &answers(0.5, Outcome::Success, 99));
        assert_eq!(few.verdict, Verdict::Inconclusive);
        assert!(few.advice.unwrap().contains("needs 100"));
        assert_eq!(judge(&p95(), &answers(0.5, Outcome::Success, 100)).verdict, Verdict::Pass);
        let mut eager = p95();
        eager.min_samples = Some(3);
        assert_eq!(judge(&eager, &answers(0.5, Outcome::Success, 3)).verdict, Verdict::Pass);
    }

    #[test]
    fn fast_errors_are_no_fast_answers() {
        let row = judge(&p95(), &answers(0.001, Outcome::Failure, 1000));
        assert_eq!((row.samples, row.verdict), (0, Verdict::Inconclusive));
    }

    #[test]
    fn what_a_weak_generator_drops_is_not_the_targets_but_what_failed_is() {
        let rate = row(r#"{metric: errorRate, target: "< 1%", critical: "> 5%"}"#);
        let mut numbers = answers(0.1, Outcome::Success, 1000);
        numbers.throttled_seconds = 5.0;
        numbers.tasks.get_mut("chat").unwrap().dropped = 500;
        assert_eq!(judge(&rate, &numbers).verdict, Verdict::Inconclusive);
        numbers.tasks.get_mut("chat").unwrap().requests[Outcome::Failure.index()] = 600;
        assert_eq!(judge(&rate, &numbers).verdict, Verdict::Critical);
        // A fit one's drops are the target's: nobody was free to send them.
        numbers.tasks.get_mut("chat").unwrap().requests[Outcome::Failure.index()] = 0;
        numbers.throttled_seconds = 0.0;
        assert_eq!(judge(&rate, &numbers).verdict, Verdict::Critical);
    }

    #[test]
    fn a_rate_that_a_weak_generator_misses_says_nothing_and_one_it_meets_holds() {
        let rate = row(r#"{metric: throughput, target: "> 50/s", critical: "< 20/s"}"#);
        let mut numbers = answers(0.1, Outcome::Success, 1000);
        numbers.thread_busy = 0.99;
        assert_eq!(judge(&rate, &numbers).verdict, Verdict::Pass);
        numbers.elapsed_seconds = 100.0;
        assert_eq!(judge(&rate, &numbers).verdict, Verdict::Inconclusive);
        numbers.thread_busy = 0.5;
        assert_eq!(judge(&rate, &numbers).verdict, Verdict::Critical);
    }

    #[test]
    fn timeouts_and_interruptions_count_at_their_age() {
        for outcome in [Outcome::Timeout, Outcome::Interrupted] {
            assert_eq!(judge(&p95(), &answers(6.0, outcome, 1000)).verdict, Verdict::Critical);
        }
    }

    #[test]
    fn dropped_arrivals_are_slower_than_any_answer() {
        // 1000 answers and 10 drops: the p95 is the 960th answer, the p99.9 is hidden.
        let mut numbers = answers(0.5, Outcome::Success, 950);
        let task = numbers.tasks.get_mut("chat").unwrap();
        task.requests[0] += 50;
        task.response_time[0].record(3.0, 50);
        assert_eq!(judge(&p95(), &numbers).verdict, Verdict::Pass);
        numbers.tasks.get_mut("chat").unwrap().dropped = 10;
        let row = judge(&p95(), &numbers);
        assert_eq!((row.verdict, row.samples), (Verdict::Fail, 1010));
        let mut tail = p95();
        (tail.statistic, tail.min_samples) = (Some(Statistic::Quantile(0.999)), Some(1));
        let row = judge(&tail, &numbers);
        assert_eq!(row.verdict, Verdict::Inconclusive);
        assert!(row.advice.unwrap().contains("10 arrivals were dropped"));
        // What is known of a hidden value may be critical already.
        tail.critical = Some("> 2.5s".parse().unwrap());
        tail.warning = None;
        assert_eq!(judge(&tail, &numbers).verdict, Verdict::Critical);
    }

    #[test]
    fn tokens_and_goodput_are_judged() {
        let mut numbers = answers(0.5, Outcome::Success, 90);
        let task = numbers.tasks.get_mut("chat").unwrap();
        task.requests[Outcome::Interrupted.index()] = 10;
        task.good = 80;
        task.tokens.output = 500;
        task.inter_token.record(0.02, 400);
        let mut silent = numbers.clone();
        silent.tasks.get_mut("chat").unwrap().tokens.output = 0;
        let uncounted = row(r#"{metric: tokensPerSecond, target: "> 10/s", critical: "< 5/s"}"#);
        assert_eq!(judge(&uncounted, &silent).verdict, Verdict::Inconclusive);
        let observed = |yaml: &str| judge(&row(yaml), &numbers).observed.unwrap();
        assert_eq!(observed(r#"{metric: goodput, target: "> 99%"}"#), "80%");
        assert_eq!(observed(r#"{metric: tokensPerSecond, target: "> 10/s"}"#), "50/s");
        let gap = observed(r#"{metric: interTokenLatency, statistic: p95, target: "< 50ms"}"#);
        let gap: Duration = gap.parse().unwrap();
        assert!((gap.as_secs_f64() / 0.02 - 1.0).abs() < 0.002, "{gap}");
    }

    #[test]
    fn dropped_arrivals_count_as_errors() {
        let mut numbers = answers(0.5, Outcome::Success, 90);
        numbers.tasks.get_mut("chat").unwrap().dropped = 10;
        let errors = row(r#"{metric: errorRate, target: "< 1%", critical: "> 5%"}"#);
        let judged = judge(&errors, &numbers);
        assert_eq!((judged.verdict, judged.observed.as_deref()), (Verdict::Critical, Some("10%")));
    }

    #[test]
    fn a_target_that_only_fails_has_no_throughput_but_a_verdict() {
        let rate = row(r#"{metric: throughput, target: "> 10/s", critical: "< 2/s"}"#);
        let judged = judge(&rate, &answers(0.001, Outcome::Failure, 1000));
        assert_eq!((judged.verdict, judged.observed.as_deref()), (Verdict::Critical, Some("0/s")));
    }

    #[test]
    fn a_late_generator_makes_latency_inconclusive_but_not_errors() {
        let mut numbers = answers(0.5, Outcome::Success, 1000);
        numbers.schedule_lag.record(0.2, 1000);
        assert_eq!(judge(&p95(), &numbers).verdict, Verdict::Inconclusive);
        let errors = row(r#"{metric: errorRate, target: "< 1%"}"#);
        assert_eq!(judge(&errors, &numbers).verdict, Verdict::Pass);
    }

    #[test]
    fn a_generator_without_cpu_makes_latency_inconclusive_but_not_errors() {
        let spoilt: [fn(&mut Numbers); 2] =
            [|numbers| numbers.thread_busy = 0.95, |numbers| numbers.throttled_seconds = 0.2];
        for spoil in spoilt {
            let mut numbers = answers(0.5, Outcome::Success, 1000);
            spoil(&mut numbers);
            let row = judge(&p95(), &numbers);
            assert_eq!(row.verdict, Verdict::Inconclusive);
            assert!(row.advice.unwrap().contains("load generator"));
            let errors = row_of_errors();
            assert_eq!(judge(&errors, &numbers).verdict, Verdict::Pass);
        }
        let mut numbers = answers(0.5, Outcome::Success, 1000);
        (numbers.thread_busy, numbers.throttled_seconds) = (0.8, 0.05);
        assert_eq!(judge(&p95(), &numbers).verdict, Verdict::Pass);
    }

    fn row_of_errors() -> Threshold {
        row(r#"{metric: errorRate, target: "< 1%"}"#)
    }

    #[test]
    fn lag_below_both_limits_spoils_nothing() {
        let mut numbers = answers(0.5, Outcome::Success, 1000);
        // Above 5 ms, below 5 % of the 1 s target.
        numbers.schedule_lag.record(0.04, 1000);
        assert_eq!(judge(&p95(), &numbers).verdict, Verdict::Pass);
    }

    #[test]
    fn the_worst_row_decides_and_inconclusive_outweighs_warning() {
        let rows = |verdicts: &[Verdict]| -> Vec<ThresholdRow> {
            let row = judge(&p95(), &answers(0.5, Outcome::Success, 1000));
            verdicts.iter().map(|v| ThresholdRow { verdict: *v, ..row.clone() }).collect()
        };
        use Verdict::{Critical, Fail, Inconclusive, NotJudged, Pass, Warning};
        assert_eq!(worst(&rows(&[Pass, Warning, Inconclusive])), Inconclusive);
        assert_eq!(worst(&rows(&[Inconclusive, Fail])), Fail);
        assert_eq!(worst(&rows(&[Fail, Critical, Pass])), Critical);
        assert_eq!(worst(&rows(&[Pass, Warning])), Warning);
        assert_eq!(worst(&rows(&[])), NotJudged);
    }
}
