//! The target is down, dies, or answers badly: its faults are reported as its own, in its words.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use loadtest_core::resource::{LoadTest, Phase, Verdict};
use loadtest_e2e::{
    fault::{Fault, Observation},
    test_namespace::{TestNamespace, health_spec},
};
use serde_json::{Value, json};

use crate::checks::{check_counts, has_requests, short, wait_for_error};

fn judged_spec() -> Value {
    health_spec(5, "8s", &json!([{"metric": "errorRate", "target": "< 1%"}]))
}

/// A test whose tasks are one chat with an answer of many tokens.
fn chat_spec() -> Value {
    let mut spec = judged_spec();
    let chat =
        json!({"models": ["cell0-small"], "messages": ["Hello"], "stream": true, "timeout": "2s"});
    spec["scenario"]["tasks"] = json!([{"name": "chat", "chat": chat}]);
    spec
}

fn web_socket_spec() -> Value {
    let mut spec = judged_spec();
    spec["target"] = json!({"webSocket": "ws://cell0:18801"});
    let socket = json!({"send": ["ping"], "replies": 1, "timeout": "2s"});
    spec["scenario"]["tasks"] = json!([{"name": "socket", "webSocket": socket}]);
    spec
}

/// Checks that a test fails because of its target, and names the kind of error with the cause.
async fn check_failed(
    namespace: &TestNamespace,
    test: &LoadTest,
    (kind, words): (&str, &str),
    row: &mut Observation,
) -> Result<loadtest_core::resource::LoadTestStatus> {
    let status = namespace.wait_until_finished(&test.name_any(), 60).await?;
    ensure!(status.known_phase() == Some(Phase::Finished), "{status:#?}");
    ensure!(status.known_verdict() == Some(Verdict::Fail), "{status:#?}");
    let error = status.errors.iter().find(|error| error.kind == kind);
    let error = error.with_context(|| format!("no error {kind}: {:?}", status.errors))?;
    let example = error.example.clone().unwrap_or_default();
    ensure!(example.contains(words), "{example}");
    row.settle(format!("Fail, {} × {kind}: {}", error.count, short(&example)));
    Ok(status)
}

/// Makes the target fail under load with new settings of the simulator. It may receive `sent_again` requests
/// more than there are results.
async fn check_settings(
    fault: Fault,
    name: &str,
    spec: Value,
    settings: Value,
    error: (&str, &str),
    sent_again: u64,
) -> Result<()> {
    fault
        .check(name, async |namespace, row| {
            let target = namespace.deploy_simulator(json!({})).await?;
            let test = namespace.create_test(name, spec).await?;
            namespace.wait_for_status(name, 60, has_requests).await?;
            row.begin();
            target.patch_settings(settings).await?;
            let status = check_failed(namespace, &test, error, row).await?;
            check_counts(&target, &test, &status, sent_again).await?;
            Ok(())
        })
        .await
}

fn always(kind: &Value) -> Value {
    json!({"errors": {"rate": "100%", "kinds": [kind]}})
}

#[tokio::test]
async fn target_that_is_down_ends_the_test_without_load() -> Result<()> {
    let fault = Fault {
        fault: "target down at the start",
        expected: "TargetUnreachable with what was tried, without load",
        seconds: 50,
    };
    fault
        .check("down", async |namespace, row| {
            // Nothing listens on this port of a runner.
            let mut spec = judged_spec();
            spec["target"]["http"] = "http://127.0.0.1:1".into();
            row.begin();
            namespace.create_test("down", spec.clone()).await?;
            spec["preflight"] = "Skip".into();
            let skipped = namespace.create_test("skipped", spec).await?;
            let message = wait_for_error(namespace, "down", 60, "TargetUnreachable").await?;
            row.settle(format!("TargetUnreachable: {}", short(&message)));
            for words in ["target.http http://127.0.0.1:1", "Connection refused", "preflight: Skip"]
            {
                ensure!(message.contains(words), "{message}");
            }
            ensure!(namespace.get_status("down").await?.summary.is_none());
            let mut other = Observation::default();
            check_failed(namespace, &skipped, ("connect", "Connection refused"), &mut other)
                .await?;
            Ok(())
        })
        .await
}

