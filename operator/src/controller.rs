//! Starts the kube controllers, which call [`reconcile`] for changed objects: one controller for
//! the whole cluster, or one per watched namespace.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};

use backon::ExponentialBuilder;
use futures_util::{StreamExt, future::join_all};
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::{DeserializeGuard, NamespaceResourceScope, PartialObjectMeta},
    runtime::{
        Controller, WatchStreamExt,
        controller::{Config, Error as ControllerError},
        reflector::{self, ObjectRef, Store},
        watcher::{self, ExponentialBackoff, watcher},
    },
};
use loadtest_core::resource::{LoadTest, UID_LABEL};
use tokio_util::sync::CancellationToken;

use loadtest_children::OPERATOR_NAME;

use crate::{
    context::Context,
    error::format_error_chain,
    observe::{crd_check::watch_crd, last_objects::forget_details},
    reconcile::{object_key, on_error, reconcile},
};

/// The controllers have no limit of concurrent reconciliations, because kube-runtime lets waiting tests run in an
/// arbitrary order. [`reconcile`] has a fair limit.
const NO_LIMIT: u16 = 0;
/// Timeout of a watch. Load balancers drop silent watches after their idle timeout, which is
/// longer than this.
const WATCH_TIMEOUT_SECONDS: u32 = 200;

/// The shortest and the longest wait after an error of a watch.
const SHORTEST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(3);
/// The wait after errors that a watch has waited for already.
const NO_WAIT: Duration = Duration::from_millis(1);

/// How long the operator waits for namespaces that can't be listed before it is ready.
const LISTING_TIMEOUT: Duration = Duration::from_secs(30);

/// Interval between two cleanups of the caches of deleted tests.
const CLEANUP_INTERVAL: Duration = Duration::from_mins(1);

/// Runs the controllers until `stop` is cancelled, then finishes running reconciliations.
///
/// `client` makes the watches. A watch may be silent for minutes, so the read timeout of `client`
/// must be longer. Without `namespaces`, the controller watches the whole cluster. `ready` becomes
/// true after every watch has listed its objects, or a while after the first one if others can't.
pub async fn run(
    context: Arc<Context>,
    client: Client,
    namespaces: &[String],
    ready: Arc<AtomicBool>,
    stop: CancellationToken,
) {
    let scopes: Vec<Option<&String>> =
        if namespaces.is_empty() { vec![None] } else { namespaces.iter().map(Some).collect() };
    let mut stores = Vec::new();
    let controllers: Vec<_> = scopes
        .into_iter()
        .map(|namespace| {
            let own = format!("app.kubernetes.io/managed-by={OPERATOR_NAME}");
            let watch = watcher::Config::default().timeout(WATCH_TIMEOUT_SECONDS);
            let watch_waits = || backoff(SHORTEST_WAIT, LONGEST_WAIT);
            let (store, writer) = reflector::store();
            stores.push(store.clone());
            let tests = watcher(api_in(&client, namespace), watch.clone())
                .backoff(watch_waits())
                .modify(forget_details)
                .reflect(writer)
                .applied_objects();
            let own = watch.labels(&own);
            let jobs: Api<PartialObjectMeta<Job>> = api_in(&client, namespace);
            let pods: Api<PartialObjectMeta<Pod>> = api_in(&client, namespace);
            let (of_job, of_pod) = (Arc::clone(&context), Arc::clone(&context));
            let (job_store, pod_store) = (store.clone(), store.clone());
            let jobs = watcher(jobs, own.clone()).backoff(watch_waits()).touched_objects();
            let pods = watcher(pods, own).backoff(watch_waits()).touched_objects();
            Controller::for_stream(tests, store)
                .watches_stream(jobs, move |job| note_change(&of_job, &job_store, &job))
                .watches_stream(pods, move |pod| note_change(&of_pod, &pod_store, &pod))
                // Each watch waits for itself. By default, each error of one watch holds up all of them, for up to a minute.
                .trigger_backoff(backoff(NO_WAIT, NO_WAIT))
                .with_config(Config::default().concurrency(NO_LIMIT))
                .graceful_shutdown_on(stop.clone().cancelled_owned())
                .run(reconcile, on_error, Arc::clone(&context))
                .for_each(async |result| {
                    match result {
                        // `ObjectNotFound`: the test was deleted while it was queued.
                        // `ReconcilerFailed`: `on_error` has already logged the error.
                        Ok(_)
                        | Err(
                            ControllerError::ObjectNotFound(_)
                            | ControllerError::ReconcilerFailed(..),
                        ) => {}
                        Err(error) => {
                            let error = format_error_chain(&error);
                            tracing::warn!(error, "watch failed; retrying");
                        }
                    }
                })
        })
        .collect();
    let set_ready = async {
        wait_until_listed(&stores, namespaces).await;
        ready.store(true, Ordering::Release);
        tracing::info!("ready");
    };
    context.metrics.add_stores(stores.clone());
    let clean_up = async {
        let mut ticks = tokio::time::interval(CLEANUP_INTERVAL);
        loop {
            ticks.tick().await;
            if ready.load(Ordering::Acquire) {
                drop_deleted_tests(&context, &stores);
            }
        }
    };
    let close_queues = async {
        stop.cancelled().await;
        context.queues.close();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = async { tokio::join!(join_all(controllers), set_ready) } => {}
        () = close_queues => {}
        () = clean_up => {}
        () = watch_crd(&context) => {}
    }
}

