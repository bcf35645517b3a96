//! The life of a load test: operator restarts, lost runners, cancellation, errors and deletion.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::batch::v1::Job;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, LogParams, Patch, PatchParams},
};
use loadtest_core::{
    resource::{Phase, Verdict},
    result::{Point, RunResult},
};
use serde_json::json;

use loadtest_e2e::{
    leftovers::wait_until_no_runner,
    operator_pods::{replace_operator, without_operator},
    test_namespace::{TestNamespace, health_spec, wait_for},
};

#[tokio::test]
async fn replaced_operator_finishes_the_same_run() -> Result<()> {
    // This test runs alone, because it kills the operator that all tests share. A stage of another
    // test that ended meanwhile would be Inconclusive.
    TestNamespace::run_alone("restart", async |namespace| {
        let target = namespace.deploy_simulator(json!({"health": {"latency": "50ms"}})).await?;
        let thresholds = json!([
            {"metric": "errorRate", "target": "< 1%"},
            {"metric": "responseTime", "statistic": "p50", "target": "< 1s", "window": "5s"},
        ]);
        let mut spec = health_spec(20, "45s", &thresholds);
        spec["runners"] = json!({"usersPerRunner": 10});
        let test = namespace.create_test("restart", spec).await?;
        let run_uid = test.uid().context("no UID")?;
        let before = namespace.wait_for_phase("restart", Phase::Running).await?;
        replace_operator(&namespace).await?;
        namespace
            .wait_for_status("restart", 60, |s| s.progress.as_ref().is_some_and(|p| p.percent > 20))
            .await?;
        // No operator for longer than the longest time between two snapshots that counts as observed.
        let alone = target.received(&run_uid).await?;
        without_operator(&namespace, async || {
            wait_for(20, "requests without an operator", async || {
                let received = target.received(&run_uid).await?;
                Ok((received > alone + 20 * 45).then_some(()))
            })
            .await
        })
        .await?;
        let status = namespace.wait_until_finished("restart", 120).await?;

        ensure!(status.known_verdict() == Some(Verdict::Pass), "{status:#?}");
        ensure!(status.start_time == before.start_time, "started again: {status:#?}");
        let truth = target.get_truth(&run_uid).await?;
        let summary = status.summary.context("no summary")?;
        // If the load had run twice, the target would have received more requests than the status
        // reports, or twice the possible number.
        ensure!(summary.requests == truth.totals.counts.received, "{summary:?}");
        let max_requests = 20.0 * 45.0 / 0.100;
        ensure!((summary.requests as f64) < max_requests, "{summary:?}");
        let measured = status.measurement.context("no measurement")?;
        ensure!(measured.runners_lost == 0, "{measured:?}");
        // The runners kept what nobody read, so no window is missing.
        ensure!(measured.unobserved.is_none(), "{measured:?}");
        // The series of the result covers the whole test, restarts included.
        let result = namespace.read_result(&test).await?.context("no result")?;
        check_whole_series(&result)?;
        ensure!(result.total.requests == summary.requests, "{} requests", result.total.requests);
        let longest = result.series.points.iter().map(Point::seconds).fold(0.0, f64::max);
        ensure!(longest < 4.0, "a point of {longest} s");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_job_deleted_without_operator_keeps_its_numbers() -> Result<()> {
    TestNamespace::run_alone("job-lost", async |namespace| {
        namespace.deploy_simulator(json!({"health": {"latency": "20ms"}})).await?;
        let mut spec = health_spec(4, "5m", &json!([]));
        // The result is written at the end of each stage.
        let stage = |duration: &str| json!({"users": 4, "duration": duration, "ramp": "Step"});
        spec["load"] = json!({"stages": [stage("3s"), stage("5m")]});
        let test = namespace.create_test("orphan", spec).await?;
        let running = namespace.wait_for_status("orphan", 60, |s| !s.stages.is_empty()).await?;
        let before = wait_for(20, "a stored result with requests", async || {
            let stored = namespace.read_result(&test).await?;
            Ok(stored.filter(|result| result.total.requests > 0))
        })
        .await?;
        let jobs: Api<Job> = Api::namespaced(namespace.client.clone(), &namespace.name);
        without_operator(&namespace, async || {
            let options = (DeleteParams::background(), ListParams::default());
            jobs.delete_collection(&options.0, &options.1).await?;
            Ok(())
        })
        .await?;
        let status = namespace.wait_until_finished("orphan", 60).await?;
        ensure!(status.known_phase() == Some(Phase::Error), "{status:#?}");
        ensure!(status.start_time == running.start_time, "{status:#?}");
        let after = namespace.read_result(&test).await?.context("no result")?;
        ensure!(after.total.requests >= before.total.requests, "{}", after.total.requests);
        ensure!(after.status.known_phase() == Some(Phase::Error), "{:?}", after.status.phase);
        let lost = after.runners.iter().filter(|runner| runner.loss.is_some()).count();
        ensure!(lost == 1, "{:?}", after.runners);
        Ok(())
    })
    .await
}

/// Checks that the points of a series follow each other from the start to the end of the load, and
/// that together they hold every request.
pub(crate) fn check_whole_series(result: &RunResult) -> Result<()> {
    let points = &result.series.points;
    let mut end = 0.0_f64;
    for point in points {
        ensure!((point.start - end).abs() < 1e-6, "a gap in the series at {end} s");
        end = point.end;
    }
    ensure!((end - result.elapsed_seconds).abs() < 0.01, "the series ends at {end} s");
    let tasks = points.iter().flat_map(|point| point.tasks.values());
    let requests: u64 = tasks.map(|task| task.requests).sum();
    ensure!(requests == result.total.requests, "{requests} requests in the series");
    Ok(())
}

#[tokio::test]
async fn cancelled_test_ends_soon_keeps_metrics_and_never_passes() -> Result<()> {
    TestNamespace::run("cancel", async |namespace| {
        let target = namespace.deploy_simulator(json!({})).await?;
        let spec = health_spec(5, "5m", &json!([{"metric": "errorRate", "target": "< 1%"}]));
        let test = namespace.create_test("cancel", spec).await?;
        namespace
            .wait_for_status("cancel", 60, |s| s.summary.as_ref().is_some_and(|s| s.requests > 0))
            .await?;
        let cancel = Patch::Merge(json!({"spec": {"cancel": true}}));
        namespace.load_tests.patch("cancel", &PatchParams::default(), &cancel).await?;
        let status = namespace.wait_until_finished("cancel", 20).await?;
        ensure!(status.known_phase() == Some(Phase::Cancelled), "{status:#?}");
        ensure!(status.known_verdict() == Some(Verdict::Inconclusive), "{status:#?}");
        let truth = target.get_truth(&test.uid().context("no UID")?).await?;
        let summary = status.summary.context("no summary")?;
        ensure!(summary.requests == truth.totals.counts.received, "{summary:?}");
        let undo = Patch::Merge(json!({"spec": {"cancel": false}}));
        let response = namespace.load_tests.patch("cancel", &PatchParams::default(), &undo).await;
        let error = response.err().context("spec.cancel was set back to false")?.to_string();
        ensure!(error.contains("spec.cancel can't be set back to false"), "{error}");
        Ok(())
    })
    .await
}

/// Runs a load test with a header from the Secret `api`. Checks that the test ends with `message`
/// within 30 s and sends no request. `secret` is the Secret's YAML, if there is one.
async fn check_secret_error(name: &str, secret: Option<&str>, message: &str) -> Result<()> {
    TestNamespace::run(name, async |namespace| {
        let target = namespace.deploy_simulator(json!({})).await?;
        if let Some(secret) = secret {
            namespace.apply(secret).await?;
        }
        let mut spec = health_spec(5, "5s", &json!([]));
        spec["target"]["headersFrom"] = json!([
            {"header": "authorization", "secretKeyRef": {"name": "api", "key": "token"}}
        ]);
        let test = namespace.create_test(name, spec).await?;
        let status = namespace.wait_until_finished(name, 30).await?;
        ensure!(status.known_phase() == Some(Phase::Error), "{status:#?}");
        let finished = status.condition("Finished").context("no condition")?;
        ensure!(finished.reason == "ContainerConfig", "{finished:?}");
        ensure!(finished.message.contains(message), "{finished:?}");
        let received = target.count_received(&test.uid().context("no UID")?).await?;
        ensure!(received == 0, "{received} requests were sent");
        wait_for(20, "no runner pod", async || {
            Ok(namespace.list_runners(name).await?.is_empty().then_some(()))
        })
        .await
    })
    .await
}

#[tokio::test]
async fn missing_secret_ends_the_test_before_any_load() -> Result<()> {
    check_secret_error("secret", None, "secret \"api\" not found").await
}

#[tokio::test]
async fn secret_without_the_key_ends_the_test_before_any_load() -> Result<()> {
    let secret = "{apiVersion: v1, kind: Secret, metadata: {name: api}, stringData: {other: x}}";
    check_secret_error("key", Some(secret), "couldn't find key token in Secret").await
}

#[tokio::test]
async fn job_rejected_by_the_api_server_reports_its_message() -> Result<()> {
    TestNamespace::run("refused", async |namespace| {
        let mut spec = health_spec(2, "3s", &json!([]));
        spec["runners"] = json!({"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}});
        namespace.create_test("refused", spec).await?;
        let status = namespace.wait_until_finished("refused", 30).await?;
        ensure!(status.known_phase() == Some(Phase::Error), "{status:#?}");
        let finished = status.condition("Finished").context("no condition")?;
        ensure!(finished.reason == "Refused", "{finished:?}");
        let accepted = status.condition("Accepted").context("no condition")?;
        ensure!(accepted.status == "False", "{accepted:?}");
        ensure!(accepted.message.contains("less than or equal to cpu limit"), "{accepted:?}");
        ensure!(namespace.list_runners("refused").await?.is_empty());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn invalid_runner_image_is_named_in_the_error() -> Result<()> {
    TestNamespace::run("image", async |namespace| {
        let mut spec = health_spec(2, "3s", &json!([]));
        spec["runners"] = json!({"image": "Not/An_Image:!"});
        namespace.create_test("image", spec).await?;
        let status = namespace.wait_until_finished("image", 60).await?;
        let finished = status.condition("Finished").context("no condition")?;
        ensure!(finished.reason == "ImagePull", "{finished:?}");
        ensure!(finished.message.contains("Not/An_Image"), "{finished:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn longest_test_name_runs_and_its_ttl_deletes_the_test() -> Result<()> {
    TestNamespace::run("longest", async |namespace| {
        namespace.deploy_simulator(json!({})).await?;
        let name = format!("{}.{}", "a".repeat(63), "b".repeat(189));
        ensure!(name.len() == 253);
        let mut spec = health_spec(2, "8s", &json!([{"metric": "errorRate", "target": "< 1%"}]));
        spec["ttlSecondsAfterFinished"] = 10.into();
        namespace.create_test(&name, spec).await?;
        let status = namespace.wait_until_finished(&name, 60).await?;
        ensure!(status.known_verdict() == Some(Verdict::Pass), "{status:#?}");
        wait_for(60, "the deletion of the test by its TTL", async || {
            Ok(namespace.load_tests.get_opt(&name).await?.is_none().then_some(()))
        })
        .await
    })
    .await
}

#[tokio::test]
async fn logs_of_a_finished_test_stay_after_its_runners_have_ended() -> Result<()> {
    TestNamespace::run("logs", async |namespace| {
        namespace.deploy_simulator(json!({})).await?;
        let mut spec = health_spec(4, "3s", &json!([]));
        spec["runners"] = json!({"usersPerRunner": 2});
        namespace.create_test("logs", spec).await?;
        namespace.wait_until_finished("logs", 90).await?;
        // Runners stay for a while, so that Prometheus gets their last numbers.
        wait_until_no_runner(&namespace, "logs").await?;
        // Each end of a pod causes a reconciliation.
        tokio::time::sleep(Duration::from_secs(3)).await;
        for runner in namespace.list_runners("logs").await? {
            let log = namespace.pods.logs(&runner.name_any(), &LogParams::default()).await?;
            ensure!(log.contains("numbers are final"), "{log}");
        }
        ensure!(namespace.list_runners("logs").await?.len() == 2, "pods are gone");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn changing_a_started_test_fails_and_names_the_remedy() -> Result<()> {
    TestNamespace::run("frozen", async |namespace| {
        namespace.deploy_simulator(json!({})).await?;
        namespace.create_test("frozen", health_spec(2, "20s", &json!([]))).await?;
        namespace.wait_for_status("frozen", 60, |s| s.plan.is_some()).await?;
        for change in [
            json!({"spec": {"load": {"users": 3}}}),
            json!({"spec": {"target": {"headers": {"x-new": "1"}}}}),
            json!({"spec": {"thresholds": [{"metric": "errorRate", "target": "< 1%"}]}}),
            json!({"spec": {"runners": {"usersPerRunner": 7}}}),
            json!({"spec": {"scenario": {"seed": 9}}}),
            json!({"spec": {"onRunnerLoss": "Continue"}}),
            json!({"spec": {"preflight": "Skip"}}),
            json!({"spec": {"startTimeout": "1h"}}),
        ] {
            let patch = Patch::Merge(&change);
            let response =
                namespace.load_tests.patch("frozen", &PatchParams::default(), &patch).await;
            let error =
                response.err().with_context(|| format!("{change} was accepted"))?.to_string();
            ensure!(error.contains("kubectl replace --force -f"), "{error}");
        }
        let ttl = Patch::Merge(json!({"spec": {"ttlSecondsAfterFinished": 600}}));
        namespace.load_tests.patch("frozen", &PatchParams::default(), &ttl).await?;
        Ok(())
    })
    .await
}
