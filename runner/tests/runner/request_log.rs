//! Merged percentiles of three runners, compared with exact percentiles from their request logs.

use std::{collections::BTreeMap, fs, sync::Arc, time::Instant};

use loadtest_core::metrics::{LatencyMetric, Metrics, Outcome};
use loadtest_runner::{Engine, PreparedPlan, RequestLog};
use serde_json::json;

use crate::harness::{build_plan, start_simulator};

/// Settings with latencies over three orders of magnitude.
const WIDE_LATENCIES: &str = "{health: {latency: {lognormal: {median: 4ms, sigma: 1.5, max: 1s}}}, \
                     chat: {latency: {uniform: {min: 0ms, max: 30ms}}, tokens: 3, tokenGap: 1ms}}";

/// One line of a request log: its values by column name.
type Line = BTreeMap<&'static str, String>;

fn read_lines(path: &std::path::Path) -> Vec<Line> {
    let text = fs::read_to_string(path).unwrap();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some(RequestLog::COLUMNS));
    let columns = || RequestLog::COLUMNS.split(',');
    lines.map(|line| columns().zip(line.split(',').map(str::to_owned)).collect()).collect()
}

fn parse_time(line: &Line, column: &str) -> Option<f64> {
    line[column].parse().ok()
}

/// Returns the exact percentile of sorted values by the nearest-rank method.
fn exact_percentile(sorted: &[f64], p: f64) -> f64 {
    let has_rank = |i: &usize| (i + 1) as f64 >= p * sorted.len() as f64 - 1e-9;
    sorted[(0..sorted.len()).find(has_rank).unwrap()]
}

#[tokio::test]
async fn merged_percentiles_match_the_request_logs_within_0_2_percent() {
    let simulator = start_simulator(WIDE_LATENCIES).await;
    let tasks = json!([
        {"name": "health", "weight": 4, "http": {"path": "/health"}},
        {"name": "chat", "chat": {"models": ["cell0-small"], "messages": ["Hello"], "stream": true}},
    ]);
    let folder = tempfile::tempdir().unwrap();
    let mut plan = build_plan(&simulator, 60, "2s", &tasks);
    plan.runners = 3;
    let prepared = PreparedPlan::new(plan, |_| None).unwrap();
    let names = || vec!["health".to_owned(), "chat".to_owned()];
    let start = Instant::now();
    let runners: Vec<_> = (0..3)
        .map(|index| {
            let path = folder.path().join(format!("{index}.csv"));
            let log = RequestLog::create(&path, names()).unwrap();
            let engine =
                Engine::with_request_log(Arc::clone(&prepared), index, Some(&log)).unwrap();
            engine.start(start);
            (path, log, engine)
        })
        .collect();
    let (mut merged, mut logged) = (Metrics::default(), Vec::new());
    for (path, log, engine) in runners {
        engine.wait_until_finished().await;
        merged.merge(&engine.snapshot().await.metrics);
        drop(engine);
        let count = log.finish().unwrap();
        let lines = read_lines(&path);
        assert_eq!(lines.len() as u64, count);
        logged.extend(lines);
    }
    for (task, metrics) in &merged.tasks {
        let task_lines = || logged.iter().filter(|line| line["task"] == *task);
        for outcome in Outcome::ALL {
            let count = task_lines().filter(|line| line["outcome"] == outcome.as_str()).count();
            assert_eq!(count as u64, metrics.requests_with(outcome), "{task} {outcome:?}");
        }
        let is_latency_sample = |line: &&Line| line["outcome"] != Outcome::Failure.as_str();
        let logged_times = |from: &str, to: &str| {
            let elapsed = |line: &Line| Some(parse_time(line, to)? - parse_time(line, from)?);
            let mut times: Vec<f64> =
                task_lines().filter(is_latency_sample).filter_map(elapsed).collect();
            times.sort_by(f64::total_cmp);
            times
        };
        let rows = [
            ("planned", "last", LatencyMetric::ResponseTime),
            ("sent", "last", LatencyMetric::ServiceTime),
            ("planned", "first_response", LatencyMetric::TimeToFirstResponse),
        ];
        for (from, to, metric) in rows {
            let (exact, measured) = (logged_times(from, to), metrics.latencies.samples(metric));
            assert_eq!(exact.len() as u64, measured.count(), "{task} {from} {to}");
            for p in [0.01, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0] {
                let Some(value) = measured.quantile(p) else { continue };
                let (value, exact) = (value.as_secs_f64(), exact_percentile(&exact, p));
                let error = (value / exact - 1.0).abs();
                assert!(error <= 0.002, "{task} {from}-{to} p{p}: {value} instead of {exact}");
            }
        }
    }
    assert!(logged.len() > 500, "{}", logged.len());
}