/// Waits until every watch has listed its objects. If one has, the others have [`LISTING_TIMEOUT`] left: a namespace can be
/// gone, and the others must not wait for it.
async fn wait_until_listed(stores: &[Store<DeserializeGuard<LoadTest>>], namespaces: &[String]) {
    let listings = stores.iter().map(|store| Box::pin(store.wait_until_ready()));
    let mut unlisted: Vec<_> = listings.enumerate().collect();
    // A store wakes only the task that asked last, so all of them are asked with the waker of this task, which also runs
    // the controllers. The result does not matter: the controllers run as long as this function.
    let mut count_unlisted = |context: &mut std::task::Context<'_>| {
        unlisted.retain_mut(|(_, listing)| listing.as_mut().poll(context).is_pending());
        unlisted.len()
    };
    let is_one_listed = |unlisted: usize| unlisted < stores.len();
    poll_fn(|context| ready_if(is_one_listed(count_unlisted(context)))).await;
    let all = poll_fn(|context| ready_if(count_unlisted(context) == 0));
    if tokio::time::timeout(LISTING_TIMEOUT, all).await.is_err() {
        let unlisted: Vec<_> =
            unlisted.iter().filter_map(|(index, _)| namespaces.get(*index)).collect();
        tracing::warn!(namespaces = ?unlisted, "the LoadTests of these namespaces can't be listed");
    }
}

const fn ready_if(is_ready: bool) -> Poll<()> {
    if is_ready { Poll::Ready(()) } else { Poll::Pending }
}

/// The waits after errors: from the shortest on, each one twice as long as the one before, up to the longest. A random part
/// of up to the same length is added.
fn backoff(shortest: Duration, longest: Duration) -> ExponentialBackoff {
    let waits = ExponentialBuilder::default().with_min_delay(shortest).with_max_delay(longest);
    waits.with_factor(2.0).with_jitter().without_max_times().into()
}

/// Returns the objects of a namespace, or those of all namespaces.
fn api_in<K>(client: &Client, namespace: Option<&String>) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// Notes that the Job or a pod of a test has changed. Returns the test.
fn note_change(
    context: &Context,
    tests: &Store<DeserializeGuard<LoadTest>>,
    child: &impl ResourceExt,
) -> Option<ObjectRef<DeserializeGuard<LoadTest>>> {
    let uid = child.labels().get(UID_LABEL)?;
    context.changes.note(uid);
    let test = tests.find(|test| test.meta().uid.as_ref() == Some(uid))?;
    Some(ObjectRef::from_obj(test.as_ref()))
}

/// Drops the caches of tests that no longer exist.
fn drop_deleted_tests(context: &Context, stores: &[Store<DeserializeGuard<LoadTest>>]) {
    let objects: Vec<_> = stores.iter().flat_map(Store::state).collect();
    let run_uids = objects.iter().filter_map(|object| object.meta().uid.clone()).collect();
    let keys = objects.iter().map(|object| object_key(object)).collect();
    context.retain_existing(&run_uids, &keys);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_namespace_that_is_gone_holds_up_no_other() {
        let (there, mut writer) = reflector::store();
        let (gone, _writer) = reflector::store();
        let namespaces = ["there".to_owned(), "gone".to_owned()];
        let stores = [there, gone];
        let waiting =
            tokio::time::timeout(LISTING_TIMEOUT, wait_until_listed(&stores, &namespaces));
        assert!(waiting.await.is_err());
        let list = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            writer.apply_watcher_event(&watcher::Event::Init);
            writer.apply_watcher_event(&watcher::Event::InitDone);
        };
        let waiting =
            tokio::time::timeout(2 * LISTING_TIMEOUT, wait_until_listed(&stores, &namespaces));
        assert!(tokio::join!(list, waiting).1.is_ok());
        // The controller waits for the same store. The store wakes only one of the two.
        let (both, mut writer) = reflector::store();
        let (stores, controller) = ([both.clone()], both);
        let list = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            writer.apply_watcher_event(&watcher::Event::InitDone);
        };
        let waiting = wait_until_listed(&stores, &[]);
        let waiting = async { tokio::join!(waiting, controller.wait_until_ready(), list) };
        assert!(tokio::time::timeout(LISTING_TIMEOUT, waiting).await.is_ok());
    }
}
