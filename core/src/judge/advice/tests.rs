use super::*;
use crate::metrics::Outcome;

const PAGE_TEXT: &str = include_str!("../../../../docs/troubleshooting.md");

/// A task with 100 requests, whose latencies all have one value in milliseconds.
fn task_with(latencies: &[(LatencyMetric, f64)]) -> TaskMetrics {
    let mut task = TaskMetrics { requests: [100, 0, 0, 0], ..TaskMetrics::default() };
    for (metric, millis) in latencies {
        task.latencies.get_mut(*metric, Outcome::Success).record(millis / 1e3, 100);
    }
    task
}

fn check(metric: LatencyMetric, task: &TaskMetrics, section: &str, evidence: &str) {
    let advice = advice_for(Metric::Latency(metric), task);
    assert!(advice.contains(&format!("#{section})")), "{advice}");
    assert!(advice.contains(evidence), "{advice}");
}

#[test]
fn advice_is_a_text_and_a_link() {
    let advice = error_advice("dns").unwrap();
    let (text, link) = split_advice(&advice);
    assert!(text.starts_with("check the host") && !text.contains("http"), "{text}");
    assert!(link.unwrap().ends_with("/docs/troubleshooting.md#dns"), "{link:?}");
    assert_eq!(split_advice("run longer (5 samples)"), ("run longer (5 samples)", None));
}

#[test]
fn every_section_is_on_the_page() {
    let kinds = [
        "http_401",
        "http_404",
        "http_429",
        "http_500",
        "http_503",
        "websocket_close_1011",
        "dns",
        "connect",
        "timeout_connect",
        "tls",
        "timeout_response",
        "timeout_body",
        "reset",
        "stale_connection",
        "protocol",
        "redirect",
        "check_body",
        "check_header",
        "check_json",
        "stream_error",
        "stream_cut",
        "stream_malformed",
        "port_exhausted",
        "file_limit",
        "size_limit",
    ];
    let mut advice: Vec<String> =
        kinds.iter().map(|kind| error_advice(kind).unwrap_or_else(|| panic!("{kind}"))).collect();
    assert_eq!(error_advice("other"), None);
    let uneven = {
        let mut task = task_with(&[(LatencyMetric::InterTokenLatency, 10.0)]);
        let gaps = task.latencies.get_mut(LatencyMetric::InterTokenLatency, Outcome::Success);
        gaps.record(0.2, 20);
        task
    };
    for task in
        [TaskMetrics::default(), task_with(&[(LatencyMetric::InterTokenLatency, 10.0)]), uneven]
    {
        let task = TaskMetrics { errors: [("connect".to_owned(), 1)].into(), ..task };
        advice.extend(Metric::all().map(|metric| advice_for(metric, &task)));
    }
    for advice in advice {
        let (_, section) = advice.rsplit_once('#').unwrap();
        let heading = format!("\n### {}\n", section.trim_end_matches(')'));
        assert!(PAGE_TEXT.contains(&heading), "{heading} is not in docs/troubleshooting.md");
    }
}

#[test]
fn the_parts_of_a_slow_response_tell_its_cause() {
    use LatencyMetric::{ConnectTls, ResponseTime, ServiceTime, TimeToFirstByte};
    let waiting = task_with(&[(ResponseTime, 900.0), (ServiceTime, 100.0)]);
    check(ResponseTime, &waiting, "waiting-requests", "took only 99.98ms");
    let body = task_with(&[(ResponseTime, 900.0), (ServiceTime, 890.0), (TimeToFirstByte, 50.0)]);
    check(ResponseTime, &body, "slow-responses", "the first byte came after 49.99ms");
    check(ResponseTime, &body, "slow-responses", "compression");
    let work = task_with(&[(ResponseTime, 900.0), (ServiceTime, 890.0), (TimeToFirstByte, 880.0)]);
    check(ResponseTime, &work, "slow-responses", "downstream");
    let latencies = [(ResponseTime, 900.0), (ServiceTime, 190.0), (ConnectTls, 700.0)];
    let mut connections = task_with(&latencies);
    check(ResponseTime, &connections, "waiting-requests", "");
    connections.connections = 100;
    check(ServiceTime, &connections, "slow-responses", "");
    check(ResponseTime, &connections, "slow-connections", "the TLS handshake takes 700.4ms");
}

#[test]
fn the_gaps_between_tokens_tell_why_a_first_token_is_late() {
    use LatencyMetric::{
        InterTokenLatency, ResponseTime, ServiceTime, TimeToFirstByte, TimeToFirstResponse,
        TimeToFirstToken,
    };
    let mut task = task_with(&[(TimeToFirstToken, 900.0), (InterTokenLatency, 10.0)]);
    check(TimeToFirstToken, &task, "slow-first-token", "steady (p50 10.01ms, p95 10.01ms)");
    task.latencies.get_mut(InterTokenLatency, Outcome::Success).record(0.3, 20);
    check(TimeToFirstToken, &task, "uneven-tokens", "uneven too (p50 10.01ms, p95 ");
    let stream = [(ResponseTime, 900.0), (ServiceTime, 890.0), (TimeToFirstByte, 1.0)];
    let mut stream = task_with(&stream);
    stream.latencies.get_mut(InterTokenLatency, Outcome::Success).record(0.03, 2000);
    check(ResponseTime, &stream, "slow-tokens", "slow but steady");
    let reasoning = task_with(&[(TimeToFirstToken, 100.0), (TimeToFirstResponse, 900.0)]);
    check(TimeToFirstResponse, &reasoning, "slow-first-token", "reasoning");
}

#[test]
fn the_most_frequent_error_explains_an_error_rate() {
    let mut task = task_with(&[]);
    task.requests = [10, 90, 0, 0];
    task.dropped = 7;
    task.errors = [("http_503".to_owned(), 0), ("tls".to_owned(), 0)].into();
    let advice = advice_for(Metric::ErrorRate, &task);
    assert!(advice.starts_with("7 arrivals were dropped"), "{advice}");
    task.errors =
        [("http_503".to_owned(), 81), ("reset".to_owned(), 9), ("tls".to_owned(), 0)].into();
    for metric in [Metric::ErrorRate, Metric::Throughput] {
        let advice = advice_for(metric, &task);
        assert!(advice.starts_with("90% of the errors are http_503: "), "{advice}");
        assert!(advice.ends_with("#overload)"), "{advice}");
    }
}
