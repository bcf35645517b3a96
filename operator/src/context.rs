//! State that all reconciliations share: clients, settings, caches and metrics.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client, ResourceExt,
    api::{ObjectMeta, PostParams},
    runtime::events::Reporter,
};

use loadtest_children::{OPERATOR_NAME, Settings};
use loadtest_core::resource::LoadTest;
use tokio::sync::Semaphore;

use crate::{
    clock::now,
    collect::Collectors,
    error::format_error_chain,
    lease::{Authority, Leadership},
    metrics::{ApiCalls, OperatorMetrics},
    observe::{changes::Changes, state::RunCache},
};

/// Name of the entry in the Secret that holds the token key.
const KEY_ENTRY: &str = "key";
/// Minimum length of the token key in bytes.
const MIN_KEY_BYTES: usize = 32;
/// Maximum number of tests without load that are reconciled at the same time.
const MAX_WITHOUT_LOAD: usize = 16;
/// Maximum number of tests of an earlier process that are taken over at the same time. Each result takes some MB meanwhile.
const MAX_TAKEOVERS: usize = 8;
/// Maximum number of results that are written at the same time. Those that can't wait are not counted.
const MAX_RESULT_WRITES: usize = 2;

/// The queues of reconciliations: first come, first served.
pub(crate) struct Queues {
    /// Tests without load.
    pub(crate) tests_without_load: Semaphore,
    /// Tests of an earlier process that may be under load.
    pub(crate) takeovers: Semaphore,
}

impl Queues {
    const fn new() -> Self {
        Self {
            tests_without_load: Semaphore::const_new(MAX_WITHOUT_LOAD),
            takeovers: Semaphore::const_new(MAX_TAKEOVERS),
        }
    }

    /// Ends all waits for a queue with an error, because the operator is about to exit.
    pub(crate) fn close(&self) {
        self.tests_without_load.close();
        self.takeovers.close();
    }
}

/// State that all reconciliations share.
pub struct Context {
    pub(crate) client: Client,
    pub(crate) settings: Settings,
    /// The name of this process in Events.
    pub(crate) reporter: Reporter,
    /// HTTP client for scrapes of runners and orders to runners.
    pub(crate) http: reqwest::Client,
    pub(crate) metrics: OperatorMetrics,
    /// The tasks that collect the metrics of running tests.
    pub(crate) collectors: Collectors,
    /// Which runs have changed since they were read.
    pub(crate) changes: Changes,
    /// The queues of reconciliations.
    pub(crate) queues: Queues,
    /// Limits how many results are written at the same time. Each takes some MB of memory meanwhile.
    pub(crate) result_writes: Semaphore,
    /// What an order to a runner needs.
    pub(crate) authority: Arc<Authority>,
    /// Caches by run UID.
    run_caches: Mutex<HashMap<String, RunCache>>,
    /// Names of the Events about the ends of runs that the API server has, by run UID.
    settled_endings: Mutex<HashMap<String, String>>,
    /// Number of consecutive failed reconciliations by object key.
    failures: Mutex<HashMap<String, u32>>,
}

