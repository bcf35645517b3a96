//! A load on a simulator, in this process.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use cell0_simulator::{Counts, Listen, Settings, Simulator};
use loadtest_core::{
    metrics::{Numbers, Outcome, TaskNumbers},
    plan::{Plan, VERSION},
    resource::LoadTestSpec,
};
use loadtest_runner::{Engine, PreparedPlan, Snapshot};
use serde_json::{Value, json};

pub(crate) const RUN: &str = "run-1";

pub(crate) async fn simulator(settings: &str) -> Simulator {
    let settings = Settings::from_yaml(settings).unwrap();
    Simulator::start(settings, Listen::loopback()).await.unwrap()
}

/// A plan of one runner with the given users, tasks and length against a simulator.
pub(crate) fn plan(simulator: &Simulator, users: u32, duration: &str, tasks: &Value) -> Plan {
    let spec = json!({
        "target": {
            "http": format!("http://{}", simulator.http_addr()),
            "webSocket": format!("ws://{}", simulator.websocket_addr()),
        },
        "load": {"users": users, "spawnRate": 1000, "duration": duration, "gracefulStop": "5s"},
        "scenario": {"pause": {"min": "5ms", "max": "15ms"}, "tasks": tasks},
    });
    let spec: LoadTestSpec = serde_json::from_value(spec).unwrap();
    Plan {
        version: VERSION,
        run: RUN.into(),
        name: "burst".into(),
        runners: 1,
        workers: 2,
        token_sha256: loadtest_core::token::fingerprint("secret"),
        target: spec.target,
        load: spec.load,
        scenario: spec.scenario,
        thresholds: spec.thresholds,
        release_grace: loadtest_core::Duration::from_secs(30),
        metrics_linger: loadtest_core::Duration::ZERO,
    }
}

pub(crate) async fn run(plan: Plan) -> Snapshot {
    let prepared = PreparedPlan::new(plan, |_| None).unwrap();
    let engine = Engine::new(Arc::clone(&prepared), 0).unwrap();
    engine.start(Instant::now());
    engine.wait_until_finished().await;
    engine.snapshot().await
}

/// Requests by outcome: success, failure, timeout, interrupted.
pub(crate) fn outcomes(numbers: &TaskNumbers) -> [u64; 4] {
    Outcome::ALL.map(|outcome| numbers.of(outcome))
}

/// The one task's numbers.
pub(crate) fn only(numbers: &Numbers) -> &TaskNumbers {
    assert_eq!(numbers.tasks.len(), 1);
    numbers.tasks.values().next().unwrap()
}

/// What the simulator counted, once it has seen every connection's end.
pub(crate) async fn truth(simulator: &Simulator) -> Counts {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let counts = simulator.truth(RUN).totals.counts;
        if counts.in_flight == 0 {
            return counts;
        }
        assert!(Instant::now() < deadline, "still open: {counts:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
