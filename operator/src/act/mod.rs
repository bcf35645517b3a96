//! Carries out a [`Decision`]: creates and deletes Kubernetes objects and sends orders to runners.
//!
//! This module makes no decisions, and it does not write the status of the `LoadTest`.

pub(crate) mod events;
pub(crate) mod results;

use std::fmt::Debug;

use k8s_openapi::{
    NamespaceResourceScope,
    api::{batch::v1::Job, core::v1::ConfigMap, networking::v1::NetworkPolicy},
};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use loadtest_core::resource::{LoadTest, Phase, Sizing};
use serde::{Serialize, de::DeserializeOwned};

use loadtest_children::OPERATOR_NAME;

use crate::{
    clock::now,
    context::Context,
    decide::{CANCEL_GRACE_PERIOD, Decision, JOB_TTL},
    error::Error,
    fault_injection::{KillPoint, pause_at},
    observe::start::{RUN_UID_ANNOTATION, START_ANNOTATION, StartRecord, time_in_orders},
    observe::state::Observed,
    runner_client::{self, Order},
};

/// Carries out a decision. The cache in `observed` records the runners that accepted an order.
pub(crate) async fn carry_out(
    context: &Context,
    observed: &mut Observed,
    decision: &Decision,
) -> Result<(), Error> {
    let run_uid = observed.test.uid().unwrap_or_default();
    match decision {
        Decision::NothingToDo
        | Decision::Wait(_)
        | Decision::Reject(..)
        | Decision::ReportSuspended(_)
        | Decision::ReportRetry(_)
        | Decision::ReportLoss(_)
        | Decision::ReportStarted(_)
        | Decision::ReportAbort(_)
        | Decision::ForceStop(_)
        | Decision::Fail(..)
        | Decision::CancelUnstarted
        | Decision::ReportProgress(..) => {}
        Decision::Admit(sizing) => dry_run_job(context, observed, sizing).await?,
        Decision::Launch(sizing) => create_children(context, observed, sizing).await?,
        Decision::PersistStart(start) => {
            if observed.start_record().is_some() {
                observed.cache.missed_starts += 1;
            }
            persist_start(context, observed, start).await?;
            pause_at(context, &observed.test, KillPoint::BeforeStartOrders).await;
            // Before the status is written, because the time of the start is near.
            send_start(context, observed, start, &start.pods).await;
        }
        Decision::SendStart(start, pods) => send_start(context, observed, start, pods).await,
        Decision::SendStop(pods) => {
            // Orders to many runners that do not answer take seconds.
            observed.cache.stop_sent_at.get_or_insert_with(now);
            let order = Order::Stop(CANCEL_GRACE_PERIOD.min(observed.test.spec.load.graceful_stop));
            let accepted =
                runner_client::send_order(context, &run_uid, &observed.runners, pods, &order).await;
            observed.cache.stop_accepted.extend(accepted);
        }
        Decision::Conclude { .. } => {
            if observed.merged().all_tasks().errors.values().any(|count| *count > 0) {
                let tasks = observed.task_names();
                runner_client::collect_error_examples(
                    context,
                    &tasks,
                    &observed.runners,
                    &mut observed.cache,
                )
                .await;
            }
        }
        Decision::SendRelease(pods) => {
            pause_at(context, &observed.test, KillPoint::BeforeRelease).await;
            release_runners(context, &run_uid, observed, pods).await;
        }
        Decision::DeleteStoppedJob => {
            // The Job stays until its pods are gone, so that their last numbers can be read.
            delete_job(context, observed, &DeleteParams::foreground()).await?;
        }
        Decision::DeleteJob => delete_job(context, observed, &DeleteParams::background()).await?,
        Decision::SetJobTtl => set_job_ttl(context, observed).await?,
        Decision::DeleteTest => delete_test(context, &observed.test).await?,
    }
    Ok(())
}

async fn send_start(
    context: &Context,
    observed: &mut Observed,
    start: &StartRecord,
    pods: &[String],
) {
    let run_uid = observed.test.uid().unwrap_or_default();
    let at = time_in_orders(start, pods.len(), now());
    let accepted = runner_client::send_start(context, &run_uid, &observed.runners, pods, at).await;
    observed.cache.start_accepted.extend(accepted);
    observed.cache.start_sent_at = Some(now());
    pause_at(context, &observed.test, KillPoint::AfterStartOrders).await;
}

