//! The pods that make the load, and what of their template a user may change.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, EnvVar, LocalObjectReference, ResourceRequirements, Toleration,
    TopologySpreadConstraint,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How many runners there are and what their pods look like.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Runners {
    /// The most users of one runner; users divided by it, rounded up, are the runners. When absent,
    /// as many as half a core can serve: status.plan shows how many that are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub users_per_runner: Option<i64>,
    /// The runner's image; the operator's own choice when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,
    /// Requests and limits of the runner container, instead of what sizing chose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// Nodes the runners may run on.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints the runners tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub tolerations: Vec<Toleration>,
    /// Rules on where runners are placed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// How runners spread over nodes and zones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,
    /// Secrets to pull the image with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// Environment of the runner container; names from LOADTEST_ on are ours.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-validations" = [{
        "rule": "self.all(e, !e.name.startsWith('LOADTEST_') && e.name != 'JOB_COMPLETION_INDEX')",
        "message": "names that start with LOADTEST_, and JOB_COMPLETION_INDEX, are set by the operator: choose others",
    }]))]
    pub env: Vec<EnvVar>,
    /// Annotations of the runner pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "self.all(k, !(k.startsWith('container.apparmor.security.beta.kubernetes.io/') && self[k] == 'unconfined'))",
        "message": "an unconfined AppArmor profile breaks the restricted pod security standard: remove the annotation",
    }]))]
    pub annotations: BTreeMap<String, String>,
    /// Labels of the runner pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "self.all(k, !k.startsWith('loadtest.cell0.io/') && !k.startsWith('app.kubernetes.io/') && !k.contains('kubernetes.io/job') && !k.startsWith('batch.kubernetes.io/'))",
        "message": "labels of loadtest.cell0.io/, app.kubernetes.io/ and batch.kubernetes.io/ are set by the operator: choose others",
    }]))]
    pub labels: BTreeMap<String, String>,
    /// Service account of the runner pods; its token is never mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub service_account_name: Option<String>,
    /// Priority class of the runner pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
    /// User and groups of the runner's process, within the restricted pod security standard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security_context: Option<RunnerSecurity>,
}

/// What of a pod's security context may be chosen; the rest is what *restricted* demands.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "!has(self.runAsUser) || self.runAsUser > 0",
        "message": "runAsUser 0 is root and breaks the restricted pod security standard: choose a user id above 0",
    },
    {
        "rule": "!has(self.runAsNonRoot) || self.runAsNonRoot",
        "message": "runAsNonRoot false breaks the restricted pod security standard: remove it",
    },
]))]
pub struct RunnerSecurity {
    /// User id, never 0; 65532 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_as_user: Option<i64>,
    /// Group id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_as_group: Option<i64>,
    /// Group that owns mounted volumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fs_group: Option<i64>,
    /// Always true; accepted so that pod templates can be pasted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_as_non_root: Option<bool>,
}
