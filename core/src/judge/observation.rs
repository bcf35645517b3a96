//! The value of a threshold's metric, with what makes the value less certain. Pure.

use crate::{
    metrics::{
        LatencyHistogram, LatencyMetric, Metric, Metrics, Outcome, Statistic, TaskMetrics,
        TaskScope,
    },
    resource::Threshold,
    values::{Percent, Quantity, Rate},
};

/// The observed value of a threshold's metric.
#[derive(Clone, Copy, Debug)]
pub(super) struct Observation {
    /// The value; `None` when there is nothing to compute it from.
    pub(super) value: Option<Quantity>,
    /// Number of samples, dropped arrivals included.
    pub(super) samples: u64,
    /// Number of dropped arrivals among the samples.
    pub(super) dropped: u64,
    /// True when the real value lies among dropped arrivals: it is at least `value`.
    pub(super) is_lower_limit: bool,
    /// An error rate without dropped arrivals, as if all of them had succeeded.
    pub(super) without_dropped: Option<Quantity>,
}

/// The task that a threshold judges. For all tasks: those that have its metric, merged.
pub(super) fn judged_task(threshold: &Threshold, metrics: &Metrics) -> TaskMetrics {
    if let Some(task) = &threshold.task {
        return metrics.tasks.get(task).cloned().unwrap_or_default();
    }
    let has_metric = |task: &&TaskMetrics| match threshold.metric {
        Metric::Latency(metric) if metric.info().tasks == TaskScope::All => true,
        Metric::Latency(metric) => task.latencies.has_samples(metric),
        Metric::TokensPerSecond => {
            task.tokens.generated() > 0
                || task.latencies.has_samples(LatencyMetric::TimeToFirstToken)
        }
        Metric::ErrorRate | Metric::Throughput | Metric::Goodput => true,
    };
    metrics.tasks.values().filter(has_metric).fold(TaskMetrics::default(), |mut all, task| {
        all.merge(task);
        all
    })
}

/// Observes the metric of a threshold on the task that it judges. When the target has `stalled`,
/// a rate without any response is zero.
pub(super) fn observe(
    threshold: &Threshold,
    task: &TaskMetrics,
    elapsed_seconds: f64,
    stalled: bool,
) -> Observation {
    let offered = task.offered_requests();
    let observation = |value: Option<Quantity>, samples: u64| Observation {
        value,
        samples,
        dropped: task.dropped,
        is_lower_limit: false,
        without_dropped: None,
    };
    let has_rate = elapsed_seconds > 0.0 && (offered > 0 || stalled);
    let rate = |count: u64| Quantity::Rate(Rate::per_second(count as f64 / elapsed_seconds));
    let percent =
        |part: u64, whole: u64| (whole > 0).then(|| Quantity::Percent(Percent::of(part, whole)));
    match threshold.metric {
        Metric::Latency(metric) => {
            // A token or a message that was never sent has no latency.
            let per_request = metric.info().judged.is_some_and(|judged| judged.per_request);
            let dropped = if per_request { task.dropped } else { 0 };
            observe_latency(&task.latencies.samples(metric), dropped, threshold.statistic)
        }
        Metric::TokensPerSecond => {
            // Successful responses without tokens: the target does not count its tokens.
            let counted = task.tokens.generated() > 0 || task.requests_with(Outcome::Success) == 0;
            observation((has_rate && counted).then(|| rate(task.tokens_in_load)), offered)
        }
        Metric::Throughput => observation(has_rate.then(|| rate(task.successes_in_load)), offered),
        Metric::Goodput => {
            // An interrupted request was not a good one.
            let all = offered + task.requests_with(Outcome::Interrupted);
            observation(percent(task.good, all), all)
        }
        Metric::ErrorRate => Observation {
            without_dropped: percent(task.failed_requests(), offered),
            ..observation(percent(task.failed_or_dropped(), offered), offered)
        },
    }
}

/// Observes a latency on the requests that were sent on time. `None` for other metrics, for latencies
/// of tokens and messages, and for lower bounds, which lateness can't spoil.
pub(super) fn observe_on_time(threshold: &Threshold, task: &TaskMetrics) -> Option<Observation> {
    let Metric::Latency(metric) = threshold.metric else { return None };
    let per_request = metric.info().judged.is_some_and(|judged| judged.per_request);
    // Without a late sample, it is unknown what lateness has done.
    let is_known = task.latencies.late(metric).count() > 0;
    (per_request && is_known && threshold.target.comparison.is_upper())
        .then(|| observe_latency(&task.latencies.samples_on_time(metric), 0, threshold.statistic))
}

/// A statistic of latency samples and of dropped arrivals. A dropped arrival counts as slower than
/// any sample, because it was never sent.
fn observe_latency(
    samples: &LatencyHistogram,
    dropped: u64,
    statistic: Option<Statistic>,
) -> Observation {
    let all = samples.count() + dropped;
    let (statistic, is_lower_limit) = match statistic.unwrap_or(Statistic::Mean) {
        Statistic::Quantile(p) => {
            let p_of_samples = p * all as f64 / samples.count().max(1) as f64;
            // The quotient of the slowest sample may be slightly above 1 in binary.
            (Statistic::Quantile(p_of_samples.min(1.0)), p_of_samples > 1.0 + 1e-12)
        }
        other => (other, dropped > 0 && other != Statistic::Min),
    };
    let value = samples.statistic(statistic).map(Quantity::Time);
    Observation { value, samples: all, dropped, is_lower_limit, without_dropped: None }
}
