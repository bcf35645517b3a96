//! The task that collects the metrics of one run.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use loadtest_core::metrics::ExpositionError;
use prometheus_client::metrics::counter::Counter;
use tokio::{
    sync::{Semaphore, watch},
    task::{JoinHandle, JoinSet, spawn_blocking},
};

use super::{
    budget::{NamespaceBudget, ReadBudget},
    collection::{Answer, Collection},
    connection::Connections,
    scrape::{
        Body, CollectError, HistoryRequest, LeaseProof, MAX_REQUESTS, decode_answer, fetch_history,
        fetch_log, last_metrics_of,
    },
    targets::Targets,
};
use crate::{clock::now, error::format_error_chain, lease::Authority, observe::runner::Runner};

/// How long a round waits for answers. Slower runners answer in a later round.
const ROUND_TIME: Duration = Duration::from_millis(1500);
/// Minimum time between two rounds.
const MIN_PAUSE: Duration = Duration::from_millis(100);
/// Maximum number of logs of one test that are read at the same time.
const MAX_LOG_READS: usize = 4;
/// Time for which a log that can't be read is tried again before its runner counts as lost.
const LOG_RETRY_TIME: Duration = Duration::from_mins(1);

/// The collectors of all running tests.
pub(crate) struct Collectors {
    clients: Clients,
    /// The collectors by the UID of the test.
    running: Mutex<HashMap<String, Collector>>,
}

/// The clients of every collector.
#[derive(Clone)]
struct Clients {
    kubernetes: kube::Client,
    authority: Arc<Authority>,
    budget: Arc<ReadBudget>,
    scrape_failures: Counter,
}

/// The collector of one run. Its task ends when it is dropped.
#[derive(Debug)]
struct Collector {
    targets: watch::Sender<Arc<Targets>>,
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
        authority: Arc<Authority>,
        scrape_failures: Counter,
    ) -> Self {
        let budget = Arc::default();
        Self {
            clients: Clients { kubernetes, authority, budget, scrape_failures },
            running: Mutex::default(),
        }
    }

    /// Tells the collector of a run what to collect, and returns what it has collected so far. The first
    /// call starts the collector, which goes on from `earlier`.
    pub(crate) fn collect(&self, targets: Targets, earlier: &Arc<Collection>) -> Arc<Collection> {
        let mut running = self.lock();
        let run_uid = targets.run_uid.clone();
        if let Some(collector) = running.get(&run_uid)
            && !collector.task.is_finished()
        {
            collector.targets.send_replace(Arc::new(targets));
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
        let budget = clients.budget.of_namespace(&targets.namespace);
        let (targets, receiver) = watch::channel(Arc::new(targets));
        let (sender, latest) = watch::channel(Arc::clone(earlier));
        let rounds = Rounds {
            clients,
            budget,
            collection: Arc::new(Mutex::new(Collection::clone(earlier))),
            connections: Arc::default(),
            requests: Arc::new(Semaphore::new(MAX_REQUESTS)),
            asked: RunnerTasks::default(),
            reads: RunnerTasks::default(),
            informed: Arc::default(),
        };
        let task = tokio::spawn(rounds.run(receiver, sender));
        Self { targets, latest, task }
    }
}

/// The questions to the runners of one run, round by round.
struct Rounds {
    clients: Clients,
    budget: NamespaceBudget,
    collection: Arc<Mutex<Collection>>,
    connections: Arc<Connections>,
    /// Limits the concurrent requests.
    requests: Arc<Semaphore>,
    /// The runners that have not answered yet.
    asked: RunnerTasks,
    /// The logs that are being read.
    reads: RunnerTasks,
    /// The runners that know the Lease of this process.
    informed: Arc<Mutex<InformedRunners>>,
}

/// The runners that know the Lease of this process: UIDs of pods, each with the number of the Lease.
type InformedRunners = HashSet<(String, u64)>;

