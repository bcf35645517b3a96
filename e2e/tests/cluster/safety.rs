//! Numbers of a runner that is lost stay, also when the operator is replaced.

use std::sync::Mutex;

use anyhow::{Context, Result, ensure};
use kube::{ResourceExt, api::EvictParams};
use loadtest_core::{
    resource::{LoadTestStatus, Phase, Verdict},
    result::EventKind,
};
use serde_json::json;

use crate::lifecycle::check_whole_series;
use loadtest_e2e::{
    operator_pods::replace_operator,
    test_namespace::{TestNamespace, health_spec},
};

fn has_requests(status: &LoadTestStatus) -> bool {
    status.summary.as_ref().is_some_and(|summary| summary.requests > 0)
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
