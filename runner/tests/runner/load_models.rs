//! The load models: constant users, stages, pacing and arrivals start their requests on schedule.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use cell0_simulator::Simulator;
use loadtest_core::{
    load::LoadModel,
    metrics::{LatencyMetric, Outcome},
    plan::{Pacing, Plan},
};
use loadtest_runner::{Engine, PreparedPlan};
use serde_json::json;

use crate::harness::{
    build_plan, final_counts, load_model, only_task, outcome_counts, run_plan, start_simulator,
};

fn parse_load(yaml: &str) -> LoadModel {
    load_model(serde_saphyr::from_str(yaml).unwrap())
}

/// Starts a simulator and builds a plan with one task, `health`, without think time.
async fn prepare_health_task(settings: &str, load: LoadModel) -> (Simulator, Plan) {
    let simulator = start_simulator(settings).await;
    let tasks = json!([{"name": "health", "http": {"path": "/health"}}]);
    let mut plan = build_plan(&simulator, 1, "1s", &tasks);
    plan.test.load = load;
    plan.test.graceful_stop = loadtest_core::Duration::from_secs(5);
    plan.test.scenario.pacing = Pacing::None;
    (simulator, plan)
}

#[tokio::test]
async fn every_arrival_is_sent_or_dropped() {
    let load = parse_load("{arrivalRate: 200/s, maxUsers: 20, duration: 2s}");
    // 20 users with a response time of 250 ms can take 80 arrivals per second.
    let (simulator, plan) = prepare_health_task("{health: {latency: 250ms}}", load).await;
    let metrics = run_plan(plan).await.metrics;
    let task = only_task(&metrics);
    assert_eq!(outcome_counts(task)[1..], [0, 0, 0], "{:?}", task.errors);
    assert_eq!(task.offered_requests(), 400);
    assert!(
        (60..=180).contains(&task.completed_requests()),
        "{} completed",
        task.completed_requests()
    );
    assert_eq!(final_counts(&simulator).await.received, task.completed_requests());
    assert!((2.0..2.5).contains(&metrics.elapsed_seconds), "{} s", metrics.elapsed_seconds);
}

/// Sends 40 arrivals per second with 40 users from `runners` runners to a target whose responses
/// take half a second on average. Returns how many arrivals were offered and dropped.
async fn run_divided(runners: u32, duration: &str) -> (u64, u64) {
    let load = format!("{{arrivalRate: 40/s, maxUsers: 40, duration: {duration}}}");
    // The mean of a log-normal distribution is median · exp(sigma² / 2), here 502 ms; its standard
    // deviation is 517 ms, as that of an exponential distribution.
    let latency = "{health: {latency: {lognormal: {median: 350ms, sigma: 0.85, max: 5s}}}}";
    let (_simulator, mut plan) = prepare_health_task(latency, parse_load(&load)).await;
    (plan.runners, plan.threads) = (runners, 1);
    let prepared = PreparedPlan::new(plan, |_| None).unwrap();
    let start = Instant::now() + Duration::from_millis(200);
    let engines: Vec<Engine> =
        (0..runners).map(|index| Engine::new(Arc::clone(&prepared), index).unwrap()).collect();
    let mut counts = (0, 0);
    assert!(engines.iter().all(|engine| engine.start(start)));
    for engine in engines {
        engine.wait_until_finished().await;
        let metrics = engine.snapshot().await.metrics;
        let task = only_task(&metrics);
        counts = (counts.0 + task.offered_requests(), counts.1 + task.dropped);
    }
    counts
}

#[tokio::test]
async fn the_number_of_runners_drops_no_arrivals() {
    let counts = tokio::join!(run_divided(1, "8s"), run_divided(4, "8s"), run_divided(20, "8s"));
    let expected = (320, 0);
    assert_eq!(counts, (expected, expected, expected));
}

