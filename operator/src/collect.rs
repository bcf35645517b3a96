//! Talks to runners: scrapes their metrics, sends them orders. Bounded concurrency.

use std::{collections::BTreeMap, time::Instant};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::{StreamExt, stream};
use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::{Api, api::LogParams};
use loadtest_core::{
    Duration,
    metrics::{ExpositionError, Format, RunnerNumbers, RunnerState, decode},
};
use serde::Deserialize;

use crate::{
    context::Context,
    error::format_error_chain,
    resources::{RUNNER_CONTAINER, RUNNER_PORT},
    state::{Observed, RunCache, Runner, StartRecord},
};

/// Runners talked to at once.
const MAX_CONCURRENT_REQUESTS: usize = 16;

/// The largest answer of a runner that is read: 64 tasks at full resolution take less.
const MAX_RESPONSE_BYTES: usize = 16 << 20;
/// How long a pod's log may take: the kubelet that has it may be gone.
const LOG_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);
/// The most of a pod's log that is read.
const MAX_LOG_BYTES: i64 = 24 << 20;

/// Failed to reach or understand one runner.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CollectError {
    #[error("runner did not answer")]
    Unreachable(#[source] reqwest::Error),
    #[error("runner's metrics can't be read")]
    Exposition(#[from] ExpositionError),
    #[error("answer is of run {run} index {index}, pod {pod}: another runner has this address")]
    WrongRunner { run: String, index: u32, pod: String },
    #[error("answer is over {} MiB", MAX_RESPONSE_BYTES >> 20)]
    TooLarge,
    #[error("pod's log can't be read")]
    Log(#[source] kube::Error),
    #[error("pod's log did not come within {} s", LOG_TIMEOUT.as_secs())]
    LogTimeout,
    #[error("pod's log holds no complete last metrics")]
    IncompleteLastMetrics,
}

fn runner_url(ip: &str, path: &str) -> String {
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    format!("http://{host}:{RUNNER_PORT}{path}")
}

/// Scrapes every started runner that may still have news, and reads the log of every one that is
/// over, into the cache.
pub(crate) async fn collect_snapshots(
    context: &Context,
    pods: &Api<Pod>,
    run: &str,
    start: &StartRecord,
    seen: &mut Observed,
) {
    let lasts = seen.load_duration().as_secs_f64();
    let Observed { runners, cache, .. } = seen;
    let is_final = |cache: &RunCache, index: u32| {
        cache.snapshots.get(&index).is_some_and(|seen| seen.state.is_final())
    };
    cache.scraped_now.clear();
    let started: Vec<&Runner> = runners
        .iter()
        .filter(|runner| start.pods.contains(&runner.uid) && !is_final(cache, runner.index))
        .collect();
    let (over, alive): (Vec<&Runner>, Vec<&Runner>) =
        started.into_iter().partition(|runner| runner.termination.is_some());
    let reachable = alive.into_iter().filter_map(|r| Some((r, r.ip.as_deref()?)));
    let questions: Vec<_> = reachable
        .map(|(runner, ip)| async move {
            let asked = Instant::now();
            let answer = scrape_runner(context, run, runner, ip).await;
            (runner.index, asked, Instant::now(), answer)
        })
        .collect();
    for (index, asked, answered, answer) in run_concurrently(questions).await {
        match answer {
            Ok(numbers) => {
                let elapsed = numbers.numbers.elapsed_seconds;
                // Once load is over it stands still, and tells no start.
                if numbers.state == RunnerState::Running && elapsed > 0.0 && elapsed < lasts {
                    cache.start_estimates.add_sample(index, asked, answered, elapsed);
                }
                cache.snapshots.insert(index, numbers);
                cache.last_seen.insert(index, Timestamp::now());
                cache.scraped_now.insert(index);
            }
            // The next pass asks again; what was collected stays.
            Err(error) => {
                tracing::debug!(run, index, error = %format_error_chain(&error), "scrape failed")
            }
        }
    }
    let unread = over.into_iter().filter(|runner| !cache.logs_read.contains(&runner.uid));
    let logs: Vec<_> = unread
        .map(|runner| async move {
            let found =
                tokio::time::timeout(LOG_TIMEOUT, read_last_metrics(pods, run, runner)).await;
            (runner, found.unwrap_or(Err(CollectError::LogTimeout)))
        })
        .collect();
    for (runner, found) in run_concurrently(logs).await {
        // A log that could not be read just now may be read later.
        if !matches!(found, Err(CollectError::Log(_) | CollectError::LogTimeout)) {
            cache.logs_read.insert(runner.uid.clone());
        }
        match found {
            Ok(numbers) => {
                cache.snapshots.insert(runner.index, numbers);
            }
            Err(error) => {
                tracing::info!(run, pod = runner.name, error = %format_error_chain(&error), "no last metrics");
            }
        }
    }
}

async fn scrape_runner(
    context: &Context,
    run: &str,
    runner: &Runner,
    ip: &str,
) -> Result<RunnerNumbers, CollectError> {
    let answer = context
        .http
        .get(runner_url(ip, "/metrics"))
        .header("accept", Format::Protobuf.content_type())
        .send()
        .await
        .and_then(reqwest::Response::error_for_status)
        .map_err(CollectError::Unreachable)?;
    let bytes = read_body(answer).await?;
    let numbers = decode(&bytes)?;
    let who = &numbers.identity;
    if who.run != run || who.index != runner.index || who.pod != runner.uid {
        return Err(CollectError::WrongRunner {
            run: who.run.clone(),
            index: who.index,
            pod: who.pod.clone(),
        });
    }
    Ok(numbers)
}

/// Reads an answer, up to a limit: what a runner's image sends is not ours to trust.
async fn read_body(mut answer: reqwest::Response) -> Result<Vec<u8>, CollectError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(CollectError::Unreachable)? {
        if bytes.len() + chunk.len() > MAX_RESPONSE_BYTES {
            return Err(CollectError::TooLarge);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// One line of a runner's log, as its JSON logger writes it.
#[derive(Deserialize)]
struct LogLine {
    fields: LogFields,
}

#[derive(Deserialize)]
struct LogFields {
    part: usize,
    parts: usize,
    data: String,
}

/// Puts together the last metrics that a runner wrote to its log when nobody released it.
async fn read_last_metrics(
    pods: &Api<Pod>,
    run: &str,
    runner: &Runner,
) -> Result<RunnerNumbers, CollectError> {
    let parameters = LogParams {
        container: Some(RUNNER_CONTAINER.into()),
        limit_bytes: Some(MAX_LOG_BYTES),
        ..LogParams::default()
    };
    let log = pods.logs(&runner.name, &parameters).await.map_err(CollectError::Log)?;
    let numbers = parse_last_metrics(&log)?;
    if numbers.identity.run == run && numbers.identity.index == runner.index {
        // The process is gone: whatever it said last is all there will be. One that was killed
        // under load says so, and stays lost.
        return Ok(numbers);
    }
    Err(CollectError::IncompleteLastMetrics)
}

fn parse_last_metrics(log: &str) -> Result<RunnerNumbers, CollectError> {
    let lines: BTreeMap<usize, LogFields> = log
        .lines()
        .filter_map(|line| serde_json::from_str::<LogLine>(line).ok())
        .map(|line| (line.fields.part, line.fields))
        .collect();
    let wanted = lines.values().next().map_or(0, |fields| fields.parts);
    if wanted == 0 || !lines.keys().copied().eq(1..=wanted) {
        return Err(CollectError::IncompleteLastMetrics);
    }
    let text: String = lines.into_values().map(|fields| fields.data).collect();
    let bytes = STANDARD.decode(text).map_err(|_| CollectError::IncompleteLastMetrics)?;
    Ok(decode(&bytes)?)
}

/// One error's example, as a runner lists them.
#[derive(Deserialize)]
struct ErrorExample {
    task: String,
    kind: String,
    message: String,
}

/// Asks runners for one message per kind of error, into the cache. Nice to have: a runner
/// that does not answer is passed over.
pub(crate) async fn collect_error_examples(
    context: &Context,
    runners: &[Runner],
    cache: &mut RunCache,
) {
    let ips = runners.iter().filter(|r| r.termination.is_none()).filter_map(|r| r.ip.as_deref());
    let questions: Vec<_> = ips
        .map(|ip| async move {
            let answer = context.http.get(runner_url(ip, "/errors")).send().await.ok()?;
            let body = read_body(answer).await.ok()?;
            serde_json::from_slice::<Vec<ErrorExample>>(&body).ok()
        })
        .collect();
    let answers = run_concurrently(questions).await;
    for ErrorExample { task, kind, message } in answers.into_iter().flatten().flatten() {
        cache.error_examples.entry((task, kind)).or_insert(message);
    }
}

/// An order to runners.
#[derive(Clone, Debug)]
pub(crate) enum Order {
    /// Start at a moment.
    Start(Timestamp),
    /// Stop now; open requests may take so long yet.
    Stop(Duration),
    /// Go.
    Release,
}

/// Sends an order to pods by UID. Returns the UIDs of those that took it.
pub(crate) async fn send_order(
    context: &Context,
    run: &str,
    runners: &[Runner],
    uids: &[String],
    order: &Order,
) -> Vec<String> {
    let token = &context.run_token(run);
    let sendings: Vec<_> = runners
        .iter()
        .filter(|runner| uids.contains(&runner.uid))
        .map(|runner| async move {
            let ip = runner.ip.as_deref()?;
            let (path, body) = match order {
                // The time left as of this very sending.
                Order::Start(at) => {
                    let left = at.duration_since(Timestamp::now()).as_secs_f64().max(0.0);
                    ("/start", serde_json::json!({"inSeconds": left}))
                }
                Order::Stop(grace) => {
                    ("/stop", serde_json::json!({"graceSeconds": grace.as_secs_f64()}))
                }
                Order::Release => ("/release", serde_json::json!({})),
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
                    tracing::warn!(run, pod = runner.name, path, %error, "order was not taken");
                    None
                }
            }
        })
        .collect();
    run_concurrently(sendings).await.into_iter().flatten().collect()
}

/// Awaits futures, a bounded number at once.
async fn run_concurrently<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    stream::iter(futures).buffer_unordered(MAX_CONCURRENT_REQUESTS).collect().await
}

#[cfg(test)]
mod tests {
    use loadtest_core::metrics::{Identity, Shown, encode};

    use super::*;

    fn log_of(numbers: RunnerNumbers) -> Vec<String> {
        let bytes = encode(numbers, Shown::default(), Format::Protobuf).unwrap();
        let text = STANDARD.encode(bytes);
        let parts = text.len().div_ceil(100);
        text.as_bytes()
            .chunks(100)
            .enumerate()
            .map(|(i, data)| {
                let data = String::from_utf8_lossy(data);
                serde_json::json!({"fields": {"message": "last metrics", "part": i + 1, "parts": parts, "data": data}})
                    .to_string()
            })
            .collect()
    }

    fn numbers() -> RunnerNumbers {
        let identity = Identity { run: "uid".into(), index: 1, pod: "pod".into() };
        let mut numbers = RunnerNumbers { identity, ..RunnerNumbers::default() };
        numbers.state = RunnerState::Done;
        numbers.numbers.elapsed_seconds = 12.0;
        numbers
    }

    #[test]
    fn last_metrics_are_found_among_other_lines() {
        let mut lines = log_of(numbers());
        lines.insert(0, "not json".into());
        lines.push(r#"{"fields": {"message": "runner ends"}}"#.into());
        assert_eq!(parse_last_metrics(&lines.join("\n")).unwrap(), numbers());
    }

    #[test]
    fn half_a_log_is_no_result() {
        let lines = log_of(numbers());
        assert!(lines.len() > 2);
        assert!(parse_last_metrics(&lines[1..].join("\n")).is_err());
        assert!(parse_last_metrics(&lines[..1].join("\n")).is_err());
        assert!(parse_last_metrics("").is_err());
    }

    #[test]
    fn addresses_of_both_families_make_urls() {
        assert_eq!(runner_url("10.0.0.1", "/metrics"), "http://10.0.0.1:9464/metrics");
        assert_eq!(runner_url("fd00::1", "/metrics"), "http://[fd00::1]:9464/metrics");
    }
}
