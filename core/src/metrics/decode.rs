//! Reads the protobuf exposition of a runner. Runner pods are not trusted, so the decoder bounds the
//! size of everything that they send.

mod wire;

use bytes::Bytes;
use prost::{
    Message,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};

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

/// A metric family whose metrics are still encoded.
struct Family<'a> {
    name: &'a str,
    metrics: Vec<&'a [u8]>,
}

/// Splits the next metric family off.
fn next_family<'a>(bytes: &mut &'a [u8]) -> Result<Option<Family<'a>>, ExpositionError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let family = split_message(bytes)?;
    read_family(family).map(Some)
}

/// Splits off a message with its length before it. Fails if the message was cut off.
fn split_message<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], ExpositionError> {
    let mut rest = *bytes;
    // The number of the field plays no part.
    skip_field(WireType::LengthDelimited, 1, &mut rest, DecodeContext::default())
        .map_err(ExpositionError::Wire)?;
    decode_varint(bytes).map_err(ExpositionError::Wire)?;
    let (message, _) = bytes.split_at(bytes.len() - rest.len());
    *bytes = rest;
    Ok(message)
}

/// Reads the name of a family, and checks that the family is no larger than that of a runner can be.
fn read_family(mut bytes: &[u8]) -> Result<Family<'_>, ExpositionError> {
    /// The protobuf fields of a family that are read.
    const NAME: u32 = 1;
    const METRIC: u32 = 4;

    let mut family = Family { name: "", metrics: Vec::new() };
    while !bytes.is_empty() {
        let (field, kind) = decode_key(&mut bytes).map_err(ExpositionError::Wire)?;
        if kind != WireType::LengthDelimited {
            skip_field(kind, field, &mut bytes, DecodeContext::default())
                .map_err(ExpositionError::Wire)?;
            continue;
        }
        let message = split_message(&mut bytes)?;
        // The names of all families that are read are ASCII.
        if field == NAME {
            family.name = std::str::from_utf8(message).unwrap_or_default();
        } else if field == METRIC {
            family.metrics.push(message);
            check_limit(family.metrics.len(), MAX_METRICS, "metrics in a family")?;
            check_limit(message.len(), MAX_METRIC_BYTES, "bytes in a metric")?;
        }
    }
    Ok(family)
}

/// Puts the families of one snapshot or step together.
#[derive(Default)]
struct Decoder {
    step: HistoryStep,
    identity: Option<Identity>,
    buckets: usize,
}