#[tokio::test]
async fn arrivals_with_idle_users_are_all_sent() {
    let load = parse_load("{arrivalRate: 500/s, maxUsers: 500, duration: 1s}");
    let (simulator, plan) = prepare_health_task("{health: {latency: 1ms}}", load).await;
    let metrics = run_plan(plan).await.metrics;
    let task = only_task(&metrics);
    assert_eq!(outcome_counts(task)[1..], [0, 0, 0], "{:?}", task.errors);
    assert_eq!(final_counts(&simulator).await.received, task.completed_requests());
    // When the machine stalls, a load thread may wake up long after the end of the load. The
    // thread then drops its late arrivals.
    assert_eq!(task.completed_requests() + task.dropped, 500);
    assert!(task.dropped <= 250, "{} dropped", task.dropped);
}

#[tokio::test]
async fn interrupted_arrivals_are_counted() {
    let load =
        parse_load("{arrivalRate: 5000/s, maxUsers: 500, duration: 300ms, gracefulStop: 0s}");
    let (_simulator, mut plan) = prepare_health_task("{health: {latency: 250ms}}", load).await;
    plan.threads = 1;
    let metrics = run_plan(plan).await.metrics;
    let task = only_task(&metrics);
    let sent: u64 = outcome_counts(task).iter().sum();
    assert_eq!(sent + task.dropped, 1500, "{:?}", task.requests);
}

#[tokio::test]
async fn slow_response_across_a_dip_is_not_schedule_lag() {
    let load = parse_load(
        "{stages: [{duration: 500ms, users: 2, ramp: Step}, {duration: 100ms, users: 1, ramp: Step}, {duration: 2s, users: 2, ramp: Step}]}",
    );
    let (_simulator, plan) = prepare_health_task("{health: {latency: 1500ms}}", load).await;
    let metrics = run_plan(plan).await.metrics;
    // The second user runs again from 0.6 s on, but its first response arrives only at 1.5 s. The
    // wait belongs to the response time of the target, not to the schedule lag of the generator.
    let slowest = only_task(&metrics)
        .latencies
        .get(LatencyMetric::ResponseTime, Outcome::Success)
        .quantile(1.0)
        .unwrap()
        .as_secs_f64();
    let lag = metrics.schedule_lag.quantile(1.0).unwrap().as_secs_f64();
    assert!(slowest < 2.3 && lag < 0.8, "{slowest} s, {lag} s late");
    assert_eq!(outcome_counts(only_task(&metrics)), [4, 0, 0, 0]);
}

#[tokio::test]
async fn pacing_starts_one_task_per_interval() {
    let load = parse_load("{users: 10, spawnRate: 1000, duration: 2s}");
    let (_simulator, mut plan) = prepare_health_task("{health: {latency: 30ms}}", load).await;
    plan.test.scenario.pacing = Pacing::Interval(loadtest_core::Duration::from_millis(100));
    let task = run_plan(plan).await.metrics.all_tasks();
    // Each of 10 users starts 20 tasks in 2 s, or fewer when the machine stalls. If pacing counted
    // from the response instead of from the start of the task, each user would start only 16.
    assert_eq!(outcome_counts(&task)[1..], [0, 0, 0]);
    assert!((170..=200).contains(&task.completed_requests()), "{}", task.completed_requests());
}

#[tokio::test]
async fn stages_remove_users_and_add_them_again() {
    let load = parse_load(
        "{stages: [{duration: 1s, users: 8, ramp: Step}, {duration: 1s, users: 0, ramp: Step}, {duration: 1s, users: 4, ramp: Step}]}",
    );
    let (_simulator, mut plan) = prepare_health_task("{health: {latency: 10ms}}", load).await;
    plan.test.scenario.pacing = Pacing::Interval(loadtest_core::Duration::from_millis(100));
    let metrics = run_plan(plan).await.metrics;
    let task = only_task(&metrics);
    assert_eq!(outcome_counts(task)[1..], [0, 0, 0], "{:?}", task.errors);
    assert!((95..=120).contains(&task.completed_requests()), "{}", task.completed_requests());
    assert_eq!(metrics.users_peak, 8);
    assert!((metrics.user_seconds - 12.0).abs() < 0.2, "{} user-seconds", metrics.user_seconds);
}
