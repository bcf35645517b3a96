//! Writes a runner's numbers as a Prometheus exposition: the inverse of [`super::decode`].

mod task;

use prometheus_client::{
    collector::Collector,
    encoding::{
        DescriptorEncoder, MetricEncoder, NativeHistogram, NativeHistogramBuckets,
        prometheus_protobuf, text,
    },
    metrics::MetricType,
    registry::Registry,
};

use super::{LatencyHistogram, Numbers, RunnerNumbers, SCHEMA, names};

/// Which exposition a scraper asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics text, with classic buckets.
    Text,
    /// Delimited protobuf, with classic and native buckets.
    Protobuf,
}

impl Format {
    /// What an `Accept` header asks for; text unless it names the protobuf exposition.
    pub fn accepted(accept: &str) -> Self {
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

/// What an exposition shows besides numbers.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    /// The `loadtest` label.
    pub loadtest: String,
    /// Names of chat tasks: only these have a time to first response.
    pub chat: Vec<String>,
    /// Names of WebSocket tasks: only these have a connect time and round trips.
    pub web_socket: Vec<String>,
    /// Called after each histogram: by who encodes beside a load, to let that go first.
    pub breathe: Option<fn()>,
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
/// When the encoder refuses a value, which no number here makes it do.
pub fn encode(
    runner: RunnerNumbers,
    shown: Shown,
    format: Format,
) -> Result<Vec<u8>, std::fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Exposition { runner, shown, bounds: classic_bounds() }));
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
    runner: RunnerNumbers,
    shown: Shown,
    bounds: Vec<f64>,
}

impl Collector for Exposition {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let e = &mut encoder;
        self.runner_gauges(e)?;
        self.of_tasks(e)?;
        let labels = [("loadtest", self.shown.loadtest.as_str())];
        let Numbers { schedule_lag, loop_lag, .. } = &self.runner.numbers;
        for (name, help, lag) in [
            (names::SCHEDULE_LAG, "How late a user acted on its schedule", schedule_lag),
            (names::LOOP_LAG, "How late a load thread came to what was due", loop_lag),
        ] {
            let mut family = e.encode_descriptor(name, help, None, MetricType::Histogram)?;
            self.histogram(family.encode_family(&labels)?, lag)?;
        }
        Ok(())
    }
}

/// For encoders that could carry an exemplar and don't.
type NoLabels = [(&'static str, &'static str); 0];

/// The encoder adds `_total` to a counter's name itself.
fn counter<'a>(
    encoder: &'a mut DescriptorEncoder<'_>,
    name: &'a str,
    help: &str,
) -> Result<MetricEncoder<'a>, std::fmt::Error> {
    let name = name.strip_suffix("_total").unwrap_or(name);
    encoder.encode_descriptor(name, help, None, MetricType::Counter)
}

impl Exposition {
    fn runner_gauges(&self, e: &mut DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let RunnerNumbers { identity, state, numbers } = &self.runner;
        // Tasks and lag have families of their own.
        let Numbers {
            users,
            users_peak,
            user_seconds,
            elapsed_seconds,
            busy_seconds,
            throttled_seconds,
            memory_bytes,
            memory_ratio,
            tasks: _,
            schedule_lag: _,
            loop_lag: _,
        } = numbers;
        let test = [("loadtest", self.shown.loadtest.as_str())];
        let index = identity.index.to_string();
        let info = [
            ("loadtest", self.shown.loadtest.as_str()),
            ("run", identity.run.as_str()),
            ("index", index.as_str()),
            ("pod_uid", identity.pod.as_str()),
        ];
        let help = "Which runner of which run this is";
        e.encode_descriptor(names::RUNNER, help, None, MetricType::Gauge)?
            .encode_family(&info)?
            .encode_gauge(&1_i64)?;
        for (name, help, value) in [
            (
                names::STATE,
                "0 waiting, 1 running, 2 done, 3 released, 4 cut short",
                state.value() as f64,
            ),
            (names::ELAPSED, "Seconds of load since this runner's start", *elapsed_seconds),
            (
                names::MEMORY,
                "The most resident memory that the runner was seen with, in bytes",
                *memory_bytes,
            ),
            (
                names::MEMORY_RATIO,
                "The largest share of its memory limit that the runner was seen with; 0 without one",
                *memory_ratio,
            ),
            (names::USERS, "Users running now", *users as f64),
            (names::USERS_PEAK, "The most users that ran at once", *users_peak as f64),
        ] {
            e.encode_descriptor(name, help, None, MetricType::Gauge)?
                .encode_family(&test)?
                .encode_gauge(&value)?;
        }
        counter(
            e,
            names::THREAD_BUSY,
            "Seconds of load that the busiest load thread was on a CPU",
        )?
        .encode_family(&test)?
        .encode_counter::<NoLabels, _, u64>(busy_seconds, None)?;
        counter(e, names::THROTTLED, "Seconds for which a CPU limit kept the runner from running")?
            .encode_family(&test)?
            .encode_counter::<NoLabels, _, u64>(throttled_seconds, None)?;
        counter(e, names::USER_SECONDS, "User-seconds of load, without graceful stop")?
            .encode_family(&test)?
            .encode_counter::<NoLabels, _, u64>(user_seconds, None)
    }

