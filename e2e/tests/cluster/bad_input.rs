//! The real API server and the operator reject bad input with a helpful message.

use anyhow::{Context, Result, ensure};
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DynamicObject, ListParams, PostParams},
};
use loadtest_core::resource::{LoadTest, Phase};
use serde::Deserialize;
use serde_json::{Value, json};

use loadtest_e2e::test_namespace::{TestNamespace, health_spec, wait_for};

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
    /// What an API server with fewer rules, or else the operator, says. Default: `says`.
    #[serde(rename = "olderSays")]
    older_says: Option<Vec<String>>,
}

/// Returns true for an API server that has the CRD with fewer rules.
async fn has_fewer_rules(client: &kube::Client) -> Result<bool> {
    let version = client.apiserver_version().await?;
    let minor: u32 = version.minor.trim_end_matches('+').parse()?;
    Ok((version.major.as_str(), minor) < ("1", 34))
}

/// Returns the operator's message about a spec that it refuses.
async fn read_refusal(namespace: &TestNamespace, name: &str) -> Result<String> {
    let status = namespace.wait_until_finished(name, 30).await?;
    let accepted = status.condition("Accepted").context("no condition")?;
    ensure!(accepted.status == "False", "{accepted:?}");
    Ok(accepted.message.clone())
}

/// Applies a JSON merge patch (RFC 7396).
fn apply_merge_patch(base: &mut Value, patch: &Value) {
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
            _ => apply_merge_patch(&mut base[key], value),
        }
    }
}

#[tokio::test]
async fn every_bad_input_is_rejected_with_a_helpful_message() -> Result<()> {
    TestNamespace::run("bad", async |namespace| {
        let text = include_str!("../../bad-input.yaml").replace("%1MB%", &"x".repeat(1 << 20));
        let Cases { base, cases } = serde_saphyr::from_str(&text)?;
        let resource = ApiResource::erase::<LoadTest>(&());
        let api: Api<DynamicObject> =
            Api::namespaced_with(namespace.client.clone(), &namespace.name, &resource);
        let has_fewer_rules = has_fewer_rules(&namespace.client).await?;
        let mut failures = Vec::new();
        for Case { name, patch, says, older_says } in &cases {
            let older_says = older_says.as_ref().filter(|_| has_fewer_rules);
            let says = older_says.unwrap_or(says);
            let mut object = base.clone();
            apply_merge_patch(&mut object, patch);
            let object: DynamicObject = serde_json::from_value(object)?;
            let error = match api.create(&PostParams::default(), &object).await {
                Ok(_) => {
                    let refusal = match older_says {
                        Some(_) => read_refusal(&namespace, &object.name_any()).await,
                        None => Err(anyhow::anyhow!("was accepted")),
                    };
                    namespace.delete_test(&object.name_any()).await?;
                    refusal.unwrap_or_else(|error| error.to_string())
                }
                Err(error) => error.to_string(),
            };
            let missing: Vec<_> = says.iter().filter(|word| !error.contains(*word)).collect();
            if !missing.is_empty() {
                let error: String = error.chars().take(600).collect();
                failures.push(format!("{name}: {missing:?} is not in the message: {error}"));
            }
        }
        ensure!(cases.len() > 40, "only {} cases were read", cases.len());
        ensure!(failures.is_empty(), "{}", failures.join("\n"));
        Ok(())
    })
    .await
}

#[tokio::test]
async fn oversized_spec_is_not_accepted_and_starts_no_runner() -> Result<()> {
    TestNamespace::run("large", async |namespace| {
        let tasks: Vec<Value> = (0..20)
            .map(|i| {
                let body = "x".repeat(60_000);
                json!({"name": format!("task-{i}"), "http": {"path": "/", "body": body}})
            })
            .collect();
        let mut spec = health_spec(2, "2s", &json!([]));
        spec["scenario"] = json!({"tasks": tasks});
        namespace.create_test("large", spec).await?;
        let status = namespace.wait_until_finished("large", 30).await?;
        ensure!(status.known_phase() == Some(Phase::Error), "{status:#?}");
        let accepted = status.condition("Accepted").context("no condition")?;
        ensure!(accepted.status == "False" && accepted.reason == "InvalidSpec", "{accepted:?}");
        ensure!(accepted.message.contains("spec.scenario") && accepted.message.contains("900 KiB"));
        ensure!(namespace.list_runners("large").await?.is_empty());
        let events: Api<k8s_openapi::api::events::v1::Event> =
            Api::namespaced(namespace.client.clone(), &namespace.name);
        wait_for(10, "an Event", async || {
            let list = events.list(&ListParams::default()).await?;
            Ok(list.items.into_iter().find(|e| e.reason.as_deref() == Some("Rejected")).map(|_| ()))
        })
        .await
    })
    .await
}

#[tokio::test]
async fn unknown_fields_are_reported() -> Result<()> {
    TestNamespace::run("unknown", async |namespace| {
        let mut spec = health_spec(2, "2s", &json!([]));
        spec["load"]["user"] = 3.into();
        let body = json!({
            "apiVersion": "loadtest.cell0.io/v1alpha1", "kind": "LoadTest",
            "metadata": {"name": "unknown"}, "spec": spec,
        });
        let path = format!(
            "/apis/loadtest.cell0.io/v1alpha1/namespaces/{}/loadtests\
             ?dryRun=All&fieldValidation=Strict",
            namespace.name
        );
        let request = http::Request::post(path)
            .header("content-type", "application/json")
            .body(serde_json::to_vec(&body)?)?;
        let response = namespace.client.request::<Value>(request).await;
        let error = response.err().context("an unknown field was accepted")?.to_string();
        ensure!(error.contains("unknown field \"spec.load.user\""), "{error}");
        Ok(())
    })
    .await
}
