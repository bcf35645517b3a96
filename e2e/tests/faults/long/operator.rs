//! The operator is killed twice or upgraded, or the image of the runners is that of another program.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use loadtest_core::resource::{LoadTest, Phase};
use loadtest_e2e::{
    fault::Fault,
    operator_pods::{delete_frozen, freeze, helm, upgrade, wait_for_leader, without_operator},
};
use serde_json::json;

use crate::{
    checks::{check_whole_run, has_requests, short, wait_for_error, watched_spec},
    quick::kill_points::{create_stopped, freeze_at, wait_until_stopped},
};

#[tokio::test]
async fn operator_killed_twice_at_the_same_step_runs_the_load_once() -> Result<()> {
    let fault = Fault {
        fault: "operator killed twice in a row at each step before the load",
        expected: "load runs once, with every number",
        seconds: 90,
    };
    fault
        .check_alone("twice", async |namespace, row| {
            let target = namespace.deploy_simulator(json!({"health": {"latency": "20ms"}})).await?;
            let mut tests: Vec<LoadTest> = Vec::new();
            for point in ["BeforePlan", "AfterConfigMap", "AfterJob", "BeforeStartOrders"] {
                tests.push(create_stopped(namespace, point, "6s").await?);
            }
            let first = wait_for_leader(namespace).await?;
            wait_until_stopped(namespace, &first, &tests).await?;
            row.begin();
            delete_frozen(namespace, &first, freeze(&first)?).await?;
            // The points are still there. Steps that were taken are not taken again.
            let stopped = &tests[..3];
            let second = wait_for_leader(namespace).await?;
            wait_until_stopped(namespace, &second, stopped).await?;
            let (second, frozen) = freeze_at(namespace, stopped).await?;
            for test in &tests {
                crate::quick::kill_points::remove_point(namespace, test).await?;
            }
            delete_frozen(namespace, &second, frozen).await?;
            for test in &tests {
                check_whole_run(namespace, &target, test, 90).await?;
            }
            row.settle("four runs are whole");
            Ok(())
        })
        .await
}

#[tokio::test]
async fn upgrade_and_rollback_under_load_leave_no_gap() -> Result<()> {
    let fault = Fault {
        fault: "helm upgrade, then helm rollback under load",
        expected: "the run is whole",
        seconds: 120,
    };
    fault
        .check_alone("upgrade", async |namespace, row| {
            let target = namespace.deploy_simulator(json!({"health": {"latency": "20ms"}})).await?;
            let test = namespace.create_test("upgrade", watched_spec(5, "90s")).await?;
            namespace.wait_for_status("upgrade", 60, has_requests).await?;
            row.begin();
            let annotation = format!("podAnnotations.upgraded={}", test.uid().context("no UID")?);
            upgrade(&["--set-string", &annotation]).await?;
            wait_for_leader(namespace).await?;
            helm(&["rollback", "loadtest-operator", "--wait", "--timeout", "90s"]).await?;
            let status = namespace.get_status("upgrade").await?;
            ensure!(status.known_phase() == Some(Phase::Running), "too late: {status:#?}");
            row.settle(check_whole_run(namespace, &target, &test, 90).await?);
            wait_for_leader(namespace).await?;
            Ok(())
        })
        .await
}

#[tokio::test]
async fn no_operator_for_100_seconds_leaves_no_gap() -> Result<()> {
    let fault = Fault {
        fault: "no operator for 100 s under load",
        expected: "the run is whole",
        seconds: 210,
    };
    fault
        .check_alone("absent", async |namespace, row| {
            let target = namespace.deploy_simulator(json!({"health": {"latency": "20ms"}})).await?;
            let test = namespace.create_test("absent", watched_spec(5, "150s")).await?;
            namespace.wait_for_status("absent", 60, has_requests).await?;
            row.begin();
            without_operator(namespace, async || {
                tokio::time::sleep(Duration::from_secs(100)).await;
                Ok(())
            })
            .await?;
            row.settle(check_whole_run(namespace, &target, &test, 120).await?);
            Ok(())
        })
        .await
}

#[tokio::test]
async fn image_that_is_no_runner_ends_the_test() -> Result<()> {
    let fault = Fault {
        fault: "image of the runners answers, and is no runner",
        expected: "Unreachable with what was answered, and no pod left",
        seconds: 90,
    };
    fault
        .check("no-runner", async |namespace, row| {
            // Its probes are those of the simulator, on the port of a runner.
            let simulator = json!({
                "name": "runner", "args": ["--control-port=9464"], "command": ["/cell0-simulator"],
            });
            let mut spec = watched_spec(2, "20s");
            spec["runners"] = json!({
                "image": "cell0-simulator:0.1.0",
                "podTemplate": {"spec": {"containers": [simulator]}},
            });
            row.begin();
            namespace.create_test("no-runner", spec).await?;
            let message = wait_for_error(namespace, "no-runner", 120, "Unreachable").await?;
            row.settle(format!("Unreachable: {}", short(&message)));
            Ok(())
        })
        .await
}
