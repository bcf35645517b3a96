//! The summary lines that users at Cell 0 know from their own load test script. Names and units are
//! those of that script.

use std::fmt::Write;

use loadtest_core::{
    Duration,
    metrics::{LatencyHistogram, LatencyMetric, Metrics},
};

/// Returns the legacy lines, one metric per line. Those about chats and WebSockets need samples.
pub(super) fn format_legacy_summary(metrics: &Metrics) -> String {
    let mut chat = LatencyHistogram::default();
    let mut connect = LatencyHistogram::default();
    for task in metrics.tasks.values() {
        chat.merge(&task.latencies.samples(LatencyMetric::TimeToFirstResponse));
        connect.merge(&task.latencies.samples(LatencyMetric::WebSocketConnect));
    }
    let total = metrics.all_tasks();
    let millis = |time: Option<Duration>| {
        time.map_or_else(|| "-".into(), |time| format!("{:.1}", time.as_millis_f64()))
    };
    let error_counts: Vec<String> = total
        .errors
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(kind, count)| format!("{kind}={count}"))
        .collect();
    let error_types = if error_counts.is_empty() { "none".into() } else { error_counts.join(" ") };
    let mut rows = Vec::new();
    if chat.count() > 0 {
        rows.extend([
            ("chat_latency_avg_ms", millis(chat.mean())),
            ("chat_latency_p95_ms", millis(chat.quantile(0.95))),
            ("chat_latency_p99_ms", millis(chat.quantile(0.99))),
        ]);
    }
    if connect.count() > 0 {
        rows.push(("ws_connect_avg_ms", millis(connect.mean())));
    }
    rows.push(("total_errors", total.failed_requests().to_string()));
    rows.push(("error_types", error_types));
    rows.iter().fold(String::new(), |mut out, (name, value)| {
        let _ = writeln!(out, "  {name}: {value}");
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_without_chats_has_no_lines_about_chats() {
        let text = format_legacy_summary(&Metrics::default());
        assert!(!text.contains("chat_latency") && !text.contains("ws_connect"), "{text}");
        assert!(text.contains("total_errors: 0\n") && text.contains("error_types: none\n"));
    }
}
