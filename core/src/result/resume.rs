//! The state with which the operator goes on with a run after a restart, besides the result.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    control::ErrorExample,
    metrics::{Metrics, RunnerMetrics, RunnerState},
};

/// The state of a run under load that is in no other object of the cluster.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ResumeState {
    /// UIDs of the runners' pods, by their index in the Job.
    #[serde(default)]
    pub pods: Vec<String>,
    /// The merged metrics at the end of the last point of the series.
    pub recorded: Metrics,
    /// The merged metrics at the start of the current stage, but for the first stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage_start: Option<Metrics>,
    /// The runners that are gone.
    pub gone: GoneRunners,
    /// The latest metrics of runners that may still answer. Empty where they would make the result
    /// too large: they are read again from the runners.
    pub runners: Vec<RunnerMetrics>,
    /// One error message for each task and kind of error.
    pub error_examples: Vec<ErrorExample>,
}

/// Runners that will never answer again.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GoneRunners {
    /// Each of them, by its index in the Job.
    pub runners: BTreeMap<u32, GoneRunner>,
    /// Their last metrics, merged.
    pub metrics: Metrics,
}

/// A runner that will never answer again.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct GoneRunner {
    /// Its name in messages.
    pub name: String,
    /// UID of its pod.
    pub pod_uid: String,
    /// Its last state.
    pub state: RunnerState,
    /// How it was lost, in words; `None` for a runner that made its whole load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<String>,
}
