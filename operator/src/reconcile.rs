//! One reconciliation of one test: observe, decide, act and report, in this order.
//!
//! The steps are in modules of their own. This module sets the time limit, keeps the cache of the
//! run, writes the status and chooses the time of the next reconciliation.

mod outage;
mod result;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::OptionFuture;
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Resource, ResourceExt,
    api::{DynamicObject, Patch, PatchParams},
    core::DeserializeGuard,
    runtime::controller::Action,
};
use loadtest_core::{
    plan::warnings,
    resource::{Extensible, LoadTest, LoadTestStatus, Phase},
    text::truncate,
};

use loadtest_children::OPERATOR_NAME;
use tokio::sync::Semaphore;

use crate::{
    act,
    act::events::{publish_ending, publish_event},
    clock::now,
    context::Context,
    decide::{Decision, Reason, decide, decide_retry},
    error::{Error, format_error_chain},
    fault_injection::{KillPoint, pause_at},
    observe::{
        last_objects::{LastObjects, Reading, forget_managed_fields},
        observe, read_objects,
        state::Observed,
    },
    reconcile::{
        outage::supervise_in_outage,
        result::{ResultWrite, write_result},
    },
    status::{self, EventDraft},
};

/// Time limit of a reconciliation.
///
/// Two requests to each of 1,000 runners that don't respond, and one API call that hangs, take less than this.
const RECONCILE_TIMEOUT: Duration = Duration::from_secs(200);
/// Maximum delay between failed reconciliations.
const MAX_BACKOFF_SECONDS: u64 = 10;
/// Maximum delay between failed reconciliations of a test under load, which an abort may have to stop.
const MAX_BACKOFF_SECONDS_UNDER_LOAD: u64 = 2;

/// Carries out the next step of a test.
///
/// Only some tests without load are reconciled at the same time. A test under load does not wait for them, because it may
/// have to be stopped.
///
/// # Errors
/// Fails if an object can't be read or written, or on a timeout. The controller retries after the
/// delay that [`on_error`] returns.
pub async fn reconcile(
    object: Arc<DeserializeGuard<LoadTest>>,
    context: Arc<Context>,
) -> Result<Action, Error> {
    let queue = queue_of(&context, &object);
    let turn = OptionFuture::from(queue.map(Semaphore::acquire)).await;
    let Ok(_permit) = turn.transpose() else {
        // The operator is about to end.
        return Ok(Action::await_change());
    };
    let start = Instant::now();
    let result = match &object.0 {
        Ok(test) => Box::pin(reconcile_test(&context, test)).await,
        Err(invalid) => {
            let name = invalid.metadata.name.clone().unwrap_or_default();
            let namespace = invalid.metadata.namespace.clone().unwrap_or_default();
            let report = report_undecodable(&context, &namespace, &name, &invalid.error);
            within_limits(&context, report).await
        }
    };
    context.metrics.observe_reconcile(start.elapsed().as_secs_f64());
    match &result {
        Ok(_) => context.reset_failures(&object_key(&object)),
        Err(error) => context.metrics.count_reconcile(error.outcome_label()),
    }
    result
}

/// Runs `work`, and fails as soon as it takes longer than [`RECONCILE_TIMEOUT`] or this process no longer
/// leads.
async fn within_limits<T>(
    context: &Context,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let limited = tokio::time::timeout(RECONCILE_TIMEOUT, work);
    match context.authority.leadership.while_leader(limited).await {
        Some(Ok(result)) => result,
        Some(Err(_)) => Err(Error::Timeout(RECONCILE_TIMEOUT)),
        None => Err(Error::NotLeader),
    }
}

/// Returns `namespace/name` of an object.
pub(crate) fn object_key(object: &DeserializeGuard<LoadTest>) -> String {
    let meta = object.meta();
    format!(
        "{}/{}",
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default()
    )
}

