//! Every bad input is refused by the real API server, with a message that helps.

use anyhow::{Context, Result, ensure};
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, PostParams},
};
use loadtest_core::resource::{LoadTest, Phase};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::story::Story;

#[derive(Deserialize)]
struct Cases {
    base: Value,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    patch: Value,
    says: Vec<String>,
}

/// RFC 7396.
fn merge(base: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *base = patch.clone();
        return;
    };
    if !base.is_object() {
        *base = json!({});
    }
    for (key, value) in fields {
        match (value, base.as_object_mut()) {
            (Value::Null, Some(map)) => {
                map.remove(key);
            }
            _ => merge(&mut base[key], value),
        }
    }
}

#[tokio::test]
async fn every_bad_input_is_refused_by_the_api_server_in_words_that_help() -> Result<()> {
    Story::tell("bad", async |story| {
        let text = include_str!("../../bad-input.yaml").replace("%1MB%", &"x".repeat(1 << 20));
        let Cases { base, cases } = serde_yaml::from_str(&text)?;
        let resource = ApiResource::erase::<LoadTest>(&());
        let api: Api<DynamicObject> =
            Api::namespaced_with(story.client.clone(), &story.namespace, &resource);
        let mut wrong = Vec::new();
        for Case { name, patch, says } in &cases {
            let mut object = base.clone();
            merge(&mut object, patch);
            let object: DynamicObject = serde_json::from_value(object)?;
            match api.create(&PostParams::default(), &object).await {
                Ok(_) => {
                    wrong.push(format!("{name}: was accepted"));
                    api.delete(&object.name_any(), &DeleteParams::default()).await?;
                }
                Err(error) => {
                    let error = error.to_string();
                    let missing: Vec<_> =
                        says.iter().filter(|word| !error.contains(*word)).collect();
                    if !missing.is_empty() {
                        let error: String = error.chars().take(600).collect();
                        wrong.push(format!("{name}: says nothing of {missing:?}: {error}"));
                    }
                }
            }
        }
        ensure!(cases.len() > 40, "only {} cases were read", cases.len());
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    })
    .await
}

#[tokio::test]
async fn what_only_the_operator_can_see_is_not_accepted_and_makes_nothing() -> Result<()> {
    Story::tell("large", async |story| {
        let tasks: Vec<Value> = (0..20)
            .map(|i| json!({"name": format!("task-{i}"), "http": {"path": "/", "body": "x".repeat(60_000)}}))
            .collect();
        let mut spec = crate::story::health(2, "2s", &json!([]));
        spec["scenario"] = json!({"tasks": tasks});
        story.start("large", spec).await?;
        let status = story.finished("large", 30).await?;
        ensure!(status.phase == Some(Phase::Error), "{status:#?}");
        let accepted = status.condition("Accepted").context("no condition")?;
        ensure!(accepted.status == "False" && accepted.reason == "InvalidSpec", "{accepted:?}");
        ensure!(accepted.message.contains("spec.scenario") && accepted.message.contains("900 KiB"));
        ensure!(story.runners("large").await?.is_empty());
        let events: Api<k8s_openapi::api::events::v1::Event> =
            Api::namespaced(story.client.clone(), &story.namespace);
        crate::story::within(10, "an Event", async || {
            let list = events.list(&ListParams::default()).await?;
            Ok(list.items.into_iter().find(|e| e.reason.as_deref() == Some("Rejected")).map(|_| ()))
        })
        .await
    })
    .await
}

#[tokio::test]
async fn unknown_fields_are_warned_about() -> Result<()> {
    Story::tell("unknown", async |story| {
        let mut spec = crate::story::health(2, "2s", &json!([]));
        spec["load"]["user"] = 3.into();
        let body = json!({
            "apiVersion": "loadtest.cell0.io/v1alpha1", "kind": "LoadTest",
            "metadata": {"name": "unknown"}, "spec": spec,
        });
        let path = format!(
            "/apis/loadtest.cell0.io/v1alpha1/namespaces/{}/loadtests?dryRun=All&fieldValidation=Strict",
            story.namespace
        );
        let request = serde_json::to_vec(&body)?;
        let request = http::Request::post(path).header("content-type", "application/json").body(request)?;
        let answer = story.client.request::<Value>(request).await;
        let error = answer.err().context("an unknown field was taken")?.to_string();
        ensure!(error.contains("unknown field \"spec.load.user\""), "{error}");
        Ok(())
    })
    .await
}
