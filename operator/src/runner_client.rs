//! Sends orders to runners over HTTP, and asks them whether they are ready and for examples of their errors.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Instant,
};

use futures_util::{future, stream};
use http_body_util::StreamBody;
use hyper::body::{Bytes, Frame};
use k8s_openapi::jiff::Timestamp;
use loadtest_core::{
    Duration,
    control::{self, ErrorExample, ReleaseOrder, StartOrder, StopOrder, path},
    text::truncate,
};
use reqwest::Body;
use serde::Serialize;
use tokio::time::timeout;

use crate::{
    clock::now,
    collect::{
        Collection,
        scrape::{MAX_REQUESTS, run_concurrently},
    },
    context::Context,
    error::format_error_chain,
    observe::{runner::Runner, state::RunCache},
};

/// Time limit for asking a runner whether it is ready.
const READINESS_TIMEOUT: std::time::Duration = std::time::Duration::from_millis(500);

/// Maximum size of a runner's list of error messages, in bytes.
const MAX_EXAMPLES_BYTES: usize = 256 << 10;
/// Maximum of kinds of errors for each task. A runner has about thirty.
const MAX_KINDS: usize = 64;
/// Maximum length of a kind of error, in bytes.
const MAX_KIND_BYTES: usize = 64;
/// Maximum length of an error message that is kept, in bytes.
const MAX_EXAMPLE_BYTES: usize = 1000;

/// Stop orders that are sent at the same time. Runners that do not answer must not delay the order to others.
const STOP_ORDERS_AT_A_TIME: usize = 500;
/// Time limit for a stop order. A runner that has not taken it after some attempts is stopped by force.
const STOP_ORDER_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(2);

/// Start orders that are sent at the same time: at first, and when some of them are repeated.
const ORDERS_AT_A_TIME: [usize; 5] = [MAX_REQUESTS, 8, 8, 8, 8];
/// A start order with its answer in this time needs no repetition.
const PRECISE: std::time::Duration = std::time::Duration::from_millis(15);
/// Start orders are not repeated shorter than this before the start, because the runners prepare for it.
const MIN_LEAD: std::time::Duration = std::time::Duration::from_millis(300);

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

/// Adds one error message per task and kind of error to the cache. `tasks` are those of the test.
///
/// The messages are optional, so a runner that does not respond is skipped.
pub(crate) async fn collect_error_examples(
    context: &Context,
    tasks: &BTreeSet<String>,
    runners: &[Runner],
    cache: &mut RunCache,
) {
    let examples = Mutex::new(std::mem::take(&mut cache.error_examples));
    let ips = runners.iter().filter(|r| r.termination.is_none()).filter_map(|r| r.ip.as_deref());
    let requests: Vec<_> = ips
        .map(async |ip| {
            let Ok(response) = context.http.get(runner_url(ip, path::ERRORS)).send().await else {
                return;
            };
            let Some(body) = read_body(response).await else { return };
            let list = serde_json::from_slice::<Vec<ErrorExample>>(&body).unwrap_or_default();
            let mut examples = examples.lock().unwrap_or_else(PoisonError::into_inner);
            list.into_iter().for_each(|example| add_example(&mut examples, tasks, example));
        })
        .collect();
    run_concurrently(MAX_REQUESTS, requests).await;
    cache.error_examples = examples.into_inner().unwrap_or_else(PoisonError::into_inner);
}

/// Messages by task and kind of error.
type ErrorExamples = BTreeMap<(String, String), String>;

/// Adds a message, unless there is one of the same task and kind. Users choose the image of the runners, so the operator
/// keeps no more than the runners of a release would tell.
fn add_example(examples: &mut ErrorExamples, tasks: &BTreeSet<String>, example: ErrorExample) {
    let ErrorExample { task, kind, message } = example;
    let has_room = examples.len() < MAX_KINDS * tasks.len();
    if has_room && tasks.contains(&task) && kind.len() <= MAX_KIND_BYTES {
        let message = truncate(&message, MAX_EXAMPLE_BYTES);
        examples.entry((task, kind)).or_insert(message);
    }
}

/// Reads the body of a response; `None` if it breaks off or is too large.
async fn read_body(mut response: reqwest::Response) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.ok()? {
        if bytes.len() + chunk.len() > MAX_EXAMPLES_BYTES {
            return None;
        }
        bytes.extend_from_slice(&chunk);
    }
    Some(bytes)
}

/// An order that ends the load of runners, or their processes.
#[derive(Clone, Debug)]
pub(crate) enum Order<'a> {
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
    let sender = OrderSender::new(context, run_uid);
    let lease_number = sender.lease_number;
    let requests: Vec<_> = runners
        .iter()
        .filter(|runner| pod_uids.contains(&runner.uid))
        .map(async |runner| {
            let (path, body) = match order {
                Order::Stop(grace) => {
                    let grace_seconds = grace.as_secs_f64();
                    (path::STOP, body_of(&StopOrder { lease_number, grace_seconds }))
                }
                Order::Release(collection) => {
                    // Without an answer to this process, its numbers are from a result or a log.
                    let last_step = collection.map(|read| read.last_step(runner.index));
                    let last_step = last_step.filter(|step| *step > 0);
                    (path::RELEASE, body_of(&ReleaseOrder { lease_number, last_step }))
                }
            };
            let sent = sender.send(runner, path, body);
            let is_accepted = match order {
                Order::Stop(_) => timeout(STOP_ORDER_TIMEOUT, sent).await.unwrap_or(false),
                Order::Release(_) => sent.await,
            };
            is_accepted.then(|| runner.uid.clone())
        })
        .collect();
    let limit = match order {
        Order::Stop(_) => STOP_ORDERS_AT_A_TIME,
        Order::Release(_) => MAX_REQUESTS,
    };
    run_concurrently(limit, requests).await.into_iter().flatten().collect()
}

