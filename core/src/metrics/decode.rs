//! Reads the protobuf exposition of a runner. Runner pods are not trusted, so the decoder bounds the
//! size of everything that they send.

mod wire;

use prost::Message;

use self::wire::{Family, Metric};
use super::{
    HistogramError, Identity, LatencyHistogram, LatencyMetric, Outcome, RunnerMetrics, RunnerState,
    TaskMetrics,
    catalog::{COUNTERS, LABELLED, LAGS, LATENCIES, RUNNER, names},
    merge::add_labelled,
    step::{HistoryStep, MAX_STEPS},
};
use crate::{control, resource::MAX_ROWS, text::truncate};

/// Maximum of metrics in one family, and of bytes in one metric: more than a runner with the most
/// tasks has. Decoded metrics take more memory than encoded ones.
const MAX_METRICS: usize = 1 << 15;
const MAX_METRIC_BYTES: usize = 256 << 10;
/// Maximum length of a label's value that counts are kept by, in bytes: longer than those of a runner. Longer ones are cut.
const MAX_VALUE_BYTES: usize = 64;
/// Maximum of buckets in all histograms together.
const MAX_BUCKETS: usize = 1_000_000;
/// Maximum of any count. Larger counts are not plausible, and sums of smaller ones don't overflow.
const MAX_COUNT: u64 = 1 << 48;

/// Why an exposition can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ExpositionError {
    /// The bytes are not delimited protobuf.
    #[error("exposition is not delimited protobuf")]
    Wire(#[source] prost::DecodeError),
    /// A family is missing that identifies a runner.
    #[error("exposition has no {0}: is this a load-test runner?")]
    Missing(&'static str),
    /// The runner follows another version of the contract between operator and runner.
    #[error("the runner speaks contract version {found}: {}", control::version_advice())]
    Contract {
        /// The version that the runner names, or `none`.
        found: String,
    },
    /// A histogram can't be read.
    #[error("exposition has an unreadable {family}")]
    Histogram {
        /// The family's name.
        family: String,
        /// The error in the histogram.
        #[source]
        source: HistogramError,
    },
    /// The exposition is larger than that of any test.
    #[error("exposition has over {limit} {what}: is this a load-test runner?")]
    TooMany {
        /// Tasks, metrics, bytes or buckets.
        what: &'static str,
        /// The limit that was exceeded.
        limit: usize,
    },
}

/// Decodes the exposition of one runner.
///
/// # Errors
/// When the bytes are no exposition of a runner of this release.
pub fn decode(mut bytes: &[u8]) -> Result<RunnerMetrics, ExpositionError> {
    let mut decoder = Decoder::default();
    while let Some(family) = next_family(&mut bytes)? {
        decoder.add(&family)?;
    }
    Ok(decoder.finish()?.runner)
}

/// Decodes the steps of a runner's history, as [`super::encode_step`] writes them one after the other.
///
/// # Errors
/// When the bytes are no history of a runner of this release.
pub fn decode_steps(mut bytes: &[u8]) -> Result<Vec<HistoryStep>, ExpositionError> {
    let mut steps = Vec::new();
    let (mut decoder, mut is_empty) = (Decoder::default(), true);
    while let Some(family) = next_family(&mut bytes)? {
        // Each step begins with the identity of the runner.
        if family.name == names::RUNNER_INFO && decoder.identity.is_some() {
            check_limit(steps.len(), MAX_STEPS, "steps")?;
            // The whole step has a limit of its own, and all others have one together.
            let single = if steps.is_empty() { 0 } else { decoder.buckets };
            steps.push(std::mem::take(&mut decoder).finish()?);
            decoder.buckets = single;
        }
        decoder.add(&family)?;
        is_empty = false;
    }
    if !is_empty {
        steps.push(decoder.finish()?);
    }
    Ok(steps)
}

/// Splits the next metric family off, and checks that it is no larger than that of a runner can be.
fn next_family<'a>(bytes: &mut &'a [u8]) -> Result<Option<Family<'a>>, ExpositionError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let message = wire::split_message(bytes).map_err(ExpositionError::Wire)?;
    let family = Family::read(message).map_err(ExpositionError::Wire)?;
    check_limit(family.metrics.len(), MAX_METRICS, "metrics in a family")?;
    let longest = family.metrics.iter().map(|metric| metric.len()).max().unwrap_or_default();
    check_limit(longest, MAX_METRIC_BYTES, "bytes in a metric")?;
    Ok(Some(family))
}

