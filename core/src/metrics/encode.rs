//! Writes the metrics of a runner as a Prometheus exposition: the inverse of [`super::decode`].

use prometheus_client::{
    collector::Collector,
    encoding::{
        DescriptorEncoder, EncodeLabelSet, MetricEncoder, NativeHistogram, NativeHistogramBuckets,
        prometheus_protobuf, text,
    },
    metrics::MetricType,
    registry::Registry,
};

use super::{
    LatencyHistogram, LatencyMetric, Outcome, RunnerMetrics, SCHEMA, TaskMetrics, TaskScope,
    catalog::{COUNTERS, LABELLED, LAGS, LATENCIES, RUNNER, names},
    step::HistoryStep,
};
use crate::control;

/// The format of an exposition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics text, with classic buckets.
    Text,
    /// Delimited protobuf, with classic and native buckets.
    Protobuf,
}

impl Format {
    /// The format that an `Accept` header asks for: text, unless it names the protobuf exposition.
    pub fn from_accept(accept: &str) -> Self {
        let protobuf = accept.contains("application/vnd.google.protobuf")
            && accept.contains("io.prometheus.client.MetricFamily")
            && accept.contains("delimited");
        if protobuf { Self::Protobuf } else { Self::Text }
    }

    /// The `Content-Type` of the exposition.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Protobuf => {
                "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
            }
        }
    }
}

/// The facts that an exposition needs besides the metrics.
#[derive(Clone, Debug, Default)]
pub struct ExpositionOptions {
    /// The value of the label `loadtest`.
    pub loadtest: String,
    /// Names of chat tasks: only these have metrics of tokens.
    pub chat_tasks: Vec<String>,
    /// Names of WebSocket tasks: only these have metrics of sessions and messages.
    pub web_socket_tasks: Vec<String>,
    /// Called after each histogram. A runner under load yields its CPU here, so that load threads
    /// run first.
    pub after_each_histogram: Option<fn()>,
}

/// Upper bounds of the classic buckets in seconds: 1 ms to 60 s, each 1.2 times the one before.
fn classic_bounds() -> Vec<f64> {
    let rounded = |bound: f64| format!("{bound:.2e}").parse().unwrap_or(bound);
    let mut bounds: Vec<f64> = std::iter::successors(Some(0.001_f64), |b| Some(b * 1.2))
        .take_while(|b| *b < 60.0)
        .map(rounded)
        .collect();
    bounds.push(60.0);
    bounds
}

/// Writes the exposition of a runner.
///
/// # Errors
/// When the encoder refuses a value, which no metric here makes it do.
pub fn encode(
    runner: RunnerMetrics,
    options: ExpositionOptions,
    format: Format,
) -> Result<Vec<u8>, std::fmt::Error> {
    let exposition = Exposition { runner, options, bounds: classic_bounds(), step: None };
    encode_exposition(exposition, format)
}

/// Encodes a step of a runner's history in the protobuf format. Steps can follow one another. Counts and
/// histograms of zero are left out, and so are the classic buckets. `after_each_histogram` is as in
/// [`ExpositionOptions`].
///
/// # Errors
/// When the encoder refuses a value.
pub fn encode_step(
    step: HistoryStep,
    after_each_histogram: Option<fn()>,
) -> Result<Vec<u8>, std::fmt::Error> {
    let HistoryStep { number, is_cumulative, runner } = step;
    let options = ExpositionOptions { after_each_histogram, ..ExpositionOptions::default() };
    let step = Some((number, is_cumulative));
    let exposition = Exposition { runner, options, bounds: Vec::new(), step };
    encode_exposition(exposition, Format::Protobuf)
}

fn encode_exposition(exposition: Exposition, format: Format) -> Result<Vec<u8>, std::fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(exposition));
    match format {
        Format::Text => {
            let mut out = String::new();
            text::encode(&mut out, &registry)?;
            Ok(out.into_bytes())
        }
        Format::Protobuf => {
            prometheus_protobuf::encode_to_vec(&registry).map_err(|_| std::fmt::Error)
        }
    }
}

#[derive(Debug)]
struct Exposition {
    runner: RunnerMetrics,
    options: ExpositionOptions,
    bounds: Vec<f64>,
    /// Number of the step, and whether it is whole; absent for the whole exposition.
    step: Option<(u64, bool)>,
}