impl Decoder {
    fn add(&mut self, family: &Family<'_>) -> Result<(), ExpositionError> {
        let name = family.name;
        for encoded in &family.metrics {
            // One at a time, because decoded metrics take more memory. The texts share this copy.
            let encoded = Bytes::copy_from_slice(encoded);
            let metric = &wire::Metric::decode(encoded).map_err(ExpositionError::Wire)?;
            let labels = Labels::of(metric);
            if name == names::RUNNER_INFO {
                self.identity = Some(decode_identity(&labels)?);
                continue;
            }
            if name == names::HISTORY_STEP {
                self.step.number = whole_number(gauge_of(metric));
                self.step.is_cumulative = labels.get("whole") == "true";
                continue;
            }
            self.buckets += metric.histogram.as_ref().map_or(0, |h| h.positive_delta.len());
            check_limit(self.buckets, MAX_BUCKETS, "buckets")?;
            let runner = &mut self.step.runner;
            decode_metric(runner, name, metric, &labels)
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

fn decode_identity(labels: &Labels<'_>) -> Result<Identity, ExpositionError> {
    let contract = labels.get("contract");
    if contract.parse() != Ok(control::VERSION) {
        let found = if contract.is_empty() { "none" } else { contract };
        return Err(ExpositionError::Contract { found: found.chars().take(16).collect() });
    }
    Ok(Identity {
        run_uid: labels.get("run").to_owned(),
        index: labels.get("index").parse().unwrap_or(u32::MAX),
        pod_uid: labels.get("pod_uid").to_owned(),
    })
}

fn check_limit(found: usize, limit: usize, what: &'static str) -> Result<(), ExpositionError> {
    if found > limit { Err(ExpositionError::TooMany { what, limit }) } else { Ok(()) }
}

struct Labels<'a>(&'a [wire::LabelPair]);

impl<'a> Labels<'a> {
    fn of(metric: &'a wire::Metric) -> Self {
        Self(&metric.label)
    }

    /// The value of a label; empty without the label, or if the value is no UTF-8.
    fn get(&self, name: &str) -> &'a str {
        let found = self.0.iter().find(|label| label.name == name);
        found.map_or("", |label| std::str::from_utf8(&label.value).unwrap_or_default())
    }

    /// True when the labels contain the label that selects a row of the catalogue.
    fn contain(&self, label: Option<(&str, &str)>) -> bool {
        label.is_none_or(|(name, value)| self.get(name) == value)
    }
}

fn decode_metric(
    decoded: &mut RunnerMetrics,
    family: &str,
    metric: &wire::Metric,
    labels: &Labels<'_>,
) -> Result<(), HistogramError> {
    if family == names::RUNNER_STATE {
        #[expect(clippy::cast_possible_truncation, reason = "an unknown value matches no state")]
        let value = gauge_of(metric) as i64;
        let found = RunnerState::ALL.into_iter().find(|state| state.value() == value);
        decoded.state = found.unwrap_or(RunnerState::CutShort);
        return Ok(());
    }
    let metrics = &mut decoded.metrics;
    if let Some(info) = RUNNER.iter().find(|info| info.family == family) {
        let counter = family.ends_with("_total");
        let value = if counter { counter_of(metric) } else { gauge_of(metric) };
        (info.field.set)(metrics, value);
        return Ok(());
    }
    if let Some(info) = LAGS.iter().find(|info| info.family == family) {
        *(info.get_mut)(metrics) = histogram_of(metric)?;
        return Ok(());
    }
    let of_task = LABELLED.iter().any(|info| info.family == family)
        || COUNTERS.iter().any(|info| info.family == family)
        || LATENCIES.iter().any(|info| info.family == family)
        || family == names::LATE;
    if of_task {
        let task = metrics.tasks.entry(labels.get("task").to_owned()).or_default();
        decode_task_metric(task, family, metric, labels)?;
    }
    Ok(())
}

fn decode_task_metric(
    task: &mut TaskMetrics,
    family: &str,
    found: &wire::Metric,
    labels: &Labels<'_>,
) -> Result<(), HistogramError> {
    if let Some(info) = LABELLED.iter().find(|info| info.family == family) {
        let count = whole_number(counter_of(found));
        let value = truncate(labels.get(info.label), MAX_VALUE_BYTES);
        add_labelled((info.get_mut)(task), &value, count);
        return Ok(());
    }
    if family == names::LATE {
        let mut all = LatencyMetric::all_judged();
        if let Some((metric, _)) = all.find(|(_, judged)| judged.name == labels.get("metric")) {
            *task.latencies.late_mut(metric) = histogram_of(found)?;
        }
        return Ok(());
    }
    let matches = |row_family: &str, label| row_family == family && labels.contain(label);
    if let Some(info) = COUNTERS.iter().find(|info| matches(info.family, info.label)) {
        (info.field.set)(task, whole_number(counter_of(found)));
    }
    if let Some(info) = LATENCIES.iter().find(|info| matches(info.family, info.label)) {
        let outcome = Outcome::from_label(labels.get("outcome"));
        let outcome = if info.by_outcome { outcome } else { Some(Outcome::Success) };
        if let Some(outcome) = outcome {
            *task.latencies.get_mut(info.metric, outcome) = histogram_of(found)?;
        }
    }
    Ok(())
}

fn gauge_of(metric: &wire::Metric) -> f64 {
    finite(metric.gauge.as_ref().map_or(0.0, |gauge| gauge.value))
}

fn counter_of(metric: &wire::Metric) -> f64 {
    finite(metric.counter.as_ref().map_or(0.0, |counter| counter.value))
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

fn histogram_of(metric: &wire::Metric) -> Result<LatencyHistogram, HistogramError> {
    let Some(encoded) = &metric.histogram else { return Err(HistogramError::Buckets) };
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
