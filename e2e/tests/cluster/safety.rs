//! Load stops when it is told to, runs once, and numbers stay, also when the operator can't reach a
//! runner, can't read an object, or was away.

use std::sync::Mutex;

use anyhow::{Context, Result, ensure};
use k8s_openapi::{
    api::{
        core::v1::{Pod, Secret},
        events::v1::Event,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, EvictParams, ListParams, LogParams, Patch, PatchParams, PostParams},
};
use loadtest_core::{
    resource::{LoadTestStatus, Phase, Verdict},
    result::EventKind,
};
use serde_json::{Value, json};

use crate::lifecycle::check_whole_series;
use loadtest_e2e::{
    node::NetworkRule,
    operator_pods::{replace_operator, wait_for_leader},
    test_namespace::{OPERATOR_NAMESPACE, TestNamespace, health_spec, pod_ip, wait_for},
};

fn cancel() -> Patch<Value> {
    Patch::Merge(json!({"spec": {"cancel": true}}))
}

fn has_requests(status: &LoadTestStatus) -> bool {
    status.summary.as_ref().is_some_and(|summary| summary.requests > 0)
}

/// Waits until no pod is left that can make load.
async fn wait_until_no_runner(namespace: &TestNamespace, test: &str) -> Result<()> {
    wait_for(60, "no runner pod", async || {
        Ok(namespace.list_runners(test).await?.is_empty().then_some(()))
    })
    .await
}

#[tokio::test]
async fn cancel_stops_a_runner_that_takes_no_orders() -> Result<()> {
    // The operator is shared: other tests would see their runners vanish with a wrong rule.
    TestNamespace::run_alone("cut-off", async |namespace| {
        namespace.deploy_simulator(json!({})).await?;
        namespace.create_test("cut-off", health_spec(5, "10m", &json!([]))).await?;
        namespace.wait_for_status("cut-off", 60, has_requests).await?;
        let operator = wait_for_leader(&namespace).await?;
        let runner = namespace.list_runners("cut-off").await?.pop().context("no runner")?;
        let _cut = NetworkRule::drop_packets(
            &pod_ip(&operator).context("no address")?,
            &pod_ip(&runner).context("no address")?,
        )?;
        namespace.load_tests.patch("cut-off", &PatchParams::default(), &cancel()).await?;
        let forced = namespace
            .wait_for_status("cut-off", 60, |status| status.condition("StopForced").is_some())
            .await?;
        let condition = forced.condition("StopForced").context("no condition")?;
        ensure!(condition.message.contains(&runner.name_any()), "{condition:?}");
        let status = namespace.wait_until_finished("cut-off", 90).await?;
        ensure!(status.known_phase() == Some(Phase::Cancelled), "{status:#?}");
        wait_until_no_runner(&namespace, "cut-off").await
    })
    .await
}

#[tokio::test]
async fn cancel_stops_runners_after_the_token_is_lost() -> Result<()> {
    TestNamespace::run_alone("token", async |namespace| {
        namespace.deploy_simulator(json!({})).await?;
        namespace.create_test("token", health_spec(5, "10m", &json!([]))).await?;
        namespace.wait_for_status("token", 60, has_requests).await?;
        let secrets: Api<Secret> = Api::namespaced(namespace.client.clone(), OPERATOR_NAMESPACE);
        let all = secrets.list(&ListParams::default()).await?.items;
        let token = all.iter().find(|secret| {
            secret.name_any().contains("loadtest-operator")
                && secret.data.as_ref().is_some_and(|data| data.contains_key("key"))
        });
        let token = token.context("no Secret with the token key")?.name_any();
        secrets.delete(&token, &DeleteParams::default()).await?;
        replace_operator(&namespace).await?;
        wait_for_leader(&namespace).await?;
        namespace.load_tests.patch("token", &PatchParams::default(), &cancel()).await?;
        let status = namespace.wait_until_finished("token", 90).await?;
        ensure!(status.known_phase() == Some(Phase::Cancelled), "{status:#?}");
        let forced = status.condition("StopForced").context("no condition StopForced")?;
        ensure!(forced.message.contains("token Secret has changed"), "{forced:?}");
        wait_until_no_runner(&namespace, "token").await
    })
    .await
}

