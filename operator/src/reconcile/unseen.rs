//! A test under load while the API server can't be read: the runners are scraped all the same, and a
//! threshold that aborts stops them.

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::{Api, ResourceExt};

use crate::{
    act,
    context::Context,
    decide::decide_unseen,
    observe::state::{LastObjects, Observed, RunCache},
    runner_client,
};

/// Scrapes the runners that the last successful reconciliation saw, judges the abort, and sends the
/// orders that follow. Writes nothing to the API server. If it is cut short, the cache stays as it is.
pub(super) async fn supervise_unseen(context: &Context, cache: &mut RunCache) {
    let Some(objects) = cache.last_objects.clone() else { return };
    let LastObjects { test, job, runners } = *objects;
    let (namespace, run_uid) = (test.namespace().unwrap_or_default(), test.uid());
    let mut observed = Observed::new(test, cache.clone());
    observed.job = Some(job);
    // The logs of pods that have ended are on the API server.
    observed.runners = runners.into_iter().filter(|r| r.termination.is_none()).collect();
    if let (Some(start), Some(run_uid)) = (observed.start_record(), run_uid) {
        let pods: Api<Pod> = Api::namespaced(context.client.clone(), &namespace);
        runner_client::collect_snapshots(context, &pods, &run_uid, &start, &mut observed).await;
        observed.update_timeline();
        let decision = decide_unseen(&observed, &start, &context.settings, Timestamp::now());
        if let Some(decision) = decision {
            tracing::info!(namespace, run_uid, ?decision, "decided without the API server");
            if let Err(error) = act::carry_out(context, &mut observed, &decision).await {
                tracing::warn!(namespace, run_uid, %error, "orders failed");
            }
        }
    }
    *cache = observed.cache;
}
