//! Settings of a spec that change how Kubernetes sees a load test: suspension, pod template, labels
//! of the Job, and thresholds of several owners.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{batch::v1::Job, core::v1::ResourceQuota};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use loadtest_core::resource::{Phase, Verdict};
use serde_json::{Value, json};

use loadtest_e2e::test_namespace::{TestNamespace, health_spec, wait_for};

#[tokio::test]
async fn suspended_test_starts_when_it_is_resumed() -> Result<()> {
    TestNamespace::run("suspend", async |namespace| {
        namespace.deploy_simulator(json!({})).await?;
        let mut spec = health_spec(2, "3s", &json!([{"metric": "errorRate", "target": "< 1%"}]));
        spec["suspend"] = json!(true);
        namespace.create_test("suspend", spec).await?;
        let status = namespace
            .wait_for_status("suspend", 30, |s| {
                s.condition("Started").is_some_and(|c| c.reason == "Suspended")
            })
            .await?;
        ensure!(status.known_phase() == Some(Phase::Pending), "{status:#?}");
        ensure!(namespace.list_runners("suspend").await?.is_empty(), "a runner exists");

        let resume = Patch::Merge(json!({"spec": {"suspend": false, "load": {"duration": "2s"}}}));
        namespace.load_tests.patch("suspend", &PatchParams::default(), &resume).await?;
        let status = namespace.wait_until_finished("suspend", 60).await?;
        ensure!(status.known_verdict() == Some(Verdict::Pass), "{status:#?}");

        let suspend = Patch::Merge(json!({"spec": {"suspend": true}}));
        let response =
            namespace.load_tests.patch("suspend", &PatchParams::default(), &suspend).await;
        ensure!(response.is_err(), "a finished test was suspended");
        Ok(())
    })
    .await
}

