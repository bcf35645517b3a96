//! Example objects for unit tests.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use loadtest_core::{
    plan::{ValidTest, size_test, validate},
    resource::{LoadTest, LoadTestSpec, Sizing},
};

use crate::Settings;

/// The time at which all examples were created.
pub fn noon() -> Timestamp {
    "2026-11-24T12:00:00Z".parse().unwrap()
}

/// Settings of an operator.
pub fn example_settings() -> Settings {
    Settings::with_image("loadtest-runner:test")
}

/// A test of 200 users for two minutes, with 100 users per runner.
pub fn example_test() -> LoadTest {
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
pub fn validated(test: &LoadTest) -> ValidTest {
    validate(&test.spec).unwrap()
}

/// The sizing of a test.
pub fn sizing_of(test: &LoadTest) -> Sizing {
    size_test(&validated(test))
}
