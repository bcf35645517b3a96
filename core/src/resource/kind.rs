//! The kind `LoadTest` with its spec and its status.

use std::num::NonZeroU32;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Aborted, BreakingPoint, ErrorCount, Extensible, Load, MAX_RUNNERS, Measurement, Phase,
    Preflight, Progress, Runners, Scenario, Sizing, StageRow, Summary, Target, TaskSummary,
    Threshold, ThresholdRow, Verdict,
};
use crate::{
    metrics::{Metric, TaskScope},
    values::Duration,
};

/// One load test. One `LoadTest` is one run; the status holds its result.
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
#[schemars(extend("x-kubernetes-validations" = rules()))]
pub struct LoadTestSpec {
    /// The system under test.
    pub target: Target,
    /// How much load there is, and for how long.
    pub load: Load,
    /// The tasks that each user repeats.
    pub scenario: Scenario,
    /// The conditions that the target must meet. Without thresholds, the verdict is NotJudged. The
    /// fields task, metric, statistic and window identify a threshold.
    #[serde(default)]
    #[schemars(
        length(max = 64),
        extend(
            "x-kubernetes-list-type" = "map",
            "x-kubernetes-list-map-keys" = ["task", "metric", "statistic", "window"],
        ),
    )]
    pub thresholds: Vec<Threshold>,
    /// The pods that make the load.
    #[serde(default)]
    pub runners: Runners,
    /// What each runner does before the load. `Connect` opens a connection to the target, and tries
    /// again for 30s. If the target accepts none, the test ends as `TargetUnreachable`.
    /// `Skip` makes the load in any case, as `loadtest run` does.
    #[serde(default)]
    pub preflight: Preflight,
    /// The response to the loss of a runner under load: `Fail` stops the test and keeps its
    /// numbers, `Continue` goes on as long as minRunners are left.
    #[serde(default)]
    pub on_runner_loss: OnRunnerLoss,
    /// Number of runners that must be left with `onRunnerLoss: Continue`. With fewer, the test
    /// stops. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_RUNNERS))]
    pub min_runners: Option<NonZeroU32>,
    /// Maximum time from the creation of the runners until all are ready. Default: the operator's
    /// --start-timeout, which is 5m unless it was changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "start_timeout")]
    pub start_timeout: Option<Duration>,
    /// Set true to hold the test back, and false to start it. It can't change once status.plan is
    /// set.
    #[serde(default)]
    pub suspend: bool,
    /// Set true to stop a running test. The test then ends as Cancelled.
    #[serde(default)]
    pub cancel: bool,
    /// Seconds after the end of the test until the LoadTest and all its pods are deleted. Default:
    /// they are kept. Don't use it for tests that are synced from Git, because a LoadTest that is
    /// created again runs again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 31_536_000))]
    pub ttl_seconds_after_finished: Option<u32>,
    /// Times after the end of the test until the LoadTest and all its pods are deleted, by its result.
    /// Default: ttlSecondsAfterFinished for every result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<TimeToLive>,
    /// Set true to keep the LoadTestResult when the LoadTest is deleted. A change after the end of the
    /// test has no effect.
    #[serde(default)]
    pub keep_result: bool,
}

/// Times to live by the result of a test.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TimeToLive {
    /// For finished tests with the verdict Pass, Warning or NotJudged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "time_to_live")]
    pub passed: Option<Duration>,
    /// For all other tests: those with the verdict Fail, Critical or Inconclusive, and those in the phase
    /// Error or Cancelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "time_to_live")]
    pub failed: Option<Duration>,
}

impl LoadTest {
    /// The time after the end of the test until it is deleted; `None` if it is kept. It depends on the
    /// result of the test.
    pub fn time_to_live(&self) -> Option<Duration> {
        let by_result = self
            .spec
            .ttl
            .as_ref()
            .and_then(|ttl| if self.has_passed() { ttl.passed } else { ttl.failed });
        let seconds = self.spec.ttl_seconds_after_finished;
        by_result.or_else(|| seconds.map(|seconds| Duration::from_secs(seconds.into())))
    }

