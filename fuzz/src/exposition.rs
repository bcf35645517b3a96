//! The metrics of a runner, as the operator reads them. Runner pods are not trusted.

use loadtest_core::{
    judge::{RunContext, Timeline, report},
    metrics::{
        ExpositionOptions, Format, HistoryStep, Metrics, PackedMetrics, RunnerMetrics, TaskMetrics,
        apply_steps, decode, decode_steps, encode, encode_step,
    },
    plan::{ValidTest, validate},
    resource::{LoadTest, LoadTestStatus},
    result::{RunFacts, RunResult, SeriesRecorder, StoredResult, build_result},
};

/// A test with rows of each kind, so that every number of a runner is judged.
const TEST: &str = r#"
apiVersion: loadtest.cell0.io/v1alpha1
kind: LoadTest
metadata: {name: fuzz}
spec:
  target: {http: "http://cell0:18800", webSocket: "ws://cell0:18801"}
  load: {stages: [{users: 20, duration: 10s}, {users: 50, duration: 1m}]}
  scenario:
    tasks:
      - {name: chat, chat: {models: [cell0-small], messages: ["Hello"], stream: true}}
      - {name: health, http: {path: /health}}
      - {name: ws, webSocket: {send: ["ping"], replies: 1}}
  thresholds:
    - {task: chat, metric: timeToFirstToken, statistic: p95, target: "< 500ms", critical: "> 5s", abort: {}}
    - {metric: responseTime, statistic: mean, target: "< 1s", window: 5s}
    - {metric: errorRate, target: "< 1%", critical: "> 10%"}
    - {metric: throughput, target: "> 10/s", window: 10s}
"#;

/// Decodes the history and the exposition of a runner, and judges the numbers.
pub fn exposition(data: &[u8]) {
    if let Ok(steps) = decode_steps(data) {
        check_encoding(&steps);
        check_packing(&steps);
        let stored = StoredResult { result: judge_steps(&steps), resume: None };
        stored.into_parts().expect("a result of any numbers can be stored");
    }
    if let Ok(runner) = decode(data) {
        check_text(runner);
    }
}

/// Steps that are encoded again decode to the same steps.
fn check_encoding(steps: &[HistoryStep]) {
    let mut bytes = Vec::new();
    for step in steps {
        bytes.extend(encode_step(step.clone(), None).expect("a decoded step can be encoded"));
    }
    let again = decode_steps(&bytes).expect("encoded steps can be decoded");
    let expected: Vec<_> = steps.iter().cloned().map(without_empty_parts).collect();
    let again: Vec<_> = again.into_iter().map(without_empty_parts).collect();
    assert_eq!(again, expected);
}

/// Metrics that are packed are unpacked unchanged.
fn check_packing(steps: &[HistoryStep]) {
    for step in steps {
        let metrics = &step.runner.metrics;
        assert_eq!(PackedMetrics::of(metrics).unpack(), *metrics);
    }
}

/// Steps leave out tasks and histograms without a sample.
fn without_empty_parts(mut step: HistoryStep) -> HistoryStep {
    let metrics = &mut step.runner.metrics;
    let empty = TaskMetrics::default();
    // The difference to nothing is the same without the sums of histograms that have no sample.
    *metrics = metrics.changes_since(&Metrics::default());
    metrics.tasks.retain(|_, task| *task != empty);
    step
}

fn check_text(mut runner: RunnerMetrics) {
    let options = ExpositionOptions { loadtest: "fuzz".into(), ..ExpositionOptions::default() };
    for format in [Format::Text, Format::Protobuf] {
        let bytes =
            encode(runner.clone(), options.clone(), format).expect("metrics can be encoded");
        if format == Format::Protobuf {
            runner = decode(&bytes).expect("an encoded runner can be decoded");
        }
    }
}

/// Judges the answers of two runners, from the first step to the result.
pub fn judge_steps(steps: &[HistoryStep]) -> RunResult {
    let test: LoadTest = serde_saphyr::from_str(TEST).expect("the test is well-formed");
    let valid: ValidTest = validate(&test.spec).expect("the test is valid");
    let mut timeline = Timeline::default();
    let mut series = SeriesRecorder::new(&valid.load);
    let (mut first, mut all) = (Metrics::default(), Metrics::default());
    for step in steps {
        apply_steps(&mut first, std::slice::from_ref(step));
        all = Metrics::default();
        all.merge_runner("fuzz-0", &first);
        all.merge_runner("fuzz-1", &step.runner.metrics);
        let _ = timeline.record_snapshot(&valid, &all);
        series.record(&all);
    }
    let context = RunContext::default();
    let report = report(&valid, &all, &timeline, &context);
    let status = LoadTestStatus {
        verdict: Some(report.verdict.into()),
        summary: Some(report.summary),
        tasks: report.tasks,
        thresholds: report.thresholds,
        stages: report.stages,
        errors: report.errors,
        measurement: Some(report.measurement),
        ..LoadTestStatus::default()
    };
    let facts = RunFacts {
        generator: "fuzz".into(),
        uid: "uid".into(),
        test: &test,
        valid: &valid,
        status: &status,
        losses: std::collections::BTreeMap::new(),
    };
    build_result(&facts, &all, series.finish(&all))
}