/// Tells the pods with these UIDs to start at a time. Returns the UIDs of the pods that accepted it.
///
/// An order that was on its way for long starts its runner late. A runner starts at the earliest time that an order names,
/// so such an order is sent again, with fewer others at the same time.
pub(crate) async fn send_start(
    context: &Context,
    run_uid: &str,
    runners: &[Runner],
    pod_uids: &[String],
    at: Timestamp,
) -> Vec<String> {
    let sender = OrderSender::new(context, run_uid);
    // The clock of this process may be corrected between two orders, which must name the same start.
    let lead = at.duration_since(now()).try_into().unwrap_or_default();
    let at = Instant::now() + lead;
    let mut accepted = BTreeSet::new();
    let mut left: Vec<&Runner> =
        runners.iter().filter(|runner| pod_uids.contains(&runner.uid)).collect();
    let is_soon = || at.saturating_duration_since(Instant::now()) < MIN_LEAD;
    for (repetition, limit) in ORDERS_AT_A_TIME.into_iter().enumerate() {
        let orders: Vec<_> = left
            .into_iter()
            .map(async |runner| {
                if repetition > 0 && is_soon() {
                    return None;
                }
                let made_at = Arc::new(OnceLock::new());
                let body = start_body(at, sender.lease_number, Arc::clone(&made_at));
                let is_accepted = sender.send(runner, path::START, body).await;
                is_accepted.then(|| (runner, made_at.get().map(Instant::elapsed)))
            })
            .collect();
        let answers = run_concurrently(limit, orders).await.into_iter().flatten();
        left = answers
            .filter_map(|(runner, way)| {
                accepted.insert(runner.uid.clone());
                way.is_some_and(|way| way > PRECISE).then_some(runner)
            })
            .collect();
        if left.is_empty() {
            break;
        }
    }
    accepted.into_iter().collect()
}

/// Sends orders to the runners of a run.
struct OrderSender<'a> {
    context: &'a Context,
    run_uid: &'a str,
    token: String,
    lease_number: Option<u64>,
}

impl<'a> OrderSender<'a> {
    fn new(context: &'a Context, run_uid: &'a str) -> Self {
        let token = context.authority.run_token(run_uid);
        let lease_number = Some(context.authority.leadership.number());
        Self { context, run_uid, token, lease_number }
    }

    /// Sends an order to a runner. Returns true if the runner accepted it.
    async fn send(&self, runner: &Runner, path: &str, body: Body) -> bool {
        let Some(ip) = runner.ip.as_deref() else { return false };
        let request = self
            .context
            .http
            .post(runner_url(ip, path))
            .bearer_auth(&self.token)
            .header("content-type", "application/json")
            .body(body);
        let Err(error) = request.send().await.and_then(reqwest::Response::error_for_status) else {
            return true;
        };
        let (run_uid, error) = (self.run_uid, format_error_chain(&error));
        tracing::warn!(run_uid, pod = runner.name, path, error, "order not accepted");
        false
    }
}

fn body_of(order: &impl Serialize) -> Body {
    serde_json::json!(order).to_string().into()
}

/// The body of a start order. It carries the time that is left when it is sent, so that the clocks of the nodes don't
/// matter. Hundreds of orders wait for a connection and for the CPU, so the body is made at the last moment, and `made_at`
/// says when.
fn start_body(at: Instant, lease_number: Option<u64>, made_at: Arc<OnceLock<Instant>>) -> Body {
    let make = move |_: &mut std::task::Context<'_>| {
        let made_at = made_at.get_or_init(Instant::now);
        let in_seconds = at.saturating_duration_since(*made_at).as_secs_f64();
        let order = serde_json::json!(StartOrder { lease_number, in_seconds });
        Ok::<_, Infallible>(Frame::data(Bytes::from(order.to_string())))
    };
    Body::wrap(StreamBody::new(stream::once(future::lazy(make))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_messages_of_a_hostile_runner_are_limited() {
        let tasks = BTreeSet::from(["chat".to_owned()]);
        let mut examples = ErrorExamples::new();
        let mut add = |task: &str, kind: String, message: String| {
            let example = ErrorExample { task: task.into(), kind, message };
            add_example(&mut examples, &tasks, example);
        };
        add("chat", "reset".into(), "x".repeat(100_000));
        add("chat", "reset".into(), "another one".into());
        add("unknown", "reset".into(), "no task of the test".into());
        add("chat", "y".repeat(100_000), "long kind".into());
        (0..1000).for_each(|number| add("chat", format!("kind-{number}"), "z".into()));
        assert_eq!(examples.len(), MAX_KINDS);
        let longest = examples.iter().map(|((_, kind), text)| kind.len() + text.len()).max();
        assert_eq!(longest, Some("reset".len() + MAX_EXAMPLE_BYTES));
    }

    #[test]
    fn ipv4_and_ipv6_addresses_make_valid_urls() {
        assert_eq!(runner_url("10.0.0.1", "/metrics"), "http://10.0.0.1:9464/metrics");
        assert_eq!(runner_url("fd00::1", "/metrics"), "http://[fd00::1]:9464/metrics");
    }
}