    fn has_passed(&self) -> bool {
        let Some(status) = &self.status else { return false };
        let has_passed = matches!(
            status.known_verdict(),
            Some(Verdict::Pass | Verdict::Warning | Verdict::NotJudged)
        );
        status.known_phase() == Some(Phase::Finished) && has_passed
    }
}

/// The response to the loss of a runner under load.
#[derive(
    Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, schemars::JsonSchema,
)]
pub enum OnRunnerLoss {
    /// Stops the test. Its verdict is Inconclusive, unless a row had failed before.
    #[default]
    Fail,
    /// Goes on with the runners that are left.
    Continue,
}

fn time_to_live(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    crate::values::schema_between("0s", "8760h")
}

fn start_timeout(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    crate::values::schema_between("1s", "24h")
}

/// CEL rules on several parts of a spec.
fn rules() -> serde_json::Value {
    let mut rules = serde_json::json!([
        {
            "rule": "has(self.target.http) || !self.scenario.tasks.exists(t, has(t.http) || has(t.chat))",
            "message": "target.http is missing: http and chat tasks need a base URL such as http://cell0:18800",
        },
        {
            "rule": "has(self.target.webSocket) || !self.scenario.tasks.exists(t, has(t.webSocket))",
            "message": "target.webSocket is missing: webSocket tasks need a base URL such as ws://cell0:18801",
        },
        {
            "rule": "self.thresholds.all(h, h.task == '' || self.scenario.tasks.exists(t, t.name == h.task))",
            // CEL estimates the cost of `+` on texts at the size of the whole list; `format` is cheap.
            // Servers before 1.34 use the message.
            "message": "thresholds: a threshold names a task that does not exist: use the name of one of scenario.tasks",
            "messageExpression": "'thresholds: no task is named \"%s\": use the name of one of scenario.tasks'.format([self.thresholds.filter(h, h.task != '' && !self.scenario.tasks.exists(t, t.name == h.task))[0].task])",
        },
        {
            "rule": "self.thresholds.all(h, h.task == '' || !self.scenario.tasks.exists(t, t.name == h.task && t.weight == 0))",
            "message": "thresholds: a task has weight 0 and sends no requests: give it a weight, or remove the threshold",
            "messageExpression": "'thresholds: task \"%s\" has weight 0 and sends no requests: give it a weight, or remove the threshold'.format([self.thresholds.filter(h, h.task != '' && self.scenario.tasks.exists(t, t.name == h.task && t.weight == 0))[0].task])",
        },
        {
            "rule": format!("!has(self.runners.usersPerRunner) || ((!has(self.load.users) || self.load.users <= {MAX_RUNNERS} * self.runners.usersPerRunner) && (!has(self.load.maxUsers) || self.load.maxUsers <= {MAX_RUNNERS} * self.runners.usersPerRunner) && (!has(self.load.stages) || self.load.stages.all(s, !has(s.users) || s.users <= {MAX_RUNNERS} * self.runners.usersPerRunner)))"),
            "message": format!("runners.usersPerRunner: the load needs more than the maximum of {MAX_RUNNERS} runners: raise usersPerRunner, or lower the number of users"),
            "messageExpression": format!("'runners.usersPerRunner: with %d users per runner, the load needs more than the maximum of {MAX_RUNNERS} runners: raise usersPerRunner, or lower the number of users'.format([self.runners.usersPerRunner])"),
        },
        {
            "rule": "!has(self.minRunners) || self.onRunnerLoss == 'Continue'",
            "message": "minRunners has an effect only with onRunnerLoss: Continue: set onRunnerLoss to Continue, or remove minRunners",
        },
        {
            "rule": "!(has(self.load.arrivalRate) || (has(self.load.stages) && self.load.stages.exists(s, has(s.rate)))) || !(has(self.scenario.pause) || has(self.scenario.pacing))",
            "message": "scenario.pause and scenario.pacing have no effect on arrivals, which start at their own rate: remove them",
        },
    ]);
    if let serde_json::Value::Array(rules) = &mut rules {
        rules.extend(TaskScope::LIMITED.into_iter().filter_map(scope_rule));
    }
    rules
}

