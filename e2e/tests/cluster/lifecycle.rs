//! What a run survives, and how it ends.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, EvictParams, ListParams, LogParams, Patch, PatchParams},
};
use loadtest_core::resource::{Phase, Verdict};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::story::{OPERATOR_NAMESPACE, Story, health, pod_ip, within};

async fn kill_operator(story: &Story) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(story.client.clone(), OPERATOR_NAMESPACE);
    let operators = pods
        .list(&ListParams::default().labels("app.kubernetes.io/name=loadtest-operator"))
        .await?;
    ensure!(!operators.items.is_empty(), "no operator in {OPERATOR_NAMESPACE}");
    for pod in operators.items {
        pods.delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_operator_killed_mid_run_finishes_the_same_run_with_the_same_numbers() -> Result<()> {
    // Alone: a stage that ends while the operator is gone is Inconclusive, as it should be.
    Story::tell_alone("restart", async |story| {
        let target = story.simulator(json!({"health": {"latency": "50ms"}})).await?;
        let mut spec = health(20, "15s", &json!([{"metric": "errorRate", "target": "< 1%"}]));
        spec["runners"] = json!({"usersPerRunner": 10});
        let test = story.start("restart", spec).await?;
        let before = story.in_phase("restart", Phase::Running).await?;
        kill_operator(&story).await?;
        story.until("restart", 60, |s| s.progress.as_ref().is_some_and(|p| p.percent > 40)).await?;
        kill_operator(&story).await?;
        let status = story.finished("restart", 120).await?;

        ensure!(status.verdict == Some(Verdict::Pass), "{status:#?}");
        ensure!(status.start_time == before.start_time, "started again: {status:#?}");
        let truth = target.truth(&test.uid().context("no UID")?).await?;
        let summary = status.summary.context("no summary")?;
        // Fired twice, the target would have seen what the status has not, or twice as much.
        ensure!(summary.requests.cast_unsigned() == truth.totals.counts.received, "{summary:?}");
        let most = 20.0 * 15.0 / 0.100;
        ensure!((summary.requests as f64) < most, "{summary:?}");
        let measured = status.measurement.context("no measurement")?;
        ensure!(measured.runners_lost == 0, "{measured:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_evicted_runner_makes_a_test_inconclusive_and_leaves_its_numbers() -> Result<()> {
    Story::tell("evicted", async |story| {
        let target = story.simulator(json!({})).await?;
        let spec = health(5, "20s", &json!([{"metric": "errorRate", "target": "< 1%"}]));
        let test = story.start("evicted", spec).await?;
        story.until("evicted", 60, |s| s.summary.as_ref().is_some_and(|s| s.requests > 0)).await?;
        let pods: Api<Pod> = Api::namespaced(story.client.clone(), &story.namespace);
        let runners = story.runners("evicted").await?;
        let runner = runners.first().context("no runner")?.name_any();
        pods.evict(&runner, &EvictParams::default()).await?;
        let status = story.finished("evicted", 60).await?;
        ensure!(status.verdict == Some(Verdict::Inconclusive), "{status:#?}");
        let why = status.condition("Passed").context("no condition")?;
        ensure!(why.reason == "RunnersLost", "{why:?}");
        let summary = status.summary.context("no summary")?;
        let truth = target.truth(&test.uid().context("no UID")?).await?;
        let received = truth.totals.counts.received;
        // One that was cut off while connecting never came to the target.
        let last = summary.requests.cast_unsigned() + summary.interrupted.cast_unsigned();
        ensure!(summary.requests.cast_unsigned() <= received && received <= last, "{summary:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_deleted_test_leaves_no_pod_within_its_grace_period() -> Result<()> {
    Story::tell("deleted", async |story| {
        story.simulator(json!({})).await?;
        story.start("deleted", health(5, "5m", &json!([]))).await?;
        story.in_phase("deleted", Phase::Running).await?;
        ensure!(story.runners("deleted").await?.len() == 1);
        story.tests.delete("deleted", &DeleteParams::background()).await?;
        // The pods' own grace period is 10 s; the garbage collector and the kubelet need a moment more.
        within(30, "no runner pod", async || {
            Ok(story.runners("deleted").await?.is_empty().then_some(()))
        })
        .await
    })
    .await
}

#[tokio::test]
async fn a_cancelled_test_ends_soon_with_its_numbers_and_never_passes() -> Result<()> {
    Story::tell("cancel", async |story| {
        let target = story.simulator(json!({})).await?;
        let spec = health(5, "5m", &json!([{"metric": "errorRate", "target": "< 1%"}]));
        let test = story.start("cancel", spec).await?;
        story.until("cancel", 60, |s| s.summary.as_ref().is_some_and(|s| s.requests > 0)).await?;
        let cancel = Patch::Merge(json!({"spec": {"cancel": true}}));
        story.tests.patch("cancel", &PatchParams::default(), &cancel).await?;
        let status = story.finished("cancel", 20).await?;
        ensure!(status.phase == Some(Phase::Cancelled), "{status:#?}");
        ensure!(status.verdict == Some(Verdict::Inconclusive), "{status:#?}");
        let truth = target.truth(&test.uid().context("no UID")?).await?;
        let summary = status.summary.context("no summary")?;
        ensure!(summary.requests.cast_unsigned() == truth.totals.counts.received, "{summary:?}");
        let back = Patch::Merge(json!({"spec": {"cancel": false}}));
        let refused = story.tests.patch("cancel", &PatchParams::default(), &back).await;
        let error = refused.err().context("cancel was taken back")?.to_string();
        ensure!(error.contains("spec.cancel can't be taken back"), "{error}");
        Ok(())
    })
    .await
}

async fn ends_without_a_secret(name: &str, secret: Option<&str>, says: &str) -> Result<()> {
    Story::tell(name, async |story| {
        let target = story.simulator(json!({})).await?;
        if let Some(secret) = secret {
            story.apply(secret).await?;
        }
        let mut spec = health(5, "5s", &json!([]));
        spec["target"]["headersFrom"] = json!([
            {"header": "authorization", "secretKeyRef": {"name": "api", "key": "token"}}
        ]);
        let test = story.start(name, spec).await?;
        let status = story.finished(name, 30).await?;
        ensure!(status.phase == Some(Phase::Error), "{status:#?}");
        let finished = status.condition("Finished").context("no condition")?;
        ensure!(finished.reason == "ContainerConfig", "{finished:?}");
        ensure!(finished.message.contains(says), "{finished:?}");
        let received = target.received(&test.uid().context("no UID")?).await?;
        ensure!(received == 0, "{received} requests were sent");
        within(20, "no runner pod", async || {
            Ok(story.runners(name).await?.is_empty().then_some(()))
        })
        .await
    })
    .await
}

#[tokio::test]
async fn a_missing_secret_ends_the_run_within_30_s_and_sends_no_load() -> Result<()> {
    ends_without_a_secret("secret", None, "secret \"api\" not found").await
}

#[tokio::test]
async fn a_secret_without_the_key_ends_the_run_within_30_s_and_sends_no_load() -> Result<()> {
    let other = "{apiVersion: v1, kind: Secret, metadata: {name: api}, stringData: {other: x}}";
    ends_without_a_secret("key", Some(other), "couldn't find key token in Secret").await
}

/// A server on the node, which pods reach, that answers every request and counts those with a
/// text in them.
async fn counting(story: &Story, text: &'static str) -> Result<(String, Arc<AtomicU32>)> {
    let nodes: Api<Node> = Api::all(story.client.clone());
    let nodes = nodes.list(&ListParams::default()).await?.items;
    let mut addresses = nodes.iter().filter_map(|node| node.status.as_ref()?.addresses.as_ref());
    let address = addresses.find_map(|all| all.iter().find(|a| a.type_ == "InternalIP"));
    let node = &address.context("no node with an InternalIP")?.address;
    let listener = TcpListener::bind("0.0.0.0:0").await?;
    let url = format!("http://{node}:{}", listener.local_addr()?.port());
    let count = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let counted = Arc::clone(&counted);
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok(n @ 1..) = socket.read(&mut buffer).await {
                    if String::from_utf8_lossy(&buffer[..n]).contains(text) {
                        counted.fetch_add(1, Ordering::Relaxed);
                    }
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                    if socket.write_all(answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok((url, count))
}

#[tokio::test]
async fn a_secrets_value_reaches_the_target_and_nothing_else() -> Result<()> {
    Story::tell("header", async |story| {
        let (url, arrived) = counting(&story, "authorization: s3cr3t\r\n").await?;
        story
            .apply("{apiVersion: v1, kind: Secret, metadata: {name: api}, stringData: {token: s3cr3t}}")
            .await?;
        let mut spec = health(2, "8s", &json!([{"metric": "errorRate", "target": "< 1%"}]));
        spec["target"]["http"] = url.into();
        spec["target"]["headersFrom"] = json!([
            {"header": "authorization", "secretKeyRef": {"name": "api", "key": "token"}}
        ]);
        story.start("header", spec).await?;
        let status = story.finished("header", 60).await?;
        ensure!(status.verdict == Some(Verdict::Pass), "{status:#?}");
        let requests = status.summary.context("no summary")?.requests;
        ensure!(requests > 0 && requests == i64::from(arrived.load(Ordering::Relaxed)));
        let test = serde_json::to_string(&story.tests.get("header").await?)?;
        ensure!(!test.contains("s3cr3t"));
        for pod in story.runners("header").await? {
            ensure!(!serde_json::to_string(&pod)?.contains("s3cr3t"));
            let log = story.pods.logs(&pod.name_any(), &LogParams::default()).await?;
            ensure!(!log.contains("s3cr3t"), "{log}");
            let url = format!("http://{}:9464/metrics", pod_ip(&pod).context("no address")?);
            let metrics = story.http.get(url).send().await?.text().await?;
            ensure!(metrics.contains("loadtest_requests_total") && !metrics.contains("s3cr3t"));
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_job_that_the_api_server_refuses_is_an_error_in_its_words() -> Result<()> {
    Story::tell("refused", async |story| {
        let mut spec = health(2, "3s", &json!([]));
        spec["runners"] = json!({"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}});
        story.start("refused", spec).await?;
        let status = story.finished("refused", 30).await?;
        ensure!(status.phase == Some(Phase::Error), "{status:#?}");
        let finished = status.condition("Finished").context("no condition")?;
        ensure!(finished.reason == "Refused", "{finished:?}");
        ensure!(finished.message.contains("less than or equal to cpu limit"), "{finished:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_image_that_does_not_exist_is_an_error_that_names_it() -> Result<()> {
    Story::tell("image", async |story| {
        let mut spec = health(2, "3s", &json!([]));
        spec["runners"] = json!({"image": "Not/An_Image:!"});
        story.start("image", spec).await?;
        let status = story.finished("image", 60).await?;
        let finished = status.condition("Finished").context("no condition")?;
        ensure!(finished.reason == "ImagePull", "{finished:?}");
        ensure!(finished.message.contains("Not/An_Image"), "{finished:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_test_of_the_longest_name_runs_and_its_time_to_live_removes_it() -> Result<()> {
    Story::tell("longest", async |story| {
        story.simulator(json!({})).await?;
        let name = format!("{}.{}", "a".repeat(63), "b".repeat(189));
        ensure!(name.len() == 253);
        let mut spec = health(2, "8s", &json!([{"metric": "errorRate", "target": "< 1%"}]));
        spec["ttlSecondsAfterFinished"] = 10.into();
        story.start(&name, spec).await?;
        let status = story.finished(&name, 60).await?;
        ensure!(status.verdict == Some(Verdict::Pass), "{status:#?}");
        within(60, "the test's removal", async || {
            Ok(story.tests.get_opt(&name).await?.is_none().then_some(()))
        })
        .await
    })
    .await
}

#[tokio::test]
async fn a_started_test_can_not_be_changed_and_the_message_says_what_to_do() -> Result<()> {
    Story::tell("frozen", async |story| {
        story.simulator(json!({})).await?;
        story.start("frozen", health(2, "20s", &json!([]))).await?;
        story.until("frozen", 60, |s| s.plan.is_some()).await?;
        for change in [
            json!({"spec": {"load": {"users": 3}}}),
            json!({"spec": {"target": {"headers": {"x-new": "1"}}}}),
            json!({"spec": {"thresholds": [{"metric": "errorRate", "target": "< 1%"}]}}),
            json!({"spec": {"runners": {"usersPerRunner": 7}}}),
            json!({"spec": {"scenario": {"seed": 9}}}),
        ] {
            let patch = Patch::Merge(&change);
            let refused = story.tests.patch("frozen", &PatchParams::default(), &patch).await;
            let error = refused.err().with_context(|| format!("{change} was taken"))?.to_string();
            ensure!(error.contains("kubectl replace --force -f"), "{error}");
        }
        let ttl = Patch::Merge(json!({"spec": {"ttlSecondsAfterFinished": 600}}));
        story.tests.patch("frozen", &PatchParams::default(), &ttl).await?;
        Ok(())
    })
    .await
}
