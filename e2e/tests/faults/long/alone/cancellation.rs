//! A test is cancelled while the operator can't give its orders.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use loadtest_core::resource::Phase;
use loadtest_e2e::{
    fault::{Fault, Observation},
    leftovers::wait_until_no_runner,
    node::NetworkRule,
    operator_pods::{replace_operator, wait_for_leader},
    test_namespace::{OPERATOR_NAMESPACE, TestNamespace, health_spec, pod_ip},
};
use serde_json::json;

use crate::checks::{has_requests, short};

/// Cancels a test, and checks that its runners are stopped by force, with these words.
async fn check_forced_stop(
    namespace: &TestNamespace,
    name: &str,
    words: &str,
    row: &mut Observation,
) -> Result<()> {
    let cancel = Patch::Merge(json!({"spec": {"cancel": true}}));
    namespace.load_tests.patch(name, &PatchParams::default(), &cancel).await?;
    let status = namespace.wait_until_finished(name, 90).await?;
    ensure!(status.known_phase() == Some(Phase::Cancelled), "{status:#?}");
    let forced = status.condition("StopForced").context("no condition StopForced")?;
    ensure!(forced.message.contains(words), "{forced:?}");
    wait_until_no_runner(namespace, name).await?;
    row.settle(format!("Cancelled, StopForced: {}", short(&forced.message)));
    Ok(())
}

#[tokio::test]
async fn cancel_stops_a_runner_that_takes_no_orders() -> Result<()> {
    let fault = Fault {
        fault: "operator cut off from a runner when the test is cancelled",
        expected: "Cancelled with StopForced, which names the pod; no runner is left",
        seconds: 45,
    };
    fault
        .check_alone("cut-off", async |namespace, row| {
            namespace.deploy_simulator(json!({})).await?;
            namespace.create_test("cut-off", health_spec(5, "10m", &json!([]))).await?;
            namespace.wait_for_status("cut-off", 60, has_requests).await?;
            let operator = wait_for_leader(namespace).await?;
            let runner = namespace.list_runners("cut-off").await?.pop().context("no runner")?;
            row.begin();
            let _cut = NetworkRule::drop_packets(
                &pod_ip(&operator).context("no address")?,
                &pod_ip(&runner).context("no address")?,
            )?;
            check_forced_stop(namespace, "cut-off", &runner.name_any(), row).await
        })
        .await
}

#[tokio::test]
async fn cancel_stops_runners_after_the_token_is_lost() -> Result<()> {
    let fault = Fault {
        fault: "Secret with the operator's token deleted under load, then cancelled",
        expected: "Cancelled with StopForced, which names the Secret; no runner is left",
        seconds: 60,
    };
    fault
        .check_alone("token", async |namespace, row| {
            namespace.deploy_simulator(json!({})).await?;
            namespace.create_test("token", health_spec(5, "10m", &json!([]))).await?;
            namespace.wait_for_status("token", 60, has_requests).await?;
            let secrets: Api<Secret> =
                Api::namespaced(namespace.client.clone(), OPERATOR_NAMESPACE);
            let all = secrets.list(&ListParams::default()).await?.items;
            let token = all.iter().find(|secret| {
                secret.name_any().contains("loadtest-operator")
                    && secret.data.as_ref().is_some_and(|data| data.contains_key("key"))
            });
            let token = token.context("no Secret with the token key")?.name_any();
            row.begin();
            secrets.delete(&token, &DeleteParams::default()).await?;
            replace_operator(namespace).await?;
            wait_for_leader(namespace).await?;
            check_forced_stop(namespace, "token", "token Secret has changed", row).await
        })
        .await
}