/// Returns the delay after a failed reconciliation: 1, 2, 4, 8, then 10 s.
#[expect(clippy::needless_pass_by_value, reason = "`Controller::run` requires this signature")]
pub fn on_error(
    object: Arc<DeserializeGuard<LoadTest>>,
    error: &Error,
    context: Arc<Context>,
) -> Action {
    let key = object_key(&object);
    let failures = context.count_failure(&key);
    let error_is_expected = error.is_expected();
    let error = format_error_chain(error);
    if error_is_expected {
        tracing::debug!(loadtest = key, failures, error, "reconciliation ended early");
    } else {
        tracing::warn!(loadtest = key, failures, error, "reconciliation failed");
    }
    let seconds = 1_u64 << failures.saturating_sub(1).min(4);
    let limit = if is_under_load(&context, &object) {
        MAX_BACKOFF_SECONDS_UNDER_LOAD
    } else {
        MAX_BACKOFF_SECONDS
    };
    Action::requeue(Duration::from_secs(seconds.min(limit)))
}

/// Returns the phase of a test as its watch delivered it.
fn phase_of(object: &DeserializeGuard<LoadTest>) -> Option<Phase> {
    let status = object.0.as_ref().ok().and_then(|test| test.status.as_ref());
    status.and_then(LoadTestStatus::known_phase)
}

/// Returns true if a test has runners under load, as far as this process knows.
fn is_under_load(context: &Context, object: &DeserializeGuard<LoadTest>) -> bool {
    let phase = phase_of(object);
    let uid = object.meta().uid.as_deref().unwrap_or_default();
    !phase.is_some_and(Phase::is_final)
        && (matches!(phase, Some(Phase::Running | Phase::Stopping)) || context.has_started(uid))
}

/// Returns the queue of a reconciliation. A test under load has none, once this process knows it.
fn queue_of<'a>(
    context: &'a Context,
    object: &DeserializeGuard<LoadTest>,
) -> Option<&'a Semaphore> {
    let may_run =
        matches!(phase_of(object), Some(Phase::Starting | Phase::Running | Phase::Stopping));
    if may_run && !context.is_known(object.meta().uid.as_deref().unwrap_or_default()) {
        return Some(&context.queues.takeovers);
    }
    (!is_under_load(context, object)).then_some(&context.queues.tests_without_load)
}

async fn reconcile_test(context: &Context, cached: &LoadTest) -> Result<Action, Error> {
    if let Some(wait) = context.time_to_reading(cached) {
        return Ok(Action::requeue(wait));
    }
    let namespace = cached.namespace().unwrap_or_default();
    let tests: Api<LoadTest> = Api::namespaced(context.client.clone(), &namespace);
    let begun = Box::pin(begin(context, &tests, cached)).await?;
    let Some((mut observed, reading)) = begun else { return Ok(Action::await_change()) };
    let run_uid = observed.test.uid().unwrap_or_default();
    let pipeline = run_pipeline(context, &tests, &mut observed, reading);
    let result = Box::pin(within_limits(context, pipeline)).await;
    let action = result.as_ref().map(|decision| next_action(decision, &observed)).ok();
    // The end of each pod causes another reconciliation, which has to know that the runners are released.
    let is_settled = matches!(result, Ok(Decision::NothingToDo)) && !observed.job_is_active();
    // The cache keeps the collected snapshots even if the reconciliation failed or timed out.
    if !is_settled && !matches!(result, Ok(Decision::DeleteTest)) {
        if observed.phase().is_some_and(Phase::is_final) {
            observed.cache.drop_results();
        }
        context.store_cache(run_uid, observed.cache);
    }
    context.metrics.count_reconcile(outcome_label(&result?));
    Ok(action.unwrap_or_else(Action::await_change))
}

