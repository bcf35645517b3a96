//! Builds the ConfigMap with the plan of a test, and the Indexed Job with its runners. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::{
    batch::v1::{
        Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement,
        PodFailurePolicyOnPodConditionsPattern, PodFailurePolicyRule,
    },
    core::v1::ConfigMap,
};
use kube::ResourceExt;
use loadtest_core::{
    Duration, control,
    plan::{Plan, RunIdentity, ValidTest},
    resource::{LoadTest, Runners, Sizing},
};

use super::{metadata::child_metadata, pod::merged_pod_template, settings::Settings};

/// Annotation of the Job with the SHA-256 of the token that its runners take orders with.
pub const TOKEN_ANNOTATION: &str = "loadtest.cell0.io/token-sha256";

/// Builds the plan of a test.
pub fn build_plan(
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
pub fn build_config_map(test: &LoadTest, plan: &Plan) -> Result<ConfigMap, serde_json::Error> {
    Ok(ConfigMap {
        metadata: child_metadata(test),
        data: Some(BTreeMap::from([(control::PLAN_FILE.into(), serde_json::to_string(plan)?)])),
        immutable: Some(true),
        ..ConfigMap::default()
    })
}

/// Builds the Job with one pod per runner.
pub fn build_job(
    test: &LoadTest,
    valid: &ValidTest,
    sizing: &Sizing,
    settings: &Settings,
    token_fingerprint: &str,
) -> Job {
    let runners = i32::try_from(sizing.runners).unwrap_or(i32::MAX);
    // The deadline ends the Job even if the operator never comes back, so it is longer than all
    // steps of a test together.
    let deadline = [
        test.spec.start_timeout.unwrap_or(settings.start_timeout),
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
    let mut annotations = job_annotations.clone();
    annotations.insert(TOKEN_ANNOTATION.into(), token_fingerprint.into());
    metadata.annotations = Some(annotations);
    Job {
        metadata,
        spec: Some(JobSpec {
            completion_mode: Some("Indexed".into()),
            completions: Some(runners),
            parallelism: Some(runners),
            // A lost runner is not restarted, and the other runners keep running.
            backoff_limit_per_index: Some(0),
            pod_failure_policy: Some(pod_failure_policy()),
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
            container_name: Some(control::CONTAINER.into()),
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

#[cfg(test)]
mod tests {
    use loadtest_core::resource::GROUP;

    use super::*;
    use crate::testing::{example_settings, example_test, sizing_of, validated};

    fn example_job(test: &LoadTest) -> Job {
        build_job(test, &validated(test), &sizing_of(test), &example_settings(), "fingerprint")
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
    fn job_labels_never_replace_those_of_the_operator() {
        let mut test = example_test();
        let own = format!("{GROUP}/name");
        test.spec.runners.job_labels =
            [("kueue.x-k8s.io/queue-name".into(), "q".into()), (own.clone(), "x".into())].into();
        test.spec.runners.job_annotations = [("team".into(), "shop".into())].into();
        let metadata = example_job(&test).metadata;
        let labels = metadata.labels.unwrap();
        assert_eq!(labels["kueue.x-k8s.io/queue-name"], "q");
        assert_eq!(labels[&own], "burst");
        assert_eq!(metadata.annotations.unwrap()["team"], "shop");
    }

    #[test]
    fn plan_contains_no_token_and_no_secret() {
        let mut test = example_test();
        test.spec.target.headers_from = serde_json::from_str(
            r#"[{"header": "authorization", "secretKeyRef": {"name": "api", "key": "token"}}]"#,
        )
        .unwrap();
        let plan = build_plan(
            &test,
            &validated(&test),
            &sizing_of(&test),
            "fingerprint".into(),
            &example_settings(),
        );
        let map = build_config_map(&test, &plan).unwrap();
        assert_eq!(map.immutable, Some(true));
        let plan_json = map.data.unwrap().remove("plan.json").unwrap();
        let token = loadtest_core::token::token_of_run(&[7; 32], &test.uid().unwrap());
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
