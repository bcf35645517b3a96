use super::*;
use crate::{
    metrics::{HistogramData, Metrics, Outcome, TaskMetrics},
    resource::{LoadTest, LoadTestStatus},
    result::{RunFacts, SeriesRecorder, build_result},
    testing::{spec, valid_test},
};

/// A run whose response times go up and down by a tenth from block to block, around `seconds`.
fn run(seconds: f64, length: u32, failures_per_second: u64) -> RunResult {
    let valid = valid_test();
    let mut recorder = SeriesRecorder::new(&valid.load);
    let mut metrics = Metrics::default();
    for second in 0..length {
        metrics.elapsed_seconds += 1.0;
        let task: &mut TaskMetrics = metrics.tasks.entry("health".into()).or_default();
        let level = 1.0 + 0.1 * f64::from((second / 20) % 3);
        let samples = task.latencies.get_mut(LatencyMetric::ResponseTime, Outcome::Success);
        for n in 0..20_u32 {
            samples.record(seconds * level * (1.0 + f64::from(n) / 40.0), 1);
        }
        task.requests[Outcome::Success.index()] += 20;
        task.requests[Outcome::Failure.index()] += failures_per_second;
        task.successes_in_load += 20;
        recorder.record(&metrics);
    }
    let facts = RunFacts {
        generator: "test".into(),
        uid: "uid".into(),
        test: &LoadTest::new("burst", spec()),
        valid: &valid,
        status: &LoadTestStatus::default(),
        losses: BTreeMap::new(),
    };
    build_result(&facts, &metrics, recorder.finish(&metrics))
}

fn row(comparison: &Comparison, metric: &str, statistic: Option<&str>) -> ComparedRow {
    let found = comparison.rows.iter().find(|row| {
        row.task.as_deref() == Some("health")
            && row.metric == metric
            && row.statistic.as_deref() == statistic
    });
    found.unwrap().clone()
}

#[test]
fn huge_counts_are_no_overflow() {
    let mut result = run(0.1, 120, 0);
    // The largest count of a bucket.
    let counts = vec![(1 << 48) - 1];
    let data = HistogramData { spans: vec![(0, 1)], counts, ..HistogramData::default() };
    let tasks = result.series.points.iter_mut().flat_map(|point| point.tasks.values_mut());
    tasks.flat_map(|task| task.latencies.values_mut()).for_each(|samples| *samples = data.clone());
    assert!(compare(&result, &result).is_ok());
}

#[test]
fn a_run_against_itself_is_within_noise() {
    let result = run(0.1, 120, 0);
    let comparison = compare(&result, &result).unwrap();
    assert!(comparison.differences.is_empty());
    for row in &comparison.rows {
        assert_eq!(row.movement, Movement::WithinNoise, "{row:?}");
        assert!(row.change.unwrap_or(0.0).abs() < 1e-12, "{row:?}");
    }
    let names: Vec<_> = comparison.rows.iter().filter(|row| row.task.is_none()).collect();
    assert_eq!(names.len(), 5, "throughput, error rate and three percentiles");
}

#[test]
fn a_change_beyond_the_noise_is_found_in_both_directions() {
    let (fast, slow) = (run(0.1, 120, 0), run(0.15, 120, 2));
    let worse = compare(&fast, &slow).unwrap();
    let p95 = row(&worse, "responseTime", Some("p95"));
    let (low, high) = p95.interval.unwrap();
    assert_eq!(p95.movement, Movement::Worse);
    assert!((p95.change.unwrap() - 0.5).abs() < 0.01 && low < 0.5 && high > 0.45, "{p95:?}");
    let errors = row(&worse, "errorRate", None);
    assert_eq!(errors.movement, Movement::Worse);
    assert!((errors.change.unwrap() - 2.0 / 22.0).abs() < 1e-9, "{errors:?}");
    assert_eq!(row(&worse, "throughput", None).movement, Movement::WithinNoise);
    let better = compare(&slow, &fast).unwrap();
    assert_eq!(row(&better, "responseTime", Some("p95")).movement, Movement::Better);
    assert_eq!(row(&better, "errorRate", None).movement, Movement::Better);
}