/// Puts the families of one snapshot or step together.
#[derive(Default)]
struct Decoder {
    step: HistoryStep,
    identity: Option<Identity>,
    buckets: usize,
    /// Memory for reuse.
    histogram: wire::Histogram,
}

impl Decoder {
    fn add(&mut self, family: &Family<'_>) -> Result<(), ExpositionError> {
        let name = family.name;
        for encoded in &family.metrics {
            // One at a time, because decoded metrics take more memory.
            let metric = &Metric::read(encoded).map_err(ExpositionError::Wire)?;
            if name == names::RUNNER_INFO {
                self.identity = Some(decode_identity(metric)?);
                continue;
            }
            if name == names::HISTORY_STEP {
                self.step.number = whole_number(finite(metric.gauge));
                self.step.is_cumulative = metric.label("whole") == "true";
                continue;
            }
            self.histogram.clear();
            let encoded = metric.histogram.unwrap_or_default();
            self.histogram.merge(encoded).map_err(ExpositionError::Wire)?;
            self.buckets += self.histogram.positive_delta.len();
            check_limit(self.buckets, MAX_BUCKETS, "buckets")?;
            let runner = &mut self.step.runner;
            decode_metric(runner, name, metric, &self.histogram)
                .map_err(|source| ExpositionError::Histogram { family: name.to_owned(), source })?;
            check_limit(runner.metrics.tasks.len(), MAX_ROWS, "tasks")?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<HistoryStep, ExpositionError> {
        let identity = self.identity.ok_or(ExpositionError::Missing(names::RUNNER_INFO))?;
        self.step.runner.identity = identity;
        // A count with a label is the sum of all metrics with this label.
        for task in self.step.runner.metrics.tasks.values_mut() {
            for info in &LABELLED {
                let counts = (info.get_mut)(task).values_mut();
                counts.for_each(|sum| *sum = (*sum).min(MAX_COUNT));
            }
        }
        Ok(self.step)
    }
}

fn decode_identity(info: &Metric<'_>) -> Result<Identity, ExpositionError> {
    let contract = info.label("contract");
    if contract.parse() != Ok(control::VERSION) {
        let found = if contract.is_empty() { "none" } else { contract };
        return Err(ExpositionError::Contract { found: found.chars().take(16).collect() });
    }
    Ok(Identity {
        run_uid: info.label("run").to_owned(),
        index: info.label("index").parse().unwrap_or(u32::MAX),
        pod_uid: info.label("pod_uid").to_owned(),
    })
}

fn check_limit(found: usize, limit: usize, what: &'static str) -> Result<(), ExpositionError> {
    if found > limit { Err(ExpositionError::TooMany { what, limit }) } else { Ok(()) }
}

fn decode_metric(
    decoded: &mut RunnerMetrics,
    family: &str,
    metric: &Metric<'_>,
    histogram: &wire::Histogram,
) -> Result<(), HistogramError> {
    if family == names::RUNNER_STATE {
        #[expect(clippy::cast_possible_truncation, reason = "an unknown value matches no state")]
        let value = finite(metric.gauge) as i64;
        let found = RunnerState::ALL.into_iter().find(|state| state.value() == value);
        decoded.state = found.unwrap_or(RunnerState::CutShort);
        return Ok(());
    }
    let metrics = &mut decoded.metrics;
    if let Some(info) = RUNNER.iter().find(|info| info.family == family) {
        let counter = family.ends_with("_total");
        let value = if counter { metric.counter } else { metric.gauge };
        (info.field.set)(metrics, finite(value));
        return Ok(());
    }
    if let Some(info) = LAGS.iter().find(|info| info.family == family) {
        *(info.get_mut)(metrics) = histogram_of(histogram)?;
        return Ok(());
    }
    let of_task = LABELLED.iter().any(|info| info.family == family)
        || COUNTERS.iter().any(|info| info.family == family)
        || LATENCIES.iter().any(|info| info.family == family)
        || family == names::LATE;
    if of_task {
        let name = metric.label("task");
        if !metrics.tasks.contains_key(name) {
            metrics.tasks.insert(name.to_owned(), TaskMetrics::default());
        }
        if let Some(task) = metrics.tasks.get_mut(name) {
            decode_task_metric(task, family, metric, histogram)?;
        }
    }
    Ok(())
}

fn decode_task_metric(
    task: &mut TaskMetrics,
    family: &str,
    found: &Metric<'_>,
    histogram: &wire::Histogram,
) -> Result<(), HistogramError> {
    if let Some(info) = LABELLED.iter().find(|info| info.family == family) {
        let count = whole_number(finite(found.counter));
        let value = truncate(found.label(info.label), MAX_VALUE_BYTES);
        add_labelled((info.get_mut)(task), &value, count);
        return Ok(());
    }
    if family == names::LATE {
        let mut all = LatencyMetric::all_judged();
        if let Some((metric, _)) = all.find(|(_, judged)| judged.name == found.label("metric")) {
            *task.latencies.late_mut(metric) = histogram_of(histogram)?;
        }
        return Ok(());
    }
    let has =
        |label: Option<(&str, &str)>| label.is_none_or(|(name, value)| found.label(name) == value);
    let matches = |row_family: &str, label| row_family == family && has(label);
    if let Some(info) = COUNTERS.iter().find(|info| matches(info.family, info.label)) {
        (info.field.set)(task, whole_number(finite(found.counter)));
    }
    if let Some(info) = LATENCIES.iter().find(|info| matches(info.family, info.label)) {
        let outcome = Outcome::from_label(found.label("outcome"));
        let outcome = if info.by_outcome { outcome } else { Some(Outcome::Success) };
        if let Some(outcome) = outcome {
            *task.latencies.get_mut(info.metric, outcome) = histogram_of(histogram)?;
        }
    }
    Ok(())
}

/// Replaces a number that no honest runner has by zero.
fn finite(value: f64) -> f64 {
    if value.is_finite() { value.max(0.0) } else { 0.0 }
}

/// The exposition carries counts as floats, exact up to 2^53.
fn whole_number(value: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "float casts saturate; a count is neither negative nor that large"
    )]
    {
        value.clamp(0.0, MAX_COUNT as f64).round() as u64
    }
}

