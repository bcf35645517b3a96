//! Did the target pass: thresholds against numbers. Pure.

use crate::{
    health,
    metrics::{LatencyHistogram, Numbers, Outcome, TaskNumbers, judged},
    resource::{Metric, Statistic, Threshold, ThresholdRow, Verdict},
    values::{Bound, Duration, Quantity, Rate, Share},
};

/// Answers that would have come, by the rate before: that there was none of so many is no chance.
const MANY: f64 = 10.0;
/// The share of answers that say how long one takes: the rest may have had reasons of their own.
const USUAL: f64 = 0.9;

/// Judges one threshold.
///
/// *Pass* when the target bound holds, *Critical* when the critical bound holds, *Warning*
/// when only the warning bound holds, *Fail* otherwise. Too few samples, or a generator
/// that was itself late, are *Inconclusive*.
pub fn judge(threshold: &Threshold, numbers: &Numbers) -> ThresholdRow {
    // What was open all the time, to the end, has a rate too.
    judge_value(threshold, numbers, |scope| scope.of(Outcome::Interrupted) > 0).0
}

/// Judges one threshold by a part of a test, of which the whole so far is known too.
pub(crate) fn judge_part(
    threshold: &Threshold,
    part: &Numbers,
    whole: &Numbers,
) -> (ThresholdRow, Option<Quantity>) {
    judge_value(threshold, part, |_| stalls(threshold, part, whole))
}

/// True when nothing that came in a part of a test is a rate of zero, and no lack of samples: by
/// what came before it of some task, for as much load, many answers would have come.
fn stalls(threshold: &Threshold, part: &Numbers, whole: &Numbers) -> bool {
    let before = whole.user_seconds - part.user_seconds;
    let named = |name: &String| threshold.task.as_ref().is_none_or(|task| task == name);
    before > 0.0
        && whole.tasks.iter().filter(|(name, _)| named(name)).any(|(_, task)| {
            let answers = &task.service_time[Outcome::Success.index()];
            let usual = answers.quantile(USUAL).map_or(f64::INFINITY, Duration::as_secs_f64);
            let wanted = answers.count() as f64 / before * part.user_seconds;
            usual <= part.elapsed_seconds && wanted >= MANY
        })
}

/// The same, with the observed value as a number. Where it `stalled`, nothing is a rate of zero.
fn judge_value(
    threshold: &Threshold,
    numbers: &Numbers,
    stalled: impl FnOnce(&TaskNumbers) -> bool,
) -> (ThresholdRow, Option<Quantity>) {
    let scope = match &threshold.task {
        Some(task) => numbers.tasks.get(task).cloned().unwrap_or_default(),
        None => together(threshold.metric, numbers),
    };
    let rate = matches!(threshold.metric, Metric::Throughput | Metric::TokensPerSecond);
    let stalled = rate && scope.wanted() == 0 && stalled(&scope);
    let mut observed = observe(threshold, &scope, numbers.elapsed_seconds, stalled);
    let (verdict, bound, advice) = decide(threshold, &mut observed, numbers);
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

/// True when a row has fewer samples than it takes to say anything.
pub(crate) fn is_scarce(threshold: &Threshold, row: &ThresholdRow) -> bool {
    let samples = u64::try_from(row.samples).unwrap_or(0);
    // None, and yet a value, is a rate of zero.
    samples < samples_needed(threshold) && !(samples == 0 && row.observed.is_some())
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

fn observe(threshold: &Threshold, scope: &TaskNumbers, elapsed: f64, stalled: bool) -> Observation {
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
    let known = elapsed > 0.0 && (wanted > 0 || stalled);
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
            let counted = scope.tokens.generated() > 0 || scope.of(Outcome::Success) == 0;
            seen((known && counted).then(rate), wanted)
        }
        Metric::Goodput => {
            // What was still open at the end was not good either.
            let all = wanted + scope.of(Outcome::Interrupted);
            seen((all > 0).then(|| Quantity::Share(Share::of(scope.good, all))), all)
        }
        Metric::ErrorRate => {
            let share = |n| (wanted > 0).then(|| Quantity::Share(Share::of(n, wanted)));
            let answered = share(scope.failures());
            Observation { answered, ..seen(share(scope.missed()), wanted) }
        }
        Metric::Throughput => {
            let successes = scope.of(Outcome::Success) as f64;
            let rate = || Quantity::Rate(Rate::per_second(successes / elapsed));
            seen(known.then(rate), wanted)
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
            // A share that is the slowest answer's may be a hair more in binary.
            (Statistic::Quantile(within.min(1.0)), within > 1.0 + 1e-12)
        }
        other => (other, dropped > 0 && other != Statistic::Min),
    };
    let value = answers.statistic(statistic).map(Quantity::Time);
    Observation { value, samples, dropped, hidden, answered: None }
}

/// The verdict on what was observed. That becomes what the verdict is of, where the two differ.
fn decide(
    threshold: &Threshold,
    observed: &mut Observation,
    numbers: &Numbers,
) -> (Verdict, Bound, Option<String>) {
    let Threshold { target, warning, critical, .. } = threshold;
    let inconclusive = |why: String| (Verdict::Inconclusive, *target, Some(why));
    let needed = samples_needed(threshold);
    let samples = observed.samples;
    // None, and yet a value, is a rate of zero.
    if samples < needed && !(samples == 0 && observed.value.is_some()) {
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
    let meets = |value: Quantity| target.holds(value).unwrap_or(false);
    // A count that is good enough in spite of the generator is good enough.
    let in_doubt = threshold.metric.is_latency()
        || (!meets(value) && (threshold.metric.needs_pace() || observed.dropped > 0));
    let unfit = in_doubt.then(|| health::unfit(tightest(threshold), numbers)).flatten();
    // What failed has failed, whoever dropped the rest.
    let value = match (unfit, observed.answered.filter(|answered| !meets(*answered))) {
        (None, _) => value,
        (Some(_), Some(answered)) => answered,
        (Some(why), None) => return inconclusive(why),
    };
    observed.value = Some(value);
    let holds = |bound: &Bound| bound.holds(value).unwrap_or(false);
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
mod tests;