/// The CEL rule that a threshold judges tasks which have its metric; `None` when no metric has the
/// scope.
fn scope_rule(scope: TaskScope) -> Option<serde_json::Value> {
    let metrics: Vec<_> = Metric::all().filter(|metric| metric.tasks() == scope).collect();
    let names: Vec<_> = metrics.iter().map(|metric| metric.as_str()).collect();
    let list = names.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ");
    let is_in_scope = match scope {
        TaskScope::All => return None,
        TaskScope::Requests => "!has(t.webSocket)",
        TaskScope::Chats => "has(t.chat)",
        TaskScope::StreamedChats => "has(t.chat) && t.chat.stream",
        TaskScope::WebSockets => "has(t.webSocket)",
        TaskScope::WebSocketReplies => {
            "has(t.webSocket) && size(t.webSocket.send) > 0 && t.webSocket.replies > 0"
        }
    };
    let (tasks, remedy) = scope.describe();
    let verb = if names.len() == 1 { "is" } else { "are" };
    let subject = names.join(" and ");
    (!names.is_empty()).then(|| {
        serde_json::json!({
            "rule": format!("self.thresholds.all(h, !(h.metric in [{list}]) || self.scenario.tasks.exists(t, {is_in_scope} && (h.task == '' || t.name == h.task)))"),
            "message": format!("thresholds: {subject} {verb} measured on {tasks} only: {remedy}"),
        })
    })
}

/// The status of a `LoadTest`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadTestStatus {
    /// The generation of the spec that this status describes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// How far the test has come: Pending, Starting, Running, Stopping, then Finished, Error or
    /// Cancelled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Extensible<Phase>>,
    /// The result: Pass, Warning, Fail, Critical, Inconclusive or NotJudged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Extensible<Verdict>>,
    /// The conditions Accepted, Started, Finished and Passed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The runners that the test gets. Once a plan exists, the spec can't change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<Sizing>,
    /// The moment at which all runners were ordered to start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<MicroTime>,
    /// The moment at which the test ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finish_time: Option<Time>,
    /// How far the load has come.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// The numbers of all tasks and runners together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub summary: Option<Summary>,
    /// The numbers of each task, over all runners.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub tasks: Vec<TaskSummary>,
    /// Each threshold, judged.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub thresholds: Vec<ThresholdRow>,
    /// Each stage of the load that is over.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub stages: Vec<StageRow>,
    /// The load at which a target was missed first, for a test with growing stages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub breaking_point: Option<BreakingPoint>,
    /// The threshold that stopped the test.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aborted: Option<Aborted>,
    /// The most frequent errors.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub errors: Vec<ErrorCount>,
    /// How good the measurement is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measurement: Option<Measurement>,
}

impl LoadTestStatus {
    /// The condition of a type, if it was ever set.
    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.type_ == kind)
    }

    /// The reason of the verdict or of the end, for people; empty before the test ended.
    pub fn verdict_message(&self) -> &str {
        // A test that could not run has the cause in another condition than Passed.
        let could_not_run = self.known_phase() == Some(Phase::Error);
        let refused = self.condition("Accepted").filter(|accepted| accepted.status == "False");
        let cause = refused.or_else(|| self.condition("Finished")).filter(|_| could_not_run);
        let told = cause.or_else(|| self.condition("Passed"));
        told.or_else(|| self.condition("Finished")).map_or("", |told| &told.message)
    }

    /// The phase; `None` when it is not set yet, or when this version doesn't know its value.
    pub fn known_phase(&self) -> Option<Phase> {
        self.phase.as_ref().and_then(Extensible::known)
    }

    /// The verdict; `None` when it is not set yet, or when this version doesn't know its value.
    pub fn known_verdict(&self) -> Option<Verdict> {
        self.verdict.as_ref().and_then(Extensible::known)
    }

    /// The first value of an enumeration that this version doesn't know. A newer version wrote
    /// such a status: leave it as it is.
    pub fn unknown_value(&self) -> Option<&str> {
        let phase =
            self.phase.iter().filter(|phase| phase.known().is_none()).map(Extensible::as_str);
        let rows = self.thresholds.iter().map(|row| &row.verdict);
        let stages = self.stages.iter().map(|row| &row.verdict);
        let verdicts = self.verdict.iter().chain(rows).chain(stages);
        let verdicts = verdicts.filter(|verdict| verdict.known().is_none()).map(Extensible::as_str);
        phase.chain(verdicts).next()
    }
}
