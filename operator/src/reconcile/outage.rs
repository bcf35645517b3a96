//! A test under load while the API server can't be read, or the Lease can't be renewed: a threshold that
//! aborts stops its runners all the same.

use kube::ResourceExt;

use crate::{
    act,
    clock::now,
    context::Context,
    decide::{Decision, decide_in_outage},
    observe::{
        last_objects::LastObjects,
        state::{Observed, RunCache},
    },
};

/// Judges the abort by what the collector of the run has collected, and sends the orders that follow.
/// Writes nothing to the API server. If it is cut short, the cache stays as it is.
pub(super) async fn supervise_in_outage(context: &Context, cache: &mut RunCache) {
    if context.authority.leadership.is_lost() {
        return;
    }
    let Some(objects) = cache.last_objects.clone() else { return };
    let LastObjects { test, job, runners, .. } = *objects;
    let (namespace, run_uid) = (test.namespace().unwrap_or_default(), test.uid());
    let mut observed = Observed::new(test, cache.clone());
    observed.job = Some(job);
    // The logs of pods that have ended are on the API server.
    observed.runners = runners.into_iter().filter(|r| r.termination.is_none()).collect();
    let collected = run_uid.as_deref().and_then(|run_uid| context.collectors.latest(run_uid));
    if let Some(collection) = collected {
        observed.cache.collection = collection;
    }
    if let Some(start) = observed.start_record() {
        let decision = decide_in_outage(&observed, &start, &context.settings, now());
        if let Some(decision) = decision {
            tracing::info!(namespace, run_uid, ?decision, "decided without the API server");
            // A stop is safe: a runner refuses it if another replica leads.
            let is_stop = matches!(decision, Decision::SendStop(_));
            let carry_out = act::carry_out(context, &mut observed, &decision);
            let done = if is_stop {
                Some(carry_out.await)
            } else {
                Box::pin(context.authority.leadership.while_leader(carry_out)).await
            };
            if let Some(Err(error)) = done {
                tracing::warn!(namespace, run_uid, %error, "orders failed");
            }
        }
    }
    *cache = observed.cache;
}