async fn release_runners(
    context: &Context,
    run_uid: &str,
    observed: &mut Observed,
    pods: &[String],
) {
    let runners = observed.runners.iter();
    let disrupted = runners.filter(|r| r.disrupted && pods.contains(&r.uid));
    let disrupted: Vec<_> = disrupted.cloned().collect();
    let tasks = observed.task_names();
    runner_client::collect_error_examples(context, &tasks, &disrupted, &mut observed.cache).await;
    // After the end of a test, a runner may exit even if it has newer metrics. Before that, it must keep them for the operator.
    let is_over = observed.phase().is_some_and(Phase::is_final);
    if is_over {
        observed.cache.release_sent_at.get_or_insert_with(now);
    }
    let order = Order::Release((!is_over).then_some(&*observed.cache.collection));
    let accepted =
        runner_client::send_order(context, run_uid, &observed.runners, pods, &order).await;
    observed.cache.released.extend(accepted);
    // A pod that is being deleted exits anyway. Send it one release order and don't wait for it.
    observed.cache.released.extend(disrupted.into_iter().map(|runner| runner.uid));
}

async fn create_children(
    context: &Context,
    observed: &mut Observed,
    sizing: &Sizing,
) -> Result<(), Error> {
    record_launch(context, &mut observed.test).await?;
    let test = &observed.test;
    // `decide` launches valid specs only.
    let Ok(valid) = &observed.valid else { return Ok(()) };
    pause_at(context, test, KillPoint::BeforePlan).await;
    let fingerprint = context.authority.token_fingerprint(&test.uid().unwrap_or_default());
    let plan =
        loadtest_children::build_plan(test, valid, sizing, fingerprint.clone(), &context.settings);
    let config_map = loadtest_children::build_config_map(test, &plan)
        .map_err(|source| Error::Serialize { what: "the plan", source })?;
    create_once::<ConfigMap>(context, test, &config_map).await?;
    pause_at(context, test, KillPoint::AfterConfigMap).await;
    if let Some(peers) = &context.settings.runner_peers {
        let policy = loadtest_children::build_network_policy(test, peers);
        create_once::<NetworkPolicy>(context, test, &policy).await?;
    }
    let job = loadtest_children::build_job(test, valid, sizing, &context.settings, &fingerprint);
    create_once::<Job>(context, test, &job).await?;
    pause_at(context, test, KillPoint::AfterJob).await;
    Ok(())
}

/// Records in the test that it was launched, before anything is created.
async fn record_launch(context: &Context, test: &mut LoadTest) -> Result<(), Error> {
    let name = test.name_any();
    let uid = test.uid().unwrap_or_default();
    if test.annotations().get(RUN_UID_ANNOTATION) == Some(&uid) {
        return Ok(());
    }
    let patch = serde_json::json!({"metadata": {
        "uid": uid,
        "resourceVersion": test.resource_version(),
        "annotations": {RUN_UID_ANNOTATION: uid},
    }});
    let tests: Api<LoadTest> =
        Api::namespaced(context.client.clone(), &test.namespace().unwrap_or_default());
    let parameters =
        PatchParams { field_manager: Some(OPERATOR_NAME.into()), ..PatchParams::default() };
    let patched = tests.patch_metadata(&name, &parameters, &Patch::Merge(patch)).await;
    let patched = patched.map_err(|error| match error {
        kube::Error::Api(status) if status.code == 409 => Error::Conflict(name.clone()),
        error => Error::api("record the launch in loadtest", &name, error),
    })?;
    // The next write of the status carries this version.
    test.metadata = patched.metadata;
    Ok(())
}

/// Asks the API server what it would say about the Job: a negative CPU request, an invalid label, a
/// quota, a webhook.
async fn dry_run_job(context: &Context, observed: &Observed, sizing: &Sizing) -> Result<(), Error> {
    let test = &observed.test;
    let Ok(valid) = &observed.valid else { return Ok(()) };
    let fingerprint = context.authority.token_fingerprint(&test.uid().unwrap_or_default());
    let job = loadtest_children::build_job(test, valid, sizing, &context.settings, &fingerprint);
    let jobs: Api<Job> =
        Api::namespaced(context.client.clone(), &test.namespace().unwrap_or_default());
    let name = job.name_any();
    let parameters = PostParams { dry_run: true, ..PostParams::default() };
    match jobs.create(&parameters, &job).await {
        Ok(_) => Ok(()),
        // An earlier process of the operator has created it.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(Error::api("validate job", &name, error)),
    }
}

