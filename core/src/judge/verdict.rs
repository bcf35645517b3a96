//! Judges thresholds by metrics. Pure.

use super::{
    advice::{advice_for, dropped_arrivals, with_generator_link},
    generator_health::{generator_problem, was_held_up},
    observation::{Observation, judged_task, observe, observe_on_time},
};
use crate::{
    metrics::{LatencyMetric, Metric, Metrics, Outcome, Statistic, TaskMetrics},
    resource::{Threshold, ThresholdRow, Verdict},
    values::{Bound, Duration, Percent, Quantity},
};

/// If at least this many responses were expected and none came, the target has stalled; fewer may
/// be missing by chance.
const MIN_EXPECTED_RESPONSES: f64 = 10.0;
/// The quantile of the service time that a usual response takes at most.
const USUAL_SERVICE_TIME: f64 = 0.9;

/// Judges one threshold by the metrics of a whole test.
///
/// *Pass* when the target bound is met, *Critical* when the critical bound is met, *Warning* when
/// only the warning bound is met, *Fail* otherwise. A row with too few samples, or one that the
/// load generator may have spoiled, is *Inconclusive*.
///
/// `coverage` is the achieved load as a share of the planned load, from 0 to 1.
pub fn judge(threshold: &Threshold, metrics: &Metrics, coverage: f64) -> ThresholdRow {
    // At the end of a test, interrupted requests without any response mean a rate of zero.
    let has_stalled = |task: &TaskMetrics| task.requests_with(Outcome::Interrupted) > 0;
    judge_value(threshold, metrics, coverage, has_stalled).0
}

/// Judges one threshold by an interval of a test, given the metrics of the test so far.
pub(super) fn judge_interval(
    threshold: &Threshold,
    interval: &Metrics,
    so_far: &Metrics,
) -> (ThresholdRow, Option<Quantity>) {
    judge_value(threshold, interval, 1.0, |_| is_stalled(threshold, interval, so_far))
}

/// True when a row says the same although some runners were lost, whose load only makes rates higher.
pub(super) fn holds_without_lost(threshold: &Threshold, row: &ThresholdRow) -> bool {
    let is_minimum = !threshold.target.comparison.is_upper();
    !threshold.metric.is_rate() || (is_minimum && row.verdict.known() == Some(Verdict::Pass))
}

/// Makes the row of a rate Inconclusive, because the rate is lower after the loss of a runner.
pub(super) fn make_rate_inconclusive(row: &mut ThresholdRow) {
    row.verdict = Verdict::Inconclusive.into();
    row.advice = Some("a runner was lost, and the rate is lower without it".into());
}

/// True when an interval without responses means that the target has stalled: before the interval,
/// some task had enough fast responses that many would have come in the interval.
fn is_stalled(threshold: &Threshold, interval: &Metrics, so_far: &Metrics) -> bool {
    let user_seconds_before = so_far.user_seconds - interval.user_seconds;
    let is_judged = |name: &String| threshold.task.as_ref().is_none_or(|task| task == name);
    user_seconds_before > 0.0
        && so_far.tasks.iter().filter(|(name, _)| is_judged(name)).any(|(_, task)| {
            let responses = task.latencies.get(LatencyMetric::ServiceTime, Outcome::Success);
            let usual = responses.quantile(USUAL_SERVICE_TIME).map(Duration::as_secs_f64);
            let rate = responses.count() as f64 / user_seconds_before;
            usual.is_some_and(|usual| usual <= interval.elapsed_seconds)
                && rate * interval.user_seconds >= MIN_EXPECTED_RESPONSES
        })
}

/// Judges one threshold, and returns the observed value as a number too. When `has_stalled` holds,
/// no response means a rate of zero.
fn judge_value(
    threshold: &Threshold,
    metrics: &Metrics,
    coverage: f64,
    has_stalled: impl FnOnce(&TaskMetrics) -> bool,
) -> (ThresholdRow, Option<Quantity>) {
    let task = judged_task(threshold, metrics);
    let stalled = threshold.metric.is_rate() && task.offered_requests() == 0 && has_stalled(&task);
    let mut observed = observe(threshold, &task, metrics.elapsed_seconds, stalled);
    let (verdict, bound, advice) = match mostly_failed(threshold, &task) {
        Some(reason) => (Verdict::Inconclusive, threshold.target, Some(reason)),
        None => decide(threshold, &task, &mut observed, metrics, coverage),
    };
    let row = ThresholdRow {
        key: threshold.key(),
        observed: observed.value.map(|value| value.rounded()),
        bound,
        samples: observed.samples,
        verdict: verdict.into(),
        advice,
    };
    (row, observed.value)
}

