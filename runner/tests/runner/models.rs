//! Load comes when its model wants it: users in stages, users at a pace, arrivals.

use cell0_simulator::Simulator;
use loadtest_core::{plan::Plan, resource::Load};
use serde_json::json;

use crate::load::{only, outcomes, plan, run, simulator, truth};

fn load(yaml: &str) -> Load {
    serde_yaml::from_str(yaml).unwrap()
}

async fn health(settings: &str, load: Load) -> (Simulator, Plan) {
    let simulator = simulator(settings).await;
    let tasks = json!([{"name": "health", "http": {"path": "/health"}}]);
    let mut plan = plan(&simulator, 1, "1s", &tasks);
    plan.load = load;
    plan.scenario.pause = None;
    (simulator, plan)
}

#[tokio::test]
async fn every_arrival_is_sent_or_dropped_and_all_are_counted() {
    let load = load("{arrivalRate: 200/s, maxUsers: 20, duration: 2s, gracefulStop: 5s}");
    // Twenty users at 250 ms take 80 arrivals a second.
    let (simulator, plan) = health("{health: {latency: 250ms}}", load).await;
    let numbers = run(plan).await.numbers;
    let task = only(&numbers);
    assert_eq!(outcomes(task)[1..], [0, 0, 0], "{:?}", task.errors);
    assert_eq!(task.wanted(), 400);
    assert!((140..=180).contains(&task.completed()), "{} completed", task.completed());
    assert_eq!(truth(&simulator).await.received, task.completed());
    assert!((2.0..2.5).contains(&numbers.elapsed_seconds), "{} s", numbers.elapsed_seconds);
}

#[tokio::test]
async fn arrivals_that_are_taken_in_time_are_all_sent() {
    let load = load("{arrivalRate: 500/s, maxUsers: 50, duration: 1s, gracefulStop: 5s}");
    let (simulator, plan) = health("{health: {latency: 1ms}}", load).await;
    let numbers = run(plan).await.numbers;
    assert_eq!(outcomes(only(&numbers)), [500, 0, 0, 0]);
    assert_eq!(truth(&simulator).await.received, 500);
}

#[tokio::test]
async fn users_at_a_pace_begin_a_task_at_each_beat() {
    let load = load("{users: 10, spawnRate: 1000, duration: 2s, gracefulStop: 5s}");
    let (_simulator, mut plan) = health("{health: {latency: 30ms}}", load).await;
    plan.scenario.pacing = Some(loadtest_core::Duration::from_millis(100));
    let task = run(plan).await.numbers.total();
    // Twenty beats in two seconds, for each of ten users; the first ones are 10 ms late.
    assert_eq!(outcomes(&task), [200, 0, 0, 0]);
}

#[tokio::test]
async fn stages_take_users_away_and_bring_them_back() {
    let load = load(
        "{gracefulStop: 5s, stages: [{duration: 1s, users: 8, ramp: step}, {duration: 1s, users: 0, ramp: step}, {duration: 1s, users: 4, ramp: step}]}",
    );
    let (_simulator, mut plan) = health("{health: {latency: 10ms}}", load).await;
    plan.scenario.pacing = Some(loadtest_core::Duration::from_millis(100));
    let numbers = run(plan).await.numbers;
    assert_eq!(outcomes(only(&numbers)), [120, 0, 0, 0]);
    assert_eq!(numbers.users_peak, 8);
    assert!((numbers.user_seconds - 12.0).abs() < 0.2, "{} user-seconds", numbers.user_seconds);
}
