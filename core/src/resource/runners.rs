//! The runners of a spec: how many there are, and what their pods look like.

use std::{collections::BTreeMap, num::NonZeroU32};

use k8s_openapi::api::core::v1::{
    Affinity, EnvVar, LocalObjectReference, ResourceRequirements, Toleration,
    TopologySpreadConstraint,
};
use serde::{Deserialize, Serialize};

use super::{MAX_RUNNERS, PodTemplate};
use crate::values::Users;

/// How many runners there are, and what their pods look like.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!(has(self.count) && has(self.usersPerRunner))",
    "message": "count and usersPerRunner exclude each other: remove one",
}]))]
pub struct Runners {
    /// Maximum of users per runner. The number of runners is ceil(users / usersPerRunner). Default:
    /// as many users as half a CPU core can serve; status.plan shows the number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "users_per_runner")]
    pub users_per_runner: Option<Users>,
    /// Number of runners, in place of usersPerRunner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_RUNNERS))]
    pub count: Option<NonZeroU32>,
    /// Image of the runner container. Default: the image that the operator is configured with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,
    /// Resource requests and limits of the runner container. Default: requests that the operator
    /// computes from the load, and no limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// Labels of the nodes that runner pods may run on.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that runner pods tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub tolerations: Vec<Toleration>,
    /// Scheduling rules of runner pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// How runner pods spread over nodes and zones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,
    /// Secrets to pull the runner's image with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// Environment variables of the runner container. Names that start with LOADTEST_ are reserved.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-validations" = [{
        "rule": "self.all(e, !e.name.startsWith('LOADTEST_') && e.name != 'JOB_COMPLETION_INDEX')",
        "message": "the operator sets names that start with LOADTEST_, and JOB_COMPLETION_INDEX: choose others",
    }]))]
    pub env: Vec<EnvVar>,
    /// Annotations of runner pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "self.all(k, !(k.startsWith('container.apparmor.security.beta.kubernetes.io/') && self[k] == 'unconfined'))",
        "message": "an unconfined AppArmor profile breaks the restricted pod security standard: remove the annotation",
    }]))]
    pub annotations: BTreeMap<String, String>,
    /// Labels of runner pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "self.all(k, !k.startsWith('loadtest.cell0.io/') && !k.startsWith('app.kubernetes.io/') && !k.contains('kubernetes.io/job') && !k.startsWith('batch.kubernetes.io/'))",
        "message": "the operator sets labels of loadtest.cell0.io/, app.kubernetes.io/ and batch.kubernetes.io/: choose others",
    }]))]
    pub labels: BTreeMap<String, String>,
    /// Service account of runner pods. Its token is never mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub service_account_name: Option<String>,
    /// Priority class of runner pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
    /// User and groups of the runner's process, within the restricted pod security standard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security_context: Option<RunnerSecurity>,
    /// Pod template that is merged over the runner pod, for every field that has no short form
    /// above: volumes, DNS, sidecars. The runner's container is named runner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_template: Option<PodTemplate>,
    /// Labels of the Job, such as a queue name for Kueue.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "self.all(k, !k.startsWith('loadtest.cell0.io/') && !k.startsWith('app.kubernetes.io/') && !k.startsWith('batch.kubernetes.io/'))",
        "message": "the operator sets labels of loadtest.cell0.io/, app.kubernetes.io/ and batch.kubernetes.io/: choose others",
    }]))]
    pub job_labels: BTreeMap<String, String>,
    /// Annotations of the Job.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub job_annotations: BTreeMap<String, String>,
}

fn users_per_runner(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "integer", "minimum": 1, "maximum": 10_000})
}

/// The part of a pod's security context that a spec may choose. The rest is fixed to what the
/// *restricted* pod security standard demands.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, schemars::JsonSchema)]
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
    /// User id, never 0. Default: that of the image, 65532; clusters such as `OpenShift` assign another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_as_user: Option<i64>,
    /// Group id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_as_group: Option<i64>,
    /// Group that owns mounted volumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fs_group: Option<i64>,
    /// Always true. The field exists so that a copied security context is accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_as_non_root: Option<bool>,
}
