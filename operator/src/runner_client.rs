//! Talks to runners over HTTP: scrapes their metrics and sends orders to them.
//!
//! This module also reads the last metrics of a runner from the log of its pod. The number of
//! concurrent requests is limited. The module does not decide when to scrape or which order to
//! send.

use std::time::Instant;

use futures_util::{StreamExt, stream};
use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::{Api, api::LogParams};
use loadtest_core::{
    Duration,
    control::{self, ErrorExample, StartOrder, StopOrder, path},
    metrics::{ExpositionError, Format, RunnerMetrics, RunnerState, decode},
};

use crate::{
    context::Context,
    error::format_error_chain,
    observe::runner::Runner,
    observe::state::{Observed, RunCache, StartRecord},
};

/// Maximum number of concurrent requests to runners.
const MAX_CONCURRENT_REQUESTS: usize = 16;

/// Time limit for asking a runner whether it is ready.
const READINESS_TIMEOUT: std::time::Duration = std::time::Duration::from_millis(500);
/// Time limit for reading the log of a pod. The kubelet that holds the log may be gone.
const LOG_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);
/// Time for which a log that can't be read is tried again before its runner counts as lost.
const LOG_PATIENCE: std::time::Duration = std::time::Duration::from_mins(1);
/// Maximum number of bytes read from the log of a pod.
const MAX_LOG_BYTES: i64 = 24 << 20;

/// Reason why the metrics of one runner can't be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CollectError {
    #[error("failed to get a response from the runner")]
    Request(#[source] reqwest::Error),
    #[error("failed to decode the runner's metrics")]
    Exposition(#[from] ExpositionError),
    #[error(
        "response comes from run {run_uid} index {index} pod {pod_uid}; another runner has this address now"
    )]
    WrongRunner { run_uid: String, index: u32, pod_uid: String },
    #[error("response is larger than {} MiB", control::MAX_RESPONSE_BYTES >> 20)]
    TooLarge,
    #[error("failed to read the pod's log")]
    Log(#[source] kube::Error),
    #[error("failed to read the pod's log within {} s", LOG_TIMEOUT.as_secs())]
    LogTimeout,
    #[error("pod's log has no complete last metrics of this runner")]
    NoLastMetrics,
}

fn runner_url(ip: &str, path: &str) -> String {
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    format!("http://{host}:{}{path}", control::PORT)
}

/// Asks runners that run and are not ready yet, and marks those that say they are.
pub(crate) async fn ask_readiness(context: &Context, runners: &mut [Runner]) {
    let questions =
        runners.iter_mut().filter(|runner| runner.may_become_ready()).map(async |runner| {
            let url = runner_url(runner.ip.as_deref().unwrap_or_default(), path::READINESS);
            let response = context.http.get(url).timeout(READINESS_TIMEOUT).send().await;
            runner.ready = response.is_ok_and(|response| response.status().is_success());
        });
    run_concurrently(questions.collect()).await;
}

/// Updates the snapshots of all started runners in the cache.
///
/// Running pods are scraped. The last metrics of a terminated pod come from its log. A runner
/// with a final snapshot is skipped.
pub(crate) async fn collect_snapshots(
    context: &Context,
    pods: &Api<Pod>,
    run_uid: &str,
    start: &StartRecord,
    observed: &mut Observed,
) {
    let Ok(valid) = &observed.valid else { return };
    let load_seconds = observed.load_duration(valid).as_secs_f64();
    let Observed { runners, cache, .. } = observed;
    cache.scraped_now.clear();
    let (terminated, alive): (Vec<&Runner>, Vec<&Runner>) = runners
        .iter()
        .filter(|runner| start.pods.contains(&runner.uid))
        .filter(|runner| !cache.is_final(runner.index))
        .filter(|runner| !cache.gone.runners.contains_key(&runner.index))
        .partition(|runner| runner.termination.is_some());
    scrape_runners(context, run_uid, &alive, load_seconds, cache).await;
    let now = Timestamp::now();
    for runner in &terminated {
        cache.ended_at.entry(runner.uid.clone()).or_insert(now);
    }
    read_logs(pods, run_uid, &terminated, now, cache).await;
}