/// Begins a reconciliation with the objects of the last one if they have not changed, or else with the test
/// as the API server has it. Returns `None` for a test that is deleted or being deleted.
async fn begin(
    context: &Context,
    tests: &Api<LoadTest>,
    cached: &LoadTest,
) -> Result<Option<(Observed, Option<Reading>)>, Error> {
    let (name, run_uid) = (cached.name_any(), cached.uid().unwrap_or_default());
    let mut cache = context.take_cache(&run_uid);
    let changes = context.changes.count(&run_uid);
    if let Some(last) = &mut cache.last_objects {
        let is_current = last.is_current(cached, changes, now());
        // If this reconciliation fails, the next one reads everything.
        let reading = last.reading.take().filter(|_| is_current);
        if reading.is_some() {
            let LastObjects { test, job, runners, .. } = LastObjects::clone(last);
            let mut observed = Observed::new(test, cache);
            (observed.job, observed.runners) = (Some(job), runners);
            return Ok(Some((observed, reading)));
        }
    }
    let found = within_limits(context, async {
        tests.get_opt(&name).await.map_err(|e| Error::api("get loadtest", &name, e))
    });
    let found = match found.await {
        Ok(found) => found,
        Err(error) => {
            Box::pin(supervise_in_outage(context, &mut cache)).await;
            // A run that this process has never seen has no cache to keep.
            if cache.first_seen.is_some() {
                context.store_cache(run_uid, cache);
            }
            return Err(error);
        }
    };
    // Kubernetes deletes the children of a test through their owner references.
    let Some(mut test) = found.filter(|test| test.metadata.deletion_timestamp.is_none()) else {
        context.collectors.stop(&run_uid);
        context.metrics.count_reconcile("gone");
        return Ok(None);
    };
    // Another test may have the name by now.
    if test.uid().as_ref() != Some(&run_uid) {
        cache = context.take_cache(&test.uid().unwrap_or_default());
    }
    forget_managed_fields(&mut test);
    Ok(Some((Observed::new(test, cache), None)))
}

/// Observes, decides, acts and reports. Returns the decision.
///
/// `reading` tells when Job and pods were read; they are read now without it.
async fn run_pipeline(
    context: &Context,
    tests: &Api<LoadTest>,
    observed: &mut Observed,
    reading: Option<Reading>,
) -> Result<Decision, Error> {
    let now = now();
    let is_kept = reading.is_some();
    let observing = async {
        let reading = match reading {
            Some(reading) => reading,
            None => read_objects(context, observed, now).await?,
        };
        observe(context, observed).await?;
        Ok(reading)
    };
    let reading = match observing.await {
        Ok(reading) => reading,
        Err(error) => {
            Box::pin(supervise_in_outage(context, &mut observed.cache)).await;
            return Err(error);
        }
    };
    let mut decision = decide(observed, &context.settings, now);
    let (namespace, name) = (observed.test.namespace(), observed.test.name_any());
    tracing::debug!(namespace, name, ?decision, "decided");
    let is_waiting = matches!(decision, Decision::Wait(_));
    if is_kept && !is_waiting && observed.start_record().is_none() {
        // Before the load, nothing is done with objects that may have changed: the next pass reads them again.
        return Ok(Decision::Wait(loadtest_core::Duration::ZERO));
    }
    if matches!(decision, Decision::Conclude { .. }) {
        observed.judge_rest();
    }
    let mut result = act::carry_out(context, observed, &decision).await;
    let mut retry = None;
    match (&decision, &result) {
        (Decision::Launch(_), Err(error)) if error.is_refusal() => {
            let message = truncate(&format_error_chain(error), 900);
            (decision, result) = (Decision::Fail(Reason::Refused, message), Ok(()));
        }
        // The dry run of the Job shows what the API server would refuse.
        (Decision::Admit(_), Err(error)) if error.is_refusal() => {
            let message = format_error_chain(error);
            (decision, result) = (Decision::Reject(Reason::Refused, message), Ok(()));
        }
        (Decision::Admit(_) | Decision::Launch(_), Err(error)) if !error.is_expected() => {
            observed.cache.failed_launches += 1;
            retry = decide_retry(observed.cache.failed_launches, &format_error_chain(error));
        }
        (Decision::Admit(_) | Decision::Launch(_), Ok(())) => observed.cache.failed_launches = 0,
        _ => {}
    }
    if let Some(retry) = retry {
        report_status(context, tests, observed, &retry, now).await?;
    }
    result?;
    let reported = report_status(context, tests, observed, &decision, now).await;
    if reported.as_ref().is_err_and(|error| !error.is_expected()) {
        // An abort can't wait until the status can be written.
        Box::pin(supervise_in_outage(context, &mut observed.cache)).await;
    }
    let written = reported?;
    if written.is_none() {
        // An earlier process may have ended before it published the Event.
        publish_ending(context, &observed.test, &observed.status(), now).await?;
    }
    // Other decisions change the objects in other ways.
    if matches!(decision, Decision::ReportProgress(..) | Decision::Wait(_)) {
        observed.mark_unchanged(reading, written);
    }
    Ok(decision)
}

