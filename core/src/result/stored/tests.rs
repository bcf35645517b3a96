use flate2::{Compression, write::GzEncoder};
use std::io::Write;

use super::*;
use crate::{
    metrics::{LatencyMetric, Metrics, Outcome, RunnerMetrics},
    resource::{LoadTest, LoadTestStatus},
    result::{GoneRunner, GoneRunners, RunFacts, SeriesRecorder, TestReference, build_result},
    testing::{spec, valid_test},
};

/// Adds a second with 100 requests, whose latencies are in many buckets.
fn add_second(metrics: &mut Metrics) {
    metrics.elapsed_seconds += 1.0;
    let task = metrics.tasks.entry("health".into()).or_default();
    for _ in 0..100 {
        task.requests[0] += 1;
        // Spread over a decade, in no order.
        #[expect(clippy::cast_possible_truncation, reason = "a few thousand requests")]
        let place = (task.requests[0] as u32).wrapping_mul(2_654_435_761) % 1000;
        let samples = task.latencies.get_mut(LatencyMetric::ResponseTime, Outcome::Success);
        samples.record(0.01 * (1.0 + f64::from(place) / 100.0), 1);
    }
}

/// The metrics after some seconds.
fn metrics(seconds: u32) -> Metrics {
    let mut metrics = Metrics { users: 5, ..Metrics::default() };
    (0..seconds).for_each(|_| add_second(&mut metrics));
    metrics
}

/// A stored result as text: sums of latencies have rounded digits there.
fn json_of(stored: &StoredResult) -> String {
    serde_json::to_string(stored).unwrap()
}

fn example(seconds: u32) -> StoredResult {
    let valid = valid_test();
    let mut recorder: SeriesRecorder = SeriesRecorder::new(&valid.load);
    let mut now = metrics(0);
    for _ in 0..seconds {
        add_second(&mut now);
        recorder.record(&now);
    }
    let facts = RunFacts {
        generator: "test".into(),
        uid: "uid-1".into(),
        test: &LoadTest::new("burst", spec()),
        valid: &valid,
        status: &LoadTestStatus::default(),
        losses: [("runner 1".to_owned(), "evicted".to_owned())].into(),
    };
    let gone = GoneRunner { pod_uid: "pod-1".into(), ..GoneRunner::default() };
    let resume = ResumeState {
        pods: vec!["pod-0".into(), "pod-1".into()],
        recorded: recorder.recorded(),
        stage_start: Some(metrics(2)),
        gone: GoneRunners { runners: [(1, gone)].into(), metrics: metrics(3) },
        runners: vec![RunnerMetrics { metrics: metrics(4), ..RunnerMetrics::default() }],
        error_examples: Vec::new(),
    };
    let result = build_result(&facts, &now, recorder.series().clone());
    StoredResult { result, resume: Some(resume) }
}

/// Maximum size of a part in these tests.
const PART: usize = 4 << 10;

fn objects(stored: StoredResult, max_parts: u32, revision: u64) -> Vec<LoadTestResult> {
    let test = TestReference { name: "burst".into(), uid: "uid-1".into() };
    let head = LoadTestResult::new("burst-1", test, &stored.result);
    let parts = ResultToStore::from(stored).split(PART, max_parts).unwrap();
    let count = u32::try_from(parts.len()).unwrap();
    let object = |(part, data)| LoadTestResult {
        part,
        parts: count,
        revision,
        data: ByteString(data),
        ..head.clone()
    };
    (0..).zip(parts).map(object).collect()
}