/// Tasks about single runners, at most one for each.
#[derive(Default)]
struct RunnerTasks {
    tasks: JoinSet<Result<(), CollectError>>,
    runners: HashMap<tokio::task::Id, u32>,
}

impl RunnerTasks {
    fn contains(&self, index: u32) -> bool {
        self.runners.values().any(|asked| *asked == index)
    }

    fn spawn(
        &mut self,
        index: u32,
        task: impl Future<Output = Result<(), CollectError>> + Send + 'static,
    ) {
        let handle = self.tasks.spawn(task);
        self.runners.insert(handle.id(), index);
    }

    /// Waits for the next task. Returns the index of its runner, and what went wrong.
    async fn next(&mut self) -> Option<(u32, Result<(), CollectError>)> {
        let (id, result) = match self.tasks.join_next_with_id().await? {
            Ok((id, result)) => (id, result),
            Err(error) => (error.id(), Err(CollectError::Panic)),
        };
        Some((self.runners.remove(&id).unwrap_or(u32::MAX), result))
    }
}

/// No panic can leave the set half updated.
fn lock_informed(informed: &Mutex<InformedRunners>) -> MutexGuard<'_, InformedRunners> {
    informed.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks a collection, also after a panic: the decoder, which reads foreign data, runs before the lock.
fn lock(collection: &Mutex<Collection>) -> MutexGuard<'_, Collection> {
    collection.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Rounds {
    /// Never returns.
    async fn run(
        mut self,
        targets: watch::Receiver<Arc<Targets>>,
        latest: watch::Sender<Arc<Collection>>,
    ) {
        loop {
            let started_at = Instant::now();
            let current = Arc::clone(&targets.borrow());
            self.ask(&current);
            let answers = self.wait_for_answers(&current);
            let _ = tokio::time::timeout(ROUND_TIME, answers).await;
            let (collection, run) = (Arc::clone(&self.collection), Arc::clone(&current));
            // Judging and copying take milliseconds, and this thread serves all tests.
            let ended = spawn_blocking(move || {
                let mut collection = lock(&collection);
                collection.end_round(&run, now());
                Arc::new(collection.clone())
            });
            let mut elapsed = 0.0;
            match ended.await {
                Ok(collection) => {
                    elapsed = collection.reported_elapsed().unwrap_or_default();
                    latest.send_replace(collection);
                }
                Err(error) => tracing::error!(run_uid = current.run_uid, %error, "round failed"),
            }
            let pause = current.pause(loadtest_core::Duration::from_secs_f64(elapsed)).to_std();
            tokio::time::sleep(pause.saturating_sub(started_at.elapsed()).max(MIN_PAUSE)).await;
        }
    }

    /// Asks the runners that are alive, and begins to read the logs of the others.
    fn ask(&mut self, targets: &Arc<Targets>) {
        let mut collection = lock(&self.collection);
        collection.begin_round();
        let api: Api<Pod> = Api::namespaced(self.clients.kubernetes.clone(), &targets.namespace);
        let mut connected = HashSet::new();
        for index in targets.pods().indices() {
            if collection.is_final(index) || collection.gone().runners.contains_key(&index) {
                continue;
            }
            let Some(runner) = targets.pods().get(index) else { continue };
            connected.insert(runner.uid.as_str());
            let runner = runner.clone();
            let (run, state) = (Arc::clone(targets), Arc::clone(&self.collection));
            if runner.termination.is_some() {
                let has_room = self.reads.runners.len() < MAX_LOG_READS;
                if has_room && !self.reads.contains(index) && !collection.is_log_read(&runner.uid) {
                    let budget = self.budget.clone();
                    self.reads.spawn(index, read_log(api.clone(), budget, state, run, runner));
                }
            } else if let Some(ip) = runner.ip.as_deref().and_then(|ip| ip.parse().ok())
                && !self.asked.contains(index)
            {
                let question = Question {
                    ip,
                    connections: Arc::clone(&self.connections),
                    authority: Arc::clone(&self.clients.authority),
                    informed: Arc::clone(&self.informed),
                    budget: self.budget.clone(),
                    requests: Arc::clone(&self.requests),
                    after: collection.last_step(index),
                };
                self.asked.spawn(index, question.ask(state, run, runner));
            }
        }
        self.connections.retain(&connected);
    }

    /// Waits until all runners that were asked have answered, and all logs are read.
    async fn wait_for_answers(&mut self, targets: &Targets) {
        loop {
            let (index, result) = tokio::select! {
                Some(answer) = self.asked.next() => answer,
                Some(read) = self.reads.next() => read,
                else => return,
            };
            let Err(error) = result else { continue };
            self.clients.scrape_failures.inc();
            let text = format_error_chain(&error);
            tracing::debug!(run_uid = targets.run_uid, index, error = text, "no answer");
            if matches!(error, CollectError::Exposition(ExpositionError::Contract { .. })) {
                lock(&self.collection).note_contract_mismatch(text);
            }
        }
    }
}

