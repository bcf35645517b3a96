//! The scenario of a spec: the tasks that each user repeats.

use serde::{Deserialize, Serialize};

use super::Task;
use crate::values::Duration;

/// The tasks that each user repeats until the test ends.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "crd", schemars(extend("x-kubernetes-validations" = [{
    "rule": "!(has(self.pause) && has(self.pacing))",
    "message": "pause and pacing exclude each other: remove one",
}])))]
pub struct Scenario {
    /// Think time between the end of a user's task and the start of its next one. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<Pause>,
    /// Time from the start of a user's task to the start of its next one, in place of pause. A
    /// task that takes longer delays the next one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(schema_with = "pacing_length"))]
    pub pacing: Option<Duration>,
    /// Seed of the random choices. The same seed gives each user the same sequence of tasks.
    #[serde(default)]
    #[cfg_attr(feature = "crd", schemars(range(min = 0)))]
    pub seed: u64,
    /// The tasks that each user picks from, by weight.
    #[cfg_attr(feature = "crd", schemars(
        length(min = 1, max = 64),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]),
        extend("x-kubernetes-validations" = [{
            "rule": "self.exists(t, t.weight > 0)",
            "message": "every weight is 0: give at least one task a weight above 0",
        }]),
    ))]
    pub tasks: Vec<Task>,
}

#[cfg(feature = "crd")]
fn pacing_length(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    crate::values::schema_between("1ms", "24h")
}

/// A think time, drawn evenly between two limits.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "crd", schemars(extend("x-kubernetes-validations" = [{
    "rule": r"[self.min, self.max].exists(d, !d.matches('^(0|(([0-9]+([.][0-9]*)?|[.][0-9]+)(ns|us|µs|μs|ms|s|m|h))+)$')) || duration(self.min) <= duration(self.max)",
    "messageExpression": "'min ' + self.min + ' is longer than max ' + self.max + ': swap them'",
}])))]
pub struct Pause {
    /// The shortest think time.
    pub min: Duration,
    /// The longest think time.
    pub max: Duration,
}
