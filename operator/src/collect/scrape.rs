//! Reads the metrics of one runner: over HTTP while it lives, and from the log of its pod afterwards.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::pin,
};

use futures_util::{AsyncReadExt, StreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::LogParams};
use loadtest_core::{
    control::{self, HistoryReply, path},
    metrics::{ExpositionError, HistoryStep, Identity, RunnerMetrics, decode, decode_steps},
};

use tokio::time::timeout;

use super::{
    budget::{NamespaceBudget, Reservation},
    collection::RefusedAnswer,
    connection::{Connections, Request},
};
use crate::observe::{runner::Runner, skew::RoundTrip};

/// Maximum number of concurrent requests to the runners of one test.
pub(crate) const MAX_REQUESTS: usize = 64;
/// Time limit for reading the log of a pod. The kubelet that holds the log may be gone.
const LOG_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);
/// Maximum number of bytes read from the log of a pod. The last metrics of 64 tasks take 4 MiB.
const MAX_LOG_BYTES: i64 = 12 << 20;
/// Memory for reading and decoding a log, in bytes: that of all large answers of a namespace.
const LOG_MEMORY_BYTES: usize = 32 << 20;
/// Time limit for an answer of a runner.
const ANSWER_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// Reason why the metrics of one runner can't be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CollectError {
    #[error("failed to get a response from the runner")]
    Connection(#[from] io::Error),
    #[error("runner did not respond within {} s", ANSWER_TIMEOUT.as_secs())]
    Timeout,
    #[error("runner responded with status {0}")]
    Status(u16),
    #[error("failed to decode the runner's metrics")]
    Exposition(#[from] ExpositionError),
    #[error(
        "response comes from run {run_uid} index {index} pod {pod_uid}; another runner has this address now"
    )]
    WrongRunner { run_uid: String, index: u32, pod_uid: String },
    #[error("response is not that of a runner of this release")]
    NoRunner,
    #[error("steps of the runner are not in order")]
    Unordered,
    #[error(transparent)]
    Refused(#[from] RefusedAnswer),
    #[error("failed to decode the answer: the decoder panicked")]
    Panic,
    #[error("response is larger than {} MiB", control::MAX_RESPONSE_BYTES >> 20)]
    TooLarge,
    #[error("failed to read the pod's log")]
    Log(#[source] kube::Error),
    #[error("the pod's log broke off")]
    BrokenLog(#[source] io::Error),
    #[error("failed to read the pod's log within {} s", LOG_TIMEOUT.as_secs())]
    LogTimeout,
    #[error("pod's log has no complete last metrics of this runner")]
    NoLastMetrics,
}

/// An encoded answer, and the memory that it takes.
#[derive(Debug)]
pub(crate) struct Body {
    pub(crate) bytes: Vec<u8>,
    pub(crate) round_trip: RoundTrip,
    /// Seconds of load at the time of the answer.
    pub(crate) elapsed: f64,
    _reservation: Reservation,
}

/// The log of a pod, and the memory that it takes.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) text: String,
    _reservation: Reservation,
}

/// With this, a runner refuses orders of earlier Leases from now on.
pub(crate) struct LeaseProof {
    /// Number of the Lease of this process.
    pub(crate) number: u64,
    /// Token of the run.
    pub(crate) token: String,
}

/// A request for the history of a runner.
pub(crate) struct HistoryRequest<'a> {
    pub(crate) run_uid: &'a str,
    pub(crate) runner: &'a Runner,
    /// Address of the runner's pod.
    pub(crate) ip: IpAddr,
    /// Number of the last step that was read.
    pub(crate) after: u64,
    /// The Lease of this process, for a runner that does not know it yet.
    pub(crate) lease: Option<LeaseProof>,
}

/// Reads what a runner has measured since a step of its history. The answer is still encoded.
pub(crate) async fn fetch_history(
    connections: &Connections,
    budget: &NamespaceBudget,
    request: HistoryRequest<'_>,
) -> Result<Body, CollectError> {
    let fetched = timeout(ANSWER_TIMEOUT, fetch_without_limit(connections, budget, request));
    fetched.await.unwrap_or(Err(CollectError::Timeout))
}

async fn fetch_without_limit(
    connections: &Connections,
    budget: &NamespaceBudget,
    request: HistoryRequest<'_>,
) -> Result<Body, CollectError> {
    let HistoryRequest { run_uid, runner, ip, after, lease } = request;
    let mut path = format!("{}?after={after}", path::HISTORY);
    if let Some(LeaseProof { number, .. }) = lease {
        path = format!("{path}&leaseNumber={number}");
    }
    let address = SocketAddr::new(ip, control::PORT);
    let token = lease.as_ref().map(|lease| lease.token.as_str());
    let request = Request { address, pod_uid: &runner.uid, path: &path, token };
    let response = connections.send(request).await?;
    match response.status {
        200 => {}
        404 => {
            // A runner of an earlier release has no history.
            let found = format!("lower than {}", control::VERSION);
            return Err(ExpositionError::Contract { found }.into());
        }
        status => return Err(CollectError::Status(status)),
    }
    let about = response.history_header.as_deref().and_then(HistoryReply::parse);
    let about = about.ok_or(CollectError::NoRunner)?;
    check_identity(&about.identity, run_uid, runner)?;
    let size = response.length.ok_or(CollectError::NoRunner)?;
    check_size(size)?;
    let (sent_at, received_at) = (response.sent_at, response.received_at);
    let round_trip = RoundTrip { sent_at, received_at, work_seconds: about.work_seconds };
    // The answers before this one take milliseconds each.
    let reservation = budget.reserve(size).await;
    let bytes = connections.read_body(&runner.uid, response).await?;
    let elapsed = about.elapsed_seconds;
    Ok(Body { bytes, round_trip, elapsed, _reservation: reservation })
}

