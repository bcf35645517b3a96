//! The value of a threshold's metric, with what makes the value less certain. Pure.

use crate::{
    metrics::{
        LatencyHistogram, LatencyMetric, Metric, Metrics, Outcome, Statistic, TaskMetrics,
        TaskScope,
    },
    resource::Threshold,
    values::{Percent, Quantity, Rate},
};

/// Maximum share of requests that were given up, with which a mean is still taken as it is.
const MAX_GIVEN_UP_IN_MEAN: f64 = 0.01;

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
    /// Number of samples that are only the age of a request that was given up.
    pub(super) given_up: u64,
    /// The value if those requests had never ended; `None` when it has no limit.
    pub(super) at_most: Option<Quantity>,
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
        given_up: 0,
        at_most: value,
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
            let finished = task.latencies.get(metric, Outcome::Success);
            let samples = task.latencies.samples(metric);
            observe_latency(&samples, finished, dropped, threshold.statistic)
        }
        Metric::TokensPerSecond => {
            // Successful responses without tokens: the target does not count its tokens.
            let counted = task.tokens.generated() > 0 || task.requests_with(Outcome::Success) == 0;
            observation((has_rate && counted).then(|| rate(task.tokens_in_load)), offered)
        }
        Metric::Throughput => observation(has_rate.then(|| rate(task.successes_in_load)), offered),
        Metric::Goodput => {
            // An interrupted request was not a good one.
            let all = task.judged_requests() + task.requests_with(Outcome::Interrupted);
            observation(percent(task.good, all), all)
        }
        Metric::ErrorRate => {
            let judged = task.judged_requests();
            let without_dropped = task.errors_and_dropped().saturating_sub(task.dropped);
            Observation {
                without_dropped: percent(without_dropped, judged),
                ..observation(percent(task.errors_and_dropped(), judged), offered)
            }
        }
    }
}

/// Observes a latency on the requests that were sent on time. `None` for other metrics, for latencies
/// of tokens and messages, and for lower bounds, which lateness can't spoil.
pub(super) fn observe_on_time(threshold: &Threshold, task: &TaskMetrics) -> Option<Observation> {
    let Metric::Latency(metric) = threshold.metric else { return None };
    let per_request = metric.info().judged.is_some_and(|judged| judged.per_request);
    // Without a late sample, it is unknown what lateness has done.
    let is_known = task.latencies.late(metric).count() > 0;
    (per_request && is_known && threshold.target.comparison.is_upper()).then(|| {
        let samples = task.latencies.samples_on_time(metric);
        observe_latency(&samples, &samples, 0, threshold.statistic)
    })
}

/// A statistic of latency samples and of dropped arrivals. A dropped arrival counts as slower than
/// any sample, because it was never sent. `finished` are the samples of requests that were not given
/// up.
fn observe_latency(
    samples: &LatencyHistogram,
    finished: &LatencyHistogram,
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
    let given_up = samples.count().saturating_sub(finished.count());
    let at_most = match statistic {
        _ if given_up == 0 => value,
        Statistic::Quantile(p) => {
            let p_of_finished = p * samples.count() as f64 / finished.count().max(1) as f64;
            let is_finished = finished.count() > 0 && p_of_finished <= 1.0 + 1e-12;
            let statistic = Statistic::Quantile(p_of_finished.min(1.0));
            finished.statistic(statistic).filter(|_| is_finished).map(Quantity::Time)
        }
        // A few requests that were given up hardly move a mean.
        Statistic::Mean if given_up as f64 <= MAX_GIVEN_UP_IN_MEAN * all as f64 => value,
        Statistic::Min => value,
        Statistic::Mean | Statistic::Max => None,
    };
    Observation {
        value,
        samples: all,
        dropped,
        is_lower_limit,
        given_up,
        at_most,
        without_dropped: None,
    }
}
