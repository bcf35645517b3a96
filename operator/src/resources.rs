//! Builds the child objects of a test: a ConfigMap with the plan, and an Indexed Job with the
//! runners.
//!
//! Pure: this module has no client. The module `act` creates the objects.

use std::collections::BTreeMap;

use k8s_openapi::DeepMerge;
use k8s_openapi::{
    api::{
        batch::v1::{
            Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement,
            PodFailurePolicyOnPodConditionsPattern, PodFailurePolicyRule,
        },
        core::v1::{
            Capabilities, ConfigMap, ConfigMapVolumeSource, Container, ContainerPort, EnvVar,
            EnvVarSource, HTTPGetAction, ObjectFieldSelector, PodSecurityContext, PodSpec,
            PodTemplateSpec, Probe, ResourceRequirements, SeccompProfile, SecretKeySelector,
            SecurityContext, Volume, VolumeMount,
        },
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{ObjectMeta, OwnerReference},
        util::intstr::IntOrString,
    },
};
use kube::{Resource, ResourceExt};
use loadtest_core::{
    Duration, control,
    plan::{Plan, RunIdentity, ValidTest},
    resource::{GROUP, LoadTest, Runners, Sizing},
};

/// Name of the operator: field manager, reporter of Events and value of the label
/// `app.kubernetes.io/managed-by`.
pub(crate) const OPERATOR_NAME: &str = "loadtest-operator";
/// Value of the label `app.kubernetes.io/name` of runner pods, which a PodMonitor selects.
const RUNNER_APP_NAME: &str = "loadtest-runner";
/// Name of the runner's container.
pub(crate) const RUNNER_CONTAINER: &str = "runner";
/// Default user ID and group ID of runners.
const NONROOT_ID: i64 = 65532;
/// Seconds for which a finished Job and its pods are kept, so that users can inspect them.
const JOB_TTL_SECONDS: i32 = 600;
/// Maximum length of a Job's name. The names of its pods add an index and a suffix.
const MAX_JOB_NAME_LENGTH: usize = 52;
/// Maximum length of a label value in Kubernetes.
const MAX_LABEL_LENGTH: usize = 63;

/// Settings of the operator that apply to every test.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Runner image of tests that name no image.
    pub runner_image: String,
    /// Maximum time until all runners of a test are ready.
    pub start_timeout: Duration,
    /// Time for which a runner waits for its release order after the end of its load.
    pub release_grace: Duration,
    /// Time for which a released runner keeps serving its metrics.
    pub metrics_linger: Duration,
}

/// Returns the name of a test's child objects: the truncated name of the test and eight digits of
/// its UID.
///
/// Dots become dashes, because the host names of the pods start with the name of the Job.
pub fn child_name(test: &LoadTest) -> String {
    let uid: String =
        test.uid().unwrap_or_default().chars().filter(char::is_ascii_hexdigit).take(8).collect();
    let max_length = MAX_JOB_NAME_LENGTH - 1 - uid.len();
    let name: String = test.name_any().replace('.', "-").chars().take(max_length).collect();
    format!("{}-{uid}", name.trim_end_matches('-'))
}

fn child_labels(test: &LoadTest) -> BTreeMap<String, String> {
    let name: String = test.name_any().chars().take(MAX_LABEL_LENGTH).collect();
    let name = name.trim_end_matches(['-', '.']).to_owned();
    BTreeMap::from([
        ("app.kubernetes.io/name".into(), RUNNER_APP_NAME.into()),
        ("app.kubernetes.io/managed-by".into(), OPERATOR_NAME.into()),
        (format!("{GROUP}/name"), name),
        (format!("{GROUP}/uid"), test.uid().unwrap_or_default()),
    ])
}

fn owner_reference(test: &LoadTest) -> Option<OwnerReference> {
    // `blockOwnerDeletion` needs permission to update the finalizers of the owner. The owner need
    // not outlive its children, so the field is not set.
    test.controller_owner_ref(&())
        .map(|owner| OwnerReference { block_owner_deletion: None, ..owner })
}

fn child_metadata(test: &LoadTest) -> ObjectMeta {
    ObjectMeta {
        name: Some(child_name(test)),
        namespace: test.namespace(),
        labels: Some(child_labels(test)),
        owner_references: owner_reference(test).map(|owner| vec![owner]),
        ..ObjectMeta::default()
    }
}