/// What a question to one runner needs.
struct Question {
    /// Address of the runner's pod.
    ip: IpAddr,
    connections: Arc<Connections>,
    authority: Arc<Authority>,
    informed: Arc<Mutex<InformedRunners>>,
    budget: NamespaceBudget,
    requests: Arc<Semaphore>,
    /// Number of the last step that was read.
    after: u64,
}

impl Question {
    /// Asks a runner, and adds its answer to the collection.
    async fn ask(
        self,
        collection: Arc<Mutex<Collection>>,
        targets: Arc<Targets>,
        runner: Runner,
    ) -> Result<(), CollectError> {
        let Self { ip, connections, authority, informed, budget, requests, after } = self;
        // Nobody closes this semaphore.
        let _permit = requests.acquire_owned().await.ok();
        // Another pod may have the address of this runner by now, so the token is sent only when it is needed.
        let known = (runner.uid.clone(), authority.leadership.number());
        let is_known = lock_informed(&informed).contains(&known);
        let lease = (!is_known)
            .then(|| LeaseProof { number: known.1, token: authority.run_token(&targets.run_uid) });
        let request =
            HistoryRequest { run_uid: &targets.run_uid, runner: &runner, ip, after, lease };
        let body = fetch_history(&connections, &budget, request).await?;
        lock_informed(&informed).insert(known);
        let added = spawn_blocking(move || {
            let Body { bytes, round_trip, elapsed, .. } = &body;
            let steps = decode_answer(bytes, &targets.run_uid, &runner)?;
            let index = runner.index;
            let answer = Answer { index, round_trip: *round_trip, elapsed: *elapsed, steps };
            lock(&collection).add_answer(answer, &targets, now())?;
            Ok(())
        });
        added.await.unwrap_or(Err(CollectError::Panic))
    }
}

/// Reads the last metrics in the log of a runner that has ended, and adds them to the collection.
async fn read_log(
    pods: Api<Pod>,
    budget: NamespaceBudget,
    collection: Arc<Mutex<Collection>>,
    targets: Arc<Targets>,
    runner: Runner,
) -> Result<(), CollectError> {
    let log = fetch_log(&pods, &budget, &runner).await;
    let added = spawn_blocking(move || {
        // A later round may be able to read the log.
        let may_succeed_later = log.is_err();
        let result = log.and_then(|log| last_metrics_of(&log.text, &targets.run_uid, &runner));
        let mut collection = lock(&collection);
        let now = now();
        let since = collection.note_end(&runner.uid, now);
        let waited = now.duration_since(since).as_secs_f64();
        if !may_succeed_later || waited > LOG_RETRY_TIME.as_secs_f64() {
            collection.note_log_read(&runner.uid);
        }
        match result {
            Ok(snapshot) => collection.replace(runner.index, snapshot, &targets),
            Err(error) => {
                let (pod, error) = (&runner.name, format_error_chain(&error));
                tracing::info!(run_uid = targets.run_uid, pod, error, "no last metrics");
            }
        }
        Ok(())
    });
    added.await.unwrap_or(Err(CollectError::Panic))
}
