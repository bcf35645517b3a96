use super::*;
use crate::{
    metrics::{LatencyHistogram, Metrics, Outcome},
    testing::load,
};

/// Cumulative metrics after a number of seconds: 10 requests per second of one task, which become
/// slower from hundred to hundred.
fn snapshot(seconds: f64) -> Metrics {
    let mut task = TaskMetrics::default();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small numbers")]
    let requests = (seconds * 10.0).round() as u64;
    for hundred in 0..requests.div_ceil(100) {
        let latency = 0.01 * (1.0 + hundred as f64);
        let samples = task.latencies.get_mut(LatencyMetric::ResponseTime, Outcome::Success);
        samples.record(latency, (requests - hundred * 100).min(100));
    }
    task.requests[Outcome::Success.index()] = requests;
    task.successes_in_load = requests;
    task.errors.insert("connect".into(), requests / 7);
    let mut metrics = Metrics { elapsed_seconds: seconds, users: 3, ..Metrics::default() };
    metrics.tasks.insert("get".into(), task);
    metrics
}

fn record(load_yaml: &str, times: impl IntoIterator<Item = f64>, end: f64) -> Series {
    let mut recorder: SeriesRecorder = SeriesRecorder::new(&load(load_yaml));
    times.into_iter().for_each(|time| recorder.record(&snapshot(time)));
    recorder.finish(&snapshot(end))
}

fn check_sum(series: &Series, end: f64) {
    let mut sum = TaskPoint::default();
    let mut at = 0.0_f64;
    for point in &series.points {
        assert!((point.start - at).abs() < 1e-9, "a gap at {at} s");
        at = point.end;
        if let Some(task) = point.tasks.get("get") {
            sum.merge(task).unwrap();
        }
    }
    let whole = snapshot(end);
    let task = &whole.tasks["get"];
    assert_eq!((sum.requests, sum.successes_in_load), (task.requests[0], task.requests[0]));
    assert_eq!(sum.errors["connect"], task.errors["connect"]);
    let samples = task.latencies.samples(LatencyMetric::ResponseTime);
    let found = &sum.latencies["responseTime"];
    assert_eq!(found.counts, HistogramData::of(&samples).counts);
    assert_eq!(found.spans, HistogramData::of(&samples).spans);
}

const USERS: &str = "{users: 3, spawnRate: 10, duration: 2h}";

#[test]
fn the_sum_of_all_points_is_the_whole_run() {
    let series = record(USERS, (1..=20).map(f64::from), 20.3);
    // The last 0.3 s are too short for a point of their own.
    assert_eq!(series.points.len(), 20);
    check_sum(&series, 20.3);
    let series = record(USERS, (1..=20).map(|n| f64::from(n) * 0.25), 5.7);
    assert_eq!(series.points.len(), 6);
    check_sum(&series, 5.7);
    // A run that is shorter than a step has one point.
    assert_eq!(record(USERS, [], 0.2).points.len(), 1);
}

#[test]
fn a_full_series_doubles_its_step() {
    let series = record(USERS, (1..=2000).map(f64::from), 2000.0);
    assert!((series.step_seconds - 4.0).abs() < 1e-9, "{}", series.step_seconds);
    assert!(series.points.len() <= MAX_POINTS, "{}", series.points.len());
    check_sum(&series, 2000.0);
    let series = record(USERS, (1..=720).map(f64::from), 720.6);
    assert!(series.points.len() <= MAX_POINTS, "{}", series.points.len());
    check_sum(&series, 720.6);
}

#[test]
fn a_packed_series_has_the_same_points() {
    let mut plain: SeriesRecorder = SeriesRecorder::new(&load(USERS));
    let mut packed: SeriesRecorder<PackedSeries> = SeriesRecorder::new(&load(USERS));
    for second in (1..=1501).map(f64::from) {
        plain.record(&snapshot(second));
        packed.record(&snapshot(second));
    }
    let (plain, packed) = (plain.finish(&snapshot(1502.0)), packed.finish(&snapshot(1502.0)));
    let unpacked = packed.packed_points().unwrap();
    let unpacked: Vec<Point> =
        unpacked.iter().flat_map(|points| points.unpack().unwrap()).collect();
    assert_eq!((packed.len(), packed.step_seconds()), (plain.points.len(), 4.0));
    assert_eq!(unpacked, plain.points);
}