/// Gives the Job of a finished test its time to live: that of the test, or a default.
async fn set_job_ttl(context: &Context, observed: &Observed) -> Result<(), Error> {
    let Some(job) = &observed.job else { return Ok(()) };
    let ttl = observed.test.time_to_live().unwrap_or(JOB_TTL).as_secs_f64().ceil();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the schema allows at most a year"
    )]
    let ttl = ttl as u32;
    let patch = serde_json::json!({"spec": {"ttlSecondsAfterFinished": ttl}});
    let jobs: Api<Job> =
        Api::namespaced(context.client.clone(), &observed.test.namespace().unwrap_or_default());
    let name = job.name_any();
    let parameters =
        PatchParams { field_manager: Some(OPERATOR_NAME.into()), ..PatchParams::default() };
    ignore_missing(jobs.patch(&name, &parameters, &Patch::Merge(patch)).await)
        .map_err(|error| Error::api("set the time to live of job", &name, error))
}

/// Creates a child object, which the operator never updates afterwards.
///
/// An existing object of the same name counts as success only if this `LoadTest` owns it. A
/// `LoadTest` that replaced another one must not adopt the children of its predecessor.
async fn create_once<K>(context: &Context, test: &LoadTest, object: &K) -> Result<(), Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned,
{
    let namespace = test.namespace().unwrap_or_default();
    let api: Api<K> = Api::namespaced(context.client.clone(), &namespace);
    let name = object.name_any();
    let uid = test.uid().unwrap_or_default();
    match api.create(&PostParams::default(), object).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => {
            let existing = api.get(&name).await.map_err(|e| Error::api("get", &name, e))?;
            if loadtest_children::is_controlled_by(&existing, &uid) {
                return Ok(());
            }
            Err(Error::NameTaken { kind: K::kind(&()).into_owned(), name })
        }
        Err(error) => Err(Error::api("create", &name, error)),
    }
}

/// Writes the start record to the Job before any runner gets a start order.
///
/// The patch carries the `resourceVersion` of the Job. If the Job has changed since it was read,
/// the patch fails and the next reconciliation decides again.
async fn persist_start(
    context: &Context,
    observed: &Observed,
    start: &StartRecord,
) -> Result<(), Error> {
    let Some(job) = &observed.job else { return Ok(()) };
    let record = serde_json::to_string(start)
        .map_err(|source| Error::Serialize { what: "the start record", source })?;
    let patch = serde_json::json!({"metadata": {
        "resourceVersion": job.resource_version(),
        "annotations": {START_ANNOTATION: record},
    }});
    let jobs: Api<Job> =
        Api::namespaced(context.client.clone(), &observed.test.namespace().unwrap_or_default());
    let name = job.name_any();
    let parameters =
        PatchParams { field_manager: Some(OPERATOR_NAME.into()), ..PatchParams::default() };
    jobs.patch(&name, &parameters, &Patch::Merge(patch))
        .await
        .map_err(|error| Error::api("record the start in job", &name, error))?;
    Ok(())
}

async fn delete_job(
    context: &Context,
    observed: &Observed,
    parameters: &DeleteParams,
) -> Result<(), Error> {
    let Some(job) = &observed.job else { return Ok(()) };
    let jobs: Api<Job> =
        Api::namespaced(context.client.clone(), &observed.test.namespace().unwrap_or_default());
    ignore_missing(jobs.delete(&job.name_any(), parameters).await)
        .map_err(|error| Error::api("delete job", &job.name_any(), error))
}

async fn delete_test(context: &Context, test: &LoadTest) -> Result<(), Error> {
    let tests: Api<LoadTest> =
        Api::namespaced(context.client.clone(), &test.namespace().unwrap_or_default());
    let name = test.name_any();
    // If the user has replaced the LoadTest in the meantime, the UID differs and the new
    // LoadTest stays.
    let preconditions = Preconditions { uid: test.uid(), resource_version: None };
    let parameters = DeleteParams::background().preconditions(preconditions);
    ignore_missing(tests.delete(&name, &parameters).await)
        .map_err(|error| Error::api("delete loadtest", &name, error))
}

fn ignore_missing<T>(result: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error),
    }
}