impl Collector for Exposition {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let encoder = &mut encoder;
        self.encode_runner(encoder)?;
        self.encode_counters(encoder)?;
        self.encode_latencies(encoder)?;
        self.encode_late(encoder)?;
        let test = self.test_label();
        for lag in &LAGS {
            let histogram = (lag.get)(&self.runner.metrics);
            if !self.is_shown(histogram.count()) {
                continue;
            }
            let mut family =
                start_family(encoder, lag.family, lag.description, MetricType::Histogram)?;
            self.encode_histogram(family.encode_family(&test)?, histogram)?;
        }
        Ok(())
    }
}

/// The type parameter of encoders that could carry an exemplar. Nothing here has one.
type NoLabels = [(&'static str, &'static str); 0];

/// Starts a family of metrics. The encoder adds `_total` to a counter's name itself.
fn start_family<'a>(
    encoder: &'a mut DescriptorEncoder<'_>,
    name: &'a str,
    help: &str,
    kind: MetricType,
) -> Result<MetricEncoder<'a>, std::fmt::Error> {
    let name = name.strip_suffix("_total").unwrap_or(name);
    encoder.encode_descriptor(name, help, None, kind)
}

impl Exposition {
    fn encode_runner(&self, encoder: &mut DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let RunnerMetrics { identity, state, metrics } = &self.runner;
        let test = self.test_label();
        let (index, contract) = (identity.index.to_string(), control::VERSION.to_string());
        let info = [
            ("loadtest", self.options.loadtest.as_str()),
            ("run", identity.run_uid.as_str()),
            ("index", index.as_str()),
            ("pod_uid", identity.pod_uid.as_str()),
            ("contract", contract.as_str()),
        ];
        start_family(encoder, names::RUNNER_INFO, "Identifies the runner", MetricType::Gauge)?
            .encode_family(&info)?
            .encode_gauge(&1_i64)?;
        if let Some((number, is_cumulative)) = self.step {
            let whole = [("whole", if is_cumulative { "true" } else { "false" })];
            start_family(encoder, names::HISTORY_STEP, "", MetricType::Gauge)?
                .encode_family(&whole)?
                .encode_gauge(&(number as f64))?;
        }
        let help = "0 waiting, 1 running, 2 done, 3 released, 4 cut short";
        start_family(encoder, names::RUNNER_STATE, help, MetricType::Gauge)?
            .encode_family(&test)?
            .encode_gauge(&(state.value() as f64))?;
        for info in &RUNNER {
            let value = (info.field.get)(metrics);
            if info.family.ends_with("_total") {
                start_family(encoder, info.family, info.description, MetricType::Counter)?
                    .encode_family(&test)?
                    .encode_counter::<NoLabels, _, u64>(&value, None)?;
            } else {
                start_family(encoder, info.family, info.description, MetricType::Gauge)?
                    .encode_family(&test)?
                    .encode_gauge(&value)?;
            }
        }
        Ok(())
    }

    fn encode_counters(&self, encoder: &mut DescriptorEncoder) -> Result<(), std::fmt::Error> {
        for rows in COUNTERS.chunk_by(|a, b| a.family == b.family) {
            let Some(first) = rows.first() else { continue };
            let counts = self.tasks_in(first.tasks).flat_map(|(task, metrics)| {
                rows.iter().map(move |info| (task, info.label, (info.field.get)(metrics)))
            });
            let counts: Vec<_> = counts.filter(|(.., count)| self.is_shown(*count)).collect();
            if self.step.is_some() && counts.is_empty() {
                continue;
            }
            let mut family =
                start_family(encoder, first.family, first.description, MetricType::Counter)?;
            for (task, label, count) in counts {
                family
                    .encode_family(&self.task_labels(task, label))?
                    .encode_counter::<NoLabels, _, u64>(&count, None)?;
            }
        }
        for info in &LABELLED {
            let mut tasks = self.tasks_in(info.tasks);
            if self.step.is_some() && !tasks.any(|(_, metrics)| !(info.get)(metrics).is_empty()) {
                continue;
            }
            let mut family =
                start_family(encoder, info.family, info.description, MetricType::Counter)?;
            for (task, metrics) in self.tasks_in(info.tasks) {
                for (value, count) in (info.get)(metrics) {
                    if !self.is_shown(*count) {
                        continue;
                    }
                    family
                        .encode_family(&self.task_labels(task, Some((info.label, value))))?
                        .encode_counter::<NoLabels, _, u64>(count, None)?;
                }
            }
        }
        Ok(())
    }

