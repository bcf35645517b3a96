//! The namespace of one end-to-end test: creates it, deploys the simulator, starts load tests and
//! waits for conditions.

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
use loadtest_core::{
    resource::{LoadTest, LoadTestStatus, Phase},
    result::{LoadTestResult, RunResult, StoredResult},
};
use serde_json::{Value, json};
use tokio::sync::RwLock;

/// Namespace of the operator.
pub const OPERATOR_NAMESPACE: &str = "loadtest-system";

/// Maximum attempts at a run that a busy machine can spoil.
pub const MAX_ATTEMPTS: u32 = 4;

/// Read-locked by tests that may run at the same time, write-locked by a test that runs alone.
static MACHINE_LOCK: RwLock<()> = RwLock::const_new(());

/// A namespace that exists while one end-to-end test runs.
pub struct TestNamespace {
    /// The API server, with the rights of an administrator.
    pub client: Client,
    /// Name of the namespace.
    pub name: String,
    /// Its load tests.
    pub load_tests: Api<LoadTest>,
    /// Its pods.
    pub pods: Api<Pod>,
    /// Reaches pods and Services.
    pub http: reqwest::Client,
}

impl TestNamespace {
    /// Runs a test in a namespace that enforces the `restricted` Pod Security Standard. Other tests
    /// may run at the same time.
    pub async fn run<F: Future<Output = Result<()>>>(
        name: &str,
        test: impl FnOnce(TestNamespace) -> F,
    ) -> Result<()> {
        let _shared = MACHINE_LOCK.read().await;
        Self::create_and_run(name, test).await
    }

    /// Runs a test while no other test runs. Runners, target and cluster share one machine. Other
    /// load would spoil a test that measures a few milliseconds or the lag of the load generator.
    pub async fn run_alone<F: Future<Output = Result<()>>>(
        name: &str,
        test: impl FnOnce(TestNamespace) -> F,
    ) -> Result<()> {
        let _exclusive = MACHINE_LOCK.write().await;
        // Kubernetes may still be deleting the namespaces of finished tests and the pods in them.
        let pods: Api<Pod> = Api::all(connect().await?);
        let labels = "app.kubernetes.io/name in (loadtest-runner, cell0-simulator)";
        let idle = wait_for(120, "no pod of another test", async || {
            let remaining = pods.list(&ListParams::default().labels(labels)).await?.items;
            Ok(remaining.is_empty().then_some(()))
        });
        // An aborted test may have left pods behind. That test has failed already, so this test
        // runs in spite of the pods.
        let _ = idle.await;
        Self::create_and_run(name, test).await
    }

    /// Runs a part of a test in a second namespace.
    pub async fn run_beside<F: Future<Output = Result<()>>>(
        name: &str,
        test: impl FnOnce(TestNamespace) -> F,
    ) -> Result<()> {
        Self::create_and_run(name, test).await
    }

    async fn create_and_run<F: Future<Output = Result<()>>>(
        name: &str,
        test: impl FnOnce(TestNamespace) -> F,
    ) -> Result<()> {
        let client = connect().await?;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let label = json!({"metadata": {
            "generateName": format!("{name}-"),
            "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
        }});
        let created = namespaces
            .create(&PostParams::default(), &serde_json::from_value(label)?)
            .await
            .context("namespace can't be created")?;
        let namespace = created.name_any();
        let test_namespace = Self {
            load_tests: Api::namespaced(client.clone(), &namespace),
            pods: Api::namespaced(client.clone(), &namespace),
            client: client.clone(),
            name: namespace.clone(),
            http: reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build()?,
        };
        // The future of a test is large.
        let result = Box::pin(test(test_namespace)).await;
        let deleted = namespaces.delete(&namespace, &DeleteParams::background()).await;
        result?;
        match deleted {
            // The test has deleted it.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            deleted => deleted.map(drop).context("namespace can't be deleted"),
        }
    }

    /// Applies all documents of a YAML text, as `kubectl apply` does.
    pub async fn apply(&self, yaml: &str) -> Result<()> {
        for object in serde_saphyr::from_multiple::<DynamicObject>(yaml)? {
            let types = object.types.clone().context("document without kind")?;
            let kind = GroupVersionKind::try_from(&types)?;
            let resource = ApiResource::from_gvk(&kind);
            let api: Api<DynamicObject> =
                Api::namespaced_with(self.client.clone(), &self.name, &resource);
            let parameters = PatchParams::apply("e2e").force();
            api.patch(&object.name_any(), &parameters, &Patch::Apply(&object)).await?;
        }
        Ok(())
    }

