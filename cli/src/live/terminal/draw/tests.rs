use loadtest_core::{resource::LoadTestStatus, result::RunResult};
use ratatui::{Terminal, backend::TestBackend};
use serde_json::json;

use super::{super::figures::Figures, *};

/// A running test of two tasks, one of which fails.
fn example() -> RunResult {
    let times = |p50: f64| json!({"count": 100, "mean": p50, "min": p50, "p50": p50, "p90": p50, "p95": 2.0 * p50, "p99": 3.0 * p50, "p999": 3.0 * p50, "max": 4.0 * p50, "histogram": {"count": 0, "sum": 0.0, "spans": [], "counts": []}});
    let task = |requests: u64, failures: u64| {
        let mut task = serde_json::to_value(TaskResult::default()).unwrap();
        task["requests"] = requests.into();
        task["failures"] = failures.into();
        task["throughput"] = 12.5.into();
        task["responseTime"] = times(0.02);
        task
    };
    let mut chat = task(100, 0);
    chat["name"] = "chat".into();
    let mut missing = task(40, 40);
    missing["name"] = "missing".into();
    let point = |n: u32| {
        let histogram = json!({"count": 10, "sum": 0.2, "spans": [[-1440, 2]], "counts": [5, 5]});
        json!({
            "start": n, "end": n + 1, "users": 5, "plannedUsers": 5.0, "busySeconds": 0.1,
            "scheduleLag": {"count": 0, "sum": 0.0, "spans": [], "counts": []},
            "tasks": {
                "chat": {"requests": 10, "successesInLoad": 10, "latencies": {"responseTime": histogram}},
                "missing": {"requests": 4, "failures": 4},
            },
        })
    };
    let points: Vec<_> = (0..10).map(point).collect();
    let status = json!({
        "phase": "Running",
        "progress": {"percent": 40, "elapsed": "12s", "users": 5, "runners": 1},
        "conditions": [{"type": "Passed", "status": "Unknown", "reason": "Running", "message": "12s of 30s", "lastTransitionTime": "2026-11-29T00:00:00Z"}],
        "errors": [{"task": "missing", "kind": "http_404", "count": 40, "example": "no such page"}],
    });
    let status: LoadTestStatus = serde_json::from_value(status).unwrap();
    let threshold = |verdict: &str| json!({"metric": "responseTime", "statistic": "p95", "task": "chat", "unit": "seconds", "observed": 0.04, "target": {"comparison": "<", "value": 0.5}, "samples": 100, "verdict": verdict});
    serde_json::from_value(json!({
        "version": 3, "generator": "test", "name": "burst", "uid": "u", "elapsedSeconds": 12.0,
        "userSeconds": 60.0, "usersPeak": 5, "coverage": 1.0, "scheduleLag": null,
        "eventLoopLag": null, "tasks": [chat, missing], "thresholds": [threshold("Pass")],
        "events": [], "runners": [{"name": "local", "userSeconds": 60.0, "busiestThread": 0.12, "throttledSeconds": 0.0}],
        "status": status, "series": {"stepSeconds": 1.0, "points": points}, "total": task(140, 40),
        "spec": {
            "target": {"http": "http://localhost:18800"}, "load": {"users": 5, "duration": "30s"},
            "scenario": {"tasks": [{"name": "chat", "http": {"path": "/"}}]},
        },
    }))
    .unwrap()
}

fn lines(view: &View, width: u16, height: u16) -> Vec<String> {
    let result = example();
    let mut figures = Figures::default();
    figures.update(&result.series, view.task_name(&result), 10.0);
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, &result, figures.points(), view)).unwrap();
    let buffer = terminal.backend().buffer();
    let row = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
    (0..height).map(row).collect()
}

#[test]
fn the_view_shows_every_part() {
    let text = lines(&View::new(true), 100, 40).join("\n");
    for part in [
        "burst  Running   5 users   http://localhost:18800",
        "12s of 30s",
        "requests",
        "response time",
        "all tasks",
        "missing",
        "chat responseTime p95",
        "40ms",
        "< 500ms",
        "http_404",
        "no such page",
        "busiest thread 12%",
        "s: stop the test",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}

#[test]
fn a_chosen_task_has_its_own_charts() {
    let mut view = View::new(false);
    view.task = 1;
    let text = lines(&view, 100, 40).join("\n");
    assert!(text.contains("response time of chat"), "{text}");
    view.is_asking = true;
    assert!(lines(&view, 100, 40).join("\n").contains("press s again"));
}

#[test]
fn every_size_of_a_terminal_works() {
    for (width, height) in [(1, 1), (10, 3), (40, 12), (80, 24), (300, 100)] {
        lines(&View::new(true), width, height);
    }
}

#[test]
fn figures_follow_a_growing_series() {
    let series = example().series;
    let part = |count: usize| loadtest_core::result::Series {
        points: series.points[..count].to_vec(),
        ..series.clone()
    };
    let mut figures = Figures::default();
    for count in [3, 4, 10] {
        figures.update(&part(count), None, 10.0);
        assert_eq!(figures.points().len(), count);
    }
    let last = figures.points()[9];
    assert!((last.successes - 10.0).abs() < 1e-9 && (last.failures - 4.0).abs() < 1e-9);
    let [p50, _, p99] = last.percentiles.unwrap();
    assert!(p50 > 0.01 && p99 < 0.03, "{last:?}");
    figures.update(&series, Some("missing"), 10.0);
    assert_eq!(figures.points()[9].percentiles, None);
    figures.update(&part(2), Some("missing"), 10.0);
    assert_eq!(figures.points().len(), 2);
    figures.update(&series, None, 5.0);
    assert_eq!(figures.points().len(), 5);
}
