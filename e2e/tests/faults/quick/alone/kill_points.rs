//! The leader is killed at each step of a test.

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    ResourceExt,
    api::{LogParams, Patch, PatchParams, PostParams},
};
use loadtest_core::resource::LoadTest;
use loadtest_e2e::{
    fault::{Fault, Observation},
    leftovers::{check_ends, wait_for_final_event, wait_until_no_runner},
    node::FrozenProcess,
    operator_pods::{delete_frozen, freeze, pods, wait_for_leader},
    test_namespace::{Target, TestNamespace, wait_for},
};
use serde_json::json;

use crate::checks::{check_whole_run, watched_spec};

const ANNOTATION: &str = "loadtest.cell0.io/kill-point";

/// Creates a test that stops the leader's pass at a kill point. Its name is made of the point's.
pub(crate) async fn create_stopped(
    namespace: &TestNamespace,
    point: &str,
    duration: &str,
) -> Result<LoadTest> {
    let object = json!({
        "apiVersion": "loadtest.cell0.io/v1alpha1", "kind": "LoadTest",
        "metadata": {"name": name_of(point), "annotations": {ANNOTATION: point}},
        "spec": watched_spec(5, duration),
    });
    let object = serde_json::from_value(object)?;
    Ok(namespace.load_tests.create(&PostParams::default(), &object).await?)
}

fn name_of(point: &str) -> String {
    let mut name = String::new();
    for letter in point.chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('-');
        }
        name.push(letter.to_ascii_lowercase());
    }
    name
}

/// Waits until the leader has stopped at the kill points of all these tests, and freezes it there. Then the
/// points are removed, so that the next leader does not stop.
pub(crate) async fn freeze_at(
    namespace: &TestNamespace,
    tests: &[LoadTest],
) -> Result<(Pod, FrozenProcess)> {
    let leader = wait_for_leader(namespace).await?;
    wait_until_stopped(namespace, &leader, tests).await?;
    let frozen = freeze(&leader)?;
    for test in tests {
        remove_point(namespace, test).await?;
    }
    Ok((leader, frozen))
}

/// Removes the kill point of a test.
pub(crate) async fn remove_point(namespace: &TestNamespace, test: &LoadTest) -> Result<()> {
    let patch = json!({"metadata": {"annotations": {ANNOTATION: null}}});
    let parameters = PatchParams::default();
    namespace.load_tests.patch(&test.name_any(), &parameters, &Patch::Merge(patch)).await?;
    Ok(())
}

/// Waits until the leader has stopped at the kill points of all these tests.
pub(crate) async fn wait_until_stopped(
    namespace: &TestNamespace,
    leader: &Pod,
    tests: &[LoadTest],
) -> Result<()> {
    wait_for(90, "a leader that stops at the kill points", async || {
        let log = pods(namespace).logs(&leader.name_any(), &LogParams::default()).await?;
        let stopped = |test: &LoadTest| {
            let name = format!("\"name\":\"{}\"", test.name_any());
            log.lines().any(|line| line.contains("waits at its kill point") && line.contains(&name))
        };
        let missing: Vec<_> = tests.iter().filter(|test| !stopped(test)).collect();
        if let Some(test) = missing.first() {
            anyhow::bail!("no pass of {} has stopped", test.name_any());
        }
        Ok(Some(()))
    })
    .await
}

#[tokio::test]
async fn leader_is_killed_at_each_step_before_the_load() -> Result<()> {
    check_steps(
        "early-kill",
        &[
            ("BeforePlan", "6s", "operator killed before the plan"),
            ("AfterConfigMap", "6s", "operator killed after the ConfigMap"),
            ("AfterJob", "6s", "operator killed after the Job"),
            ("BeforeStartOrders", "6s", "operator killed at the barrier, before the start orders"),
            ("AfterStartOrders", "6s", "operator killed at the barrier, after the start orders"),
        ],
    )
    .await
}

#[tokio::test]
async fn leader_is_killed_at_each_step_after_the_load() -> Result<()> {
    check_steps(
        "late-kill",
        &[
            ("BeforeVerdict", "6s", "operator killed during the final write"),
            ("AfterVerdict", "6s", "operator killed after the final write, before its Event"),
            ("BeforeRelease", "6s", "operator killed between stop and release"),
        ],
    )
    .await
}

/// Checks that a test is whole and that an Event says how it ended.
async fn check_told_run(
    namespace: &TestNamespace,
    target: &Target<'_>,
    test: &LoadTest,
) -> Result<String> {
    let seen = check_whole_run(namespace, target, test, 60).await?;
    let finished = namespace.load_tests.get(&test.name_any()).await?;
    wait_for_final_event(namespace, &finished, 30).await?;
    Ok(seen)
}

/// Stops the leader at several points, one for each test, and kills it once. All tests must be whole.
async fn check_steps(name: &str, steps: &[(&str, &str, &'static str)]) -> Result<()> {
    TestNamespace::run_alone(name, async |namespace| {
        let target = namespace.deploy_simulator(json!({"health": {"latency": "20ms"}})).await?;
        let mut tests = Vec::new();
        for (point, duration, _) in steps {
            tests.push(create_stopped(&namespace, point, duration).await?);
        }
        let (leader, frozen) = freeze_at(&namespace, &tests).await?;
        let mut observations: Vec<Observation> =
            steps.iter().map(|_| Observation::default()).collect();
        observations.iter_mut().for_each(Observation::begin);
        delete_frozen(&namespace, &leader, frozen).await?;
        let mut failed = Vec::new();
        for ((test, (.., fault)), mut observation) in tests.iter().zip(steps).zip(observations) {
            let fault = Fault { fault, expected: "load runs once, with every number", seconds: 45 };
            let result = check_told_run(&namespace, &target, test).await;
            let result = result.map(|seen| observation.settle(seen));
            failed.extend(fault.report(result, observation).err());
        }
        failed.into_iter().next().map_or(Ok(()), Err).context("a test is not whole")?;
        // Released runners exit after a delay.
        for test in tests.iter().filter(|test| test.name_any() == name_of("BeforeRelease")) {
            wait_until_no_runner(&namespace, &test.name_any()).await?;
        }
        check_ends(&namespace).await
    })
    .await
}