#[test]
fn a_stored_result_is_read_as_it_was_written() {
    let stored = example(30);
    let mut all = objects(stored.clone(), 99, 2);
    assert!(all.len() > 1, "{}", all.len());
    assert!(all.iter().all(|object| object.data.0.len() <= PART));
    // As the API server returns it.
    let json = serde_json::to_string(&all[0]).unwrap();
    let first: LoadTestResult = serde_json::from_str(&json).unwrap();
    all.remove(0);
    all.reverse();
    let mut expected = stored.clone();
    // Of a large result, these metrics are left out.
    expected.resume.as_mut().unwrap().runners.clear();
    let found = StoredResult::from_objects(&first, &all).unwrap();
    assert!(json_of(&found) == json_of(&expected));
    assert_eq!(first.summary.requests, 3000);

    let small = stored.clone().into_parts().unwrap();
    let one = LoadTestResult { parts: 1, data: ByteString(small[0].clone()), ..first.clone() };
    let found = StoredResult::from_objects(&one, &[]).unwrap();
    assert!(small.len() == 1 && json_of(&found) == json_of(&stored));

    all[0].revision = 1;
    let error = StoredResult::from_objects(&first, &all).unwrap_err().to_string();
    assert!(error.contains("parts of the result are there"), "{error}");
}

#[test]
fn a_result_that_is_too_large_gets_longer_steps() {
    let stored = example(100);
    let few = objects(stored.clone(), 3, 1);
    assert!(few.len() <= 3, "{}", few.len());
    let read = StoredResult::from_objects(&few[0], &few[1..]).unwrap();
    let requests = |stored: &StoredResult| -> u64 {
        let points = stored.result.series.points.iter();
        points.flat_map(|point| point.tasks.values()).map(|task| task.requests).sum()
    };
    assert_eq!((requests(&read), read.result.total.requests), (10_000, 10_000));
    let resume = read.resume.unwrap();
    assert!(resume.runners.is_empty());
    assert_eq!(resume.gone.runners, stored.resume.unwrap().gone.runners);
    assert_eq!(resume.gone.metrics.tasks["health"].requests[0], 300);
}

#[test]
fn a_changed_result_is_refused() {
    let object = objects(example(3), 99, 1).remove(0);
    let with_data = |bytes: Vec<u8>| {
        let object = LoadTestResult { data: ByteString(bytes), parts: 1, ..object.clone() };
        StoredResult::from_objects(&object, &[]).unwrap_err().to_string()
    };
    assert!(with_data(b"no gzip".to_vec()).contains("gzip"));
    let gzip = |text: &str| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    assert!(with_data(gzip(r#"{"result": {"version": 99}}"#)).contains("version 99"));
    assert!(with_data(gzip(r#"{"result": {"version": 3}}"#)).contains("result"));
    let huge = format!("\"{}\"", " ".repeat(MAX_DOCUMENT_BYTES));
    assert!(with_data(gzip(&huge)).contains("larger than 32 MiB"));
    let newer = r#"{"recorded": {"new": 1}, "runners": 3}"#;
    let text = json_of(&example(3)).split_once(",\"resume\":").unwrap().0.to_owned();
    let object = LoadTestResult {
        data: ByteString(gzip(&format!("{text},\"resume\":{newer}}}"))),
        parts: 1,
        ..object
    };
    let read = StoredResult::from_objects(&object, &[]).unwrap();
    assert_eq!((read.resume, read.result.total.requests), (None, 300), "reports need no state");
}

#[test]
fn a_resumed_series_covers_the_whole_run() {
    let stored = example(30);
    let valid = valid_test();
    let resume = stored.resume.unwrap();
    let mut recorder = SeriesRecorder::resume(&valid.load, stored.result.series, &resume.recorded);
    // The operator was away for ten seconds.
    recorder.record(&metrics(40));
    let series = recorder.finish(&metrics(41));
    let requests: u64 = series.points.iter().map(|point| point.tasks["health"].requests).sum();
    assert_eq!((requests, series.points.len()), (4100, 32));
    let gap = &series.points[30];
    assert!((gap.start - 30.0).abs() < 1e-9 && (gap.end - 40.0).abs() < 1e-9, "{gap:?}");
}

#[test]
fn points_in_pieces_take_little_more_than_one_document() {
    let stored = example(200);
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(json_of(&stored).as_bytes()).unwrap();
    let whole = encoder.finish().unwrap().len();
    let pieces = stored.into_parts().unwrap().concat().len();
    assert!(pieces < whole * 3 / 2, "{pieces} bytes, {whole} as a whole");
}