    /// Deploys the simulator as Service `cell0` and changes its settings.
    pub async fn deploy_simulator(&self, settings: Value) -> Result<Target<'_>> {
        self.apply(include_str!("../../examples/cell0-simulator.yaml")).await?;
        let selector = ListParams::default().labels("app.kubernetes.io/name=cell0-simulator");
        let address = wait_for(60, "a ready simulator", async || {
            let pods = self.pods.list(&selector).await?;
            Ok(pods.items.iter().find(|pod| is_ready(pod)).and_then(pod_ip))
        })
        .await?;
        // The name and the address of a Service work a moment after its pods are ready.
        let service = format!("http://cell0.{}.svc.cluster.local:18802/readyz", self.name);
        wait_for(60, "the simulator behind its Service", async || {
            let response = self.http.get(&service).send().await?;
            Ok(response.status().is_success().then_some(()))
        })
        .await?;
        let target = Target { namespace: self, control_url: format!("http://{address}:18802") };
        target.patch_settings(settings).await?;
        Ok(target)
    }

    /// Creates a load test.
    pub async fn create_test(&self, name: &str, spec: Value) -> Result<LoadTest> {
        let object = json!({
            "apiVersion": "loadtest.cell0.io/v1alpha1", "kind": "LoadTest",
            "metadata": {"name": name}, "spec": spec,
        });
        Ok(self.load_tests.create(&PostParams::default(), &serde_json::from_value(object)?).await?)
    }

    /// Returns the status of a load test; a default one if the operator has not written it.
    pub async fn get_status(&self, name: &str) -> Result<LoadTestStatus> {
        Ok(self.load_tests.get(name).await?.status.unwrap_or_default())
    }

    /// Waits until the status of a load test meets a condition.
    pub async fn wait_for_status(
        &self,
        name: &str,
        seconds: u64,
        condition: impl Fn(&LoadTestStatus) -> bool,
    ) -> Result<LoadTestStatus> {
        let result = wait_for(seconds, "the expected status", async || {
            let status = self.get_status(name).await?;
            Ok(Some(status).filter(|status| condition(status)))
        })
        .await;
        match result {
            Ok(status) => Ok(status),
            Err(error) => {
                let last = self.get_status(name).await?;
                Err(error.context(format!("last status of {name}: {last:#?}")))
            }
        }
    }

    /// Waits until a load test has finished.
    pub async fn wait_until_finished(&self, name: &str, seconds: u64) -> Result<LoadTestStatus> {
        self.wait_for_status(name, seconds, |status| {
            status.condition("Finished").is_some_and(|condition| condition.status == "True")
        })
        .await
    }

    /// Runs a load test to its end. A busy machine can make the load generator late. If the verdict
    /// says so, this function repeats the run, up to [`MAX_ATTEMPTS`] runs in total.
    pub async fn run_until_judged(
        &self,
        name: &str,
        spec: Value,
        seconds: u64,
    ) -> Result<(LoadTest, LoadTestStatus)> {
        for attempt in 1.. {
            let test = self.create_test(name, spec.clone()).await?;
            let status = self.wait_until_finished(name, seconds).await?;
            let passed = status.condition("Passed").context("no verdict")?;
            if attempt == MAX_ATTEMPTS || !passed.message.contains("load generator was itself late")
            {
                return Ok((test, status));
            }
            self.delete_test(name).await?;
        }
        anyhow::bail!("no attempt")
    }

    /// Deletes a load test and waits until it and its runner pods are gone.
    pub async fn delete_test(&self, name: &str) -> Result<()> {
        self.load_tests.delete(name, &DeleteParams::background()).await?;
        wait_for(60, "the deletion of the test", async || {
            let deleted = self.load_tests.get_opt(name).await?.is_none();
            Ok((deleted && self.list_runners(name).await?.is_empty()).then_some(()))
        })
        .await
    }

    /// Waits until a load test is in a phase.
    pub async fn wait_for_phase(&self, name: &str, phase: Phase) -> Result<LoadTestStatus> {
        self.wait_for_status(name, 60, |status| status.known_phase() == Some(phase)).await
    }

    /// Returns the stored result of a load test; `None` if there is none.
    pub async fn read_result(&self, test: &LoadTest) -> Result<Option<RunResult>> {
        let uid = test.metadata.uid.as_deref().context("no UID")?;
        let results: Api<LoadTestResult> = Api::namespaced(self.client.clone(), &self.name);
        let selector = ListParams::default().labels(&format!("loadtest.cell0.io/uid={uid}"));
        let objects = results.list(&selector).await?.items;
        let Some(first) = objects.iter().find(|object| object.part == 0) else { return Ok(None) };
        Ok(Some(StoredResult::from_objects(first, &objects)?.result))
    }

    /// Returns the runner pods of a load test.
    pub async fn list_runners(&self, test: &str) -> Result<Vec<Pod>> {
        let selector = ListParams::default().labels(&format!("loadtest.cell0.io/name={test}"));
        Ok(self.pods.list(&selector).await?.items)
    }
}