#[tokio::test]
async fn numbers_of_a_lost_runner_survive_a_restart() -> Result<()> {
    TestNamespace::run_alone("lost", async |namespace| {
        namespace.deploy_simulator(json!({})).await?;
        let thresholds = json!([{"metric": "errorRate", "target": "< 1%"}]);
        let mut spec = health_spec(10, "40s", &thresholds);
        spec["runners"] = json!({"count": 2});
        spec["onRunnerLoss"] = "Continue".into();
        let test = namespace.create_test("lost", spec).await?;
        namespace.wait_for_status("lost", 60, has_requests).await?;
        let runner = namespace.list_runners("lost").await?.pop().context("no runner")?;
        namespace.pods.evict(&runner.name_any(), &EvictParams::default()).await?;
        let told = namespace
            .wait_for_status("lost", 30, |status| status.condition("RunnersLost").is_some())
            .await?;
        let condition = told.condition("RunnersLost").context("no condition")?;
        ensure!(condition.message.contains(&runner.name_any()), "{condition:?}");
        ensure!(told.measurement.context("no measurement")?.runners_lost == 1);
        let before = told.summary.context("no summary")?.requests;
        let result = namespace.read_result(&test).await?.context("no result at the loss")?;
        let lost = result.runners.iter().find(|runner| runner.loss.is_some());
        let of_lost = lost.context("no runner is lost")?.requests;
        ensure!(of_lost > 0, "{:?}", result.runners);
        replace_operator(&namespace).await?;
        let lowest = Mutex::new(u64::MAX);
        let status = namespace
            .wait_for_status("lost", 120, |status| {
                let requests = status.summary.as_ref().map_or(0, |summary| summary.requests);
                let mut lowest = lowest.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                *lowest = (*lowest).min(requests);
                status.condition("Finished").is_some_and(|c| c.status == "True")
            })
            .await?;
        let lowest = lowest.into_inner()?;
        ensure!(lowest >= before, "the status counted backwards, from {before} to {lowest}");
        let result = namespace.read_result(&test).await?.context("no result")?;
        let lost = result.runners.iter().find(|runner| runner.loss.is_some());
        let lost = lost.context("the lost runner is forgotten")?;
        ensure!(lost.requests == of_lost, "{lost:?} had {of_lost} requests before the restart");
        check_whole_series(&result)?;
        ensure!(result.events.iter().any(|event| event.kind == EventKind::RunnersLost));
        ensure!(status.known_phase() == Some(Phase::Finished), "{status:#?}");
        ensure!(status.known_verdict() == Some(Verdict::Pass), "{status:#?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn runner_deleted_before_the_start_ends_the_test() -> Result<()> {
    TestNamespace::run("deleted-early", async |namespace| {
        let mut spec = health_spec(10, "20s", &json!([]));
        // No node has this label, so that the runners wait.
        spec["runners"] = json!({"count": 2, "nodeSelector": {"no-such-label": "true"}});
        namespace.create_test("deleted-early", spec).await?;
        let runner = wait_for(30, "a runner pod", async || {
            Ok(namespace.list_runners("deleted-early").await?.pop())
        })
        .await?;
        let waiting = namespace
            .wait_for_status("deleted-early", 30, |status| {
                status.condition("Started").is_some_and(|c| c.reason == "Unschedulable")
            })
            .await?;
        let started = waiting.condition("Started").context("no condition")?;
        ensure!(started.message.starts_with("0 of 2 runners ready"), "{started:?}");
        namespace.pods.delete(&runner.name_any(), &DeleteParams::default()).await?;
        let status = namespace.wait_until_finished("deleted-early", 30).await?;
        ensure!(status.known_phase() == Some(Phase::Error), "{status:#?}");
        let finished = status.condition("Finished").context("no condition")?;
        ensure!(finished.reason == "RunnerDeleted", "{finished:?}");
        ensure!(finished.message.contains("was deleted"), "{finished:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn object_of_a_newer_version_is_left_untouched() -> Result<()> {
    TestNamespace::run_alone("rollback", async |namespace| {
        let target = namespace.deploy_simulator(json!({})).await?;
        let spec = health_spec(3, "3s", &json!([]));
        let test = namespace.create_test("rollback", spec).await?;
        let uid = test.uid().context("no UID")?;
        namespace.wait_until_finished("rollback", 60).await?;
        let received = target.count_received(&uid).await?;
        ensure!(received > 0);

        // A newer version stores what this version can't read.
        let crds: Api<CustomResourceDefinition> = Api::all(namespace.client.clone());
        let name = "loadtests.loadtest.cell0.io";
        let original = crds.get(name).await?;
        let any = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        let mut relaxed = serde_json::to_value(&original)?;
        let schema = &mut relaxed["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        schema["properties"]["status"]["properties"]["summary"] = any;
        crds.replace(name, &PostParams::default(), &serde_json::from_value(relaxed)?).await?;
        let url = format!(
            "/apis/loadtest.cell0.io/v1alpha1/namespaces/{}/loadtests/rollback",
            namespace.name
        );
        // The API server takes a moment to use another schema.
        let set_requests = async |requests: Value| {
            let body = serde_json::to_vec(&json!({"status": {"summary": {"requests": requests}}}))?;
            wait_for(30, "a changed status", async || {
                let request = http::Request::patch(format!("{url}/status"))
                    .header("content-type", "application/merge-patch+json")
                    .body(body.clone())?;
                let stored = namespace.client.request::<Value>(request).await;
                let status = stored.ok().map(|stored| stored["status"].clone());
                Ok(status.filter(|status| status["summary"]["requests"] == requests))
            })
            .await
        };
        let before = set_requests("many".into()).await?;
        replace_operator(&namespace).await?;
        let operator = wait_for_leader(&namespace).await?.name_any();
        let events: Api<Event> = Api::namespaced(namespace.client.clone(), &namespace.name);
        wait_for(60, "an Event about the object", async || {
            let list = events.list(&ListParams::default()).await?;
            Ok(list.items.into_iter().find(|e| e.reason.as_deref() == Some("Undecodable")))
        })
        .await?;
        let pods: Api<Pod> = Api::namespaced(namespace.client.clone(), OPERATOR_NAMESPACE);
        wait_for(90, "a warning about the CRD", async || {
            let log = pods.logs(&operator, &LogParams::default()).await?;
            Ok(log.contains("the installed CRD is not the one of this operator").then_some(()))
        })
        .await?;

        let request = http::Request::get(&url).body(Vec::new())?;
        let after: Value = namespace.client.request(request).await?;
        ensure!(after["status"] == before, "{:#} became {:#}", before, after["status"]);

        // The newer version again, which reads it.
        set_requests(received.into()).await?;
        let mut restored = original;
        restored.metadata.resource_version = crds.get(name).await?.metadata.resource_version;
        crds.replace(name, &PostParams::default(), &restored).await?;
        replace_operator(&namespace).await?;
        wait_for_leader(&namespace).await?;
        // When a later test has finished, the operator has seen this one too.
        namespace.create_test("later", health_spec(1, "1s", &json!([]))).await?;
        namespace.wait_until_finished("later", 60).await?;
        let status = namespace.get_status("rollback").await?;
        ensure!(status.known_phase() == Some(Phase::Finished), "{status:#?}");
        ensure!(target.count_received(&uid).await? == received, "the load ran again");
        Ok(())
    })
    .await
}