/// Builds the plan of a test.
pub(crate) fn build_plan(
    test: &LoadTest,
    valid: &ValidTest,
    sizing: &Sizing,
    token_sha256: String,
    settings: &Settings,
) -> Plan {
    let run =
        RunIdentity { uid: test.uid().unwrap_or_default(), name: test.name_any(), token_sha256 };
    Plan::new(valid.clone(), sizing, run)
        .with_grace(settings.release_grace, settings.metrics_linger)
}

/// Builds the ConfigMap that carries the plan.
///
/// # Errors
/// Fails if the plan has no JSON form. A plan is plain data, so this does not happen in practice.
pub(crate) fn build_config_map(
    test: &LoadTest,
    plan: &Plan,
) -> Result<ConfigMap, serde_json::Error> {
    Ok(ConfigMap {
        metadata: child_metadata(test),
        data: Some(BTreeMap::from([(control::PLAN_FILE.into(), serde_json::to_string(plan)?)])),
        immutable: Some(true),
        ..ConfigMap::default()
    })
}

/// Builds the Job with one pod per runner.
pub(crate) fn build_job(
    test: &LoadTest,
    valid: &ValidTest,
    sizing: &Sizing,
    settings: &Settings,
) -> Job {
    let runners = i32::try_from(sizing.runners).unwrap_or(i32::MAX);
    // The deadline ends the Job even if the operator never comes back, so it is longer than all
    // steps of a test together.
    let deadline = [
        settings.start_timeout,
        valid.load.duration(),
        valid.graceful_stop,
        settings.release_grace,
        settings.metrics_linger,
        Duration::from_secs(300),
    ]
    .into_iter()
    .fold(Duration::ZERO, Duration::plus);
    let mut metadata = child_metadata(test);
    let Runners { job_labels, job_annotations, .. } = &test.spec.runners;
    let labels = metadata.labels.get_or_insert_default();
    for (name, value) in job_labels {
        labels.entry(name.clone()).or_insert_with(|| value.clone());
    }
    metadata.annotations = Some(job_annotations.clone()).filter(|map| !map.is_empty());
    Job {
        metadata,
        spec: Some(JobSpec {
            completion_mode: Some("Indexed".into()),
            completions: Some(runners),
            parallelism: Some(runners),
            // A lost runner is not restarted, and the other runners keep running.
            backoff_limit_per_index: Some(0),
            pod_failure_policy: Some(pod_failure_policy()),
            ttl_seconds_after_finished: Some(JOB_TTL_SECONDS),
            active_deadline_seconds: i64::try_from(deadline.as_nanos() / 1_000_000_000).ok(),
            template: merged_pod_template(test, sizing, settings),
            ..JobSpec::default()
        }),
        ..Job::default()
    }
}

fn pod_failure_policy() -> PodFailurePolicy {
    let killed_after_start = PodFailurePolicyRule {
        action: "FailIndex".into(),
        on_exit_codes: Some(PodFailurePolicyOnExitCodesRequirement {
            container_name: Some(RUNNER_CONTAINER.into()),
            operator: "In".into(),
            values: vec![i32::from(control::exit_code::KILLED_AFTER_START)],
        }),
        on_pod_conditions: None,
    };
    // The Job replaces an evicted pod. The replacement makes load only if the eviction came before
    // the start, because the operator sends start orders only to the pods in the start record.
    let evicted = PodFailurePolicyRule {
        action: "Ignore".into(),
        on_exit_codes: None,
        on_pod_conditions: Some(vec![PodFailurePolicyOnPodConditionsPattern {
            type_: "DisruptionTarget".into(),
            status: "True".into(),
        }]),
    };
    PodFailurePolicy { rules: vec![killed_after_start, evicted] }
}

/// Builds the pod template: the operator's own, with `spec.runners.podTemplate` merged over it.
///
/// Lists of containers, volumes and variables merge by name, as `kubectl apply` merges them.
fn merged_pod_template(test: &LoadTest, sizing: &Sizing, settings: &Settings) -> PodTemplateSpec {
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
        users_per_runner: _, // the sizing has already used this field
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
    let mut all_labels = user_labels;
    all_labels.extend(child_labels(test));
    let security = security_context.unwrap_or_default();
    let container = Container {
        name: RUNNER_CONTAINER.into(),
        image: Some(image.unwrap_or_else(|| settings.runner_image.clone())),
        args: Some(vec!["run".into()]),
        env: Some(environment_variables(test, env)),
        ports: Some(vec![ContainerPort {
            name: Some("metrics".into()),
            container_port: i32::from(control::PORT),
            ..ContainerPort::default()
        }]),
        readiness_probe: Some(Probe {
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
        }),
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
            annotations: Some(annotations).filter(|map| !map.is_empty()),
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
            topology_spread_constraints: Some(topology_spread_constraints)
                .filter(|list| !list.is_empty()),
            image_pull_secrets: Some(image_pull_secrets).filter(|list| !list.is_empty()),
            affinity,
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                run_as_user: Some(security.run_as_user.unwrap_or(NONROOT_ID)),
                run_as_group: Some(security.run_as_group.unwrap_or(NONROOT_ID)),
                fs_group: security.fs_group,
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".into(),
                    localhost_profile: None,
                }),
                ..PodSecurityContext::default()
            }),
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