/// The simulator that a namespace's load tests send their load to.
pub struct Target<'a> {
    namespace: &'a TestNamespace,
    control_url: String,
}

impl Target<'_> {
    /// Changes the simulator's settings by a merge patch.
    pub async fn patch_settings(&self, settings: Value) -> Result<()> {
        let response = self
            .namespace
            .http
            .patch(format!("{}/settings", self.control_url))
            .header("content-type", "application/json")
            .body(settings.to_string())
            .send()
            .await?;
        let status = response.status();
        ensure!(status.is_success(), "settings rejected: {status} {}", response.text().await?);
        Ok(())
    }

    /// Returns the number of requests that the simulator has received from a run; 0 for an unknown
    /// run.
    pub async fn count_received(&self, run_uid: &str) -> Result<u64> {
        let url = format!("{}/truth/{run_uid}", self.control_url);
        let response = self.namespace.http.get(url).send().await?;
        if response.status() == http::StatusCode::NOT_FOUND {
            return Ok(0);
        }
        let truth: RunTruth = serde_json::from_slice(&response.error_for_status()?.bytes().await?)?;
        Ok(truth.totals.counts.received)
    }

    /// Returns the simulator's record of a run once no request is in flight.
    pub async fn get_truth(&self, run_uid: &str) -> Result<RunTruth> {
        wait_for(20, "the end of all requests in flight", async || {
            let truth = self.read_truth(run_uid).await?;
            Ok(Some(truth).filter(|truth| truth.totals.counts.in_flight == 0))
        })
        .await
    }

    /// Returns how many requests of a run have come so far.
    pub async fn received(&self, run_uid: &str) -> Result<u64> {
        Ok(self.read_truth(run_uid).await?.totals.counts.received)
    }

    async fn read_truth(&self, run_uid: &str) -> Result<RunTruth> {
        let url = format!("{}/truth/{run_uid}", self.control_url);
        let response = self.namespace.http.get(url).send().await?.error_for_status()?;
        Ok(serde_json::from_slice(&response.bytes().await?)?)
    }
}

async fn connect() -> Result<Client> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = Config::infer().await.context("KUBECONFIG names no cluster; run `make test`")?;
    Ok(Client::try_from(config)?)
}

/// Returns true if a pod is ready.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Returns the IP address of a pod.
pub fn pod_ip(pod: &Pod) -> Option<String> {
    pod.status.as_ref()?.pod_ip.clone()
}

/// Calls `poll` until it returns a value, for at most `seconds` seconds. `goal` names the value in
/// the error message.
pub async fn wait_for<T: Debug>(
    seconds: u64,
    goal: &str,
    poll: impl AsyncFn() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        let polled = poll().await;
        match polled {
            Ok(Some(value)) => return Ok(value),
            Ok(None) | Err(_) if Instant::now() < deadline => {}
            Ok(None) => anyhow::bail!("{goal}: not within {seconds} s"),
            Err(error) => return Err(error.context(format!("{goal}: not within {seconds} s"))),
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// Builds a spec for users that send GET requests to `/health`.
pub fn health_spec(users: u32, duration: &str, thresholds: &Value) -> Value {
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
