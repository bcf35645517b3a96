//! Objects of a test are deleted or changed by others.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ConfigMap, Namespace, Secret},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use loadtest_core::{
    resource::{LoadTest, Phase},
    result::LoadTestResult,
};
use loadtest_e2e::{
    fault::Fault,
    leftovers::{wait_until_no_runner, wait_until_nothing_left},
    test_namespace::{Target, TestNamespace, wait_for},
};
use serde_json::json;

use crate::checks::{
    check_no_load, check_whole_run, has_requests, short, wait_for_error, watched_spec,
};

async fn start<'a>(
    namespace: &'a TestNamespace,
    name: &str,
    duration: &str,
) -> Result<(Target<'a>, LoadTest)> {
    let target = namespace.deploy_simulator(json!({"health": {"latency": "20ms"}})).await?;
    let test = namespace.create_test(name, watched_spec(5, duration)).await?;
    namespace.wait_for_status(name, 60, has_requests).await?;
    Ok((target, test))
}

#[tokio::test]
async fn deleted_plan_and_result_change_nothing_under_load() -> Result<()> {
    let fault = Fault {
        fault: "ConfigMap and LoadTestResult deleted under load",
        expected: "the run is whole, and its result is stored again",
        seconds: 40,
    };
    fault
        .check("plan", async |namespace, row| {
            let (target, test) = start(namespace, "plan", "15s").await?;
            let labels = format!("loadtest.cell0.io/uid={}", test.uid().context("no UID")?);
            let selector = ListParams::default().labels(&labels);
            let plans: Api<ConfigMap> = Api::namespaced(namespace.client.clone(), &namespace.name);
            let results: Api<LoadTestResult> =
                Api::namespaced(namespace.client.clone(), &namespace.name);
            row.begin();
            let parameters = DeleteParams::default();
            let deleted = plans.delete_collection(&parameters, &selector).await?;
            ensure!(deleted.left().is_some_and(|list| list.items.len() == 1), "no ConfigMap");
            results.delete_collection(&parameters, &selector).await?;
            let seen = check_whole_run(namespace, &target, &test, 60).await?;
            let result = namespace.read_result(&test).await?.context("no result is stored")?;
            ensure!(result.total.requests > 0);
            row.settle(seen);
            Ok(())
        })
        .await
}

#[tokio::test]
async fn deleted_job_ends_the_test_and_its_load() -> Result<()> {
    let fault = Fault {
        fault: "Job deleted under load",
        expected: "JobLost; no runner is left; the numbers are kept",
        seconds: 45,
    };
    fault
        .check("job", async |namespace, row| {
            let (target, test) = start(namespace, "job", "5m").await?;
            let jobs: Api<Job> = Api::namespaced(namespace.client.clone(), &namespace.name);
            let labels = format!("loadtest.cell0.io/uid={}", test.uid().context("no UID")?);
            row.begin();
            let selector = ListParams::default().labels(&labels);
            jobs.delete_collection(&DeleteParams::background(), &selector).await?;
            let message = wait_for_error(namespace, "job", 45, "JobLost").await?;
            wait_until_no_runner(namespace, "job").await?;
            row.settle(format!("JobLost: {}", short(&message)));
            let summary = namespace.get_status("job").await?.summary.context("no summary")?;
            let received = target.received(&test.uid().context("no UID")?).await?;
            ensure!(summary.requests > 0 && summary.requests <= received, "{summary:?}");
            Ok(())
        })
        .await
}

#[tokio::test]
async fn load_test_deleted_in_any_phase_leaves_nothing() -> Result<()> {
    let fault = Fault {
        fault: "LoadTest deleted in each phase",
        expected: "Job, ConfigMap, pods and load are gone",
        seconds: 90,
    };
    fault
        .check("phases", async |namespace, row| {
            let target = namespace.deploy_simulator(json!({"health": {"latency": "4s"}})).await?;
            row.begin();
            for phase in [
                Phase::Pending,
                Phase::Starting,
                Phase::Running,
                Phase::Stopping,
                Phase::Finished,
                Phase::Error,
                Phase::Cancelled,
            ] {
                let name = format!("{phase:?}").to_lowercase();
                let mut spec = watched_spec(2, if phase == Phase::Running { "5m" } else { "2s" });
                match phase {
                    Phase::Pending => spec["suspend"] = true.into(),
                    Phase::Starting => {
                        spec["runners"] = json!({"nodeSelector": {"no-such-label": "true"}});
                    }
                    Phase::Error => spec["runners"] = json!({"image": "Not/An_Image:!"}),
                    Phase::Cancelled => spec["cancel"] = true.into(),
                    _ => {}
                }
                let test = namespace.create_test(&name, spec).await?;
                namespace.wait_for_phase(&name, phase).await?;
                namespace.delete_test(&name).await?;
                let uid = test.uid().context("no UID")?;
                wait_until_nothing_left(namespace, &format!("loadtest.cell0.io/uid={uid}")).await?;
                check_quiet(&target, &test).await.context(name)?;
            }
            row.settle("nothing is left in seven phases");
            Ok(())
        })
        .await
}

