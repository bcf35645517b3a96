//! The summary of k6, in the shape of its `--summary-export`. Times are in milliseconds.
//!
//! As in k6, `thresholds` says of each threshold if it was *missed*.

use loadtest_core::{
    metrics::{LatencyMetric, Metric},
    resource::Verdict,
    result::{Distribution, RunResult, TaskResult, ThresholdResult},
};
use serde_json::{Map, Value, json};

use crate::text::{millis, target_of};

/// k6's name of the metric that a latency of ours is closest to.
const NAMES: [(LatencyMetric, &str); 4] = [
    (LatencyMetric::ResponseTime, "http_req_duration"),
    (LatencyMetric::TimeToFirstByte, "http_req_waiting"),
    (LatencyMetric::WebSocketConnect, "ws_connecting"),
    (LatencyMetric::WebSocketRoundTrip, "ws_ping"),
];

/// Writes a result as k6's summary. Metrics of one task have the tag `name`, as in
/// `http_req_duration{name:chat}`.
pub fn k6_summary(result: &RunResult) -> String {
    let mut metrics = Map::new();
    let elapsed = result.elapsed_seconds;
    push_metrics(&mut metrics, "", &result.total, elapsed);
    for task in &result.tasks {
        push_metrics(&mut metrics, &format!("{{name:{}}}", task.name), &task.result, elapsed);
    }
    let users = result.series.points.iter().map(|point| point.users);
    metrics.insert(
        "vus".into(),
        json!({
            "value": result.series.points.last().map_or(0, |point| point.users),
            "min": users.min().unwrap_or(0),
            "max": result.users_peak,
        }),
    );
    let most = result.users_peak;
    metrics.insert("vus_max".into(), json!({"value": most, "min": most, "max": most}));
    for row in &result.thresholds {
        push_threshold(&mut metrics, row);
    }
    let root_group = json!({
        // The MD5 digest of the empty path, as k6 writes it.
        "name": "", "path": "", "id": "d41d8cd98f00b204e9800998ecf8427e", "groups": {}, "checks": {},
    });
    format!("{:#}\n", json!({"root_group": root_group, "metrics": metrics}))
}

fn push_metrics(metrics: &mut Map<String, Value>, tag: &str, task: &TaskResult, elapsed: f64) {
    let counter = |count: u64| {
        let rate = if elapsed > 0.0 { count as f64 / elapsed } else { 0.0 };
        json!({"count": count, "rate": rate})
    };
    let mut push = |name: &str, value: Value| {
        metrics.insert(format!("{name}{tag}"), value);
    };
    push("http_reqs", counter(task.requests));
    push("iterations", counter(task.requests));
    push("dropped_iterations", counter(task.dropped));
    push("data_sent", counter(task.sent_bytes));
    push("data_received", counter(task.received_bytes));
    push(
        "http_req_failed",
        json!({
            "passes": task.failures,
            "fails": task.requests.saturating_sub(task.failures),
            "value": if task.requests == 0 { 0.0 } else { task.failures as f64 / task.requests as f64 },
        }),
    );
    for (metric, name) in NAMES {
        if let Some(latency) = task.latencies.get(metric) {
            push(name, trend(latency));
        }
    }
    for (step, name) in [
        (&task.connections.tcp, "http_req_connecting"),
        (&task.connections.tls, "http_req_tls_handshaking"),
    ] {
        if let Some(latency) = step {
            push(name, trend(latency));
        }
    }
}

fn trend(latency: &Distribution) -> Value {
    json!({
        "avg": millis(latency.mean),
        "min": millis(latency.min),
        "med": millis(latency.p50),
        "max": millis(latency.max),
        "p(90)": millis(latency.p90),
        "p(95)": millis(latency.p95),
    })
}

/// Adds a threshold to the metric that it judges. A metric that k6 does not have gets its own name.
fn push_threshold(metrics: &mut Map<String, Value>, row: &ThresholdResult) {
    let tag = row.key.task.as_ref().map_or_else(String::new, |task| format!("{{name:{task}}}"));
    let metric = Metric::all().find(|metric| metric.as_str() == row.key.metric);
    let name = match metric {
        Some(Metric::ErrorRate) => "http_req_failed",
        Some(Metric::Throughput) => "http_reqs",
        Some(Metric::Latency(latency)) => NAMES
            .iter()
            .find(|(metric, _)| *metric == latency)
            .map_or(row.key.metric.as_str(), |(_, name)| name),
        _ => &row.key.metric,
    };
    let target = target_of(row);
    let statistic = row.key.statistic.as_deref().unwrap_or("value");
    let window = row.key.window.as_ref().map_or_else(String::new, |w| format!(" over {w}"));
    let source = format!("{statistic}{window} {target}");
    // k6 knows no third answer: a threshold that could not be judged is not one that was met.
    let is_met = row.verdict == Verdict::Pass;
    let entry = metrics.entry(format!("{name}{tag}")).or_insert_with(|| json!({}));
    entry["thresholds"][source] = (!is_met).into();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::example;

    #[test]
    fn metrics_have_the_names_of_k6() {
        let summary: Value = serde_json::from_str(&k6_summary(&example())).unwrap();
        let metrics = &summary["metrics"];
        assert_eq!(metrics["http_reqs"]["count"], 1000);
        assert_eq!(metrics["http_req_failed"]["passes"], 40);
        let p95 = metrics["http_req_duration{name:chat}"]["p(95)"].as_f64().unwrap();
        assert!((p95 / 750.0 - 1.0).abs() < 0.002, "{p95}");
        // True stands for a missed threshold.
        assert_eq!(metrics["http_req_failed"]["thresholds"]["value < 0.1%"], true);
        assert_eq!(metrics["http_reqs"]["thresholds"]["value > 10/s"], false);
        let mut result = example();
        for (verdict, missed) in [
            (Verdict::Pass, false),
            (Verdict::Warning, true),
            (Verdict::Critical, true),
            (Verdict::Inconclusive, true),
        ] {
            result.thresholds[2].verdict = verdict.into();
            let summary: Value = serde_json::from_str(&k6_summary(&result)).unwrap();
            let found = &summary["metrics"]["http_reqs"]["thresholds"]["value > 10/s"];
            assert_eq!(found, missed, "{verdict:?}");
        }
        let own = &metrics["timeToFirstResponse{name:chat}"]["thresholds"];
        assert_eq!(own.as_object().unwrap().len(), 1);
    }
}
