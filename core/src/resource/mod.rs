//! The `LoadTest` resource: what a user writes and what the system answers.
//!
//! Schema and CEL rules live beside the fields they guard; [`crd`] turns them into
//! the CustomResourceDefinition. What CEL can't say is in [`crate::validate`].

mod check;
mod connection;
mod crd;
mod load;
mod runners;
mod status;
mod target;
mod task;
mod threshold;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use check::Check;
pub use connection::ConnectionSummary;
pub use crd::{crd, crd_yaml, schema};
pub use load::{Load, Ramp, Stage};
pub use runners::{RunnerSecurity, Runners};
pub use status::{
    Aborted, BreakingPoint, ErrorCount, Latency, LoadTestStatus, Measurement, Phase, Progress,
    Sizing, StageRow, Summary, TaskSummary, ThresholdRow, TokenSummary, Verdict,
};
pub use target::{HeaderFrom, HttpVersion, Reuse, SecretKey, Target, Timeouts, Tls};
pub use task::{ChatTask, HttpTask, Method, Session, Task, TaskKind, WebSocketTask};
pub use threshold::{Abort, Metric, Statistic, Threshold};

use crate::values::{Duration, schema_between};

/// The API group of every kind here.
pub const GROUP: &str = "loadtest.cell0.io";
/// The most runners one test may have.
pub const MAX_RUNNERS: i64 = 200;
/// The most tasks, and the most thresholds, of one test.
pub const MAX_ROWS: usize = 64;

/// One load test and, since one `LoadTest` is one run, its result.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[kube(
    group = "loadtest.cell0.io",
    version = "v1alpha1",
    kind = "LoadTest",
    plural = "loadtests",
    shortname = "ldt",
    category = "all",
    namespaced,
    status = "LoadTestStatus",
    derive = "PartialEq",
    printcolumn = r#"{"name":"Phase","type":"string","jsonPath":".status.phase"}"#,
    printcolumn = r#"{"name":"Verdict","type":"string","jsonPath":".status.verdict"}"#,
    printcolumn = r#"{"name":"Users","type":"integer","jsonPath":".status.progress.users"}"#,
    printcolumn = r#"{"name":"RPS","type":"string","jsonPath":".status.summary.throughput"}"#,
    printcolumn = r#"{"name":"P95","type":"string","jsonPath":".status.summary.p95"}"#,
    printcolumn = r#"{"name":"Errors","type":"string","jsonPath":".status.summary.errorRate"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "has(self.target.http) || !self.scenario.tasks.exists(t, has(t.http) || has(t.chat))",
        "message": "target.http is missing: http and chat tasks need a base URL such as http://cell0:18800",
    },
    {
        "rule": "has(self.target.webSocket) || !self.scenario.tasks.exists(t, has(t.webSocket))",
        "message": "target.webSocket is missing: webSocket tasks need a base URL such as ws://cell0:18801",
    },
    {
        "rule": "self.thresholds.all(h, !has(h.task) || self.scenario.tasks.exists(t, t.name == h.task))",
        // Joining texts with + is estimated at the size of the whole list; format is not.
        "messageExpression": "'thresholds: no task is named \"%s\": use the name of one of scenario.tasks'.format([self.thresholds.filter(h, has(h.task) && !self.scenario.tasks.exists(t, t.name == h.task))[0].task])",
    },
    {
        "rule": "self.thresholds.all(h, h.metric != 'timeToFirstResponse' || self.scenario.tasks.exists(t, has(t.chat) && (!has(h.task) || t.name == h.task)))",
        "message": "thresholds: timeToFirstResponse is measured on chat tasks only: name a chat task, or use responseTime",
    },
    {
        "rule": "self.thresholds.all(h, h.metric != 'tokensPerSecond' || self.scenario.tasks.exists(t, has(t.chat) && (!has(h.task) || t.name == h.task)))",
        "message": "thresholds: tokensPerSecond is measured on chat tasks only: name a chat task, or use throughput",
    },
    {
        "rule": "self.thresholds.all(h, h.metric != 'interTokenLatency' || self.scenario.tasks.exists(t, has(t.chat) && t.chat.stream && (!has(h.task) || t.name == h.task)))",
        "message": "thresholds: interTokenLatency is measured on streamed chat tasks only: name one, or set chat.stream",
    },
    {
        "rule": "self.thresholds.all(h, !(h.metric in ['webSocketConnect', 'webSocketRoundTrip']) || self.scenario.tasks.exists(t, has(t.webSocket) && (!has(h.task) || t.name == h.task)))",
        "message": "thresholds: webSocketConnect and webSocketRoundTrip are measured on webSocket tasks only: name a webSocket task, or use responseTime",
    },
    {
        "rule": "self.thresholds.all(h, h.metric != 'webSocketRoundTrip' || self.scenario.tasks.exists(t, has(t.webSocket) && size(t.webSocket.send) > 0 && t.webSocket.replies > 0 && (!has(h.task) || t.name == h.task)))",
        "message": "thresholds: webSocketRoundTrip is measured where messages have replies: set send and replies of a webSocket task",
    },
    {
        "rule": "self.thresholds.all(h, !has(h.task) || !self.scenario.tasks.exists(t, t.name == h.task && t.weight == 0))",
        "messageExpression": "'thresholds: task \"%s\" has weight 0, so no request is made of it: give it a weight, or leave the threshold out'.format([self.thresholds.filter(h, has(h.task) && self.scenario.tasks.exists(t, t.name == h.task && t.weight == 0))[0].task])",
    },
    {
        "rule": "self.thresholds.all(h, h.metric != 'timeToFirstByte' || self.scenario.tasks.exists(t, !has(t.webSocket) && (!has(h.task) || t.name == h.task)))",
        "message": "thresholds: timeToFirstByte is measured on http and chat tasks only: name one, or use webSocketRoundTrip",
    },
    {
        "rule": "!has(self.runners.usersPerRunner) || ((!has(self.load.users) || self.load.users <= 200 * self.runners.usersPerRunner) && (!has(self.load.maxUsers) || self.load.maxUsers <= 200 * self.runners.usersPerRunner) && (!has(self.load.stages) || self.load.stages.all(s, !has(s.users) || s.users <= 200 * self.runners.usersPerRunner)))",
        "messageExpression": "'runners.usersPerRunner: users of the load at %d a runner need more than the at most 200 runners: raise usersPerRunner, or lower the users'.format([self.runners.usersPerRunner])",
    },
    {
        "rule": "!(has(self.load.arrivalRate) || (has(self.load.stages) && self.load.stages.exists(s, has(s.rate)))) || !(has(self.scenario.pause) || has(self.scenario.pacing))",
        "message": "scenario.pause and scenario.pacing have no meaning with arrivals, which come at their own rate: remove them",
    },
]))]
pub struct LoadTestSpec {
    /// Where the load goes.
    pub target: Target,
    /// How much load, for how long.
    pub load: Load,
    /// What each user does.
    pub scenario: Scenario,
    /// What must hold for the test to pass; without any it is not judged.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub thresholds: Vec<Threshold>,
    /// The pods that make the load.
    #[serde(default)]
    pub runners: Runners,
    /// Set to true to stop a running test; it ends as Cancelled.
    #[serde(default)]
    pub cancel: bool,
    /// Deletes the LoadTest and all its pods so many seconds after it has ended; kept when absent.
    /// Not for tests that are synced from Git: made anew, one runs anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 31_536_000))]
    pub ttl_seconds_after_finished: Option<i32>,
}