/// Returns true if the controlling owner of an object has this UID.
pub(crate) fn is_controlled_by<K: Resource>(object: &K, owner_uid: &str) -> bool {
    let owners = object.meta().owner_references.iter().flatten();
    owners.clone().any(|owner| owner.controller == Some(true) && owner.uid == owner_uid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{example_settings, example_test};
    use loadtest_core::sizing::size;

    fn example_job(test: &LoadTest) -> Job {
        build_job(test, &size(&test.spec), &example_settings())
    }

    #[test]
    fn child_names_are_valid_and_within_the_limit() {
        let mut test = example_test();
        for name in ["a".repeat(253), format!("{}.b", "a".repeat(42)), "x".into(), "a.b.c".into()] {
            test.metadata.name = Some(name);
            let child = child_name(&test);
            assert!(child.len() <= MAX_JOB_NAME_LENGTH, "{child}");
            assert!(child.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'), "{child}");
            assert!(child.ends_with("-0a1b2c3d"), "{child}");
            assert!(child_labels(&test).values().all(|value| value.len() <= MAX_LABEL_LENGTH));
        }
    }

    #[test]
    fn child_names_differ_between_tests_of_the_same_name() {
        let (first, mut second) = (example_test(), example_test());
        second.metadata.uid = Some("ffffffff-0000-4000-8000-000000000000".into());
        assert_ne!(child_name(&first), child_name(&second));
    }

    #[test]
    fn job_is_indexed_and_never_restarts_runners() {
        let spec = example_job(&example_test()).spec.unwrap();
        assert_eq!(spec.completion_mode.as_deref(), Some("Indexed"));
        assert_eq!((spec.completions, spec.parallelism), (Some(2), Some(2)));
        assert_eq!(spec.backoff_limit_per_index, Some(0));
        assert_eq!(spec.template.spec.unwrap().restart_policy.as_deref(), Some("Never"));
    }

    #[test]
    fn runner_pods_are_restricted_and_have_no_cluster_token() {
        let pod = example_job(&example_test()).spec.unwrap().template.spec.unwrap();
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
        let pod = example_job(&example_test()).spec.unwrap().template.spec.unwrap();
        let resources = pod.containers[0].resources.clone().unwrap();
        assert!(resources.requests.unwrap().contains_key("cpu"));
        assert_eq!(resources.limits, None);
    }

    #[test]
    fn plan_contains_no_token_and_no_secret() {
        let mut test = example_test();
        test.spec.target.headers_from = serde_json::from_str(
            r#"[{"header": "authorization", "secretKeyRef": {"name": "api", "key": "token"}}]"#,
        )
        .unwrap();
        let plan = build_plan(&test, &size(&test.spec), "fingerprint".into(), &example_settings());
        let map = build_config_map(&test, &plan).unwrap();
        assert_eq!(map.immutable, Some(true));
        let plan_json = map.data.unwrap().remove("plan.json").unwrap();
        let token = loadtest_core::token::token(&[7; 32], &test.uid().unwrap());
        assert!(plan_json.contains("fingerprint") && !plan_json.contains(&token), "{plan_json}");
        let env = example_job(&test).spec.unwrap().template.spec.unwrap().containers[0].env.clone();
        let header = env.unwrap().into_iter().find(|e| e.name == "LOADTEST_HEADER_0").unwrap();
        assert_eq!(header.value, None);
        assert_eq!(header.value_from.unwrap().secret_key_ref.unwrap().key, "token");
    }

    #[test]
    fn children_have_their_test_as_only_owner() {
        let owners = example_job(&example_test()).metadata.owner_references.unwrap();
        assert_eq!((owners.len(), owners[0].controller), (1, Some(true)));
        assert_eq!(owners[0].uid, example_test().uid().unwrap());
    }
}