#[test]
fn a_packed_series_keeps_the_order_of_small_and_large_points() {
    let mut packed = PackedSeries::with_step(1.0);
    let points: Vec<Point> = (0..40_u32)
        .map(|n| {
            let mut point =
                Point { start: f64::from(n), end: f64::from(n + 1), ..Point::default() };
            if n % 10 > 6 {
                point.schedule_lag.spans = vec![(0, 20_000)];
                point.schedule_lag.counts = vec![1; 20_000];
            }
            point
        })
        .collect();
    points.iter().for_each(|point| packed.push(point.clone()));
    let unpacked = packed.packed_points().unwrap();
    assert!(unpacked.len() < points.len(), "{} members", unpacked.len());
    let unpacked: Vec<Point> =
        unpacked.iter().flat_map(|points| points.unpack().unwrap()).collect();
    assert_eq!(unpacked, points);
}

#[test]
fn numbers_that_no_runner_can_have_are_recorded() {
    let mut recorder: SeriesRecorder<PackedSeries> = SeriesRecorder::new(&load(USERS));
    for second in 1..=1500 {
        let mut metrics = snapshot(f64::from(second));
        metrics.busy_seconds = 1e300 * f64::from(second);
        metrics.schedule_lag.record(f64::MAX, 3);
        recorder.record(&metrics);
    }
    assert!(recorder.series().len() <= MAX_POINTS, "{}", recorder.series().len());
}

#[test]
fn a_series_with_a_malformed_histogram_stays_within_its_size() {
    let mut series = record(USERS, (1..=700).map(f64::from), 700.0);
    series.points[300].schedule_lag.spans.push((1, 5));
    let last = snapshot(700.0);
    let mut recorder = SeriesRecorder::resume(&load(USERS), PackedSeries::of(series), &last);
    (701..=1500).for_each(|second| recorder.record(&snapshot(f64::from(second))));
    assert!(recorder.series().len() <= MAX_POINTS, "{}", recorder.series().len());
}

#[test]
fn a_series_stays_within_its_size() {
    let mut recorder: SeriesRecorder = SeriesRecorder::new(&load(USERS));
    let mut histogram = LatencyHistogram::default();
    for second in 1..=300_u32 {
        for bucket in 0..4000 {
            histogram.record(0.001 * f64::from(bucket + 1), 1);
        }
        let metrics = Metrics {
            elapsed_seconds: f64::from(second),
            schedule_lag: histogram.clone(),
            ..Metrics::default()
        };
        recorder.record(&metrics);
    }
    let size: usize = recorder.series().points.iter().map(Point::histogram_size).sum();
    assert!(size <= MAX_COUNTS, "{size}");
    assert!(recorder.series().points.len() > 20, "{}", recorder.series().points.len());
}

#[test]
fn points_hold_the_planned_load() {
    let planned = |yaml: &str| {
        let series = record(yaml, (1..=4).map(f64::from), 4.0);
        let of = |point: &Point| (point.planned_users, point.planned_rate);
        series.points.iter().map(of).collect::<Vec<_>>()
    };
    let users = planned("{users: 10, spawnRate: 5, duration: 4s}");
    assert_eq!(users, [2.5, 7.5, 10.0, 10.0].map(|mean| (Some(mean), None)));
    let rate = planned("{arrivalRate: 40/s, maxUsers: 10, duration: 4s}");
    assert_eq!(rate, [(None, Some(40.0)); 4]);
}

#[test]
fn users_that_end_with_the_load_are_counted() {
    let mut recorder: SeriesRecorder =
        SeriesRecorder::new(&load("{users: 3, spawnRate: 10, duration: 3s}"));
    for (seconds, users) in [(1.0, 3), (2.0, 3), (2.999, 1)] {
        recorder.record(&Metrics { users, ..snapshot(seconds) });
    }
    let series = recorder.finish(&Metrics { users: 0, ..snapshot(3.0) });
    let users: Vec<u64> = series.points.iter().map(|point| point.users).collect();
    assert_eq!(users, [3, 3, 3]);
}
