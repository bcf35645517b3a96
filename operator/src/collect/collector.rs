//! The task that collects the metrics of one run.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::Api;
use loadtest_core::{
    Duration,
    metrics::{ExpositionError, RunnerMetrics},
};
use prometheus_client::metrics::counter::Counter;
use tokio::{sync::watch, task::JoinHandle};

use super::{
    collection::{Answer, Collection},
    scrape::{CollectError, decode_answer, fetch_history, read_last_metrics, run_concurrently},
    targets::Targets,
};
use crate::{error::format_error_chain, observe::runner::Runner};

/// Time for which a log that can't be read is tried again before its runner counts as lost.
const LOG_PATIENCE: std::time::Duration = std::time::Duration::from_mins(1);

/// The collectors of all running tests.
pub(crate) struct Collectors {
    clients: Clients,
    /// The collectors by the UID of the test.
    running: Mutex<HashMap<String, Collector>>,
}

/// What every collector needs.
#[derive(Clone)]
struct Clients {
    kubernetes: kube::Client,
    http: reqwest::Client,
    scrape_failures: Counter,
}

/// The collector of one run. Its task ends when it is dropped.
#[derive(Debug)]
struct Collector {
    targets: watch::Sender<Targets>,
    latest: watch::Receiver<Arc<Collection>>,
    task: JoinHandle<()>,
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Collectors {
    /// Creates no collectors yet.
    pub(crate) fn new(
        kubernetes: kube::Client,
        http: reqwest::Client,
        scrape_failures: Counter,
    ) -> Self {
        Self { clients: Clients { kubernetes, http, scrape_failures }, running: Mutex::default() }
    }

    /// Tells the collector of a run what to collect, and returns what it has collected so far. The first
    /// call starts the collector, which goes on from `earlier`.
    pub(crate) fn collect(&self, targets: Targets, earlier: &Arc<Collection>) -> Arc<Collection> {
        let mut running = self.lock();
        let run_uid = targets.run_uid.clone();
        if let Some(collector) = running.get(&run_uid) {
            collector.targets.send_replace(targets);
            return Arc::clone(&collector.latest.borrow());
        }
        running.insert(run_uid, Collector::start(self.clients.clone(), targets, earlier));
        Arc::clone(earlier)
    }

    /// Returns what the collector of a run has collected so far, if there is one.
    pub(crate) fn latest(&self, run_uid: &str) -> Option<Arc<Collection>> {
        self.lock().get(run_uid).map(|collector| Arc::clone(&collector.latest.borrow()))
    }

    /// Ends the collector of a run.
    pub(crate) fn stop(&self, run_uid: &str) {
        self.lock().remove(run_uid);
    }

    /// Ends the collectors of all runs but these.
    pub(crate) fn retain(&self, run_uids: &HashSet<String>) {
        self.lock().retain(|run_uid, _| run_uids.contains(run_uid));
    }

    /// No panic can leave the map half updated.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Collector>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector {
    fn start(clients: Clients, targets: Targets, earlier: &Arc<Collection>) -> Self {
        let (targets, receiver) = watch::channel(targets);
        let (sender, latest) = watch::channel(Arc::clone(earlier));
        let task = tokio::spawn(run(clients, receiver, sender));
        Self { targets, latest, task }
    }
}

/// Asks the runners, round by round. Never returns.
async fn run(
    clients: Clients,
    targets: watch::Receiver<Targets>,
    latest: watch::Sender<Arc<Collection>>,
) {
    loop {
        let started_at = Instant::now();
        let current = targets.borrow().clone();
        let collection = Arc::clone(&latest.borrow());
        let round = ask(&clients, &current, &collection).await;
        // Decoding and merging take milliseconds for each runner, and this thread serves all tests.
        let applied = tokio::task::spawn_blocking(move || {
            let mut collection = Arc::unwrap_or_clone(collection);
            let failures = round.apply(&mut collection, &current);
            (collection, current, failures)
        });
        let Ok((collection, current, failures)) = applied.await else {
            tracing::error!("a round of the collector panicked");
            continue;
        };
        clients.scrape_failures.inc_by(failures);
        let elapsed = collection.reported_elapsed().unwrap_or_default();
        latest.send_replace(Arc::new(collection));
        let pause = current.pause(Duration::from_secs_f64(elapsed)).to_std();
        tokio::time::sleep(pause.saturating_sub(started_at.elapsed())).await;
    }
}

/// The answers of one round, still encoded.
#[derive(Debug)]
struct Round {
    answers: Vec<EncodedAnswer>,
    /// The last metrics of pods that have ended.
    logs: Vec<(Runner, Result<RunnerMetrics, CollectError>)>,
}

/// The answer of one runner, still encoded.
#[derive(Debug)]
struct EncodedAnswer {
    runner: Runner,
    sent_at: Instant,
    received_at: Instant,
    result: Result<Vec<u8>, CollectError>,
}

/// Asks all runners that may answer, and reads the logs of those that have ended.
async fn ask(clients: &Clients, targets: &Targets, collection: &Collection) -> Round {
    let missing = targets.pods().indices().filter(|index| {
        !collection.is_final(*index) && !collection.gone().runners.contains_key(index)
    });
    let pods = missing.filter_map(|index| targets.pods().get(index));
    let (ended, alive): (Vec<&Runner>, Vec<&Runner>) =
        pods.partition(|runner| runner.termination.is_some());
    let requests = alive.into_iter().filter_map(|runner| {
        let (ip, after) = (runner.ip.clone()?, collection.last_step(runner.index));
        Some(async move {
            let sent_at = Instant::now();
            let result = fetch_history(&clients.http, &ip, after).await;
            let received_at = Instant::now();
            EncodedAnswer { runner: runner.clone(), sent_at, received_at, result }
        })
    });
    let answers = run_concurrently(requests.collect()).await;
    let api: Api<Pod> = Api::namespaced(clients.kubernetes.clone(), &targets.namespace);
    let unread = ended.into_iter().filter(|runner| !collection.is_log_read(&runner.uid));
    let reads = unread.map(|runner| {
        let read = read_last_metrics(&api, &targets.run_uid, runner);
        async move { (runner.clone(), read.await) }
    });
    let logs = run_concurrently(reads.collect()).await;
    Round { answers, logs }
}

impl Round {
    /// Adds the answers to what was collected before. Returns the number of runners that could not be
    /// read.
    fn apply(self, collection: &mut Collection, targets: &Targets) -> u64 {
        let (mut answers, mut failures) = (Vec::new(), 0);
        for EncodedAnswer { runner, sent_at, received_at, result } in self.answers {
            let index = runner.index;
            let decoded = result.and_then(|bytes| {
                let steps = decode_answer(&bytes, &targets.run_uid, &runner)?;
                Ok((steps, bytes.into()))
            });
            match decoded {
                Ok((steps, bytes)) => {
                    answers.push(Answer { index, sent_at, received_at, steps, bytes });
                }
                // The next round asks again. The earlier answers stay.
                Err(error) => {
                    failures += 1;
                    let text = format_error_chain(&error);
                    tracing::debug!(run_uid = targets.run_uid, index, error = text, "no answer");
                    if matches!(error, CollectError::Exposition(ExpositionError::Contract { .. })) {
                        collection.note_contract_mismatch(text);
                    }
                }
            }
        }
        let now = Timestamp::now();
        collection.apply(answers, targets, now);
        for (runner, result) in self.logs {
            let since = collection.note_end(&runner.uid, now);
            // After these two errors a later round may be able to read the log.
            let may_succeed_later =
                matches!(result, Err(CollectError::Log(_) | CollectError::LogTimeout));
            let waited = now.duration_since(since).as_secs_f64();
            if !may_succeed_later || waited > LOG_PATIENCE.as_secs_f64() {
                collection.note_log_read(&runner.uid);
            }
            match result {
                Ok(snapshot) => collection.replace(runner.index, snapshot),
                Err(error) => {
                    let (pod, error) = (&runner.name, format_error_chain(&error));
                    tracing::info!(run_uid = targets.run_uid, pod, error, "no last metrics");
                }
            }
        }
        collection.settle_gone(targets.pods());
        failures
    }
}
