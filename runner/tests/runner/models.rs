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
    assert!((60..=180).contains(&task.completed()), "{} completed", task.completed());
    assert_eq!(truth(&simulator).await.received, task.completed());
    assert!((2.0..2.5).contains(&numbers.elapsed_seconds), "{} s", numbers.elapsed_seconds);
}

#[tokio::test]
async fn arrivals_that_are_taken_in_time_are_all_sent() {
    let load = load("{arrivalRate: 500/s, maxUsers: 500, duration: 1s, gracefulStop: 5s}");
    let (simulator, plan) = health("{health: {latency: 1ms}}", load).await;
    let numbers = run(plan).await.numbers;
    let task = only(&numbers);
    assert_eq!(outcomes(task)[1..], [0, 0, 0], "{:?}", task.errors);
    assert_eq!(truth(&simulator).await.received, task.completed());
    // Those of a thread that wakes long after the end are dropped, on a machine that stands still.
    assert_eq!(task.completed() + task.dropped, 500);
    assert!(task.dropped <= 250, "{} dropped", task.dropped);
}

#[tokio::test]
async fn arrivals_that_the_end_cuts_off_are_counted_too() {
    let load = load("{arrivalRate: 5000/s, maxUsers: 500, duration: 300ms, gracefulStop: 0s}");
    let (_simulator, mut plan) = health("{health: {latency: 250ms}}", load).await;
    plan.workers = 1;
    let numbers = run(plan).await.numbers;
    let task = only(&numbers);
    let sent: u64 = outcomes(task).iter().sum();
    assert_eq!(sent + task.dropped, 1500, "{:?}", task.requests);
}

#[tokio::test]
async fn a_slow_answer_across_a_dip_is_the_targets_and_not_the_generators() {
    let load = load(
        "{gracefulStop: 5s, stages: [{duration: 500ms, users: 2, ramp: step}, {duration: 100ms, users: 1, ramp: step}, {duration: 2s, users: 2, ramp: step}]}",
    );
    let (_simulator, plan) = health("{health: {latency: 1500ms}}", load).await;
    let numbers = run(plan).await.numbers;
    // Sent at 0 s, and again when the answer is there: 0.9 s after the second run's beginning.
    let slowest = only(&numbers).response_time[0].quantile(1.0).unwrap().as_secs_f64();
    let lag = numbers.schedule_lag.quantile(1.0).unwrap().as_secs_f64();
    assert!(slowest < 2.3 && lag < 0.8, "{slowest} s, {lag} s late");
    assert_eq!(outcomes(only(&numbers)), [4, 0, 0, 0]);
}

#[tokio::test]
async fn users_at_a_pace_begin_a_task_at_each_beat() {
    let load = load("{users: 10, spawnRate: 1000, duration: 2s, gracefulStop: 5s}");
    let (_simulator, mut plan) = health("{health: {latency: 30ms}}", load).await;
    plan.scenario.pacing = Some(loadtest_core::Duration::from_millis(100));
    let task = run(plan).await.numbers.total();
    // Twenty beats in two seconds, for each of ten users, but where the machine stands still; were
    // the pace counted from answers, sixteen.
    assert_eq!(outcomes(&task)[1..], [0, 0, 0]);
    assert!((170..=200).contains(&task.completed()), "{}", task.completed());
}

#[tokio::test]
async fn stages_take_users_away_and_bring_them_back() {
    let load = load(
        "{gracefulStop: 5s, stages: [{duration: 1s, users: 8, ramp: step}, {duration: 1s, users: 0, ramp: step}, {duration: 1s, users: 4, ramp: step}]}",
    );
    let (_simulator, mut plan) = health("{health: {latency: 10ms}}", load).await;
    plan.scenario.pacing = Some(loadtest_core::Duration::from_millis(100));
    let numbers = run(plan).await.numbers;
    let task = only(&numbers);
    assert_eq!(outcomes(task)[1..], [0, 0, 0], "{:?}", task.errors);
    assert!((95..=120).contains(&task.completed()), "{}", task.completed());
    assert_eq!(numbers.users_peak, 8);
    assert!((numbers.user_seconds - 12.0).abs() < 0.2, "{} user-seconds", numbers.user_seconds);
}
