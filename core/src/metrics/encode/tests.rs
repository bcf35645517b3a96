use proptest::prelude::*;

use super::*;
use crate::metrics::{
    Identity, LatencyMetric, Metrics, RunnerHistory, RunnerState, Tokens, apply_steps, decode,
    decode_steps,
};

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
            refused_orders: 3.0,
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
fn steps_are_small_and_lead_to_the_latest_snapshot() {
    let many: Vec<(f64, u8)> = (1..500_u32).map(|n| (f64::from(n) / 100.0, 0)).collect();
    let (first, second) = (runner(&many[..498]), runner(&many));
    let mut history = RunnerHistory::new(Identity::default(), None);
    history.record(&first, std::time::Duration::from_secs(1)).unwrap();
    history.record(&second, std::time::Duration::from_secs(2)).unwrap();
    let steps = decode_steps(&history.encode_after(0).unwrap()).unwrap();
    let mut reader = Metrics::default();
    apply_steps(&mut reader, &steps);
    let task = |metrics: &Metrics| metrics.tasks["chat"].latencies.clone();
    let count = |metrics| task(metrics).get(LatencyMetric::ResponseTime, Outcome::Success).count();
    assert_eq!(count(&reader), count(&second.metrics));

    let difference = history.encode_after(2).unwrap();
    let whole = encode(second, options(), Format::Protobuf).unwrap();
    assert_eq!(decode_steps(&difference).unwrap().len(), 1);
    assert!(difference.len() * 5 < whole.len(), "{} of {} bytes", difference.len(), whole.len());
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
        let _ = decode_steps(&bytes);
        let _ = decode(&bytes);
    }
}