/// Reason why the operator can't start.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// The Secret with the token key can't be read or created.
    #[error("failed to read or create secret {name} with the operator's token key")]
    Secret {
        /// Name of the Secret.
        name: String,
        /// Error of the Kubernetes client.
        source: kube::Error,
    },
    /// The Secret has no token key, or the key is too short.
    #[error(
        "secret {name} has no entry `{KEY_ENTRY}` of at least {MIN_KEY_BYTES} bytes; delete the secret, and the operator creates a new one when it restarts"
    )]
    ShortKey {
        /// Name of the Secret.
        name: String,
    },
    /// The HTTP client for runners can't be created.
    #[error("failed to create the HTTP client for runners")]
    HttpClient(#[from] reqwest::Error),
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The output must never contain the token key.
        f.debug_struct("Context").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Context {
    /// Exposes the counts of requests to the API server. Call this method only once.
    pub fn measure_api_calls(&self, calls: &ApiCalls) {
        self.metrics.add_api_calls(calls);
    }

    /// Reads the token key from a Secret. Creates the Secret if it is missing. Tries again as long
    /// as the API server is down: an operator that restarts with it must not give up.
    ///
    /// # Errors
    /// Fails if the API server refuses the Secret, or if its key is too short.
    pub async fn load_token_key(
        &self,
        namespace: &str,
        token_secret: &str,
    ) -> Result<(), ContextError> {
        let mut delay = Duration::from_secs(1);
        loop {
            match load_or_create_key(&self.client, namespace, token_secret).await {
                Ok(key) => {
                    self.authority.set_token_key(key);
                    return Ok(());
                }
                Err(ContextError::Secret { source, .. }) if is_transient(&source) => {
                    let error = format_error_chain(&source);
                    tracing::warn!(error, "the API server is not available; trying again");
                    tokio::time::sleep(delay).await;
                    delay = (2 * delay).min(Duration::from_secs(10));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Creates a context with the given token key and without a Lease, for tests.
    ///
    /// # Errors
    /// Fails if the HTTP client can't be created.
    pub fn with_token_key(
        client: Client,
        settings: Settings,
        token_key: Vec<u8>,
    ) -> Result<Self, ContextError> {
        let context = Self::new(client, settings, Leadership::without_lease(), None)?;
        context.authority.set_token_key(token_key);
        Ok(context)
    }

    /// Creates a context without a token key. [`Self::load_token_key`] follows before the first
    /// reconciliation. `pod_name` names this replica in Events.
    ///
    /// # Errors
    /// Fails if the HTTP client can't be created.
    pub fn new(
        client: Client,
        settings: Settings,
        leadership: Leadership,
        pod_name: Option<String>,
    ) -> Result<Self, ContextError> {
        let reporter = Reporter { controller: OPERATOR_NAME.into(), instance: pod_name };
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(2))
            .timeout(Duration::from_secs(5))
            // Orders are few, and an open connection holds buffers.
            .pool_max_idle_per_host(0)
            .redirect(reqwest::redirect::Policy::none())
            // The operator connects to pods directly, even if the environment names a proxy.
            .no_proxy()
            .build()?;
        let metrics = OperatorMetrics::new(leadership.clone());
        let authority = Arc::new(Authority::new(leadership));
        let collectors =
            Collectors::new(client.clone(), Arc::clone(&authority), metrics.scrape_failures());
        Ok(Self {
            reporter,
            client,
            settings,
            metrics,
            collectors,
            changes: Changes::default(),
            queues: Queues::new(),
            result_writes: Semaphore::new(MAX_RESULT_WRITES),
            http,
            authority,
            run_caches: Mutex::default(),
            settled_endings: Mutex::default(),
            failures: Mutex::default(),
        })
    }

    /// Removes and returns the cache of a run. Returns an empty cache for an unknown run.
    ///
    /// The cache can be moved out because reconciliations of one object never overlap.
    pub(crate) fn take_cache(&self, run_uid: &str) -> RunCache {
        lock_unpoisoned(&self.run_caches).remove(run_uid).unwrap_or_default()
    }

    /// Stores the cache of a run for the next reconciliation.
    pub(crate) fn store_cache(&self, run_uid: String, cache: RunCache) {
        lock_unpoisoned(&self.run_caches).insert(run_uid, cache);
    }

    /// Returns true if this process has reconciled a run before.
    pub(crate) fn is_known(&self, run_uid: &str) -> bool {
        lock_unpoisoned(&self.run_caches).contains_key(run_uid)
    }

    /// Returns how long the next reading of the objects of a run should wait; see [`LastObjects::time_to_reading`].
    pub(crate) fn time_to_reading(&self, cached: &LoadTest) -> Option<Duration> {
        let run_uid = cached.uid()?;
        let changes = self.changes.count(&run_uid);
        let runs = lock_unpoisoned(&self.run_caches);
        let last = runs.get(&run_uid)?.last_objects.as_ref()?;
        last.time_to_reading(cached, changes, now())?.try_into().ok()
    }

    /// Returns true if this process has sent the start orders of a run, or collects its metrics.
    pub(crate) fn has_started(&self, run_uid: &str) -> bool {
        let was_sent = lock_unpoisoned(&self.run_caches)
            .get(run_uid)
            .is_some_and(|cache| cache.start_sent_at.is_some());
        was_sent || self.collectors.latest(run_uid).is_some()
    }

    /// Keeps the caches and failure counts of these runs and objects, and drops all others.
    ///
    /// The deletion of a test triggers no reconciliation, so nothing else drops its cache.
    pub(crate) fn retain_existing(
        &self,
        run_uids: &HashSet<String>,
        object_keys: &HashSet<String>,
    ) {
        self.collectors.retain(run_uids);
        self.changes.retain(run_uids);
        lock_unpoisoned(&self.run_caches).retain(|run_uid, _| run_uids.contains(run_uid));
        lock_unpoisoned(&self.settled_endings).retain(|run_uid, _| run_uids.contains(run_uid));
        lock_unpoisoned(&self.failures).retain(|key, _| object_keys.contains(key));
    }

    /// Returns true if this Event about the end of a run needs no further attempt: the API server has it, or will never
    /// accept it.
    pub(crate) fn is_ending_settled(&self, run_uid: &str, event: &str) -> bool {
        lock_unpoisoned(&self.settled_endings).get(run_uid).is_some_and(|told| told == event)
    }

    /// Records that an Event about the end of a run needs no further attempt.
    pub(crate) fn mark_ending_settled(&self, run_uid: String, event: String) {
        lock_unpoisoned(&self.settled_endings).insert(run_uid, event);
    }

    /// Resets the number of consecutive failures of an object to zero.
    pub(crate) fn reset_failures(&self, object_key: &str) {
        lock_unpoisoned(&self.failures).remove(object_key);
    }

    /// Counts a failed reconciliation. Returns the number of consecutive failures.
    pub(crate) fn count_failure(&self, object_key: &str) -> u32 {
        let mut failures = lock_unpoisoned(&self.failures);
        let count = failures.entry(object_key.to_owned()).or_default();
        *count = count.saturating_add(1);
        *count
    }
}

/// Returns true for an error that may be over in a moment: no connection, or an overloaded server.
pub(crate) fn is_transient(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => status.code == 429 || status.code >= 500,
        _ => true,
    }
}

/// Locks a mutex and ignores poisoning, because no panic can leave these maps half updated.
fn lock_unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn load_or_create_key(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<Vec<u8>, ContextError> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let failed = |source| ContextError::Secret { name: name.to_owned(), source };
    let secret = match secrets.get_opt(name).await.map_err(failed)? {
        Some(secret) => secret,
        None => match secrets.create(&PostParams::default(), &secret_with_new_key(name)).await {
            Ok(secret) => secret,
            // Another replica has created the Secret first. All replicas use its key.
            Err(kube::Error::Api(status)) if status.code == 409 => {
                secrets.get(name).await.map_err(failed)?
            }
            Err(error) => return Err(failed(error)),
        },
    };
    let key = secret.data.and_then(|mut data| data.remove(KEY_ENTRY)).map(|bytes| bytes.0);
    key.filter(|key| key.len() >= MIN_KEY_BYTES)
        .ok_or_else(|| ContextError::ShortKey { name: name.to_owned() })
}

fn secret_with_new_key(name: &str) -> Secret {
    let key: [u8; MIN_KEY_BYTES] = rand::random();
    Secret {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        data: Some([(KEY_ENTRY.to_owned(), k8s_openapi::ByteString(key.to_vec()))].into()),
        ..Secret::default()
    }
}
