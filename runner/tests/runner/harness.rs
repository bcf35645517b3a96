//! Runs a plan against a simulator, both inside the test process.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use cell0_simulator::{Counts, Listen, Settings, Simulator};
use loadtest_core::{
    load::LoadModel,
    metrics::{Metrics, Outcome, TaskMetrics},
    plan::{Pacing, Plan, RunIdentity, size_test, validate},
    resource::LoadTestSpec,
    values::Users,
};
use loadtest_runner::{Engine, PreparedPlan, Snapshot};
use serde_json::{Value, json};

/// Run UID of every plan that [`build_plan`] returns.
pub(crate) const RUN_UID: &str = "run-1";

/// Starts a simulator on loopback with settings written in YAML.
pub(crate) async fn start_simulator(settings: &str) -> Simulator {
    let settings = Settings::from_yaml(settings).unwrap();
    Simulator::start(settings, Listen::loopback()).await.unwrap()
}

/// Builds the plan of one runner that sends load to `simulator`.
pub(crate) fn build_plan(simulator: &Simulator, users: u32, duration: &str, tasks: &Value) -> Plan {
    let spec = json!({
        "target": {
            "http": format!("http://{}", simulator.http_addr()),
            "webSocket": format!("ws://{}", simulator.websocket_addr()),
        },
        "load": {"users": users, "spawnRate": 1000, "duration": duration, "gracefulStop": "5s"},
        "scenario": {"pause": {"min": "5ms", "max": "15ms"}, "tasks": tasks},
    });
    plan_of_spec(spec)
}

/// Builds the plan of one runner with two load threads from the JSON of a spec.
pub(crate) fn plan_of_spec(spec: Value) -> Plan {
    let mut spec: LoadTestSpec = serde_json::from_value(spec).unwrap();
    spec.runners.users_per_runner = Users::new(1_000_000);
    let test = validate(&spec).unwrap();
    let sizing = size_test(&test);
    let run = RunIdentity {
        uid: RUN_UID.into(),
        name: "burst".into(),
        token_sha256: loadtest_core::token::fingerprint_of("secret"),
    };
    let grace = loadtest_core::Duration::from_secs(30);
    let plan = Plan::new(test, &sizing, run).with_grace(grace, loadtest_core::Duration::ZERO);
    Plan { threads: 2, ..plan }
}

/// A load model from the JSON of `spec.load`.
#[expect(clippy::needless_pass_by_value, reason = "callers write `json!` without `&`")]
pub(crate) fn load_model(load: Value) -> LoadModel {
    let tasks = json!([{"name": "health", "http": {"path": "/health"}}]);
    let target = json!({"http": "http://unused"});
    plan_of_spec(json!({"target": target, "load": load, "scenario": {"tasks": tasks}})).test.load
}

/// A think time between two limits, such as `20ms`.
pub(crate) fn think_time(min: &str, max: &str) -> Pacing {
    Pacing::Pause(serde_json::from_value(json!({"min": min, "max": max})).unwrap())
}

/// Runs the load of a plan to its end and returns the final metrics.
pub(crate) async fn run_plan(plan: Plan) -> Snapshot {
    let prepared = PreparedPlan::new(plan, |_| None).unwrap();
    let engine = Engine::new(Arc::clone(&prepared), 0).unwrap();
    engine.start(Instant::now());
    engine.wait_until_finished().await;
    engine.snapshot().await
}

/// Returns the number of requests per outcome: success, failure, timeout, interrupted.
pub(crate) fn outcome_counts(task: &TaskMetrics) -> [u64; 4] {
    Outcome::ALL.map(|outcome| task.requests_with(outcome))
}

/// Returns the metrics of the only task.
pub(crate) fn only_task(metrics: &Metrics) -> &TaskMetrics {
    assert_eq!(metrics.tasks.len(), 1);
    metrics.tasks.values().next().unwrap()
}

/// Returns the counts of the simulator once no request is in flight.
pub(crate) async fn final_counts(simulator: &Simulator) -> Counts {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let counts = current_counts(simulator);
        if counts.in_flight == 0 {
            return counts;
        }
        assert!(Instant::now() < deadline, "requests are still in flight after 10 s: {counts:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Returns the counts of the simulator at this moment.
pub(crate) fn current_counts(simulator: &Simulator) -> Counts {
    simulator.truth(RUN_UID).totals.counts
}