/// Why a latency row says nothing: most requests of its task failed. Timeouts are samples of a
/// latency, so they don't count here.
fn mostly_failed(threshold: &Threshold, task: &TaskMetrics) -> Option<String> {
    let (failed, all) = (task.requests_with(Outcome::Failure), task.completed_requests());
    let is_latency = matches!(threshold.metric, Metric::Latency(_));
    (is_latency && failed > all / 2).then(|| {
        format!(
            "{} of the requests failed, and the latency of the others says nothing about the target: see the errors",
            Percent::of(failed, all).rounded()
        )
    })
}

/// True when a row has fewer samples than it needs.
pub(super) fn has_too_few_samples(threshold: &Threshold, row: &ThresholdRow) -> bool {
    // A row without samples that has a value is a rate of zero.
    let is_zero_rate = row.samples == 0 && row.observed.is_some();
    row.samples < samples_needed(threshold) && !is_zero_rate
}

/// The verdict of a table: that of its worst row, in the order Critical, Fail, Inconclusive,
/// Warning, Pass; *NotJudged* without rows.
pub fn worst_verdict<'a>(rows: impl IntoIterator<Item = &'a ThresholdRow>) -> Verdict {
    rows.into_iter()
        .map(|row| row.verdict.known().unwrap_or(Verdict::Inconclusive))
        .max_by_key(|verdict| verdict.severity())
        .unwrap_or(Verdict::NotJudged)
}

/// The verdict on an observation, the bound that decided, and the advice. Changes the observed
/// value where only a part of it can be judged.
fn decide(
    threshold: &Threshold,
    task: &TaskMetrics,
    observed: &mut Observation,
    metrics: &Metrics,
    coverage: f64,
) -> (Verdict, Bound, Option<String>) {
    let Threshold { metric, target, critical, .. } = threshold;
    let inconclusive = |reason: String| (Verdict::Inconclusive, *target, Some(reason));
    let needed = samples_needed(threshold);
    let samples = observed.samples;
    // No samples, but a value: a rate of zero.
    if samples < needed && !(samples == 0 && observed.value.is_some()) {
        if samples == 0
            && task.requests_with(Outcome::Success) > 0
            && let Some(reason) = metric.why_no_samples()
        {
            return inconclusive(reason.to_owned());
        }
        return inconclusive(format!(
            "{samples} samples, needs {needed}: run longer, with more users, or set minSamples"
        ));
    }
    let Some(value) = observed.value else {
        return inconclusive(if *metric == Metric::TokensPerSecond {
            "the target does not count its tokens: set chat.stream to true, or let its responses include usage"
                .to_owned()
        } else if task.too_large() > 0 {
            "all responses were too large for the load generator: see the errors".to_owned()
        } else {
            format!("no response came: all {samples} arrivals were dropped")
        });
    };
    let meets_target = |value: Quantity| target.is_met_by(value).unwrap_or(false);
    // A slow generator makes latencies longer and counts smaller, never better.
    let needs_pace =
        matches!(metric, Metric::Throughput | Metric::TokensPerSecond | Metric::Goodput);
    let may_be_spoiled = matches!(metric, Metric::Latency(_))
        || (!meets_target(value) && (needs_pace || observed.dropped > 0));
    let problem = may_be_spoiled
        .then(|| {
            let holds_if_late = meets_target(value) && lateness_only_worsens(threshold);
            generator_problem(tightest_bound(threshold), holds_if_late, metrics, coverage)
        })
        .flatten();
    // A row that misses its target is judged again on the requests that were sent on time: lateness
    // is not in them.
    if problem.is_some()
        && !meets_target(value)
        && !was_held_up(metrics)
        && let Some(on_time) = observe_on_time(threshold, task)
        && on_time.samples >= needed
        && on_time.value.is_some_and(|value| !meets_target(value))
    {
        *observed = on_time;
        return verdict_by_bounds(threshold, task, on_time.value.unwrap_or(value));
    }
    // A failed request has failed, even if the generator is to blame for the dropped arrivals.
    let value = match (problem, observed.without_dropped.filter(|value| !meets_target(*value))) {
        (None, _) => value,
        (Some(_), Some(without_dropped)) => without_dropped,
        (Some(problem), None) => return inconclusive(with_generator_link(&problem)),
    };
    observed.value = Some(value);
    let is_critical = critical.is_some_and(|critical| critical.is_met_by(value).unwrap_or(false));
    if observed.is_lower_limit && !is_critical {
        return inconclusive(format!(
            "{} arrivals were dropped, so the value is at least {}: raise load.maxUsers, or check whether the target can serve this rate",
            observed.dropped,
            value.rounded()
        ));
    }
    let decided = verdict_by_bounds(threshold, task, value);
    // Requests that were given up may have been slower than anything that was measured.
    let may_differ = if target.comparison.is_upper() {
        matches!(decided.0, Verdict::Pass | Verdict::Warning)
    } else {
        decided.0 != Verdict::Pass
    };
    let is_certain = observed.given_up == 0
        || !may_differ
        || observed
            .at_most
            .is_some_and(|at_most| verdict_by_bounds(threshold, task, at_most).0 == decided.0);
    if !is_certain {
        let share = Percent::of(observed.given_up, samples);
        return inconclusive(format!(
            "{} of the requests timed out or were interrupted, so the value is at least {}: see the errors, or set the timeout of the task above the bounds",
            share.rounded(),
            value.rounded()
        ));
    }
    // Most of the errors are arrivals that were never sent.
    let (verdict, bound, advice) = decided;
    let is_dropped = *metric == Metric::ErrorRate
        && advice.is_some()
        && observed.dropped > task.failed_requests();
    let advice = if is_dropped { Some(dropped_arrivals(task)) } else { advice };
    (verdict, bound, advice)
}

