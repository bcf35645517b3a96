//! The runners of a test, read through port-forwarding with the rights of the user.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use anyhow::Context;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, Limited};
use hyper::{Request, client::conn::http1::SendRequest};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt, api::ListParams};
use loadtest_core::{
    control::{self, ErrorExample, path},
    metrics::{Format, Metrics, RunnerMetrics, decode},
    resource::UID_LABEL,
    result::GoneRunners,
};

/// Time limit for connecting to a runner, and for each of its responses.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of requests to runners at once.
const MAX_CONCURRENT_REQUESTS: usize = 16;

type Sender = SendRequest<String>;

/// The runners of one run, and what they said last.
pub(super) struct Runners {
    pods: Api<Pod>,
    run_uid: String,
    connections: HashMap<String, Sender>,
    snapshots: BTreeMap<u32, RunnerMetrics>,
    nodes: BTreeMap<u32, String>,
    gone: GoneRunners,
    /// One error message for each task and kind of error.
    pub(super) examples: BTreeMap<(String, String), String>,
}

impl Runners {
    /// The runners of a run. `gone` are those that ended before, `known` are the others as the stored
    /// result has them.
    pub(super) fn new(
        pods: Api<Pod>,
        run_uid: &str,
        gone: GoneRunners,
        known: Vec<RunnerMetrics>,
        examples: impl IntoIterator<Item = ErrorExample>,
    ) -> Self {
        let examples = examples.into_iter().map(|e| ((e.task, e.kind), e.message)).collect();
        Self {
            pods,
            run_uid: run_uid.to_owned(),
            connections: HashMap::new(),
            snapshots: known.into_iter().map(|known| (known.identity.index, known)).collect(),
            nodes: BTreeMap::new(),
            gone,
            examples,
        }
    }

    /// Asks every runner whose pod runs.
    ///
    /// # Errors
    /// When the pods can't be listed, or when the user may not forward ports.
    pub(super) async fn ask_all(&mut self) -> anyhow::Result<AnswerCount> {
        let selector = ListParams::default().labels(&format!("{UID_LABEL}={}", self.run_uid));
        let pods = self.pods.list(&selector).await.context("the pods can't be listed")?.items;
        let running = pods.into_iter().filter(|pod| {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            phase == Some("Running")
        });
        let questions: Vec<_> = running
            .map(|pod| {
                let name = pod.name_any();
                let uid = pod.uid().unwrap_or_default();
                let node = pod.spec.and_then(|spec| spec.node_name);
                let connection = self.connections.remove(&name);
                let pods = self.pods.clone();
                async move {
                    let answer = ask(&pods, &name, connection);
                    let answer = tokio::time::timeout(RESPONSE_TIMEOUT, answer).await;
                    (name, uid, node, answer)
                }
            })
            .collect();
        let answers = stream::iter(questions).buffer_unordered(MAX_CONCURRENT_REQUESTS);
        let answers: Vec<_> = answers.collect().await;
        let mut count = AnswerCount { asked: answers.len(), answered: 0 };
        for (name, uid, node, answer) in answers {
            match answer {
                Ok(Ok((connection, snapshot, examples))) => {
                    self.connections.insert(name, connection);
                    count.answered += usize::from(self.keep(&uid, snapshot, node, examples));
                }
                Ok(Err(error)) if is_forbidden(&error) => return Err(error),
                Ok(Err(error)) => {
                    tracing::debug!(pod = name, error = format!("{error:#}"), "no answer");
                }
                Err(_) => tracing::debug!(pod = name, "no answer in time"),
            }
        }
        Ok(count)
    }

    fn keep(
        &mut self,
        pod_uid: &str,
        snapshot: RunnerMetrics,
        node: Option<String>,
        examples: Vec<ErrorExample>,
    ) -> bool {
        let identity = &snapshot.identity;
        let index = identity.index;
        // A pod that replaces a lost runner makes no load, and has no numbers of it.
        let is_other = self
            .snapshots
            .get(&index)
            .is_some_and(|earlier| earlier.identity.pod_uid != identity.pod_uid);
        let is_ours = identity.run_uid == self.run_uid && identity.pod_uid == pod_uid;
        if !is_ours || is_other || self.gone.runners.contains_key(&index) {
            return false;
        }
        self.snapshots.insert(index, snapshot);
        self.nodes.extend(node.map(|node| (index, node)));
        for ErrorExample { task, kind, message } in examples {
            self.examples.entry((task, kind)).or_insert(message);
        }
        true
    }

    /// The merged metrics of all runners, with the measurements of each.
    pub(super) fn merged(&self) -> Metrics {
        let mut merged = self.gone.metrics.clone();
        for (index, snapshot) in &self.snapshots {
            let name = match self.nodes.get(index) {
                Some(node) => format!("runner {index} on node {node}"),
                None => format!("runner {index}"),
            };
            merged.merge_runner(&name, &snapshot.metrics);
        }
        merged
    }
}

/// How many runners were asked, and how many of them answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct AnswerCount {
    pub(super) asked: usize,
    pub(super) answered: usize,
}

/// Returns true if the user's rights don't allow the request.
pub(super) fn is_forbidden(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref::<kube::Error>()).any(|error| match error {
        kube::Error::Api(status) => status.code == 403 || status.code == 401,
        // The server answered with an HTTP status in place of a WebSocket.
        kube::Error::UpgradeConnection(error) => {
            let text = error.to_string();
            text.contains("403") || text.contains("401")
        }
        _ => false,
    })
}

async fn ask(
    pods: &Api<Pod>,
    name: &str,
    connection: Option<Sender>,
) -> anyhow::Result<(Sender, RunnerMetrics, Vec<ErrorExample>)> {
    let mut connection = match connection.filter(|connection| !connection.is_closed()) {
        Some(connection) => connection,
        None => connect(pods, name).await?,
    };
    let bytes = get(&mut connection, path::METRICS).await?;
    let snapshot = decode(&bytes)?;
    let has_errors = snapshot.metrics.tasks.values().any(|task| !task.errors.is_empty());
    let examples = if has_errors {
        // The messages are a help, and the numbers count without them.
        let bytes = get(&mut connection, path::ERRORS).await?;
        serde_json::from_slice(&bytes).unwrap_or_default()
    } else {
        Vec::new()
    };
    Ok((connection, snapshot, examples))
}

async fn connect(pods: &Api<Pod>, name: &str) -> anyhow::Result<Sender> {
    let mut forwarder = pods.portforward(name, &[control::PORT]).await?;
    let stream = forwarder.take_stream(control::PORT).context("no stream to the runner")?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        // The request on the connection gets the error.
        let _ = connection.await;
        drop(forwarder);
    });
    Ok(sender)
}

async fn get(connection: &mut Sender, path: &str) -> anyhow::Result<Vec<u8>> {
    connection.ready().await?;
    let request = Request::get(path)
        .header("host", "runner")
        .header("accept", Format::Protobuf.content_type())
        .body(String::new())?;
    let response = connection.send_request(request).await?;
    anyhow::ensure!(response.status().is_success(), "the runner answers {}", response.status());
    let body = Limited::new(response.into_body(), control::MAX_RESPONSE_BYTES).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("the response can't be read: {error}"))?;
    Ok(body.to_bytes().to_vec())
}
