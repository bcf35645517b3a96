//! Writes the inputs of `fuzz/corpus` that this project itself makes: expositions and results. Run it after
//! a change of their formats: `cargo run -p loadtest-fuzz --example write_seeds`.

use std::{error::Error, fs, path::Path, time::Duration};

use k8s_openapi::ByteString;
use loadtest_core::{
    metrics::{
        ExpositionOptions, Format, Identity, LatencyMetric, Metrics, Outcome, RunnerHistory,
        RunnerMetrics, RunnerState, TaskMetrics, decode_steps, encode,
    },
    result::{LoadTestResult, StoredResult, TestReference},
};
use loadtest_fuzz::judge_steps;

/// A task with every kind of number.
fn task_after(second: u32) -> TaskMetrics {
    let count = u64::from(second) * 10;
    let mut task = TaskMetrics { good: count, sent_bytes: count * 100, ..TaskMetrics::default() };
    for outcome in Outcome::ALL {
        task.requests[outcome.index()] = count;
    }
    for metric in [
        LatencyMetric::ResponseTime,
        LatencyMetric::TimeToFirstToken,
        LatencyMetric::WebSocketRoundTrip,
    ] {
        for step in 1..=second {
            task.latencies.get_mut(metric, Outcome::Success).record(0.01 * f64::from(step), 10);
        }
        task.latencies.late_mut(metric).record(0.2, 1);
    }
    task.successes_in_load = count;
    task.errors.insert("http_503".into(), count);
    task.statuses.insert("200".into(), count);
    task.finish_reasons.insert("stop".into(), count);
    task.websocket_closes.insert("1011".into(), 1);
    task.addresses.insert("10.0.0.1:80".into(), count);
    task
}

fn runner_after(second: u32) -> RunnerMetrics {
    let mut metrics = Metrics {
        users: 5,
        users_peak: 5,
        user_seconds: f64::from(second) * 5.0,
        elapsed_seconds: f64::from(second),
        busy_seconds: 0.1,
        ..Metrics::default()
    };
    metrics.schedule_lag.record(0.001, 10);
    metrics.tasks.insert("chat".into(), task_after(second));
    let identity = Identity { run_uid: "uid".into(), index: 0, pod_uid: "pod".into() };
    RunnerMetrics { identity, state: RunnerState::Running, metrics }
}

fn main() -> Result<(), Box<dyn Error>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut history = RunnerHistory::new(runner_after(0).identity, None);
    for second in 1..=3 {
        history.record(&runner_after(second), Duration::from_secs(second.into()))?;
    }
    let steps = history.encode_after(0)?;
    let options = ExpositionOptions {
        loadtest: "fuzz".into(),
        chat_tasks: vec!["chat".into()],
        ..ExpositionOptions::default()
    };
    let exposition = corpus.join("exposition");
    fs::write(exposition.join("history"), &steps)?;
    fs::write(exposition.join("last-step"), history.encode_after(3)?)?;
    fs::write(exposition.join("whole"), encode(runner_after(1), options, Format::Protobuf)?)?;

    let result = judge_steps(&decode_steps(&steps)?);
    let folder = corpus.join("result");
    fs::write(folder.join("document"), serde_json::to_vec(&result)?)?;
    let parts = StoredResult { result: result.clone(), resume: None }.into_parts()?;
    let object = LoadTestResult {
        data: ByteString(parts.concat()),
        ..LoadTestResult::new("fuzz", TestReference::default(), &result)
    };
    fs::write(folder.join("objects"), serde_json::to_vec(&[object])?)?;
    Ok(())
}