#[test]
fn the_quantile_of_few_blocks_is_that_of_the_t_distribution() {
    // The 97.5th percentiles for 4 and 10 degrees of freedom, from tables.
    for (blocks, expected) in [(3, 2.776), (6, 2.228)] {
        let n = blocks as f64;
        let factor = expected / NORMAL_QUANTILE * (n / (n - 1.0)).sqrt();
        let found = small_sample_factor(blocks, blocks);
        assert!((found / factor - 1.0).abs() < 0.005, "{blocks}: {found}, {factor}");
    }
    assert!((small_sample_factor(500, 500) - 1.0).abs() < 0.01);
}

#[test]
fn equal_targets_seldom_differ() {
    // Runs of one minute, whose blocks vary at random.
    let mut random = Pcg32::seed_from_u64(7);
    let mut sides = || -> Vec<Block> {
        (0..3)
            .map(|_| {
                let successes: u32 = (0..12).map(|_| random.random_range(50..150)).sum();
                let numbers =
                    TaskPoint { successes_in_load: u64::from(successes), ..TaskPoint::default() };
                (20.0, numbers)
            })
            .collect()
    };
    let trials = 400;
    let changed = (0..trials).filter(|_| {
        let sides = [sides(), sides()];
        let interval = interval_of(Quantity::Throughput, &sides).unwrap();
        movement_of(Quantity::Throughput, interval) != Movement::WithinNoise
    });
    let share = changed.count() as f64 / f64::from(trials);
    assert!(share < 0.08, "{share}");
}

#[test]
fn runs_that_say_nothing_are_named() {
    let mut over = run(0.1, 30, 0);
    over.status.phase = Some(Phase::Finished.into());
    let running = run(0.1, 30, 0);
    let comparison = compare(&over, &running).unwrap();
    assert_eq!(comparison.doubts, ["new: the test is not over"]);
    assert!(compare(&over, &over).unwrap().doubts.is_empty());
    over.status.verdict = Some(Verdict::Inconclusive.into());
    assert_eq!(compare(&over, &over).unwrap().doubts.len(), 2);
}

#[test]
fn a_change_within_the_noise_is_none() {
    // The blocks of each run differ by up to a fifth.
    let comparison = compare(&run(0.1, 120, 0), &run(0.102, 120, 0)).unwrap();
    let p50 = row(&comparison, "responseTime", Some("p50"));
    assert_eq!(p50.movement, Movement::WithinNoise, "{p50:?}");
}

#[test]
fn short_runs_have_no_interval() {
    let comparison = compare(&run(0.1, 30, 0), &run(0.3, 120, 0)).unwrap();
    let p95 = row(&comparison, "responseTime", Some("p95"));
    assert_eq!((p95.interval, p95.movement), (None, Movement::Unknown));
    // The longer run also has slower blocks.
    assert!(p95.change.unwrap() > 1.9 && p95.change.unwrap() < 2.6, "{p95:?}");
}

#[test]
fn runs_of_different_specs_say_so() {
    let (base, mut new) = (run(0.1, 30, 0), run(0.1, 30, 0));
    new.spec.load.users = None;
    assert_eq!(compare(&base, &new).unwrap().differences, ["spec.load"]);
}

#[test]
fn blocks_cover_the_whole_run() {
    for (length, expected) in
        [(19, 1), (20, 1), (39, 1), (40, 2), (59, 2), (60, 3), (125, 6), (19 * 60, 57)]
    {
        let blocks = blocks_of(&run(0.1, length, 0).series, None).unwrap();
        let seconds: f64 = blocks.iter().map(|(seconds, _)| seconds).sum();
        assert_eq!(blocks.len(), expected, "{length} s");
        assert!((seconds - f64::from(length)).abs() < 1e-6, "{length} s: {seconds}");
    }
}

#[test]
fn a_minute_with_a_late_clock_has_three_blocks() {
    for factor in [0.995, 0.9999, 1.0001, 1.005] {
        let mut series = run(0.1, 60, 0).series;
        for point in &mut series.points {
            point.start *= factor;
            point.end *= factor;
        }
        let blocks = blocks_of(&series, None).unwrap();
        let seconds: Vec<f64> = blocks.iter().map(|(seconds, _)| *seconds).collect();
        assert!(
            seconds.len() == 3 && seconds.iter().all(|s| (19.0..21.0).contains(s)),
            "{seconds:?}"
        );
    }
}