/// Returns the time of the next reconciliation after a decision has been carried out.
fn next_action(decision: &Decision, observed: &Observed) -> Action {
    match decision {
        // An edit of the test or a change of its Job triggers the next reconciliation.
        Decision::NothingToDo
        | Decision::Reject(..)
        | Decision::ReportSuspended(_)
        | Decision::SetJobTtl
        | Decision::DeleteTest => Action::await_change(),
        Decision::Wait(time) | Decision::ReportProgress(_, time) => Action::requeue(time.to_std()),
        // The Job may have finalizers, which take a while.
        Decision::DeleteJob | Decision::DeleteStoppedJob => Action::requeue(Duration::from_secs(1)),
        // A runner did not accept the order, so the operator waits before it sends the order again.
        Decision::SendStart(_, pods)
            if pods.iter().any(|uid| !observed.cache.start_accepted.contains(uid)) =>
        {
            Action::requeue(Duration::from_millis(500))
        }
        Decision::SendStop(pods)
            if pods.iter().any(|uid| !observed.cache.stop_accepted.contains(uid)) =>
        {
            Action::requeue(Duration::from_millis(500))
        }
        Decision::SendRelease(pods)
            if pods.iter().any(|uid| !observed.cache.released.contains(uid)) =>
        {
            Action::requeue(Duration::from_secs(2))
        }
        _ => Action::requeue(Duration::ZERO),
    }
}

const fn outcome_label(decision: &Decision) -> &'static str {
    match decision {
        Decision::NothingToDo | Decision::SetJobTtl => "settled",
        Decision::Wait(_) => "waiting",
        Decision::Reject(..) => "rejected",
        Decision::Admit(_) => "admitted",
        Decision::ReportSuspended(_) => "suspended",
        Decision::Launch(_) => "launched",
        Decision::PersistStart(_) | Decision::ReportStarted(_) => "started",
        Decision::SendStart(..) => "ordered",
        Decision::SendStop(_) => "stopped",
        Decision::ReportAbort(_) => "aborted",
        Decision::ForceStop(_) => "stop_forced",
        Decision::ReportLoss(_) => "runner_lost",
        Decision::ReportRetry(_) => "retrying",
        Decision::ReportProgress(..) => "progressed",
        Decision::Conclude { .. } => "concluded",
        Decision::Fail(..) => "failed",
        Decision::CancelUnstarted => "cancelled",
        Decision::DeleteJob | Decision::DeleteStoppedJob => "job_removed",
        Decision::SendRelease(_) => "released",
        Decision::DeleteTest => "deleted",
    }
}

