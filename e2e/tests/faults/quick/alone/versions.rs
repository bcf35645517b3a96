//! The operator is older than an object, as after a rollback.

use anyhow::{Context, Result, ensure};
use k8s_openapi::{
    api::events::v1::Event,
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, ResourceExt,
    api::{ListParams, LogParams, PostParams},
};
use loadtest_core::resource::Phase;
use loadtest_e2e::{
    fault::Fault,
    operator_pods::{pods, replace_operator, wait_for_leader},
    test_namespace::{Target, TestNamespace, wait_for},
};
use serde_json::{Value, json};

use crate::checks::{check_whole_run, watched_spec};

const CRD: &str = "loadtests.loadtest.cell0.io";

/// Writes something to `status.summary.requests` of a test. The API server takes a moment to use another schema.
async fn set_requests(namespace: &TestNamespace, url: &str, requests: Value) -> Result<Value> {
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
}

/// Waits until the operator has told of an object that it can't read, and of the CRD.
async fn wait_for_warnings(namespace: &TestNamespace) -> Result<()> {
    let operator = wait_for_leader(namespace).await?.name_any();
    let events: Api<Event> = Api::namespaced(namespace.client.clone(), &namespace.name);
    wait_for(60, "an Event about the object", async || {
        let list = events.list(&ListParams::default()).await?;
        Ok(list.items.into_iter().find(|e| e.reason.as_deref() == Some("Undecodable")))
    })
    .await?;
    wait_for(90, "a warning about the CRD", async || {
        let log = pods(namespace).logs(&operator, &LogParams::default()).await?;
        Ok(log.contains("the installed CRD is not the one of this operator").then_some(()))
    })
    .await
}

/// Stores something that the operator can't read, and checks that it stays, beside a whole run.
async fn check_untouched(namespace: &TestNamespace, target: &Target<'_>, url: &str) -> Result<()> {
    let before = set_requests(namespace, url, "many".into()).await?;
    replace_operator(namespace).await?;
    wait_for_warnings(namespace).await?;
    let beside = namespace.create_test("beside", watched_spec(3, "6s")).await?;
    check_whole_run(namespace, target, &beside, 60).await?;
    let request = http::Request::get(url).body(Vec::new())?;
    let after: Value = namespace.client.request(request).await?;
    ensure!(after["status"] == before, "{:#} became {:#}", before, after["status"]);
    Ok(())
}

#[tokio::test]
async fn object_of_a_newer_version_is_left_untouched() -> Result<()> {
    let fault = Fault {
        fault: "operator and CRD rolled back: a finished LoadTest can't be decoded",
        expected: "it stays as it is, beside whole runs of others; with its CRD it is Finished and does not run again",
        seconds: 90,
    };
    fault
        .check_alone("rollback", async |namespace, row| {
            let target = namespace.deploy_simulator(json!({})).await?;
            let test = namespace.create_test("rollback", watched_spec(3, "6s")).await?;
            let uid = test.uid().context("no UID")?;
            check_whole_run(namespace, &target, &test, 60).await?;
            let received = target.count_received(&uid).await?;

            // A newer version stores what this version can't read.
            row.begin();
            let crds: Api<CustomResourceDefinition> = Api::all(namespace.client.clone());
            let original = crds.get(CRD).await?;
            let any = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
            let mut relaxed = serde_json::to_value(&original)?;
            let schema = &mut relaxed["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
            schema["properties"]["status"]["properties"]["summary"] = any;
            crds.replace(CRD, &PostParams::default(), &serde_json::from_value(relaxed)?).await?;
            let url = format!(
                "/apis/loadtest.cell0.io/v1alpha1/namespaces/{}/loadtests/rollback",
                namespace.name
            );
            let checked = check_untouched(namespace, &target, &url).await;
            // The other tests need the CRD, also if this one fails.
            if checked.is_ok() {
                // The newer version again, which reads it.
                set_requests(namespace, &url, received.into()).await?;
            }
            let mut restored = original;
            restored.metadata.resource_version = crds.get(CRD).await?.metadata.resource_version;
            crds.replace(CRD, &PostParams::default(), &restored).await?;
            replace_operator(namespace).await?;
            wait_for_leader(namespace).await?;
            checked?;
            // When a later test has finished, the operator has seen this one too.
            let later = namespace.create_test("later", watched_spec(1, "6s")).await?;
            check_whole_run(namespace, &target, &later, 60).await?;
            let status = namespace.get_status("rollback").await?;
            ensure!(status.known_phase() == Some(Phase::Finished), "{status:#?}");
            ensure!(target.count_received(&uid).await? == received, "the load ran again");
            row.settle("untouched, then Finished");
            Ok(())
        })
        .await
}
