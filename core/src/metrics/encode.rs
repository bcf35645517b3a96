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
    let mut registry = Registry::default();
    let exposition = Exposition { runner, options, bounds: classic_bounds() };
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
            let mut family =
                start_family(encoder, lag.family, lag.description, MetricType::Histogram)?;
            let histogram = (lag.get)(&self.runner.metrics);
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
            let mut family =
                start_family(encoder, first.family, first.description, MetricType::Counter)?;
            for (task, metrics) in self.tasks_in(first.tasks) {
                for info in rows {
                    family
                        .encode_family(&self.task_labels(task, info.label))?
                        .encode_counter::<NoLabels, _, u64>(&(info.field.get)(metrics), None)?;
                }
            }
        }
        for info in &LABELLED {
            let mut family =
                start_family(encoder, info.family, info.description, MetricType::Counter)?;
            for (task, metrics) in self.tasks_in(info.tasks) {
                for (value, count) in (info.get)(metrics) {
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
                        self.encode_histogram(family.encode_family(&labels)?, histogram)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn encode_late(&self, encoder: &mut DescriptorEncoder) -> Result<(), std::fmt::Error> {
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
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::metrics::{Identity, LatencyMetric, Metrics, RunnerState, Tokens, decode};

    fn options() -> ExpositionOptions {
        ExpositionOptions {
            loadtest: "burst".into(),
            chat_tasks: vec!["chat".into()],
            web_socket_tasks: vec!["ws".into()],
            after_each_histogram: None,
        }
    }

    fn runner(samples: &[(f64, u8)]) -> RunnerMetrics {
        let mut runner = RunnerMetrics {
            identity: Identity { run_uid: "uid-1".into(), index: 3, pod_uid: "pod-1".into() },
            state: RunnerState::Done,
            metrics: Metrics {
                users: 2,
                users_peak: 7,
                user_seconds: 12.5,
                elapsed_seconds: 3.25,
                busy_seconds: 1.5,
                throttled_seconds: 0.125,
                memory_bytes: 1e6,
                memory_ratio: 0.25,
                ..Metrics::default()
            },
        };
        for name in ["chat", "ws"] {
            let task = runner.metrics.tasks.entry(name.into()).or_default();
            for (seconds, outcome) in samples {
                let outcome = Outcome::ALL[usize::from(*outcome % 4)];
                task.requests[outcome.index()] += 1;
                for (divisor, info) in (1_u32..).zip(&LATENCIES) {
                    let in_scope = match info.tasks {
                        TaskScope::All => true,
                        TaskScope::WebSockets | TaskScope::WebSocketReplies => name == "ws",
                        _ => name == "chat",
                    };
                    if in_scope {
                        let histogram = task.latencies.get_mut(info.metric, outcome);
                        histogram.record(*seconds / f64::from(divisor), 1);
                    }
                }
                if name == "chat" {
                    task.tokens.add(&Tokens { output: 9, reasoning: 3, tool: 2, prompt: 7 });
                } else {
                    task.messages_sent += 1;
                    task.messages_received += 2;
                }
                task.connections += 1;
                task.reconnects += 1;
                runner.metrics.event_loop_lag.record(*seconds / 2000.0, 1);
                runner.metrics.schedule_lag.record(*seconds / 1000.0, 1);
            }
            task.errors.insert("connect".into(), samples.len() as u64 + 1);
            task.good = 4;
            task.dropped = 5;
            task.sent_bytes = 10;
            task.received_bytes = 20;
        }
        runner
    }

    #[test]
    fn text_has_every_family_and_its_end_mark() {
        let text = encode(runner(&[(0.2, 0)]), options(), Format::Text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let families = COUNTERS
            .iter()
            .map(|info| info.family)
            .chain(RUNNER.iter().map(|info| info.family))
            .chain(LAGS.iter().map(|info| info.family))
            .chain(LABELLED.iter().map(|info| info.family))
            .chain([names::RUNNER_INFO, names::RUNNER_STATE]);
        for family in families {
            // Counters without an event have no line but their description.
            let name = family.strip_suffix("_total").unwrap_or(family);
            assert!(text.contains(name), "{family} is missing");
        }
        assert!(text.contains(
            "loadtest_response_time_seconds_bucket{le=\"+Inf\",loadtest=\"burst\",outcome=\"success\",task=\"chat\"} 1"
        ), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn protobuf_is_served_only_when_accepted() {
        let prometheus = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited,text/plain;q=0.5";
        assert_eq!(Format::from_accept(prometheus), Format::Protobuf);
        assert_eq!(Format::from_accept("text/plain"), Format::Text);
        assert_eq!(Format::from_accept(""), Format::Text);
    }

    #[test]
    fn oversized_expositions_are_refused() {
        let mut tasks = runner(&[]);
        let one = tasks.metrics.tasks["chat"].clone();
        tasks.metrics.tasks.extend((0..64).map(|i| (i.to_string(), one.clone())));
        let mut buckets = tasks.clone();
        buckets.metrics.tasks.retain(|name, _| name.parse::<u32>().is_ok());
        for task in buckets.metrics.tasks.values_mut() {
            for metric in [LatencyMetric::ResponseTime, LatencyMetric::ServiceTime] {
                for outcome in Outcome::ALL {
                    let histogram = task.latencies.get_mut(metric, outcome);
                    (0..2000).for_each(|i| histogram.record(1e-3 * 1.003_f64.powi(i), 1));
                }
            }
        }
        // A family of empty metrics, and a metric with an unknown field of 300,000 bytes.
        let family = |body: &[u8]| {
            let mut bytes = Vec::new();
            prost::encoding::encode_varint(body.len() as u64, &mut bytes);
            bytes.extend_from_slice(body);
            bytes
        };
        let empty = family(&[0x22, 0].repeat(40_000));
        let mut large = vec![0x22];
        prost::encoding::encode_varint(300_004, &mut large);
        large.extend_from_slice(&[0x7a, 0xe0, 0xa7, 0x12]);
        large.resize(large.len() + 300_000, 0);
        let encoded = |runner| encode(runner, options(), Format::Protobuf).unwrap();
        for (bytes, told) in [
            (encoded(tasks), "over 64 tasks"),
            (encoded(buckets), "over 1000000 buckets"),
            (empty, "over 32768 metrics"),
            (family(&large), "over 262144 bytes"),
        ] {
            let error = decode(&bytes).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
    }

    #[test]
    fn error_kinds_beyond_the_limit_become_other() {
        let mut runner = runner(&[]);
        let chat = runner.metrics.tasks.get_mut("chat").unwrap();
        let all = chat.errors.values().sum::<u64>() + 1000;
        chat.errors.extend((0..1000).map(|i| (format!("websocket_close_{i}"), 1)));
        let bytes = encode(runner, options(), Format::Protobuf).unwrap();
        let read = decode(&bytes).unwrap().metrics.tasks.remove("chat").unwrap();
        assert_eq!((read.errors.len(), read.errors.values().sum::<u64>()), (257, all));
        assert!(read.errors["other"] > 700);
    }

    #[test]
    fn garbage_is_refused() {
        assert!(decode(b"<html>").is_err());
        assert!(decode(&[]).is_err());
    }

    #[test]
    fn other_contract_versions_are_refused_in_words() {
        let bytes = encode(runner(&[]), options(), Format::Protobuf).unwrap();
        let label = control::VERSION.to_string();
        // The label's value is a protobuf string of one byte.
        let at = bytes.windows(9).position(|w| w == b"contract\x12").unwrap();
        let mut other = bytes.clone();
        assert_eq!(other[at + 10], label.as_bytes()[0]);
        other[at + 10] = b'9';
        let error = decode(&other).unwrap_err().to_string();
        assert!(error.contains("contract version 9") && error.contains("image"), "{error}");
    }

    proptest! {
        #[test]
        fn decoding_returns_what_was_encoded(
            samples in prop::collection::vec((1e-5_f64..60.0, 0_u8..4), 0..60),
        ) {
            let runner = runner(&samples);
            let bytes = encode(runner.clone(), options(), Format::Protobuf).unwrap();
            prop_assert_eq!(decode(&bytes).unwrap(), runner);
        }

        #[test]
        fn no_input_makes_decoding_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
        }
    }
}