/// Scrapes runners into the cache. `load_seconds` is the duration of the load.
async fn scrape_runners(
    context: &Context,
    run_uid: &str,
    runners: &[&Runner],
    load_seconds: f64,
    cache: &mut RunCache,
) {
    let reachable = runners.iter().filter_map(|runner| Some((runner, runner.ip.as_deref()?)));
    let scrapes: Vec<_> = reachable
        .map(|(runner, ip)| async move {
            let sent_at = Instant::now();
            let result = scrape_runner(context, run_uid, runner, ip).await;
            (runner.index, sent_at, Instant::now(), result)
        })
        .collect();
    for (index, sent_at, received_at, result) in run_concurrently(scrapes).await {
        match result {
            Ok(snapshot) => {
                let elapsed = snapshot.metrics.elapsed_seconds;
                // `elapsed` stops when the load ends, so a later value does not show the start.
                if snapshot.state == RunnerState::Running && elapsed > 0.0 && elapsed < load_seconds
                {
                    cache.start_estimates.add_sample(index, sent_at, received_at, elapsed);
                }
                cache.snapshots.insert(index, snapshot);
                cache.last_seen.insert(index, Timestamp::now());
                cache.scraped_now.insert(index);
            }
            // The next reconciliation scrapes again. The cache keeps the earlier snapshot.
            Err(error) => {
                context.metrics.count_scrape_failure();
                let text = format_error_chain(&error);
                tracing::debug!(run_uid, index, error = text, "scrape failed");
                if matches!(error, CollectError::Exposition(ExpositionError::Contract { .. })) {
                    cache.contract_mismatch = Some(text);
                }
            }
        }
    }
}

/// Reads the last metrics of terminated runners from the logs of their pods into the cache.
async fn read_logs(
    pods: &Api<Pod>,
    run_uid: &str,
    runners: &[&Runner],
    now: Timestamp,
    cache: &mut RunCache,
) {
    let unread = runners.iter().filter(|runner| !cache.logs_read.contains(&runner.uid));
    let reads: Vec<_> = unread
        .map(|runner| async move {
            let last_metrics = read_last_metrics(pods, run_uid, runner);
            let result = tokio::time::timeout(LOG_TIMEOUT, last_metrics).await;
            (runner, result.unwrap_or(Err(CollectError::LogTimeout)))
        })
        .collect();
    for (runner, result) in run_concurrently(reads).await {
        // After these two errors a later reconciliation may be able to read the log.
        let may_succeed_later =
            matches!(result, Err(CollectError::Log(_) | CollectError::LogTimeout));
        let since = cache.ended_at.get(&runner.uid).copied().unwrap_or(now);
        let waited = now.duration_since(since).as_secs_f64();
        if !may_succeed_later || waited > LOG_PATIENCE.as_secs_f64() {
            cache.logs_read.insert(runner.uid.clone());
        }
        match result {
            Ok(snapshot) => {
                cache.snapshots.insert(runner.index, snapshot);
            }
            Err(error) => {
                let error = format_error_chain(&error);
                tracing::info!(run_uid, pod = runner.name, error, "no last metrics");
            }
        }
    }
}

async fn scrape_runner(
    context: &Context,
    run_uid: &str,
    runner: &Runner,
    ip: &str,
) -> Result<RunnerMetrics, CollectError> {
    let response = context
        .http
        .get(runner_url(ip, path::METRICS))
        .header("accept", Format::Protobuf.content_type())
        .send()
        .await
        .and_then(reqwest::Response::error_for_status)
        .map_err(CollectError::Request)?;
    let bytes = read_body(response).await?;
    let snapshot = decode(&bytes)?;
    let identity = &snapshot.identity;
    let is_expected = identity.run_uid == run_uid
        && identity.index == runner.index
        && identity.pod_uid == runner.uid;
    if !is_expected {
        return Err(CollectError::WrongRunner {
            run_uid: identity.run_uid.clone(),
            index: identity.index,
            pod_uid: identity.pod_uid.clone(),
        });
    }
    Ok(snapshot)
}