/// A queue such as Kueue suspends the Job, and resumes it when its quota has room.
#[tokio::test]
async fn suspended_job_is_named_and_starts_when_it_is_resumed() -> Result<()> {
    TestNamespace::run("queue", async |namespace| {
        namespace.deploy_simulator(json!({})).await?;
        // The simulator is the only pod that fits, so no runner starts before its Job is suspended.
        let quotas: Api<ResourceQuota> = Api::namespaced(namespace.client.clone(), &namespace.name);
        let quota = json!({"metadata": {"name": "full"}, "spec": {"hard": {"pods": "1"}}});
        quotas.create(&PostParams::default(), &serde_json::from_value(quota)?).await?;
        wait_for(30, "a quota that counts", async || {
            let quota = quotas.get("full").await?;
            Ok(quota.status.and_then(|status| status.used))
        })
        .await?;

        let spec = health_spec(2, "2s", &json!([{"metric": "errorRate", "target": "< 1%"}]));
        namespace.create_test("queue", spec).await?;
        namespace.wait_for_phase("queue", Phase::Starting).await?;
        let jobs: Api<Job> = Api::namespaced(namespace.client.clone(), &namespace.name);
        let list = jobs.list(&ListParams::default()).await?.items;
        let name = list.first().and_then(|job| job.metadata.name.clone()).context("no Job")?;
        let suspend = |suspend: bool| Patch::Merge(json!({"spec": {"suspend": suspend}}));
        jobs.patch(&name, &PatchParams::default(), &suspend(true)).await?;
        let status = namespace
            .wait_for_status("queue", 30, |s| {
                s.condition("Started").is_some_and(|c| c.reason == "JobSuspended")
            })
            .await?;
        let started = status.condition("Started").context("no condition")?;
        ensure!(started.message.contains(&name), "{started:?}");

        quotas.delete("full", &DeleteParams::default()).await?;
        jobs.patch(&name, &PatchParams::default(), &suspend(false)).await?;
        let status = namespace.wait_until_finished("queue", 90).await?;
        ensure!(status.known_verdict() == Some(Verdict::Pass), "{status:#?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn pod_template_and_job_labels_reach_the_runners() -> Result<()> {
    TestNamespace::run("template", async |namespace| {
        namespace.deploy_simulator(json!({})).await?;
        let mut spec = health_spec(2, "5s", &json!([{"metric": "errorRate", "target": "< 1%"}]));
        spec["runners"] = json!({
            "jobLabels": {"kueue.x-k8s.io/queue-name": "load"},
            "jobAnnotations": {"team": "chat"},
            "podTemplate": {"spec": {
                "hostAliases": [{"ip": "127.0.0.9", "hostnames": ["chat.test"]}],
                "terminationGracePeriodSeconds": 20,
            }},
        });
        namespace.create_test("template", spec).await?;
        namespace.wait_for_phase("template", Phase::Running).await?;
        let jobs: Api<Job> = Api::namespaced(namespace.client.clone(), &namespace.name);
        let label = ListParams::default().labels("kueue.x-k8s.io/queue-name=load");
        let jobs = jobs.list(&label).await?.items;
        ensure!(jobs.len() == 1, "{jobs:#?}");
        let annotations = jobs[0].metadata.annotations.clone().unwrap_or_default();
        ensure!(annotations.get("team").is_some_and(|team| team == "chat"), "{annotations:?}");
        let runners = namespace.list_runners("template").await?;
        let pod = runners.first().and_then(|pod| pod.spec.clone()).context("no runner")?;
        ensure!(pod.termination_grace_period_seconds == Some(20), "{pod:#?}");
        ensure!(pod.host_aliases.is_some_and(|aliases| aliases[0].ip == "127.0.0.9"));
        // The operator's own settings are still there.
        ensure!(pod.security_context.is_some_and(|context| context.run_as_non_root == Some(true)));
        let status = namespace.wait_until_finished("template", 60).await?;
        ensure!(status.known_verdict() == Some(Verdict::Pass), "{status:#?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn unknown_field_of_the_pod_template_is_an_invalid_spec() -> Result<()> {
    TestNamespace::run("unknown", async |namespace| {
        let mut spec = health_spec(2, "2s", &json!([]));
        spec["runners"] = json!({"podTemplate": {"spec": {"nodeSelectors": {"disk": "ssd"}}}});
        namespace.create_test("unknown", spec).await?;
        let status = namespace.wait_until_finished("unknown", 30).await?;
        let accepted = status.condition("Accepted").context("no condition")?;
        ensure!(accepted.status == "False" && accepted.reason == "InvalidSpec", "{accepted:?}");
        let field = "spec.runners.podTemplate.spec.nodeSelectors";
        ensure!(accepted.message.contains(field), "{accepted:?}");
        ensure!(namespace.list_runners("unknown").await?.is_empty());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn server_side_apply_changes_one_threshold() -> Result<()> {
    TestNamespace::run("apply", async |namespace| {
        let thresholds = json!([
            {"metric": "errorRate", "target": "< 1%"},
            {"metric": "responseTime", "statistic": "p95", "target": "< 1s"},
        ]);
        let mut spec = health_spec(2, "2s", &thresholds);
        spec["suspend"] = json!(true);
        namespace.create_test("apply", spec).await?;
        let row = json!([{"metric": "responseTime", "statistic": "p95", "target": "< 200ms"}]);
        let patch = json!({
            "apiVersion": "loadtest.cell0.io/v1alpha1",
            "kind": "LoadTest",
            "spec": {"thresholds": row},
        });
        let parameters = PatchParams::apply("latency-team").force();
        let changed =
            namespace.load_tests.patch("apply", &parameters, &Patch::Apply(patch)).await?;
        let spec: Value = serde_json::to_value(&changed.spec)?;
        let targets: Vec<_> = spec["thresholds"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|row| row["target"].as_str().unwrap_or_default().replace(' ', ""))
            .collect();
        ensure!(targets == ["<1%", "<200ms"], "{spec:#}");
        Ok(())
    })
    .await
}