    fn histogram(
        &self,
        mut encoder: MetricEncoder<'_>,
        histogram: &LatencyHistogram,
    ) -> Result<(), std::fmt::Error> {
        let (mut spans, deltas) = histogram.spans_and_deltas();
        if spans.is_empty() {
            // Without any span Prometheus takes it for a classic histogram.
            spans.push((0, 0));
        }
        let cumulative = histogram.cumulative(&self.bounds);
        // The encoder wants counts per bucket and adds them up itself.
        let mut buckets = Vec::with_capacity(self.bounds.len() + 1);
        let mut below = 0;
        for (bound, total) in self.bounds.iter().zip(cumulative) {
            buckets.push((*bound, total - below));
            below = total;
        }
        buckets.push((f64::INFINITY, histogram.count() - below));
        if let Some(breathe) = self.shown.breathe {
            breathe();
        }
        encoder.encode_histogram_with_native::<NoLabels>(
            histogram.sum_seconds(),
            histogram.count(),
            &buckets,
            None,
            NativeHistogram {
                schema: SCHEMA,
                zero_threshold: 0.0,
                zero_count: histogram.zero(),
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
    use crate::metrics::{Identity, RunnerState, Tokens, decode};

    fn shown() -> Shown {
        Shown {
            loadtest: "burst".into(),
            chat: vec!["chat".into()],
            web_socket: vec!["ws".into()],
            breathe: None,
        }
    }

    fn runner(samples: &[(f64, u8)]) -> RunnerNumbers {
        let mut runner = RunnerNumbers {
            identity: Identity { run: "uid-1".into(), index: 3, pod: "pod-1".into() },
            state: RunnerState::Done,
            numbers: Numbers {
                users: 2,
                users_peak: 7,
                user_seconds: 12.5,
                elapsed_seconds: 3.25,
                busy_seconds: 1.5,
                throttled_seconds: 0.125,
                memory_bytes: 1e6,
                memory_ratio: 0.25,
                ..Numbers::default()
            },
        };
        for name in ["chat", "ws"] {
            let task = runner.numbers.tasks.entry(name.into()).or_default();
            for (seconds, outcome) in samples {
                let i = usize::from(*outcome % 4);
                task.requests[i] += 1;
                task.response_time[i].record(*seconds, 1);
                task.service_time[i].record(*seconds / 2.0, 1);
                if name == "chat" {
                    task.first_response[i].record(*seconds / 4.0, 1);
                    task.first_byte.record(*seconds / 6.0, 1);
                    task.inter_token.record(*seconds / 16.0, 1);
                    task.token_time.record(*seconds / 32.0, 1);
                    task.tokens.add(&Tokens { output: 9, reasoning: 3, tool: 2, prompt: 7 });
                } else {
                    task.web_socket_connect[i].record(*seconds / 8.0, 1);
                    task.round_trip.record(*seconds / 3.0, 1);
                    task.messages_sent += 1;
                    task.messages_received += 2;
                }
                task.connections.opened += 1;
                task.connections.again += 1;
                task.connections.steps[i].record(*seconds / 5.0, 1);
                runner.numbers.loop_lag.record(*seconds / 2000.0, 1);
                runner.numbers.schedule_lag.record(*seconds / 1000.0, 1);
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
    fn text_has_every_family_and_ends_well() {
        let text = encode(runner(&[(0.2, 0)]), shown(), Format::Text).unwrap();
        let text = String::from_utf8(text).unwrap();
        for name in
            [names::REQUESTS, names::DROPPED, names::ERRORS, names::USERS, names::SENT_BYTES]
        {
            assert!(text.contains(name), "{name} is missing");
        }
        assert!(text.contains(
            "loadtest_response_time_seconds_bucket{le=\"+Inf\",loadtest=\"burst\",outcome=\"success\",task=\"chat\"} 1"
        ), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn protobuf_is_served_only_to_who_asks_for_it() {
        let prometheus = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited,text/plain;q=0.5";
        assert_eq!(Format::accepted(prometheus), Format::Protobuf);
        assert_eq!(Format::accepted("text/plain"), Format::Text);
        assert_eq!(Format::accepted(""), Format::Text);
    }

    #[test]
    fn more_than_a_test_can_have_is_refused() {
        let mut tasks = runner(&[]);
        let one = tasks.numbers.tasks["chat"].clone();
        tasks.numbers.tasks.extend((0..64).map(|i| (i.to_string(), one.clone())));
        let mut buckets = tasks.clone();
        buckets.numbers.tasks.retain(|name, _| name.parse::<u32>().is_ok());
        for task in buckets.numbers.tasks.values_mut() {
            for time in task.response_time.iter_mut().chain(&mut task.service_time) {
                (0..2000).for_each(|i| time.record(1e-3 * 1.003_f64.powi(i), 1));
            }
        }
        // A family of empty metrics, and a metric of nothing that anybody knows.
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
        let encoded = |runner| encode(runner, shown(), Format::Protobuf).unwrap();
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
    fn kinds_of_error_that_are_too_many_are_one() {
        let mut runner = runner(&[]);
        let chat = runner.numbers.tasks.get_mut("chat").unwrap();
        let all = chat.errors.values().sum::<u64>() + 1000;
        chat.errors.extend((0..1000).map(|i| (format!("websocket_close_{i}"), 1)));
        let bytes = encode(runner, shown(), Format::Protobuf).unwrap();
        let read = decode(&bytes).unwrap().numbers.tasks.remove("chat").unwrap();
        assert_eq!((read.errors.len(), read.errors.values().sum::<u64>()), (257, all));
        assert!(read.errors["other"] > 700);
    }

    #[test]
    fn garbage_is_refused_and_never_panics() {
        assert!(decode(b"<html>").is_err());
        assert!(decode(&[]).is_err());
    }

    proptest! {
        #[test]
        fn the_exposition_reads_back_as_it_was(
            samples in prop::collection::vec((1e-5_f64..60.0, 0_u8..4), 0..60),
        ) {
            let runner = runner(&samples);
            let bytes = encode(runner.clone(), shown(), Format::Protobuf).unwrap();
            prop_assert_eq!(decode(&bytes).unwrap(), runner);
        }

        #[test]
        fn no_bytes_make_decoding_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
        }
    }
}