    fn encode_latencies(&self, encoder: &mut DescriptorEncoder) -> Result<(), std::fmt::Error> {
        for rows in LATENCIES.chunk_by(|a, b| a.family == b.family) {
            let Some(first) = rows.first() else { continue };
            let has_samples = |(_, metrics): (&String, &TaskMetrics)| {
                rows.iter().any(|info| metrics.latencies.has_samples(info.metric))
            };
            if self.step.is_some() && !self.tasks_in(first.tasks).any(has_samples) {
                continue;
            }
            let mut family =
                start_family(encoder, first.family, first.description, MetricType::Histogram)?;
            for (task, metrics) in self.tasks_in(first.tasks) {
                for info in rows {
                    if !info.always_exposed && !metrics.latencies.has_samples(info.metric) {
                        continue;
                    }
                    let outcomes =
                        if info.by_outcome { &Outcome::ALL[..] } else { &Outcome::ALL[..1] };
                    for outcome in outcomes {
                        let by_outcome = info.by_outcome.then(|| ("outcome", outcome.as_str()));
                        let labels = self.task_labels(task, info.label.or(by_outcome));
                        let histogram = metrics.latencies.get(info.metric, *outcome);
                        if !self.is_shown(histogram.count()) {
                            continue;
                        }
                        self.encode_histogram(family.encode_family(&labels)?, histogram)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn encode_late(&self, encoder: &mut DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let has_late = |task: &TaskMetrics| {
            LatencyMetric::all_judged().any(|(metric, _)| task.latencies.late(metric).count() > 0)
        };
        if self.step.is_some() && !self.runner.metrics.tasks.values().any(has_late) {
            return Ok(());
        }
        let help = "Latencies of requests that the load generator sent over 5 ms late, by metric; the latency families include them";
        let mut family = start_family(encoder, names::LATE, help, MetricType::Histogram)?;
        for (task, metrics) in &self.runner.metrics.tasks {
            for (metric, judged) in LatencyMetric::all_judged() {
                let late = metrics.latencies.late(metric);
                if late.count() > 0 {
                    let labels = self.task_labels(task, Some(("metric", judged.name)));
                    self.encode_histogram(family.encode_family(&labels)?, late)?;
                }
            }
        }
        Ok(())
    }

    /// Returns true if a count is part of the exposition. Steps leave out zeros.
    const fn is_shown(&self, count: u64) -> bool {
        self.step.is_none() || count > 0
    }

    fn test_label(&self) -> [(&str, &str); 1] {
        [("loadtest", self.options.loadtest.as_str())]
    }

    fn task_labels<'a>(
        &'a self,
        task: &'a str,
        label: Option<(&'static str, &'a str)>,
    ) -> impl EncodeLabelSet + 'a {
        let mut labels = vec![("loadtest", self.options.loadtest.as_str())];
        labels.extend(label);
        labels.push(("task", task));
        labels
    }

    fn tasks_in(&self, scope: TaskScope) -> impl Iterator<Item = (&String, &TaskMetrics)> {
        let ExpositionOptions { chat_tasks, web_socket_tasks, .. } = &self.options;
        self.runner.metrics.tasks.iter().filter(move |(task, _)| match scope {
            // The counts that a task can't have are zero, and steps leave them out.
            _ if self.step.is_some() => true,
            TaskScope::All => true,
            TaskScope::Requests => !web_socket_tasks.contains(task),
            TaskScope::Chats | TaskScope::StreamedChats => chat_tasks.contains(task),
            TaskScope::WebSockets | TaskScope::WebSocketReplies => web_socket_tasks.contains(task),
        })
    }

    fn encode_histogram(
        &self,
        mut encoder: MetricEncoder<'_>,
        histogram: &LatencyHistogram,
    ) -> Result<(), std::fmt::Error> {
        let (mut spans, deltas) = histogram.spans_and_deltas();
        if spans.is_empty() {
            // Prometheus takes a histogram without any span for a classic one.
            spans.push((0, 0));
        }
        let cumulative = histogram.cumulative_counts(&self.bounds);
        // The encoder wants counts per bucket and adds them up itself.
        let mut buckets = Vec::with_capacity(self.bounds.len() + 1);
        let mut below = 0;
        for (bound, total) in self.bounds.iter().zip(cumulative) {
            buckets.push((*bound, total - below));
            below = total;
        }
        buckets.push((f64::INFINITY, histogram.count() - below));
        if let Some(yield_cpu) = self.options.after_each_histogram {
            yield_cpu();
        }
        encoder.encode_histogram_with_native::<NoLabels>(
            histogram.sum_seconds(),
            histogram.count(),
            &buckets,
            None,
            NativeHistogram {
                schema: SCHEMA,
                zero_threshold: 0.0,
                zero_count: histogram.zero_count(),
                negative: NativeHistogramBuckets { spans: &[], deltas: &[] },
                positive: NativeHistogramBuckets { spans: &spans, deltas: &deltas },
                created: None,
            },
        )
    }
}

#[cfg(test)]
mod tests;