#[tokio::test]
async fn name_that_does_not_resolve_ends_the_test_without_load() -> Result<()> {
    let fault = Fault {
        fault: "name of the target does not resolve",
        expected: "TargetUnreachable with the name, without load",
        seconds: 50,
    };
    fault
        .check("name", async |namespace, row| {
            let mut spec = judged_spec();
            spec["target"]["http"] = "http://no-such-service:18800".into();
            row.begin();
            namespace.create_test("name", spec).await?;
            let message = wait_for_error(namespace, "name", 60, "TargetUnreachable").await?;
            ensure!(message.contains("no-such-service: "), "{message}");
            row.settle(format!("TargetUnreachable: {}", short(&message)));
            ensure!(namespace.get_status("name").await?.summary.is_none(), "load");
            Ok(())
        })
        .await
}

#[tokio::test]
async fn target_that_dies_under_load_fails_the_test() -> Result<()> {
    let fault = Fault {
        fault: "target dies under load",
        expected: "Fail, with the refused connections",
        seconds: 45,
    };
    fault
        .check("dies", async |namespace, row| {
            namespace.deploy_simulator(json!({})).await?;
            let mut spec = judged_spec();
            spec["load"]["duration"] = "15s".into();
            let test = namespace.create_test("dies", spec).await?;
            namespace.wait_for_status("dies", 60, has_requests).await?;
            let deployments: Api<Deployment> =
                Api::namespaced(namespace.client.clone(), &namespace.name);
            let simulator = deployments.list(&ListParams::default()).await?.items.pop();
            let simulator = simulator.context("no simulator")?.name_any();
            row.begin();
            let patch = Patch::Merge(json!({"spec": {"replicas": 0}}));
            deployments.patch_scale(&simulator, &PatchParams::default(), &patch).await?;
            check_failed(namespace, &test, ("connect", "refused"), row).await?;
            Ok(())
        })
        .await
}

#[tokio::test]
async fn target_that_hangs_fails_the_test() -> Result<()> {
    let mut spec = judged_spec();
    spec["scenario"]["tasks"][0]["http"]["timeout"] = "1s".into();
    let fault = Fault {
        fault: "target hangs under load",
        expected: "Fail, with timeouts; every request is counted",
        seconds: 30,
    };
    let settings = json!({"health": always(&json!("hang"))});
    check_settings(fault, "hangs", spec, settings, ("timeout_response", "1s"), 0).await
}

#[tokio::test]
async fn target_that_resets_connections_fails_the_test() -> Result<()> {
    let fault = Fault {
        fault: "target resets connections under load",
        expected: "Fail, with resets; every request is counted",
        seconds: 30,
    };
    let settings = json!({"health": always(&json!("reset"))});
    // The first reset of each of the five users ends a kept connection, so that the request is sent again.
    check_settings(fault, "resets", judged_spec(), settings, ("reset", "reset"), 5).await
}

#[tokio::test]
async fn target_that_sends_garbage_fails_the_test() -> Result<()> {
    let fault = Fault {
        fault: "target sends garbage under load",
        expected: "Fail, with errors of the protocol; every request is counted",
        seconds: 30,
    };
    let settings = json!({"health": always(&json!("garbage"))});
    check_settings(fault, "garbage", judged_spec(), settings, ("protocol", "the target"), 0).await
}

#[tokio::test]
async fn target_that_closes_web_sockets_fails_the_test() -> Result<()> {
    let fault = Fault {
        fault: "target closes WebSockets under load",
        expected: "Fail, with the close code; every session is counted",
        seconds: 30,
    };
    let settings = json!({"webSocket": always(&json!({"closeCode": 1013}))});
    let error = ("websocket_close_1013", "1013");
    check_settings(fault, "closes", web_socket_spec(), settings, error, 0).await
}

#[tokio::test]
async fn endless_stream_fails_the_test() -> Result<()> {
    let fault = Fault {
        fault: "target streams without end under load",
        expected: "Fail, with timeouts of the body; every request is counted",
        seconds: 30,
    };
    let settings = json!({"chat": {"tokens": 100_000, "tokenGap": "20ms"}});
    check_settings(fault, "endless", chat_spec(), settings, ("timeout_body", "2s"), 0).await
}
