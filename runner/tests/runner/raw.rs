//! Percentiles against the exact ones of all requests, which the raw record has.

use std::{collections::BTreeMap, fs, sync::Arc, time::Instant};

use loadtest_core::metrics::{Numbers, Outcome, judged};
use loadtest_runner::{Engine, PreparedPlan, RequestLog};
use serde_json::json;

use crate::load::{plan, simulator};

/// Latencies over three orders of magnitude, and some that never end.
const WILD: &str = "{health: {latency: {lognormal: {median: 4ms, sigma: 1.5, max: 1s}}}, \
                     chat: {latency: {uniform: {min: 0ms, max: 30ms}}, tokens: 3, tokenGap: 1ms}}";

/// A line of the record, by its columns.
type Line = BTreeMap<&'static str, String>;

fn lines(path: &std::path::Path) -> Vec<Line> {
    let text = fs::read_to_string(path).unwrap();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some(RequestLog::COLUMNS));
    let columns = || RequestLog::COLUMNS.split(',');
    lines.map(|line| columns().zip(line.split(',').map(str::to_owned)).collect()).collect()
}

fn moment(line: &Line, column: &str) -> Option<f64> {
    line[column].parse().ok()
}

/// The exact value of a sorted sample, nearest rank.
fn exact(sorted: &[f64], p: f64) -> f64 {
    let at_or_below = |i: &usize| (i + 1) as f64 >= p * sorted.len() as f64 - 1e-9;
    sorted[(0..sorted.len()).find(at_or_below).unwrap()]
}

#[tokio::test]
async fn merged_percentiles_are_within_two_per_mille_of_the_raw_record() {
    let simulator = simulator(WILD).await;
    let tasks = json!([
        {"name": "health", "weight": 4, "http": {"path": "/health"}},
        {"name": "chat", "chat": {"models": ["cell0-small"], "messages": ["Hello"], "stream": true}},
    ]);
    let folder = tempfile::tempdir().unwrap();
    let mut plan = plan(&simulator, 60, "2s", &tasks);
    plan.runners = 3;
    let prepared = PreparedPlan::new(plan, |_| None).unwrap();
    let names = || vec!["health".to_owned(), "chat".to_owned()];
    let start = Instant::now();
    let runners: Vec<_> = (0..3)
        .map(|index| {
            let path = folder.path().join(format!("{index}.csv"));
            let record = RequestLog::create(&path, names()).unwrap();
            let engine =
                Engine::with_request_log(Arc::clone(&prepared), index, Some(&record)).unwrap();
            engine.start(start);
            (path, record, engine)
        })
        .collect();
    let (mut all, mut raw) = (Numbers::default(), Vec::new());
    for (path, record, engine) in runners {
        engine.wait_until_finished().await;
        all.merge(&engine.snapshot().await.numbers);
        drop(engine);
        let count = record.finish().unwrap();
        let found = lines(&path);
        assert_eq!(found.len() as u64, count);
        raw.extend(found);
    }
    for (task, numbers) in &all.tasks {
        let of_task = || raw.iter().filter(|line| line["task"] == *task);
        for outcome in Outcome::ALL {
            let count = of_task().filter(|line| line["outcome"] == outcome.as_str()).count();
            assert_eq!(count as u64, numbers.of(outcome), "{task} {outcome:?}");
        }
        let judge = |line: &&Line| line["outcome"] != Outcome::Failure.as_str();
        let between = |from: &str, to: &str| {
            let took = |line: &Line| Some(moment(line, to)? - moment(line, from)?);
            let mut times: Vec<f64> = of_task().filter(judge).filter_map(took).collect();
            times.sort_by(f64::total_cmp);
            times
        };
        let rows = [
            ("planned", "last", &numbers.response_time),
            ("sent", "last", &numbers.service_time),
            ("planned", "first_response", &numbers.first_response),
        ];
        for (from, to, measured) in rows {
            let (truth, measured) = (between(from, to), judged(measured));
            assert_eq!(truth.len() as u64, measured.count(), "{task} {from} {to}");
            for p in [0.01, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0] {
                let Some(found) = measured.quantile(p) else { continue };
                let (found, truth) = (found.as_secs_f64(), exact(&truth, p));
                let off = (found / truth - 1.0).abs();
                assert!(off <= 0.002, "{task} {from}-{to} p{p}: {found} for {truth}");
            }
        }
    }
    assert!(raw.len() > 500, "{}", raw.len());
}