/// Reads the body of a response. The size is limited because users choose the runner image, so
/// the operator does not trust the response.
async fn read_body(mut response: reqwest::Response) -> Result<Vec<u8>, CollectError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(CollectError::Request)? {
        if bytes.len() + chunk.len() > control::MAX_RESPONSE_BYTES {
            return Err(CollectError::TooLarge);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// Reads the last metrics from a pod's log. A runner that exits without a release order logs them.
async fn read_last_metrics(
    pods: &Api<Pod>,
    run_uid: &str,
    runner: &Runner,
) -> Result<RunnerMetrics, CollectError> {
    let parameters = LogParams {
        container: Some(control::CONTAINER.into()),
        limit_bytes: Some(MAX_LOG_BYTES),
        ..LogParams::default()
    };
    let log = pods.logs(&runner.name, &parameters).await.map_err(CollectError::Log)?;
    let snapshot = parse_last_metrics(&log)?;
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

/// Adds one error message per task and kind of error to the cache.
///
/// The messages are optional, so a runner that does not respond is skipped.
pub(crate) async fn collect_error_examples(
    context: &Context,
    runners: &[Runner],
    cache: &mut RunCache,
) {
    let ips = runners.iter().filter(|r| r.termination.is_none()).filter_map(|r| r.ip.as_deref());
    let requests: Vec<_> = ips
        .map(|ip| async move {
            let response = context.http.get(runner_url(ip, path::ERRORS)).send().await.ok()?;
            let body = read_body(response).await.ok()?;
            serde_json::from_slice::<Vec<ErrorExample>>(&body).ok()
        })
        .collect();
    let lists = run_concurrently(requests).await;
    for ErrorExample { task, kind, message } in lists.into_iter().flatten().flatten() {
        cache.error_examples.entry((task, kind)).or_insert(message);
    }
}

/// An order to runners.
#[derive(Clone, Debug)]
pub(crate) enum Order {
    /// Start the load at a time, and end it at another.
    Start { at: Timestamp, end: Timestamp },
    /// Stop the load now. In-flight requests may take this long to end.
    Stop(Duration),
    /// Exit.
    Release,
}

/// Sends an order to the pods with these UIDs. Returns the UIDs of the pods that accepted it.
pub(crate) async fn send_order(
    context: &Context,
    run_uid: &str,
    runners: &[Runner],
    pod_uids: &[String],
    order: &Order,
) -> Vec<String> {
    let token = &context.run_token(run_uid);
    let requests: Vec<_> = runners
        .iter()
        .filter(|runner| pod_uids.contains(&runner.uid))
        .map(|runner| async move {
            let ip = runner.ip.as_deref()?;
            let (path, body) = match order {
                // The order carries the time left at the moment of sending, so that the clocks
                // of the nodes don't matter.
                Order::Start { at, end } => {
                    let now = Timestamp::now();
                    let left = |to: &Timestamp| to.duration_since(now).as_secs_f64().max(0.0);
                    let order =
                        StartOrder { in_seconds: left(at), end_in_seconds: Some(left(end)) };
                    (path::START, serde_json::json!(order))
                }
                Order::Stop(grace) => {
                    let grace_seconds = grace.as_secs_f64();
                    (path::STOP, serde_json::json!(StopOrder { grace_seconds }))
                }
                Order::Release => (path::RELEASE, serde_json::json!({})),
            };
            let request = context
                .http
                .post(runner_url(ip, path))
                .bearer_auth(token)
                .header("content-type", "application/json")
                .body(body.to_string());
            match request.send().await.and_then(reqwest::Response::error_for_status) {
                Ok(_) => Some(runner.uid.clone()),
                Err(error) => {
                    let error = format_error_chain(&error);
                    tracing::warn!(run_uid, pod = runner.name, path, error, "order not accepted");
                    None
                }
            }
        })
        .collect();
    run_concurrently(requests).await.into_iter().flatten().collect()
}

/// Runs futures to completion, at most [`MAX_CONCURRENT_REQUESTS`] at a time.
async fn run_concurrently<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    stream::iter(futures).buffer_unordered(MAX_CONCURRENT_REQUESTS).collect().await
}

#[cfg(test)]
mod tests {
    use loadtest_core::metrics::{ExpositionOptions, Identity, encode};

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

    #[test]
    fn ipv4_and_ipv6_addresses_make_valid_urls() {
        assert_eq!(runner_url("10.0.0.1", "/metrics"), "http://10.0.0.1:9464/metrics");
        assert_eq!(runner_url("fd00::1", "/metrics"), "http://[fd00::1]:9464/metrics");
    }
}