/// What each user does, over and over, until the test ends.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!(has(self.pause) && has(self.pacing))",
    "message": "pause and pacing exclude each other: remove one",
}]))]
pub struct Scenario {
    /// Think time between a user's tasks; none when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<Pause>,
    /// From the start of a user's task to the start of its next one, as long as the first does
    /// not take longer; instead of pause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "pacing_length")]
    pub pacing: Option<Duration>,
    /// The same seed gives each user the same sequence of tasks.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub seed: i64,
    /// What a user chooses from, by weight.
    #[schemars(
        length(min = 1, max = 64),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]),
        extend("x-kubernetes-validations" = [{
            "rule": "self.exists(t, t.weight > 0)",
            "message": "every weight is 0: give at least one task a weight above 0",
        }]),
    )]
    pub tasks: Vec<Task>,
}

fn pacing_length(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schema_between("1ms", "24h")
}

/// A think time drawn evenly between two bounds.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": r"[self.min, self.max].exists(d, !d.matches('^(0|(([0-9]+([.][0-9]*)?|[.][0-9]+)(ns|us|µs|μs|ms|s|m|h))+)$')) || duration(self.min) <= duration(self.max)",
    "messageExpression": "'min ' + self.min + ' is longer than max ' + self.max + ': swap them'",
}]))]
pub struct Pause {
    /// The shortest pause.
    pub min: Duration,
    /// The longest pause.
    pub max: Duration,
}

impl LoadTestStatus {
    /// The condition of a type, if it was ever set.
    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.type_ == kind)
    }
}
