//! Builds the pod template of the runners. Pure.

use std::collections::BTreeMap;

use k8s_openapi::{
    DeepMerge,
    api::core::v1::{
        Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EnvVar, EnvVarSource,
        HTTPGetAction, ObjectFieldSelector, PodSecurityContext, PodSpec, PodTemplateSpec, Probe,
        ResourceRequirements, SeccompProfile, SecretKeySelector, SecurityContext,
        TopologySpreadConstraint, Volume, VolumeMount,
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};
use loadtest_core::{
    control,
    resource::{LoadTest, RunnerSecurity, Runners, Sizing},
};

use super::{
    metadata::{child_labels, child_name},
    settings::Settings,
};

/// Builds the pod template: the operator's own, with `spec.runners.podTemplate` merged over it.
///
/// Lists of containers, volumes and variables merge by name, as `kubectl apply` merges them.
pub(super) fn merged_pod_template(
    test: &LoadTest,
    sizing: &Sizing,
    settings: &Settings,
) -> PodTemplateSpec {
    let mut template = pod_template(test, sizing, settings);
    // A template that can't be parsed is not admitted.
    let user_template = test.spec.runners.pod_template.as_ref().and_then(|t| t.parse().ok());
    if let Some(user_template) = user_template {
        template.merge_from(user_template);
    }
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.extend(child_labels(test));
    if let Some(spec) = &mut template.spec {
        // Load must not run twice, runners have no access to the API, and the operator needs time
        // to collect the last metrics of a killed runner.
        spec.restart_policy = Some("Never".into());
        spec.automount_service_account_token = Some(false);
        let grace = spec.termination_grace_period_seconds.unwrap_or(0);
        spec.termination_grace_period_seconds = Some(grace.max(termination_grace_seconds()));
    }
    template
}

fn termination_grace_seconds() -> i64 {
    i64::try_from(control::TERMINATION_GRACE.to_std().as_secs()).unwrap_or(i64::MAX)
}

fn pod_template(test: &LoadTest, sizing: &Sizing, settings: &Settings) -> PodTemplateSpec {
    // The pattern has no `..`, so the compiler reports a field that this function forgets.
    let Runners {
        users_per_runner: _, // the sizing has already used these two
        count: _,
        image,
        resources,
        node_selector,
        tolerations,
        affinity,
        topology_spread_constraints,
        image_pull_secrets,
        env,
        annotations,
        labels: user_labels,
        service_account_name,
        priority_class_name,
        security_context,
        // `merged_pod_template` and `build_job` use these fields.
        pod_template: _,
        job_labels: _,
        job_annotations: _,
    } = test.spec.runners.clone();
    // Autoscalers must not evict a pod under load.
    let mut all_annotations = BTreeMap::from([
        ("cluster-autoscaler.kubernetes.io/safe-to-evict".to_owned(), "false".to_owned()),
        ("karpenter.sh/do-not-disrupt".to_owned(), "true".to_owned()),
    ]);
    all_annotations.extend(annotations);
    let spread = if topology_spread_constraints.is_empty() {
        vec![spread_over_nodes(test)]
    } else {
        topology_spread_constraints
    };
    let mut all_labels = user_labels;
    all_labels.extend(child_labels(test));
    let security = security_context.unwrap_or_default();
    let container = Container {
        name: control::CONTAINER.into(),
        image: Some(image.unwrap_or_else(|| settings.runner_image.clone())),
        args: Some(vec!["run".into()]),
        env: Some(environment_variables(test, env)),
        ports: Some(vec![ContainerPort {
            name: Some("metrics".into()),
            container_port: i32::from(control::PORT),
            ..ContainerPort::default()
        }]),
        readiness_probe: Some(readiness_probe()),
        resources: Some(resource_requirements(resources, sizing)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), add: None }),
            ..SecurityContext::default()
        }),
        // For a runner that could not run, the status shows this message or the end of the log.
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        volume_mounts: Some(vec![VolumeMount {
            name: "plan".into(),
            mount_path: control::PLAN_DIRECTORY.into(),
            read_only: Some(true),
            ..VolumeMount::default()
        }]),
        ..Container::default()
    };
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(all_labels),
            annotations: Some(all_annotations),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            containers: vec![container],
            restart_policy: Some("Never".into()),
            termination_grace_period_seconds: Some(termination_grace_seconds()),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            service_account_name,
            priority_class_name,
            node_selector: Some(node_selector).filter(|map| !map.is_empty()),
            tolerations: Some(tolerations).filter(|list| !list.is_empty()),
            topology_spread_constraints: Some(spread),
            image_pull_secrets: Some(image_pull_secrets).filter(|list| !list.is_empty()),
            affinity,
            security_context: Some(pod_security_context(&security)),
            volumes: Some(vec![Volume {
                name: "plan".into(),
                config_map: Some(ConfigMapVolumeSource {
                    name: child_name(test),
                    ..ConfigMapVolumeSource::default()
                }),
                ..Volume::default()
            }]),
            ..PodSpec::default()
        }),
    }
}

