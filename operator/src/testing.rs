//! Example objects for unit tests.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use loadtest_core::{
    Duration,
    plan::{ValidTest, size_test, validate},
    resource::{LoadTest, LoadTestSpec, Sizing},
};

use crate::{children::Settings, observe::runner::Runner};

/// The time at which all examples were created.
pub(crate) fn noon() -> Timestamp {
    "2026-11-24T12:00:00Z".parse().unwrap()
}

pub(crate) fn example_settings() -> Settings {
    Settings {
        runner_image: "loadtest-runner:test".into(),
        start_timeout: Duration::from_secs(300),
        release_grace: Duration::from_secs(300),
        metrics_linger: Duration::from_secs(35),
    }
}

/// A test of 200 users for two minutes, with 100 users per runner.
pub(crate) fn example_test() -> LoadTest {
    let spec: LoadTestSpec = serde_json::from_value(serde_json::json!({
        "target": {"http": "http://cell0:18800"},
        "load": {"users": 200, "spawnRate": 50, "duration": "2m"},
        "scenario": {"tasks": [{"name": "health", "http": {"path": "/health"}}]},
        "thresholds": [{"metric": "errorRate", "target": "< 1%"}],
        "runners": {"usersPerRunner": 100},
    }))
    .unwrap();
    let mut test = LoadTest::new("burst", spec);
    test.metadata.uid = Some("0a1b2c3d-1111-4222-8333-444455556666".into());
    test.metadata.namespace = Some("default".into());
    test.metadata.generation = Some(1);
    test.metadata.creation_timestamp = Some(Time(noon()));
    test
}

/// The validated spec of a test.
pub(crate) fn validated(test: &LoadTest) -> ValidTest {
    validate(&test.spec).unwrap()
}

/// The sizing of a test.
pub(crate) fn sizing_of(test: &LoadTest) -> Sizing {
    size_test(&validated(test))
}

/// A runner that is ready.
pub(crate) fn ready_runner(index: u32) -> Runner {
    Runner {
        index,
        name: format!("burst-{index}"),
        uid: format!("pod-{index}"),
        ip: Some(format!("10.0.0.{index}")),
        ready: true,
        disrupted: false,
        created_at: Some(noon()),
        scheduled_at: Some(noon()),
        node: Some("n1".into()),
        unschedulable: None,
        waiting: None,
        termination: None,
    }
}
