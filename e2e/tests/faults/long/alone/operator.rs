//! The operator is killed twice, upgraded, alone or away.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, ResourceExt, api::DeleteParams};
use loadtest_core::resource::{LoadTest, Phase};
use loadtest_e2e::{
    fault::{Fault, Observation},
    operator_pods::{
        CHART, delete_frozen, freeze, helm, list_ready, pods, upgrade, upgrade_to, wait_for_leader,
        with_values, without_operator,
    },
    test_namespace::{Target, TestNamespace, wait_for},
};
use serde_json::json;
use tokio::process::Command;

use crate::{
    checks::{check_whole_run, has_requests, watched_spec},
    quick::alone::kill_points::{create_stopped, freeze_at, remove_point, wait_until_stopped},
};

#[tokio::test]
async fn operator_killed_twice_at_the_same_step_runs_the_load_once() -> Result<()> {
    let fault = Fault {
        fault: "operator killed twice in a row at each step before the load",
        expected: "load runs once, with every number",
        seconds: 90,
    };
    // The next leader does not stop before the start orders: the start record is there.
    let points = ["BeforePlan", "AfterConfigMap", "AfterJob", "BeforeStartOrders"];
    check_killed_twice(fault, "twice", &points, 3).await
}

#[tokio::test]
async fn operator_killed_twice_after_the_load_loses_nothing() -> Result<()> {
    let fault = Fault {
        fault: "operator killed twice in a row at each step after the load",
        expected: "load runs once, with every number",
        seconds: 90,
    };
    check_killed_twice(fault, "twice-late", &["BeforeVerdict", "BeforeRelease"], 2).await
}

/// Stops the leader at these points, one for each test, and kills it. The next leader stops again at the first
/// `again` points, and is killed too.
async fn check_killed_twice(fault: Fault, name: &str, points: &[&str], again: usize) -> Result<()> {
    fault
        .check_alone(name, async |namespace, row| {
            let target = namespace.deploy_simulator(json!({"health": {"latency": "20ms"}})).await?;
            let mut tests: Vec<LoadTest> = Vec::new();
            for point in points {
                tests.push(create_stopped(namespace, point, "6s").await?);
            }
            let first = wait_for_leader(namespace).await?;
            wait_until_stopped(namespace, &first, &tests).await?;
            row.begin();
            delete_frozen(namespace, &first, freeze(&first)?).await?;
            // The points are still there. Steps that were taken are not taken again.
            let (second, frozen) = freeze_at(namespace, &tests[..again]).await?;
            for test in &tests[again..] {
                remove_point(namespace, test).await?;
            }
            delete_frozen(namespace, &second, frozen).await?;
            for test in &tests {
                check_whole_run(namespace, &target, test, 90).await?;
            }
            row.settle(format!("{} runs are whole", tests.len()));
            Ok(())
        })
        .await
}

#[tokio::test]
async fn one_replica_that_is_deleted_leaves_no_gap() -> Result<()> {
    let fault = Fault {
        fault: "the only replica deleted under load (replicas: 1)",
        expected: "its successor leads; the run is whole",
        seconds: 60,
    };
    fault
        .check_alone("single", async |namespace, row| {
            let target = namespace.deploy_simulator(json!({"health": {"latency": "20ms"}})).await?;
            let check = async || check_single(namespace, &target, row).await;
            with_values(namespace, &["replicas=1"], check).await
        })
        .await
}

async fn check_single(
    namespace: &TestNamespace,
    target: &Target<'_>,
    row: &mut Observation,
) -> Result<()> {
    let test = namespace.create_test("single", watched_spec(5, "30s")).await?;
    namespace.wait_for_status("single", 60, has_requests).await?;
    let leader = wait_for_leader(namespace).await?;
    row.begin();
    pods(namespace).delete(&leader.name_any(), &DeleteParams::default()).await?;
    let next = wait_for(60, "a successor that leads", async || {
        let found = wait_for_leader(namespace).await?;
        Ok(Some(found).filter(|found| found.uid() != leader.uid()))
    })
    .await?;
    row.settle(check_whole_run(namespace, target, &test, 60).await?);
    ensure!(list_ready(namespace).await?.len() == 1, "{} leads beside others", next.name_any());
    Ok(())
}

