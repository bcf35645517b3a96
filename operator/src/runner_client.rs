//! Sends orders to runners over HTTP, and asks them whether they are ready and for examples of their errors.

use k8s_openapi::jiff::Timestamp;
use loadtest_core::{
    Duration,
    control::{self, ErrorExample, ReleaseOrder, StartOrder, StopOrder, path},
};

use crate::{
    clock::now,
    collect::{
        Collection,
        scrape::{MAX_REQUESTS, check_size, run_concurrently},
    },
    context::Context,
    error::format_error_chain,
    observe::{runner::Runner, state::RunCache},
};

/// Time limit for asking a runner whether it is ready.
const READINESS_TIMEOUT: std::time::Duration = std::time::Duration::from_millis(500);

/// Returns the URL of a path of a runner.
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
    run_concurrently(MAX_REQUESTS, questions.collect()).await;
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
            let body = read_body(response).await?;
            serde_json::from_slice::<Vec<ErrorExample>>(&body).ok()
        })
        .collect();
    let lists = run_concurrently(MAX_REQUESTS, requests).await;
    for ErrorExample { task, kind, message } in lists.into_iter().flatten().flatten() {
        cache.error_examples.entry((task, kind)).or_insert(message);
    }
}

/// Reads the body of a response; `None` if it breaks off or is too large.
async fn read_body(mut response: reqwest::Response) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.ok()? {
        check_size(bytes.len() + chunk.len()).ok()?;
        bytes.extend_from_slice(&chunk);
    }
    Some(bytes)
}

/// An order to runners.
#[derive(Clone, Debug)]
pub(crate) enum Order<'a> {
    /// Start the load at a time.
    Start(Timestamp),
    /// Stop the load now. In-flight requests may take this long to end.
    Stop(Duration),
    /// Exit. With a collection, the runner refuses if it holds numbers that the collection lacks.
    Release(Option<&'a Collection>),
}

/// Sends an order to the pods with these UIDs. Returns the UIDs of the pods that accepted it.
pub(crate) async fn send_order(
    context: &Context,
    run_uid: &str,
    runners: &[Runner],
    pod_uids: &[String],
    order: &Order<'_>,
) -> Vec<String> {
    let token = &context.authority.run_token(run_uid);
    let lease_number = Some(context.authority.leadership.number());
    let requests: Vec<_> = runners
        .iter()
        .filter(|runner| pod_uids.contains(&runner.uid))
        .map(async |runner| {
            let ip = runner.ip.as_deref()?;
            let (path, body) = match order {
                // The order carries the time left at the moment of sending, so that the clocks
                // of the nodes don't matter.
                Order::Start(at) => {
                    let in_seconds = at.duration_since(now()).as_secs_f64().max(0.0);
                    (path::START, serde_json::json!(StartOrder { lease_number, in_seconds }))
                }
                Order::Stop(grace) => {
                    let grace_seconds = grace.as_secs_f64();
                    (path::STOP, serde_json::json!(StopOrder { lease_number, grace_seconds }))
                }
                Order::Release(collection) => {
                    // Without an answer to this process, its numbers are from a result or a log.
                    let last_step = collection.map(|read| read.last_step(runner.index));
                    let last_step = last_step.filter(|step| *step > 0);
                    (path::RELEASE, serde_json::json!(ReleaseOrder { lease_number, last_step }))
                }
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
    run_concurrently(MAX_REQUESTS, requests).await.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_and_ipv6_addresses_make_valid_urls() {
        assert_eq!(runner_url("10.0.0.1", "/metrics"), "http://10.0.0.1:9464/metrics");
        assert_eq!(runner_url("fd00::1", "/metrics"), "http://[fd00::1]:9464/metrics");
    }
}