/// Spreads runners over nodes as far as possible. Pods of a Job get no such default from the
/// scheduler.
fn spread_over_nodes(test: &LoadTest) -> TopologySpreadConstraint {
    TopologySpreadConstraint {
        max_skew: 1,
        topology_key: "kubernetes.io/hostname".into(),
        when_unsatisfiable: "ScheduleAnyway".into(),
        label_selector: Some(LabelSelector {
            match_labels: Some(child_labels(test)),
            ..LabelSelector::default()
        }),
        ..TopologySpreadConstraint::default()
    }
}

fn readiness_probe() -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(control::path::READINESS.into()),
            port: IntOrString::Int(i32::from(control::PORT)),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(1),
        // A busy runner may respond slowly and must stay ready.
        timeout_seconds: Some(5),
        failure_threshold: Some(10),
        ..Probe::default()
    }
}

fn pod_security_context(security: &RunnerSecurity) -> PodSecurityContext {
    PodSecurityContext {
        run_as_non_root: Some(true),
        // The image has a numeric user of its own. OpenShift assigns another one.
        run_as_user: security.run_as_user,
        run_as_group: security.run_as_group,
        fs_group: security.fs_group,
        seccomp_profile: Some(SeccompProfile {
            type_: "RuntimeDefault".into(),
            localhost_profile: None,
        }),
        ..PodSecurityContext::default()
    }
}

fn resource_requirements(
    requested: Option<ResourceRequirements>,
    sizing: &Sizing,
) -> ResourceRequirements {
    let mut all = requested.unwrap_or_default();
    let requests = all.requests.get_or_insert_default();
    for (name, value) in [("cpu", &sizing.cpu), ("memory", &sizing.memory)] {
        requests.entry(name.into()).or_insert_with(|| Quantity(value.clone()));
    }
    all
}

fn environment_variables(test: &LoadTest, user_variables: Vec<EnvVar>) -> Vec<EnvVar> {
    let mut all = user_variables;
    all.push(EnvVar {
        name: control::variable::POD_UID.into(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: "metadata.uid".into(),
                api_version: None,
            }),
            ..EnvVarSource::default()
        }),
        value: None,
    });
    for (index, from) in test.spec.target.headers_from.iter().enumerate() {
        all.push(EnvVar {
            name: control::variable::header(index),
            value_from: Some(EnvVarSource {
                secret_key_ref: Some(SecretKeySelector {
                    name: from.secret_key_ref.name.clone(),
                    key: from.secret_key_ref.key.clone(),
                    optional: Some(false),
                }),
                ..EnvVarSource::default()
            }),
            value: None,
        });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{example_settings, example_test, sizing_of};

    fn example_template(test: &LoadTest) -> PodTemplateSpec {
        merged_pod_template(test, &sizing_of(test), &example_settings())
    }

    #[test]
    fn runner_pods_are_restricted_and_have_no_cluster_token() {
        let pod = example_template(&example_test()).spec.unwrap();
        assert_eq!(pod.automount_service_account_token, Some(false));
        let security = pod.security_context.unwrap();
        assert_eq!(security.run_as_non_root, Some(true));
        assert_eq!(security.seccomp_profile.unwrap().type_, "RuntimeDefault");
        let container = pod.containers[0].security_context.clone().unwrap();
        assert_eq!(container.allow_privilege_escalation, Some(false));
        assert_eq!(container.capabilities.unwrap().drop, Some(vec!["ALL".into()]));
        assert_eq!(container.read_only_root_filesystem, Some(true));
    }

    #[test]
    fn runners_have_resource_requests_and_no_limits() {
        let pod = example_template(&example_test()).spec.unwrap();
        let resources = pod.containers[0].resources.clone().unwrap();
        assert!(resources.requests.unwrap().contains_key("cpu"));
        assert_eq!(resources.limits, None);
    }

    #[test]
    fn pod_templates_are_merged_over_the_runner_pod() {
        let mut test = example_test();
        test.spec.runners.pod_template = serde_json::from_value(serde_json::json!({
            "metadata": {"annotations": {"team": "shop"}},
            "spec": {
                "runtimeClassName": "gvisor",
                "terminationGracePeriodSeconds": 1,
                "volumes": [{"name": "data", "emptyDir": {}}],
                "containers": [{
                    "name": "runner",
                    "env": [{"name": "REGION", "value": "eu"}],
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                }],
            },
        }))
        .ok();
        let template = example_template(&test);
        assert_eq!(template.metadata.unwrap().annotations.unwrap()["team"], "shop");
        let pod = template.spec.unwrap();
        assert_eq!(pod.runtime_class_name.as_deref(), Some("gvisor"));
        assert_eq!(pod.termination_grace_period_seconds, Some(10));
        assert_eq!(pod.volumes.unwrap().len(), 2);
        let container = &pod.containers[0];
        assert_eq!((pod.containers.len(), container.image.is_some()), (1, true));
        let variables = container.env.iter().flatten().map(|variable| variable.name.as_str());
        assert_eq!(variables.collect::<Vec<_>>(), [control::variable::POD_UID, "REGION"]);
        let mounts = container.volume_mounts.iter().flatten().map(|m| m.mount_path.as_str());
        assert_eq!(mounts.collect::<Vec<_>>(), [control::PLAN_DIRECTORY, "/data"]);
    }
}
