//! What every pass shares: client, settings, cache, metrics.

use std::{
    collections::{HashMap, HashSet},
    sync::Mutex,
    time::Duration,
};

use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
    runtime::events::{Recorder, Reporter},
};

use crate::{metrics::OperatorMetrics, resources::Settings, state::RunCache};

/// The name in Events and field management.
pub const OPERATOR_NAME: &str = "loadtest-operator";
/// The key's place in its Secret.
const KEY_ENTRY: &str = "key";

/// What every pass shares.
pub struct Context {
    pub(crate) client: Client,
    pub(crate) settings: Settings,
    pub(crate) recorder: Recorder,
    /// For runners: their metrics and their orders.
    pub(crate) http: reqwest::Client,
    pub(crate) metrics: OperatorMetrics,
    /// The key that runs' tokens are made with.
    key: Vec<u8>,
    run_caches: Mutex<HashMap<String, RunCache>>,
    /// Failed passes in a row, by object.
    failures: Mutex<HashMap<String, u32>>,
}

/// What keeps the operator from starting.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// The Secret with the key can't be read or made.
    #[error("secret {name} with the operator's key can't be had")]
    Key {
        /// The Secret's name.
        name: String,
        #[allow(missing_docs)]
        #[source]
        source: kube::Error,
    },
    /// The Secret has no key, or a short one.
    #[error("secret {name} has no `key` of at least 32 bytes: delete it, and it is made anew")]
    ShortKey {
        /// The Secret's name.
        name: String,
    },
    /// No HTTP client.
    #[error("HTTP client can't be set up")]
    Http(#[from] reqwest::Error),
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the key.
        f.debug_struct("Context").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Context {
    /// A context with the operator's key from its Secret, which is made when it is missing.
    ///
    /// # Errors
    /// When the key can't be had.
    pub async fn new(
        client: Client,
        settings: Settings,
        namespace: &str,
        token_secret: &str,
    ) -> Result<Self, ContextError> {
        let key = load_or_create_key(&client, namespace, token_secret).await?;
        Self::with_key(client, settings, key)
    }

    /// A context with a key of one's own.
    ///
    /// # Errors
    /// When there is no HTTP client to be had.
    pub fn with_key(
        client: Client,
        settings: Settings,
        key: Vec<u8>,
    ) -> Result<Self, ContextError> {
        let reporter = Reporter { controller: OPERATOR_NAME.into(), instance: None };
        Ok(Self {
            recorder: Recorder::new(client.clone(), reporter),
            http: reqwest::Client::builder()
                .connect_timeout(Duration::from_secs(2))
                .timeout(Duration::from_secs(5))
                .redirect(reqwest::redirect::Policy::none())
                // Pods are reached directly, whatever proxy the environment names.
                .no_proxy()
                .build()?,
            client,
            settings,
            metrics: OperatorMetrics::default(),
            key,
            run_caches: Mutex::default(),
            failures: Mutex::default(),
        })
    }

    pub(crate) fn run_token(&self, run: &str) -> String {
        loadtest_core::token::token(&self.key, run)
    }

    /// The counters of the operator itself.
    pub fn metrics(&self) -> &OperatorMetrics {
        &self.metrics
    }

    /// Takes out what is remembered of a run. Passes of one object never overlap.
    pub(crate) fn take_cache(&self, run: &str) -> RunCache {
        lock_unpoisoned(&self.run_caches).remove(run).unwrap_or_default()
    }

    pub(crate) fn store_cache(&self, run: String, cache: RunCache) {
        lock_unpoisoned(&self.run_caches).insert(run, cache);
    }

    /// Forgets runs and objects that are no more. A deleted test wakes no pass.
    pub(crate) fn retain_existing(&self, runs: &HashSet<String>, objects: &HashSet<String>) {
        lock_unpoisoned(&self.run_caches).retain(|run, _| runs.contains(run));
        lock_unpoisoned(&self.failures).retain(|object, _| objects.contains(object));
    }

    pub(crate) fn reset_failures(&self, object: &str) {
        lock_unpoisoned(&self.failures).remove(object);
    }

    /// Counts a failed pass; how many there were in a row.
    pub(crate) fn count_failure(&self, object: &str) -> u32 {
        let mut failures = lock_unpoisoned(&self.failures);
        let count = failures.entry(object.to_owned()).or_default();
        *count = count.saturating_add(1);
        *count
    }
}

/// A poisoned lock guards plain data that is whole all the same.
fn lock_unpoisoned<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

async fn load_or_create_key(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<Vec<u8>, ContextError> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let failed = |source| ContextError::Key { name: name.to_owned(), source };
    let found = match secrets.get_opt(name).await.map_err(failed)? {
        Some(secret) => secret,
        None => match secrets.create(&PostParams::default(), &secret_with_new_key(name)).await {
            Ok(secret) => secret,
            // Another replica was faster: its key is the key.
            Err(kube::Error::Api(status)) if status.code == 409 => {
                secrets.get(name).await.map_err(failed)?
            }
            Err(error) => return Err(failed(error)),
        },
    };
    let key = found.data.and_then(|mut data| data.remove(KEY_ENTRY)).map(|bytes| bytes.0);
    key.filter(|key| key.len() >= 32)
        .ok_or_else(|| ContextError::ShortKey { name: name.to_owned() })
}

fn secret_with_new_key(name: &str) -> Secret {
    let key: [u8; 32] = rand::random();
    Secret {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        data: Some([(KEY_ENTRY.to_owned(), k8s_openapi::ByteString(key.to_vec()))].into()),
        ..Secret::default()
    }
}