/// The verdict that the bounds give a value, the bound that decided, and the advice.
fn verdict_by_bounds(
    threshold: &Threshold,
    task: &TaskMetrics,
    value: Quantity,
) -> (Verdict, Bound, Option<String>) {
    let Threshold { metric, target, warning, critical, .. } = threshold;
    let advice = || Some(advice_for(*metric, task));
    let is_met = |bound: &Bound| bound.is_met_by(value).unwrap_or(false);
    if let Some(critical) = critical.filter(is_met) {
        return (Verdict::Critical, critical, advice());
    }
    if is_met(target) {
        (Verdict::Pass, *target, None)
    } else if warning.as_ref().is_some_and(is_met) {
        (Verdict::Warning, *target, advice())
    } else {
        (Verdict::Fail, warning.unwrap_or(*target), advice())
    }
}

/// A percentile *p* needs 5/(1−p) samples, so that about five lie above it.
fn samples_needed(threshold: &Threshold) -> u64 {
    if let Some(asked) = threshold.min_samples {
        return u64::from(asked.get());
    }
    match threshold.statistic {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "p < 1, so the quotient is a small positive number"
        )]
        // 5 / (1 − 0.95) is slightly above 100 in binary.
        Some(Statistic::Quantile(p)) => (5.0 / (1.0 - p) - 1e-6).ceil() as u64,
        _ => 1,
    }
}

/// True when lateness of the load generator can only move the observed value away from the target.
/// It can shorten a time between tokens: a late read returns several tokens at once.
fn lateness_only_worsens(threshold: &Threshold) -> bool {
    let is_between_tokens = matches!(
        threshold.metric,
        Metric::Latency(LatencyMetric::InterTokenLatency | LatencyMetric::TimePerOutputToken)
    );
    threshold.target.comparison.is_upper() && !is_between_tokens
}

/// The strictest duration among a row's bounds.
fn tightest_bound(threshold: &Threshold) -> Option<Duration> {
    let bounds = [Some(threshold.target), threshold.warning, threshold.critical];
    let times = bounds.into_iter().flatten().filter_map(|bound| match bound.quantity {
        Quantity::Time(time) => Some(time),
        Quantity::Rate(_) | Quantity::Percent(_) => None,
    });
    times.min()
}

#[cfg(test)]
mod tests;
