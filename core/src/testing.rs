//! The specs that unit tests start from.

use serde::de::DeserializeOwned;

use crate::{
    load::LoadModel,
    plan::{ValidTest, validate},
    resource::LoadTestSpec,
};

/// Reads a value from YAML.
pub(crate) fn yaml<T: DeserializeOwned>(text: &str) -> T {
    serde_saphyr::from_str(text).expect("the test's YAML is valid")
}

/// The example of the design: four tasks of all kinds, three thresholds.
pub(crate) fn spec() -> LoadTestSpec {
    yaml(
        r#"
target: {http: "http://cell0:18800", webSocket: "ws://cell0:18801"}
load: {users: 200, spawnRate: 50, duration: 2m}
scenario:
  pause: {min: 1s, max: 3s}
  tasks:
    - name: chat
      weight: 70
      chat: {models: [cell0-small], messages: ["Hello"], stream: true}
    - {name: health, weight: 15, http: {path: /health}}
    - {name: models, weight: 10, http: {path: /v1/models}}
    - {name: websocket, weight: 5, webSocket: {path: /, send: ['{"type":"ping"}'], replies: 1}}
thresholds:
  - {task: chat, metric: timeToFirstResponse, statistic: p50, target: "< 500ms", warning: "< 1s", critical: "> 2s"}
  - {metric: errorRate, target: "< 0.1%", warning: "< 1%", critical: "> 5%"}
  - {metric: throughput, target: "> 10/s", warning: "> 5/s", critical: "< 2/s"}
runners: {usersPerRunner: 100}
"#,
    )
}

/// The valid form of [`spec`].
pub(crate) fn valid_test() -> ValidTest {
    validate(&spec()).expect("the design's example is valid")
}

/// A load model from the YAML of `spec.load`.
pub(crate) fn load(text: &str) -> LoadModel {
    let mut spec = spec();
    spec.load = yaml(text);
    if !text.contains("users") {
        spec.scenario.pause = None;
    }
    validate(&spec).expect("the test's load is valid").load
}
