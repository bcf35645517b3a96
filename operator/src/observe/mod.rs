//! Reads the state of a test from the API server and from the runners. Writes nothing to the API
//! server.
//!
//! The reads are live, because a stale cache could make the operator create child objects twice. There is one
//! exception: while a test has a Job and no watch reports a change, the last read counts for up to a minute.

use std::sync::Arc;

use k8s_openapi::{
    api::{
        batch::v1::Job,
        core::v1::{ConfigMap, Pod},
    },
    jiff::Timestamp,
};
use kube::{Api, ResourceExt, api::ListParams};
use loadtest_core::{
    control,
    plan::{Plan, ValidTest},
    resource::Phase,
};

pub(crate) mod changes;
pub(crate) mod crd_check;
pub(crate) mod last_objects;
mod refused_pods;
mod result;
pub(crate) mod runner;
pub(crate) mod skew;
pub(crate) mod start;
pub(crate) mod state;

use last_objects::{Reading, forget_managed_fields};
use refused_pods::read_refused_pods;
use result::resume_from_result;
use runner::Runner;
use state::Observed;

use loadtest_children::{TOKEN_ANNOTATION, child_name, is_controlled_by};

use crate::{
    clock::now,
    context::Context,
    error::{Error, format_error_chain},
    runner_client,
};

/// Reads the Job and the runner pods of a test, which was read just before, and keeps the objects.
pub(crate) async fn read_objects(
    context: &Context,
    observed: &mut Observed,
    now: Timestamp,
) -> Result<Reading, Error> {
    let namespace = observed.test.namespace().unwrap_or_default();
    let run_uid = observed.test.uid().unwrap_or_default();
    // An event that comes during the reading counts as one after it.
    let changes = context.changes.count(&run_uid);
    let jobs: Api<Job> = Api::namespaced(context.client.clone(), &namespace);
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &namespace);
    let name = child_name(&observed.test);
    let job = jobs.get_opt(&name).await.map_err(|e| Error::api("get job", &name, e))?;
    // Ignore a Job that belongs to a predecessor of this LoadTest.
    observed.job = job.filter(|job| is_controlled_by(job, &run_uid));
    observed.job.iter_mut().for_each(forget_managed_fields);
    if let Some(job_uid) = observed.job.as_ref().and_then(ResourceExt::uid) {
        let of_job = ListParams::default().labels(&format!("batch.kubernetes.io/job-name={name}"));
        let list = pods.list(&of_job).await.map_err(|e| Error::api("list pods of", &name, e))?;
        // Everybody who may create pods can give them the labels of a runner.
        let own = list.items.iter().filter(|pod| is_controlled_by(*pod, &job_uid));
        observed.runners.extend(own.filter_map(Runner::from_pod));
        observed.runners.sort_by_key(|runner| runner.index);
    }
    observed.keep_objects();
    let versions = observed.test.resource_version().into_iter().collect();
    Ok(Reading { at: now, changes, versions })
}

/// Fills `observed`, which has its Job and runner pods, with the latest metrics of the runners and what else
/// a decision needs.
pub(crate) async fn observe(context: &Context, observed: &mut Observed) -> Result<(), Error> {
    let run_uid = observed.test.uid().unwrap_or_default();
    if let Some(job) = &observed.job {
        let found = job.annotations().get(TOKEN_ANNOTATION);
        let expected = context.authority.token_fingerprint(&run_uid);
        observed.cache.token_has_changed = found.is_some_and(|found| *found != expected);
    }
    if observed.phase() == Some(Phase::Starting) && observed.start_record().is_none() {
        runner_client::ask_readiness(context, &mut observed.runners).await;
        read_refused_pods(context, observed, now()).await;
    }
    if let Some(start) = observed.start_record() {
        observed.cache.start = Some(start);
    }
    let is_over = observed.phase().is_some_and(Phase::is_final);
    let has_plan = observed.test.status.as_ref().is_some_and(|status| status.plan.is_some());
    if observed.valid.is_err()
        && has_plan
        && !is_over
        && let Some(test) = read_planned_test(context, observed).await?
    {
        observed.valid = Ok(test);
    }
    let is_new = observed.cache.first_seen.is_none();
    // The start record is missing when the Job was deleted while no operator ran.
    let has_started = observed.start_record().is_some()
        || matches!(observed.phase(), Some(Phase::Running | Phase::Stopping));
    if is_new && !is_over && has_started {
        resume_from_result(context, observed).await?;
    }
    observed.cache.first_seen.get_or_insert_with(now);
    if let Some(targets) = observed.targets() {
        let earlier = Arc::clone(&observed.cache.collection);
        observed.cache.collection = context.collectors.collect(targets, &earlier);
    } else if let Some(latest) = context.collectors.latest(&run_uid) {
        // The Job is gone.
        observed.cache.collection = latest;
    }
    if is_over {
        context.collectors.stop(&run_uid);
    }
    Ok(())
}

/// Reads the validated test from the ConfigMap that holds the plan.
///
/// The plan counts for a test whose spec was valid when the test was admitted and is not valid for
/// this version of the operator. Returns `None` if there is no plan of this version.
async fn read_planned_test(
    context: &Context,
    observed: &Observed,
) -> Result<Option<ValidTest>, Error> {
    let namespace = observed.test.namespace().unwrap_or_default();
    let config_maps: Api<ConfigMap> = Api::namespaced(context.client.clone(), &namespace);
    let name = child_name(&observed.test);
    let found =
        config_maps.get_opt(&name).await.map_err(|e| Error::api("get configmap", &name, e))?;
    let run_uid = observed.test.uid().unwrap_or_default();
    let text = found
        .filter(|config_map| is_controlled_by(config_map, &run_uid))
        .and_then(|config_map| config_map.data?.remove(control::PLAN_FILE));
    let Some(text) = text else { return Ok(None) };
    match Plan::parse(&text) {
        Ok(plan) => Ok(Some(plan.test)),
        Err(error) => {
            let error = format_error_chain(&error);
            tracing::warn!(namespace, name, error, "plan can't be read");
            Ok(None)
        }
    }
}