/// Checks that no request is under way, and that no more come.
async fn check_quiet(target: &Target<'_>, test: &LoadTest) -> Result<()> {
    let uid = test.uid().context("no UID")?;
    let before = target.count_received(&uid).await?;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let after = target.count_received(&uid).await?;
    ensure!(before == after, "load goes on");
    Ok(())
}

#[tokio::test]
async fn namespace_deleted_under_load_ends_the_load() -> Result<()> {
    let fault = Fault {
        fault: "namespace deleted under load",
        expected: "the namespace is gone with all in it",
        seconds: 90,
    };
    fault
        .check("namespace", async |namespace, row| {
            let (target, test) = start(namespace, "namespace", "5m").await?;
            let uid = test.uid().context("no UID")?;
            let namespaces: Api<Namespace> = Api::all(namespace.client.clone());
            row.begin();
            namespaces.delete(&namespace.name, &DeleteParams::background()).await?;
            wait_for(90, "the end of the namespace", async || {
                Ok(namespaces.get_opt(&namespace.name).await?.is_none().then_some(()))
            })
            .await?;
            row.settle("gone");
            // The simulator ended with its namespace.
            ensure!(target.received(&uid).await.is_err(), "the target is still there");
            Ok(())
        })
        .await
}

#[tokio::test]
async fn changes_by_others_do_not_keep_the_status_from_being_written() -> Result<()> {
    let fault = Fault {
        fault: "labels of a running test changed every 100 ms (status conflicts)",
        expected: "the run is whole",
        seconds: 40,
    };
    fault
        .check("conflicts", async |namespace, row| {
            let (target, test) = start(namespace, "conflicts", "10s").await?;
            row.begin();
            let change = async {
                for number in 0_u32.. {
                    let patch = json!({"metadata": {"labels": {"change": number.to_string()}}});
                    let patch = Patch::Merge(patch);
                    namespace
                        .load_tests
                        .patch("conflicts", &PatchParams::default(), &patch)
                        .await?;
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
                Ok::<(), anyhow::Error>(())
            };
            let seen = tokio::select! {
                seen = check_whole_run(namespace, &target, &test, 60) => seen?,
                changed = change => anyhow::bail!("the test can't be changed: {changed:?}"),
            };
            row.settle(seen);
            Ok(())
        })
        .await
}

#[tokio::test]
async fn restored_test_without_status_does_not_run_again() -> Result<()> {
    let fault = Fault {
        fault: "finished LoadTest restored from a backup, without its status",
        expected: "AlreadyRan, without load",
        seconds: 20,
    };
    fault
        .check("restored", async |namespace, row| {
            let (target, test) = start(namespace, "restored", "6s").await?;
            check_whole_run(namespace, &target, &test, 60).await?;
            let backup = namespace.load_tests.get("restored").await?;
            namespace.delete_test("restored").await?;
            let mut restored = LoadTest::new("restored", backup.spec.clone());
            restored.metadata.annotations = backup.metadata.annotations.clone();
            row.begin();
            let restored = namespace.load_tests.create(&PostParams::default(), &restored).await?;
            wait_for_error(namespace, "restored", 20, "AlreadyRan").await?;
            let status = namespace.get_status("restored").await?;
            let accepted = status.condition("Accepted").context("no condition Accepted")?;
            row.settle(format!("AlreadyRan: {}", short(&accepted.message)));
            ensure!(accepted.message.contains(&test.uid().context("no UID")?), "{accepted:?}");
            check_no_load(&target, &restored).await?;
            ensure!(namespace.list_runners("restored").await?.is_empty(), "a runner");
            Ok(())
        })
        .await
}

#[tokio::test]
async fn deleted_secret_of_a_test_changes_nothing_under_load() -> Result<()> {
    let fault = Fault {
        fault: "Secret with a header of the test deleted under load",
        expected: "the run is whole",
        seconds: 40,
    };
    fault
        .check("secret", async |namespace, row| {
            let target = namespace.deploy_simulator(json!({"health": {"latency": "20ms"}})).await?;
            let secrets: Api<Secret> = Api::namespaced(namespace.client.clone(), &namespace.name);
            let secret = json!({"metadata": {"name": "api"}, "stringData": {"token": "Bearer x"}});
            secrets.create(&PostParams::default(), &serde_json::from_value(secret)?).await?;
            let mut spec = watched_spec(5, "10s");
            spec["target"]["headersFrom"] = json!([
                {"header": "authorization", "secretKeyRef": {"name": "api", "key": "token"}}
            ]);
            let test = namespace.create_test("secret", spec).await?;
            namespace.wait_for_status("secret", 60, has_requests).await?;
            row.begin();
            secrets.delete("api", &DeleteParams::default()).await?;
            row.settle(check_whole_run(namespace, &target, &test, 60).await?);
            Ok(())
        })
        .await
}
