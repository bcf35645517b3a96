//! The clock of the operator is wrong, or that of the next leader is.

use anyhow::{Context, Result, ensure};
use kube::{ResourceExt, api::LogParams};
use loadtest_core::resource::{LoadTest, Phase};
use loadtest_e2e::{
    fault::{Fault, Observation},
    leftovers::check_ends,
    operator_pods::{pods, upgrade, wait_for_leader},
    test_namespace::{Target, TestNamespace, wait_for},
};
use serde_json::json;

use crate::checks::{check_whole_run, has_requests, watched_spec};

/// Installs an operator whose clock is wrong by these seconds.
async fn set_clock_error(namespace: &TestNamespace, seconds: i32) -> Result<()> {
    let variable = json!([{"name": "CLOCK_ERROR_SECONDS", "value": seconds.to_string()}]);
    upgrade(&["--set-json", &format!("extraEnv={variable}")]).await?;
    let leader = wait_for_leader(namespace).await?.name_any();
    if seconds == 0 {
        return Ok(());
    }
    wait_for(30, "a leader that notices its wrong clock", async || {
        let log = pods(namespace).logs(&leader, &LogParams::default()).await?;
        Ok(log.contains("the clock of this machine is wrong").then_some(()))
    })
    .await
}

/// Checks a test, and reports its row. With seconds, the clock gets this error while the test is under load.
async fn check_row(
    namespace: &TestNamespace,
    target: &Target<'_>,
    (name, duration): (&str, &str),
    next_error: Option<i32>,
    fault: &'static str,
) -> Result<()> {
    let fault = Fault { fault, expected: "the run is whole", seconds: 120 };
    let mut observation = Observation::default();
    observation.begin();
    let test = namespace.create_test(name, watched_spec(5, duration)).await?;
    if let Some(seconds) = next_error {
        namespace.wait_for_status(name, 60, has_requests).await?;
        observation.begin();
        set_clock_error(namespace, seconds).await?;
        let phase = namespace.get_status(name).await?.known_phase();
        ensure!(phase == Some(Phase::Running), "too late: {phase:?}");
    }
    let result = check_timely_run(namespace, target, &test).await;
    let result = result.map(|seen| observation.settle(seen));
    fault.report(result, observation)
}

/// Checks that a run is whole, and that its status has no time of another hour in it.
async fn check_timely_run(
    namespace: &TestNamespace,
    target: &Target<'_>,
    test: &LoadTest,
) -> Result<String> {
    let seen = check_whole_run(namespace, target, test, 90).await?;
    let name = test.metadata.name.as_deref().context("no name")?;
    let status = namespace.get_status(name).await?;
    let progress = status.progress.context("no progress")?;
    ensure!(progress.elapsed.as_secs_f64() < 90.0, "{progress:?}");
    Ok(seen)
}

#[tokio::test]
async fn a_wrong_clock_changes_no_run() -> Result<()> {
    TestNamespace::run_alone("clock", async |namespace| {
        let target = namespace.deploy_simulator(json!({"health": {"latency": "20ms"}})).await?;
        let result = check_clocks(&namespace, &target).await;
        // The other tests need a right clock, also if this one fails.
        set_clock_error(&namespace, 0).await?;
        result?;
        check_ends(&namespace).await
    })
    .await
}

async fn check_clocks(namespace: &TestNamespace, target: &Target<'_>) -> Result<()> {
    const HOUR: i32 = 3600;
    let rows = [
        check_row(
            namespace,
            target,
            ("forward", "60s"),
            Some(HOUR),
            "the next leader's clock is an hour ahead, under load",
        )
        .await,
        check_row(
            namespace,
            target,
            ("ahead", "8s"),
            None,
            "operator's clock an hour ahead of the runners and the API server",
        )
        .await,
        check_row(
            namespace,
            target,
            ("back", "60s"),
            Some(0),
            "the next leader's clock is an hour behind, under load",
        )
        .await,
    ];
    set_clock_error(namespace, -HOUR).await?;
    let behind = check_row(
        namespace,
        target,
        ("behind", "8s"),
        None,
        "operator's clock an hour behind the runners and the API server",
    )
    .await;
    rows.into_iter().chain([behind]).collect()
}