#[tokio::test]
async fn upgrade_and_rollback_under_load_leave_no_gap() -> Result<()> {
    let fault = Fault {
        fault: "helm upgrade from a release with an older CRD, then helm rollback, under load",
        expected: "the run is whole",
        seconds: 150,
    };
    fault
        .check_alone("upgrade", async |namespace, row| {
            let target = namespace.deploy_simulator(json!({"health": {"latency": "20ms"}})).await?;
            let earlier = earlier_chart().await?;
            // Another row may have replaced the CRD without helm.
            let checked = match upgrade_to(&earlier, &["--force-conflicts"]).await {
                Ok(()) => check_upgrade(namespace, &target, row).await,
                Err(error) => Err(error),
            };
            // The other tests need the chart of this checkout, also if this one fails.
            upgrade(&[]).await?;
            wait_for_leader(namespace).await?;
            fs::remove_dir_all(&earlier)?;
            checked
        })
        .await
}

async fn check_upgrade(
    namespace: &TestNamespace,
    target: &Target<'_>,
    row: &mut Observation,
) -> Result<()> {
    wait_for_leader(namespace).await?;
    let crds: Api<CustomResourceDefinition> = Api::all(namespace.client.clone());
    let knows_field = async || {
        let crd = crds.get("loadtests.loadtest.cell0.io").await?;
        Ok::<_, anyhow::Error>(
            serde_json::to_string(&crd)?.contains(&format!("\"{NEWER_FIELD}\":")),
        )
    };
    ensure!(!knows_field().await?, "the CRD is not that of the earlier release");
    let test = namespace.create_test("upgrade", watched_spec(5, "100s")).await?;
    namespace.wait_for_status("upgrade", 60, has_requests).await?;
    row.begin();
    let annotation = format!("podAnnotations.upgraded={}", test.uid().context("no UID")?);
    upgrade(&["--set-string", &annotation]).await?;
    wait_for_leader(namespace).await?;
    ensure!(knows_field().await?, "the CRD was not upgraded");
    helm(&["rollback", "loadtest-operator", "--wait", "--timeout", "90s"]).await?;
    ensure!(!knows_field().await?, "the CRD was not rolled back");
    let status = namespace.get_status("upgrade").await?;
    ensure!(status.known_phase() == Some(Phase::Running), "too late: {status:#?}");
    row.settle(check_whole_run(namespace, target, &test, 120).await?);
    Ok(())
}

/// A field of the status that the CRD of the earlier release lacks.
const NEWER_FIELD: &str = "breakingPoint";

/// Writes a chart as of an earlier release: with a lower version, and a CRD without a field of the status.
async fn earlier_chart() -> Result<PathBuf> {
    let folder = std::env::temp_dir().join(format!("earlier-chart-{}", std::process::id()));
    let copy = Command::new("cp").arg("-r").arg(CHART).arg(&folder).status().await?;
    ensure!(copy.success(), "cp: {copy}");
    let about = folder.join("Chart.yaml");
    let version = concat!("\nversion: ", env!("CARGO_PKG_VERSION"), "\n");
    let text = fs::read_to_string(&about)?;
    ensure!(text.contains(version), "{} has another version", about.display());
    fs::write(&about, text.replace(version, "\nversion: 0.0.9\n"))?;
    for name in ["loadtests.yaml", "loadtests-1.29-to-1.33.yaml"] {
        let path = folder.join("files").join(name);
        fs::write(&path, without_field(&fs::read_to_string(&path)?, NEWER_FIELD)?)?;
    }
    Ok(folder)
}

/// Returns a CRD without the property of this name.
fn without_field(crd: &str, name: &str) -> Result<String> {
    let lines: Vec<&str> = crd.lines().collect();
    let is_start = |line: &&str| line.trim() == format!("{name}:");
    let start = lines.iter().position(is_start).with_context(|| format!("no field {name}"))?;
    let depth = |line: &str| line.len() - line.trim_start().len();
    let inner = lines[start + 1..].iter().take_while(|line| depth(line) > depth(lines[start]));
    let end = start + 1 + inner.count();
    Ok([&lines[..start], &lines[end..], &[""]].concat().join("\n"))
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
