//! The runner pods of a test, as the API server describes them. Pure.

use k8s_openapi::{
    api::core::v1::{ContainerStatus, Pod, PodStatus},
    jiff::Timestamp,
};
use kube::ResourceExt;

use loadtest_core::control::{CONTAINER, INDEX_LABEL};

/// Reason why a container is not running yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// Reason from the kubelet, such as `ImagePullBackOff`.
    pub(crate) reason: String,
    /// Message from the kubelet.
    pub(crate) message: String,
}

/// Result of a pod that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Termination {
    /// Exit code of the container. `None` if the pod has no terminated container.
    pub(crate) exit_code: Option<i32>,
    /// Reason and termination message.
    pub(crate) message: String,
}

impl Termination {
    /// Returns true if the container used more memory than its limit.
    pub(crate) fn is_out_of_memory(&self) -> bool {
        self.message.starts_with("OOMKilled")
    }
}

/// One runner pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Runner {
    /// Completion index of the pod in its Job.
    pub(crate) index: u32,
    /// Name of the pod.
    pub(crate) name: String,
    /// UID of the pod.
    pub(crate) uid: String,
    /// IP address of the pod, if it has one already.
    pub(crate) ip: Option<String>,
    /// True if the pod is ready, or the runner has said so.
    pub(crate) ready: bool,
    /// True if the pod is being deleted or evicted. The Job replaces such a pod.
    pub(crate) disrupted: bool,
    /// Why Kubernetes evicts the pod, in its words. `None` for a pod that is not evicted.
    pub(crate) eviction: Option<String>,
    /// Creation time of the pod.
    pub(crate) created_at: Option<Timestamp>,
    /// Time at which the pod got a node.
    pub(crate) scheduled_at: Option<Timestamp>,
    /// Name of the node.
    pub(crate) node: Option<String>,
    /// Message of the scheduler, if the pod can't be scheduled.
    pub(crate) unschedulable: Option<String>,
    /// Reason why the container is not running yet.
    pub(crate) waiting: Option<Waiting>,
    /// How the runner ended, if it has. Other containers of its pod may still run.
    pub(crate) termination: Option<Termination>,
}

impl Runner {
    /// Reads a pod of a test's Job. Returns `None` if the pod has no completion index.
    pub(crate) fn from_pod(pod: &Pod) -> Option<Self> {
        let index = pod.labels().get(INDEX_LABEL).or_else(|| pod.annotations().get(INDEX_LABEL))?;
        let status = pod.status.clone().unwrap_or_default();
        let condition =
            |kind: &str| status.conditions.iter().flatten().find(|c| c.type_ == kind).cloned();
        // An admission webhook may have injected other containers.
        let all = status.container_statuses.iter().flatten();
        let container = all.clone().find(|c| c.name == CONTAINER).or_else(|| all.clone().next());
        let is_terminated = |c: &ContainerStatus| {
            c.name == CONTAINER && c.state.as_ref().is_some_and(|state| state.terminated.is_some())
        };
        let has_ended = matches!(status.phase.as_deref(), Some("Failed" | "Succeeded"))
            || container.is_some_and(is_terminated);
        let unschedulable = condition("PodScheduled")
            .filter(|c| c.status == "False" && c.reason.as_deref() == Some("Unschedulable"))
            .map(|c| c.message.unwrap_or_default());
        Some(Self {
            index: index.parse().ok()?,
            name: pod.name_any(),
            uid: pod.uid().unwrap_or_default(),
            ip: status.pod_ip.clone().filter(|ip| !ip.is_empty()),
            ready: condition("Ready").is_some_and(|c| c.status == "True"),
            disrupted: pod.metadata.deletion_timestamp.is_some()
                || condition("DisruptionTarget").is_some_and(|c| c.status == "True"),
            eviction: condition("DisruptionTarget").filter(|c| c.status == "True").map(|c| {
                let texts = [c.reason.unwrap_or_default(), c.message.unwrap_or_default()];
                texts.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(": ")
            }),
            created_at: pod.creation_timestamp().map(|time| time.0),
            scheduled_at: condition("PodScheduled")
                .filter(|c| c.status == "True")
                .and_then(|c| c.last_transition_time)
                .map(|time| time.0),
            node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
            unschedulable,
            waiting: container.and_then(read_waiting),
            termination: has_ended.then(|| read_termination(container, &status)),
        })
    }
}

impl Runner {
    /// Returns true if the runner can be asked whether it is ready. The kubelet asks once a second
    /// and tells the API server later.
    pub(crate) fn may_become_ready(&self) -> bool {
        let runs = self.waiting.is_none() && self.termination.is_none() && !self.disrupted;
        runs && !self.ready && self.ip.is_some()
    }

    /// Describes how the runner ended.
    pub(crate) fn describe_loss(&self) -> String {
        let Self { index, name, node, termination, eviction, .. } = self;
        let node = node.as_ref().map_or_else(String::new, |node| format!(" on node {node}"));
        let end = match termination {
            Some(end @ Termination { exit_code: Some(code), message }) => {
                let advice = if end.is_out_of_memory() {
                    " (raise spec.runners.resources.limits.memory)"
                } else {
                    ""
                };
                format!("ended with exit code {code}: {message}{advice}")
            }
            Some(Termination { exit_code: None, message }) => format!("ended: {message}"),
            None => match eviction {
                Some(cause) => format!("was evicted: {cause}"),
                None if self.disrupted => "was deleted".to_owned(),
                None => "did not begin its load in time".to_owned(),
            },
        };
        match (termination, eviction) {
            (Some(_), Some(cause)) => {
                format!("runner {index} (pod {name}{node}) {end}; evicted: {cause}")
            }
            _ => format!("runner {index} (pod {name}{node}) {end}"),
        }
    }
}

fn read_waiting(container: &ContainerStatus) -> Option<Waiting> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    Some(Waiting {
        reason: waiting.reason.clone().unwrap_or_default(),
        message: waiting.message.clone().unwrap_or_default(),
    })
}

fn read_termination(container: Option<&ContainerStatus>, pod: &PodStatus) -> Termination {
    let state = container.and_then(|c| c.state.as_ref()).and_then(|s| s.terminated.as_ref());
    match state {
        Some(state) => {
            let texts = [state.reason.as_deref(), state.message.as_deref().map(str::trim)];
            let texts: Vec<&str> = texts.into_iter().flatten().filter(|t| !t.is_empty()).collect();
            Termination { exit_code: Some(state.exit_code), message: texts.join(": ") }
        }
        None => Termination {
            exit_code: None,
            message: pod
                .message
                .clone()
                .or_else(|| pod.reason.clone())
                .unwrap_or_else(|| "the pod has no terminated container".into()),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_runner_has_ended_although_its_sidecar_runs() {
        let pod = |runner: serde_json::Value| {
            let pod = json!({
                "metadata": {"name": "burst-0", "uid": "pod-0", "labels": {INDEX_LABEL: "0"}},
                "status": {"phase": "Running", "containerStatuses": [
                    {"name": "proxy", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                     "state": {"running": {}}},
                    {"name": CONTAINER, "image": "", "imageID": "", "ready": false,
                     "restartCount": 0, "state": runner},
                ]},
            });
            Runner::from_pod(&serde_json::from_value(pod).unwrap()).unwrap()
        };
        assert_eq!(pod(json!({"running": {}})).termination, None);
        let killed = json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}});
        let termination = pod(killed).termination.unwrap();
        assert_eq!((termination.exit_code, &*termination.message), (Some(137), "OOMKilled"));
    }
}