/// Refuses a response that is too large. Users choose the runner image, so the operator does not trust
/// the response.
const fn check_size(bytes: usize) -> Result<(), CollectError> {
    if bytes > control::MAX_RESPONSE_BYTES { Err(CollectError::TooLarge) } else { Ok(()) }
}

/// Decodes the answer of a runner.
///
/// # Errors
/// Fails if the answer can't be decoded, or if another runner has given it.
pub(crate) fn decode_answer(
    bytes: &[u8],
    run_uid: &str,
    runner: &Runner,
) -> Result<Vec<HistoryStep>, CollectError> {
    let steps = decode_steps(bytes)?;
    for step in &steps {
        check_identity(&step.runner.identity, run_uid, runner)?;
    }
    let is_ordered = steps.windows(2).all(|pair| match pair {
        [a, b] => {
            let elapsed = |step: &HistoryStep| step.runner.metrics.elapsed_seconds;
            b.number == a.number + 1 && !b.is_cumulative && elapsed(b) >= elapsed(a)
        }
        _ => true,
    });
    if is_ordered { Ok(steps) } else { Err(CollectError::Unordered) }
}

fn check_identity(identity: &Identity, run_uid: &str, runner: &Runner) -> Result<(), CollectError> {
    let Identity { run_uid: found, index, pod_uid } = identity;
    if found == run_uid && *index == runner.index && *pod_uid == runner.uid {
        return Ok(());
    }
    Err(CollectError::WrongRunner {
        run_uid: found.clone(),
        index: *index,
        pod_uid: pod_uid.clone(),
    })
}

/// Reads the log of a pod. A runner that exits without a release order logs its last metrics.
pub(crate) async fn fetch_log(
    pods: &Api<Pod>,
    budget: &NamespaceBudget,
    runner: &Runner,
) -> Result<Log, CollectError> {
    let parameters = LogParams {
        container: Some(control::CONTAINER.into()),
        limit_bytes: Some(MAX_LOG_BYTES),
        ..LogParams::default()
    };
    let too_slow = |_| CollectError::LogTimeout;
    // The kubelet may never answer, and holds no memory meanwhile.
    let opened = timeout(LOG_TIMEOUT, pods.log_stream(&runner.name, &parameters)).await;
    let mut stream = pin!(opened.map_err(too_slow)?.map_err(CollectError::Log)?);
    let reservation = budget.reserve(LOG_MEMORY_BYTES).await;
    let mut bytes = Vec::new();
    let read = timeout(LOG_TIMEOUT, stream.read_to_end(&mut bytes)).await;
    read.map_err(too_slow)?.map_err(CollectError::BrokenLog)?;
    let text = String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
    Ok(Log { text, _reservation: reservation })
}

/// Returns the last metrics in the log of a runner.
///
/// # Errors
/// Fails if there are none of this runner. It takes long for a large log.
pub(crate) fn last_metrics_of(
    log: &str,
    run_uid: &str,
    runner: &Runner,
) -> Result<RunnerMetrics, CollectError> {
    let snapshot = parse_last_metrics(log)?;
    if snapshot.identity.run_uid == run_uid && snapshot.identity.index == runner.index {
        // The process has exited, so no newer metrics can follow. The state of a runner that was
        // killed under load is `CutShort`, and the runner stays lost.
        return Ok(snapshot);
    }
    Err(CollectError::NoLastMetrics)
}

fn parse_last_metrics(log: &str) -> Result<RunnerMetrics, CollectError> {
    let bytes = control::join_last_metrics(log).ok_or(CollectError::NoLastMetrics)?;
    Ok(decode(&bytes)?)
}

/// Runs futures to completion, at most `limit` at a time.
pub(crate) async fn run_concurrently<F: Future>(limit: usize, futures: Vec<F>) -> Vec<F::Output> {
    stream::iter(futures).buffer_unordered(limit).collect().await
}

#[cfg(test)]
mod tests {
    use loadtest_core::metrics::{ExpositionOptions, Format, Identity, RunnerState, encode};

    use super::*;

    #[test]
    fn last_metrics_are_read_from_a_log() {
        let identity = Identity { run_uid: "uid".into(), index: 1, pod_uid: "pod".into() };
        let mut snapshot = RunnerMetrics { identity, ..RunnerMetrics::default() };
        snapshot.state = RunnerState::Done;
        snapshot.metrics.elapsed_seconds = 12.0;
        let bytes =
            encode(snapshot.clone(), ExpositionOptions::default(), Format::Protobuf).unwrap();
        let lines = control::split_last_metrics(&bytes).into_iter();
        let log: Vec<String> =
            lines.map(|part| serde_json::json!({"fields": part}).to_string()).collect();
        assert_eq!(parse_last_metrics(&log.join("\n")).unwrap(), snapshot);
        assert!(parse_last_metrics(&log[1..].join("\n")).is_err());
    }
}
