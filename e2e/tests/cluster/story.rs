//! What every story needs: a namespace of its own, a simulator in it, and conditions to wait for.

use std::{
    fmt::Debug,
    future::Future,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use cell0_simulator::RunTruth;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{
    Api, Client, Config, ResourceExt,
    api::{
        ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams,
        PostParams,
    },
};
use loadtest_core::resource::{LoadTest, LoadTestStatus, Phase};
use serde_json::{Value, json};
use tokio::sync::RwLock;

/// Where the operator is installed.
pub(crate) const OPERATOR_NAMESPACE: &str = "loadtest-system";

/// Attempts at a run that a busy machine can spoil.
pub(crate) const ATTEMPTS: u32 = 4;

/// Held by every story: shared, or alone.
static MACHINE: RwLock<()> = RwLock::const_new(());

/// One story's namespace, removed with everything in it when the story is over.
pub(crate) struct Story {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) tests: Api<LoadTest>,
    pub(crate) pods: Api<Pod>,
    pub(crate) http: reqwest::Client,
}

impl Story {
    /// Runs a story in a namespace that enforces the restricted standard, beside others.
    pub(crate) async fn tell<F: Future<Output = Result<()>>>(
        name: &str,
        story: impl FnOnce(Story) -> F,
    ) -> Result<()> {
        let _beside = MACHINE.read().await;
        Self::run(name, story).await
    }

    /// Runs a story while no other one runs: what it measures is a few milliseconds, or the load
    /// generator's own lateness, and one machine is runners, target, cluster and all.
    pub(crate) async fn tell_alone<F: Future<Output = Result<()>>>(
        name: &str,
        story: impl FnOnce(Story) -> F,
    ) -> Result<()> {
        let _alone = MACHINE.write().await;
        // Namespaces of stories that were told are on their way out, with what ran in them.
        let pods: Api<Pod> = Api::all(client().await?);
        let load = "app.kubernetes.io/name in (loadtest-runner, cell0-simulator)";
        let quiet = within(120, "no pod of another story", async || {
            let left = pods.list(&ListParams::default().labels(load)).await?.items;
            Ok(left.is_empty().then_some(()))
        });
        // One that broke down may have left some: it has failed, this one is told beside them.
        let _ = quiet.await;
        Self::run(name, story).await
    }

    async fn run<F: Future<Output = Result<()>>>(
        name: &str,
        story: impl FnOnce(Story) -> F,
    ) -> Result<()> {
        let client = client().await?;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let label = json!({"metadata": {
            "generateName": format!("{name}-"),
            "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
        }});
        let created = namespaces
            .create(&PostParams::default(), &serde_json::from_value(label)?)
            .await
            .context("no namespace")?;
        let namespace = created.name_any();
        let told = story(Self {
            tests: Api::namespaced(client.clone(), &namespace),
            pods: Api::namespaced(client.clone(), &namespace),
            client: client.clone(),
            namespace: namespace.clone(),
            http: reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build()?,
        })
        .await;
        let gone = namespaces.delete(&namespace, &DeleteParams::background()).await;
        told?;
        gone.context("namespace can't be removed")?;
        Ok(())
    }

    /// Applies the documents of a YAML text, as `kubectl apply` would.
    pub(crate) async fn apply(&self, yaml: &str) -> Result<()> {
        for document in serde_yaml::Deserializer::from_str(yaml) {
            let object: DynamicObject = serde::Deserialize::deserialize(document)?;
            let types = object.types.clone().context("document without kind")?;
            let kind = GroupVersionKind::try_from(&types)?;
            let resource = ApiResource::from_gvk(&kind);
            let api: Api<DynamicObject> =
                Api::namespaced_with(self.client.clone(), &self.namespace, &resource);
            let parameters = PatchParams::apply("e2e").force();
            api.patch(&object.name_any(), &parameters, &Patch::Apply(&object)).await?;
        }
        Ok(())
    }

