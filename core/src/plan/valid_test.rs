//! A test whose spec is valid: the form that operator, CLI and runner work with.

use serde::{Deserialize, Serialize};

use crate::{
    load::LoadModel,
    metrics::TaskScope,
    resource::{ChatTask, HttpTask, Pause, Preflight, Target, Threshold, WebSocketTask},
    values::{Duration, Users},
};

/// A valid test. Impossible values can't be built, so nothing that takes a `ValidTest` checks or
/// defaults them again.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ValidTest {
    /// The system under test.
    pub target: Target,
    /// How much load there is, and for how long.
    pub load: LoadModel,
    /// Arrivals within this time start together; zero for every arrival on its own.
    #[serde(default)]
    pub precision: Duration,
    /// How long requests in flight at the end of the load may still take.
    pub graceful_stop: Duration,
    /// The tasks of each user.
    pub scenario: Scenario,
    /// The thresholds of the test. The runner needs it to count good requests.
    pub thresholds: Vec<Threshold>,
    /// What a runner does before it is ready.
    #[serde(default)]
    pub preflight: Preflight,
    /// The requests of the spec for each runner.
    #[serde(default)]
    pub runner_request: RunnerRequest,
}

/// Settings of the spec that replace those that the operator would compute.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RunnerRequest {
    /// Maximum of users per runner.
    pub users: Option<Users>,
    /// Number of runners, in place of `users`.
    #[serde(default)]
    pub count: Option<Users>,
    /// CPU request, as Kubernetes writes it.
    pub cpu: Option<String>,
    /// Memory request, as Kubernetes writes it.
    pub memory: Option<String>,
}

/// The tasks that each user repeats.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Scenario {
    /// The time between a user's tasks.
    pub pacing: Pacing,
    /// Seed of the random choices.
    pub seed: u64,
    /// The tasks, with different names. At least one has a weight.
    pub tasks: Vec<Task>,
}

/// The time between a user's tasks.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub enum Pacing {
    /// The next task starts when the previous one has ended.
    None,
    /// A think time between the end of a task and the start of the next one.
    Pause(Pause),
    /// A time from the start of a task to the start of the next one.
    Interval(Duration),
}

/// One thing that a user does.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Task {
    /// The name of the task.
    pub name: String,
    /// How often the task is picked, relative to the other tasks.
    pub weight: u32,
    /// The kind of the task.
    pub kind: TaskKind,
}

/// The kind of a task.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub enum TaskKind {
    /// Sends an HTTP request.
    Http(HttpTask),
    /// Sends a chat completion request.
    Chat(ChatTask),
    /// Uses a WebSocket.
    WebSocket(WebSocketTask),
}

impl TaskKind {
    /// True when a metric of a scope is measured on tasks of this kind.
    pub const fn is_measured_by(&self, scope: TaskScope) -> bool {
        match scope {
            TaskScope::All => true,
            TaskScope::Requests => matches!(self, Self::Http(_) | Self::Chat(_)),
            TaskScope::Chats | TaskScope::StreamedChats => matches!(self, Self::Chat(_)),
            TaskScope::WebSockets | TaskScope::WebSocketReplies => {
                matches!(self, Self::WebSocket(_))
            }
        }
    }
}

impl Scenario {
    /// The kinds of the tasks that users can pick.
    pub fn picked_kinds(&self) -> impl Iterator<Item = &TaskKind> {
        self.tasks.iter().filter(|task| task.weight > 0).map(|task| &task.kind)
    }
}
