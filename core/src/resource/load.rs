//! The load of a spec: users (closed model) or arrivals (open model), constant or in stages.
//!
//! [`crate::load::LoadModel`] is the validated form.

use serde::{Deserialize, Serialize};

use crate::values::{Duration, Rate, Users};

/// How much load there is, and for how long: exactly one of `users`, `arrivalRate` and `stages`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "crd", schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "(has(self.users) ? 1 : 0) + (has(self.arrivalRate) ? 1 : 0) + (has(self.stages) ? 1 : 0) == 1",
        "message": "give exactly one of users (with duration), arrivalRate (with maxUsers and duration) and stages",
    },
    {
        "rule": "has(self.users) || !has(self.spawnRate)",
        "message": "spawnRate goes with users only: stages have a ramp, and arrivals have a rate; remove spawnRate",
    },
    {
        "rule": "has(self.duration) || has(self.stages)",
        "message": "duration is missing: a number with a unit, such as 2m",
    },
    {
        "rule": "!has(self.duration) || !has(self.stages)",
        "message": "duration and stages exclude each other: the stages' durations add up to that of the test; remove duration",
    },
    {
        "rule": "has(self.maxUsers) || !(has(self.arrivalRate) || (has(self.stages) && self.stages.exists(s, has(s.rate))))",
        "message": "maxUsers is missing: the maximum of requests in flight at once, such as 100",
    },
    {
        "rule": "!has(self.maxUsers) || has(self.arrivalRate) || (has(self.stages) && self.stages.exists(s, has(s.rate)))",
        "message": "maxUsers goes with arrivalRate or with stages that have a rate: remove it, or rename it to users",
    },
    {
        "rule": "!has(self.precision) || has(self.arrivalRate) || (has(self.stages) && self.stages.exists(s, has(s.rate)))",
        "message": "precision goes with arrivalRate or with stages that have a rate: remove it",
    },
    {
        "rule": "!has(self.stages) || self.stages.all(s, has(s.users)) || self.stages.all(s, has(s.rate))",
        "message": "stages must all have users (and no rate), or all have a rate (and no users)",
    },
    {
        "rule": "!has(self.stages) || self.stages.exists(s, has(s.users) ? s.users > 0 : has(s.rate) && !string(s.rate).matches('^0*([.]0*)?(/s)?$'))",
        "message": "every stage ends at 0: give at least one stage users or a rate above 0",
    },
])))]
pub struct Load {
    /// Closed model: the number of users at full load, over all runners. Each user waits for the
    /// response before its next request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users: Option<Users>,
    /// Closed model: the number of users that start per second until all run, such as 50 or
    /// "0.5/s". Default: all of them start within the first second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(schema_with = "positive_rate"))]
    pub spawn_rate: Option<Rate>,
    /// Open model: the number of requests that start per second over all runners, such as 50 or
    /// "0.5/s", however long the responses take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(schema_with = "positive_rate"))]
    pub arrival_rate: Option<Rate>,
    /// Open model: the maximum of requests in flight at once, over all runners. An arrival that
    /// finds no idle user is dropped and counted. Several runners may exceed it for a moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_users: Option<Users>,
    /// The length of the test, from the start of the first user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(schema_with = "test_length"))]
    pub duration: Option<Duration>,
    /// Load that changes: stages that follow each other, the first from a load of 0.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "crd", schemars(length(min = 1, max = 64)))]
    pub stages: Vec<Stage>,
    /// Open model: start times are rounded up to a multiple of this time, such as 1ms, so that arrivals
    /// start in groups. That takes much less CPU, because the load generator wakes up less often. Latencies
    /// still count from when each arrival was due. Default: every arrival starts when it is due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(schema_with = "arrival_precision"))]
    pub precision: Option<Duration>,
    /// How long requests in flight at the end may still take. After that they are interrupted.
    #[serde(default = "default_graceful_stop")]
    #[cfg_attr(feature = "crd", schemars(schema_with = "graceful_stop_length"))]
    pub graceful_stop: Duration,
}

/// A part of a test that changes the load to a number of users or a rate.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "crd", schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.users) != has(self.rate)",
    "message": "a stage has either users or a rate",
}])))]
pub struct Stage {
    /// How long the stage takes.
    #[cfg_attr(feature = "crd", schemars(schema_with = "test_length"))]
    pub duration: Duration,
    /// Closed model: the number of users at the end of the stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(range(min = 0, max = super::MAX_USERS)))]
    pub users: Option<u32>,
    /// Open model: the number of requests that start per second at the end of the stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// How the load changes: evenly over the stage (Linear), or at once at its start (Step).
    #[serde(default)]
    pub ramp: Ramp,
}

/// How a stage changes the load.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum Ramp {
    /// Evenly, from the previous load at the start of the stage to its own load at the end.
    #[default]
    Linear,
    /// At once: the stage has its own load from its start on.
    Step,
}

/// The schema of a rate above zero.
#[cfg(feature = "crd")]
fn positive_rate(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let mut schema = <Rate as schemars::JsonSchema>::json_schema(generator);
    if let Some(serde_json::Value::Array(rules)) = schema.get_mut("x-kubernetes-validations") {
        rules.push(serde_json::json!({
            "rule": "!string(self).matches('^0*([.]0*)?(/s)?$')",
            "message": "must be above 0: a number of events per second, such as 50 or 0.5/s",
        }));
    }
    schema
}

#[cfg(feature = "crd")]
fn arrival_precision(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    crate::values::schema_between("100µs", "100ms")
}

#[cfg(feature = "crd")]
fn test_length(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    crate::values::schema_between("1s", "168h")
}

#[cfg(feature = "crd")]
fn graceful_stop_length(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    crate::values::schema_between("0s", "1h")
}

fn default_graceful_stop() -> Duration {
    Duration::from_secs(30)
}
