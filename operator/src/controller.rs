//! Wires watches to passes: one controller for the cluster, or one per namespace.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, future::join_all};
use k8s_openapi::api::batch::v1::Job;
use kube::{
    Api, Client, Resource,
    core::DeserializeGuard,
    runtime::{
        Controller,
        controller::{Config, Error as ControllerError},
        reflector::Store,
        watcher,
    },
};
use loadtest_core::resource::LoadTest;
use tokio_util::sync::CancellationToken;

use crate::{
    context::{Context, OPERATOR_NAME},
    error::format_error_chain,
    reconcile::{object_key, on_error, reconcile},
};

/// Passes at once. Each may wait for runners; none waits for another.
const MAX_CONCURRENT_RECONCILES: u16 = 16;
/// Below the idle timeouts of load balancers, which drop silent watches.
const WATCH_TIMEOUT_SECONDS: u32 = 200;

/// Between looks for tests that are no more.
const CLEANUP_INTERVAL: Duration = Duration::from_mins(1);

/// Runs until told to stop; passes under way are finished first.
///
/// `client` is for watches, which are silent for long. `ready` becomes true once every watch has listed its objects.
pub async fn run(
    context: Arc<Context>,
    client: Client,
    namespaces: &[String],
    ready: Arc<AtomicBool>,
    stop: CancellationToken,
) {
    let apis: Vec<(Api<DeserializeGuard<LoadTest>>, Api<Job>)> = if namespaces.is_empty() {
        vec![(Api::all(client.clone()), Api::all(client))]
    } else {
        let one = |ns: &String| {
            (Api::namespaced(client.clone(), ns), Api::namespaced(client.clone(), ns))
        };
        namespaces.iter().map(one).collect()
    };
    let mut stores = Vec::new();
    let controllers: Vec<_> = apis
        .into_iter()
        .map(|(tests, jobs)| {
            let ours = format!("app.kubernetes.io/managed-by={OPERATOR_NAME}");
            let tests = Controller::new(tests, watcher::Config::default().timeout(WATCH_TIMEOUT_SECONDS));
            let store = tests.store();
            stores.push(store);
            tests
                .owns(jobs, watcher::Config::default().timeout(WATCH_TIMEOUT_SECONDS).labels(&ours))
                .with_config(Config::default().concurrency(MAX_CONCURRENT_RECONCILES))
                .graceful_shutdown_on(stop.clone().cancelled_owned())
                .run(reconcile, on_error, Arc::clone(&context))
                .for_each(async |result| {
                    match result {
                        // A test deleted while it was queued, and what on_error has told.
                        Ok(_)
                        | Err(
                            ControllerError::ObjectNotFound(_)
                            | ControllerError::ReconcilerFailed(..),
                        ) => {}
                        Err(error) => {
                            tracing::warn!(error = %format_error_chain(&error), "watch failed; trying again");
                        }
                    }
                })
        })
        .collect();
    let listed = async {
        for store in &stores {
            // The writer lives in its controller, which runs beside this.
            let _ = store.wait_until_ready().await;
        }
        ready.store(true, Ordering::Release);
        tracing::info!("ready");
    };
    context.metrics.add_stores(stores.clone());
    let tidied = async {
        let mut ticks = tokio::time::interval(CLEANUP_INTERVAL);
        loop {
            ticks.tick().await;
            if ready.load(Ordering::Acquire) {
                drop_deleted_tests(&context, &stores);
            }
        }
    };
    tokio::select! {
        _ = async { tokio::join!(join_all(controllers), listed) } => {}
        () = tidied => {}
    }
}

/// Forgets what is remembered of tests that are no more.
fn drop_deleted_tests(context: &Context, stores: &[Store<DeserializeGuard<LoadTest>>]) {
    let objects: Vec<_> = stores.iter().flat_map(Store::state).collect();
    let runs = objects.iter().filter_map(|object| object.meta().uid.clone()).collect();
    let names = objects.iter().map(|object| object_key(object)).collect();
    context.retain_existing(&runs, &names);
}
