use super::*;
use crate::{
    judge::{RunContext, Timeline, report},
    resource::Verdict,
    result::SeriesRecorder,
    testing::{spec, valid_test},
};

fn example() -> RunResult {
    let valid = valid_test();
    let mut chat = TaskMetrics::default();
    for (outcome, count) in
        [(Outcome::Success, 960), (Outcome::Failure, 30), (Outcome::Timeout, 10)]
    {
        chat.requests[outcome.index()] = count;
        for metric in [LatencyMetric::ResponseTime, LatencyMetric::TimeToFirstResponse] {
            chat.latencies.get_mut(metric, outcome).record(0.75, count);
        }
    }
    chat.successes_in_load = 950;
    chat.errors.insert("http_503".into(), 30);
    let mut metrics = Metrics { elapsed_seconds: 100.0, users: 200, ..Metrics::default() };
    metrics.tasks.insert("chat".into(), chat);
    let status = {
        let timeline = Timeline::default();
        let report = report(&valid, &metrics, &timeline, &RunContext::default());
        LoadTestStatus {
            verdict: Some(report.verdict.into()),
            thresholds: report.thresholds,
            ..LoadTestStatus::default()
        }
    };
    let mut test = LoadTest::new("burst", spec());
    let credential = ("Authorization".to_owned(), "Bearer secret".to_owned());
    test.spec.target.headers = [credential.clone(), ("accept".into(), "*/*".into())].into();
    for task in &mut test.spec.scenario.tasks {
        task.headers_mut().unwrap().extend([credential.clone()]);
    }
    let facts = RunFacts {
        generator: "loadtest 0.1.0".into(),
        uid: "local-1".into(),
        test: &test,
        valid: &valid,
        status: &status,
        losses: BTreeMap::new(),
    };
    let series = SeriesRecorder::new(&valid.load).finish(&metrics);
    build_result(&facts, &metrics, series)
}

#[test]
fn a_result_holds_the_numbers_of_the_run() {
    let result = example();
    assert_eq!(
        (result.total.requests, result.total.failures, result.total.timeouts),
        (1000, 40, 10)
    );
    assert!((result.total.error_rate - 0.04).abs() < 1e-12);
    assert!((result.total.throughput - 9.5).abs() < 1e-12);
    let names: Vec<&str> = result.tasks.iter().map(|task| task.name.as_str()).collect();
    assert_eq!(names, ["chat", "health", "models", "websocket"]);
    let latency = result.tasks[0].result.latencies.get(LatencyMetric::ResponseTime).unwrap();
    // Failures are in no latency.
    assert_eq!(latency.count, 970);
    assert!((latency.p95 / 0.75 - 1.0).abs() < 0.002);
    assert_eq!(result.tasks[1].result.latencies.get(LatencyMetric::ResponseTime), None);
}

#[test]
fn thresholds_are_numbers_with_all_bounds() {
    let result = example();
    let rows = &result.thresholds;
    assert_eq!(rows.len(), 3);
    assert_eq!(rows[0].unit, ValueUnit::Seconds);
    assert!((rows[0].observed.unwrap() / 0.75 - 1.0).abs() < 0.002);
    assert_eq!(rows[0].critical, Some(BoundValue { comparison: ">".into(), value: 2.0 }));
    assert_eq!((rows[1].unit, rows[1].observed), (ValueUnit::Fraction, Some(0.04)));
    assert_eq!(rows[1].verdict, Verdict::Fail);
    assert_eq!((rows[2].unit, rows[2].observed), (ValueUnit::PerSecond, Some(9.5)));
}

#[test]
fn a_result_survives_a_round_trip() {
    let result = example();
    let text = serde_json::to_string(&result).unwrap();
    assert_eq!(serde_json::from_str::<RunResult>(&text).unwrap(), result);
    // A newer version may add fields of any type.
    let mut value = serde_json::to_value(&result).unwrap();
    value["tasks"][0]["cost"] = 5.into();
    value["total"]["carbon"] = serde_json::json!({"grams": "7"});
    assert_eq!(serde_json::from_value::<RunResult>(value.clone()).unwrap(), result);
    // A damaged latency is not one without samples.
    value["total"]["responseTime"]["p95"] = "fast".into();
    let error = serde_json::from_value::<RunResult>(value).unwrap_err().to_string();
    assert!(error.contains("responseTime"), "{error}");
}

#[test]
fn events_are_in_order_of_time() {
    let result = example();
    let kinds: Vec<EventKind> = result.events.iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [EventKind::Started, EventKind::LoadEnded]);
}

#[test]
fn a_result_holds_no_credentials() {
    let result = example();
    let text = serde_json::to_string(&result).unwrap();
    assert!(!text.contains("secret"), "{text}");
    assert_eq!(text.matches(r#""Authorization":"***""#).count(), 5, "{text}");
    assert_eq!(result.spec.target.headers["accept"], "*/*");
}