/// Writes the status if it has changed, and publishes an Event about the change. Returns what was written.
async fn report_status(
    context: &Context,
    tests: &Api<LoadTest>,
    observed: &mut Observed,
    decision: &Decision,
    now: Timestamp,
) -> Result<Option<LoadTest>, Error> {
    if status::can_skip_status(observed, decision, now) {
        return Ok(None);
    }
    let old = observed.status();
    let (mut next, event) = status::next_status(observed, decision, now);
    match Box::pin(write_result(context, observed, decision, &mut next, now)).await? {
        // The stored result holds the whole status.
        ResultWrite::Stored if matches!(decision, Decision::Conclude { .. }) => {
            status::limit_size(&mut next, now);
        }
        // The progress waits until a status is due again.
        ResultWrite::Stored if status::is_throttled(&old, &next, Some(now), now) => {
            observed.cache.written_at = Some(now);
            return Ok(None);
        }
        ResultWrite::Stored | ResultWrite::NotStored => {}
        ResultWrite::Postponed => return Ok(None),
    }
    if matches!(decision, Decision::Conclude { .. }) {
        pause_at(context, &observed.test, KillPoint::BeforeVerdict).await;
    }
    if next == old || status::is_throttled(&old, &next, observed.cache.written_at, now) {
        return Ok(None);
    }
    let written = write_status(tests, &observed.test, &next).await?;
    observed.cache.written_at = Some(now);
    if next.phase != old.phase || next.verdict != old.verdict {
        tracing::info!(
            namespace = observed.test.namespace(),
            name = observed.test.name_any(),
            phase = next.phase.as_ref().map(Extensible::as_str),
            verdict = next.verdict.as_ref().map(Extensible::as_str),
            "phase changed"
        );
    }
    if matches!(decision, Decision::Conclude { .. }) {
        pause_at(context, &observed.test, KillPoint::AfterVerdict).await;
    }
    publish_ending(context, &observed.test, &next, now).await?;
    if let Some(event) = event {
        publish_event(context, &observed.test.object_ref(&()), event).await;
    }
    if matches!(decision, Decision::Admit(_)) {
        for note in warnings(&observed.test.spec) {
            let event = EventDraft { reason: "ReadableCredential".into(), note, warning: true };
            publish_event(context, &observed.test.object_ref(&()), event).await;
        }
    }
    Ok(Some(written))
}

/// Writes a status. With the resource version, the write fails if anything has changed since the test was
/// read: the user has edited the spec, or another replica of the operator has written a later status.
async fn write_status(
    tests: &Api<LoadTest>,
    test: &LoadTest,
    status: &LoadTestStatus,
) -> Result<LoadTest, Error> {
    let name = test.name_any();
    let object = serde_json::json!({
        "apiVersion": LoadTest::api_version(&()),
        "kind": LoadTest::kind(&()),
        // With the UID, the write fails if another test of the same name has replaced this test.
        "metadata": {
            "name": name,
            "uid": test.uid(),
            "resourceVersion": test.resource_version(),
        },
        "status": status,
    });
    let parameters = PatchParams::apply(OPERATOR_NAME).force();
    tests.patch_status(&name, &parameters, &Patch::Apply(object)).await.map_err(|error| match error
    {
        kube::Error::Api(status) if status.code == 409 => Error::Conflict(name.clone()),
        error => Error::api("write the status of loadtest", &name, error),
    })
}

/// Reports that an object can't be decoded, as an Event and a metric. The object is left untouched: a
/// status that lacks what another version of the operator wrote could make the test run a second
/// time.
async fn report_undecodable(
    context: &Context,
    namespace: &str,
    name: &str,
    error: &str,
) -> Result<Action, Error> {
    let resource = kube::api::ApiResource::erase::<LoadTest>(&());
    let api: Api<DynamicObject> =
        Api::namespaced_with(context.client.clone(), namespace, &resource);
    let found = api.get_opt(name).await.map_err(|e| Error::api("get loadtest", name, e))?;
    let Some(found) = found else {
        context.metrics.count_reconcile("gone");
        return Ok(Action::await_change());
    };
    context.metrics.count_reconcile("undecodable");
    let message = truncate(
        &format!(
            "this version of the operator can't read the LoadTest and leaves it as it is; correct its manifest, or install the version that wrote it: {error}"
        ),
        1000,
    );
    let event = EventDraft { reason: "Undecodable".into(), note: message, warning: true };
    publish_event(context, &found.object_ref(&resource), event).await;
    Ok(Action::await_change())
}