fn histogram_of(encoded: &wire::Histogram) -> Result<LatencyHistogram, HistogramError> {
    let spans = encoded.positive_span.iter().map(|span| (span.offset, span.length));
    LatencyHistogram::from_parts(
        encoded.schema,
        encoded.zero_count,
        finite(encoded.sample_sum),
        spans,
        &encoded.positive_delta,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_of_labels_are_cut() {
        let mut runner = RunnerMetrics::default();
        let task = runner.metrics.tasks.entry("health".into()).or_default();
        task.errors.insert("x".repeat(100_000), 3);
        let options = crate::metrics::ExpositionOptions::default();
        let format = crate::metrics::Format::Protobuf;
        let bytes = crate::metrics::encode(runner, options, format).unwrap();
        let decoded = decode(&bytes).unwrap();
        let errors = &decoded.metrics.tasks["health"].errors;
        let lengths: Vec<_> =
            errors.iter().filter(|(_, n)| **n > 0).map(|(k, n)| (k.len(), *n)).collect();
        assert_eq!(lengths, [(MAX_VALUE_BYTES, 3)]);
    }

    #[test]
    fn a_family_that_was_cut_off_is_an_error() {
        let name = b"\x0a\x02up";
        let whole = [&[4], name.as_slice()].concat();
        assert!(matches!(decode(&whole), Err(ExpositionError::Missing(_))));
        // Cut off between two fields.
        let cut = [&[8], name.as_slice()].concat();
        assert!(matches!(decode(&cut), Err(ExpositionError::Wire(_))));
    }
}