    /// Deploys the simulator as Service `cell0` and gives it settings.
    pub(crate) async fn simulator(&self, settings: Value) -> Result<Target<'_>> {
        self.apply(include_str!("../../../examples/cell0-simulator.yaml")).await?;
        let wanted = ListParams::default().labels("app.kubernetes.io/name=cell0-simulator");
        let address = within(60, "a ready simulator", async || {
            let pods = self.pods.list(&wanted).await?;
            Ok(pods.items.iter().find(|pod| is_ready(pod)).and_then(pod_ip))
        })
        .await?;
        // Names and addresses of Services come a moment after their pods.
        let service = format!("http://cell0.{}.svc.cluster.local:18802/readyz", self.namespace);
        within(60, "the simulator, by its Service", async || {
            let answer = self.http.get(&service).send().await?;
            Ok(answer.status().is_success().then_some(()))
        })
        .await?;
        let target = Target { story: self, control: format!("http://{address}:18802") };
        target.set(settings).await?;
        Ok(target)
    }

    /// Creates a test from its spec.
    pub(crate) async fn start(&self, name: &str, spec: Value) -> Result<LoadTest> {
        let object = json!({
            "apiVersion": "loadtest.cell0.io/v1alpha1", "kind": "LoadTest",
            "metadata": {"name": name}, "spec": spec,
        });
        Ok(self.tests.create(&PostParams::default(), &serde_json::from_value(object)?).await?)
    }

    /// A test's status.
    pub(crate) async fn status(&self, name: &str) -> Result<LoadTestStatus> {
        Ok(self.tests.get(name).await?.status.unwrap_or_default())
    }

    /// Waits until a test's status is as wanted.
    pub(crate) async fn until(
        &self,
        name: &str,
        seconds: u64,
        wanted: impl Fn(&LoadTestStatus) -> bool,
    ) -> Result<LoadTestStatus> {
        let found = within(seconds, "the wanted status", async || {
            let status = self.status(name).await?;
            Ok(Some(status).filter(|status| wanted(status)))
        })
        .await;
        match found {
            Ok(status) => Ok(status),
            Err(error) => {
                let last = self.status(name).await?;
                Err(error.context(format!("{name} is at {last:#?}")))
            }
        }
    }

    /// Waits until a test is over.
    pub(crate) async fn finished(&self, name: &str, seconds: u64) -> Result<LoadTestStatus> {
        self.until(name, seconds, |status| {
            status.condition("Finished").is_some_and(|condition| condition.status == "True")
        })
        .await
    }

    /// Runs a test to its end; once more, a few times, where the machine had no time for its load
    /// generator, so that the verdict was about that.
    pub(crate) async fn judged(
        &self,
        name: &str,
        spec: Value,
        seconds: u64,
    ) -> Result<(LoadTest, LoadTestStatus)> {
        for attempt in 1.. {
            let test = self.start(name, spec.clone()).await?;
            let status = self.finished(name, seconds).await?;
            let passed = status.condition("Passed").context("no verdict")?;
            if attempt == ATTEMPTS || !passed.message.contains("load generator was itself late") {
                return Ok((test, status));
            }
            self.gone(name).await?;
        }
        anyhow::bail!("no attempt")
    }

    /// Removes a test, and waits until all of it is gone.
    pub(crate) async fn gone(&self, name: &str) -> Result<()> {
        self.tests.delete(name, &DeleteParams::background()).await?;
        within(60, "a removed test", async || {
            let gone = self.tests.get_opt(name).await?.is_none();
            Ok((gone && self.runners(name).await?.is_empty()).then_some(()))
        })
        .await
    }

    /// Waits until a test is in a phase.
    pub(crate) async fn in_phase(&self, name: &str, phase: Phase) -> Result<LoadTestStatus> {
        self.until(name, 60, |status| status.phase == Some(phase)).await
    }

    /// The runner pods of a test.
    pub(crate) async fn runners(&self, test: &str) -> Result<Vec<Pod>> {
        let wanted = ListParams::default().labels(&format!("loadtest.cell0.io/name={test}"));
        Ok(self.pods.list(&wanted).await?.items)
    }
}

/// A simulator under load.
pub(crate) struct Target<'a> {
    story: &'a Story,
    control: String,
}

impl Target<'_> {
    /// Changes the simulator's settings by a merge patch.
    pub(crate) async fn set(&self, settings: Value) -> Result<()> {
        let answer = self
            .story
            .http
            .patch(format!("{}/settings", self.control))
            .header("content-type", "application/json")
            .body(settings.to_string())
            .send()
            .await?;
        let status = answer.status();
        ensure!(status.is_success(), "settings refused: {status} {}", answer.text().await?);
        Ok(())
    }

    /// Requests that the simulator has received of a run so far; 0 when it knows no such run.
    pub(crate) async fn received(&self, run: &str) -> Result<u64> {
        let answer = self.story.http.get(format!("{}/truth/{run}", self.control)).send().await?;
        if answer.status() == http::StatusCode::NOT_FOUND {
            return Ok(0);
        }
        let truth: RunTruth = serde_json::from_slice(&answer.error_for_status()?.bytes().await?)?;
        Ok(truth.totals.counts.received)
    }

    /// What the simulator saw of a run, once nothing is in flight any more.
    pub(crate) async fn truth(&self, run: &str) -> Result<RunTruth> {
        within(20, "a settled truth", async || {
            let url = format!("{}/truth/{run}", self.control);
            let answer = self.story.http.get(url).send().await?.error_for_status()?;
            let truth: RunTruth = serde_json::from_slice(&answer.bytes().await?)?;
            Ok(Some(truth).filter(|truth| truth.totals.counts.in_flight == 0))
        })
        .await
    }
}

async fn client() -> Result<Client> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = Config::infer().await.context("KUBECONFIG names no cluster: run make test")?;
    Ok(Client::try_from(config)?)
}

/// True when a pod is ready.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// A pod's address.
pub(crate) fn pod_ip(pod: &Pod) -> Option<String> {
    pod.status.as_ref()?.pod_ip.clone()
}

/// Looks again and again until there is something, at most so many seconds.
pub(crate) async fn within<T: Debug>(
    seconds: u64,
    what: &str,
    look: impl AsyncFn() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        let seen = look().await;
        match seen {
            Ok(Some(found)) => return Ok(found),
            Ok(None) | Err(_) if Instant::now() < deadline => {}
            Ok(None) => anyhow::bail!("{what}: not within {seconds} s"),
            Err(error) => return Err(error.context(format!("{what}: not within {seconds} s"))),
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// A load of plain GETs on /health, judged by the given thresholds.
pub(crate) fn health(users: u32, duration: &str, thresholds: &Value) -> Value {
    json!({
        "target": {"http": "http://cell0:18800"},
        "load": {"users": users, "spawnRate": users, "duration": duration, "gracefulStop": "10s"},
        "scenario": {
            "pause": {"min": "50ms", "max": "100ms"},
            "tasks": [{"name": "health", "http": {"path": "/health"}}],
        },
        "thresholds": thresholds,
    })
}
