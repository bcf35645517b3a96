//! One pass over one test: the operator's only async story.

use std::{sync::Arc, time::Duration};

use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Resource, ResourceExt,
    api::{DynamicObject, Patch, PatchParams},
    core::DeserializeGuard,
    runtime::controller::Action,
};
use loadtest_core::{
    report::truncated,
    resource::{LoadTest, LoadTestStatus, Phase},
};

use crate::{
    act,
    context::{Context, OPERATOR_NAME},
    decide::{Decision, decide, decide_refused},
    error::{Error, format_error_chain},
    events::publish_event,
    observe,
    state::Observed,
    status::{self, EventDraft},
};

/// The longest a pass may take: 200 runners that don't answer, and an API server that hangs
/// at one call, fit in.
const RECONCILE_TIMEOUT: Duration = Duration::from_secs(150);
/// The longest pause between failed passes.
const MAX_BACKOFF_SECONDS: u64 = 10;

/// Takes one test one step further.
///
/// # Errors
/// When the world can't be read or written; the controller comes again.
pub async fn reconcile(
    object: Arc<DeserializeGuard<LoadTest>>,
    context: Arc<Context>,
) -> Result<Action, Error> {
    let result = match &object.0 {
        Ok(test) => Box::pin(reconcile_test(&context, test)).await,
        Err(invalid) => {
            let name = invalid.metadata.name.clone().unwrap_or_default();
            let namespace = invalid.metadata.namespace.clone().unwrap_or_default();
            with_timeout(report_undecodable(&context, &namespace, &name, &invalid.error)).await
        }
    };
    match &result {
        Ok(_) => context.reset_failures(&object_key(&object)),
        Err(error) => context.metrics.count_reconcile(error.outcome_label()),
    }
    result
}

/// Ends what takes too long.
async fn with_timeout<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(RECONCILE_TIMEOUT, work)
        .await
        .unwrap_or(Err(Error::Timeout(RECONCILE_TIMEOUT)))
}

/// How an object is told from others.
pub(crate) fn object_key(object: &DeserializeGuard<LoadTest>) -> String {
    let meta = object.meta();
    format!(
        "{}/{}",
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default()
    )
}

/// When to come again after a failed pass: 1, 2, 4 … 10 s.
#[expect(clippy::needless_pass_by_value, reason = "the controller calls it so")]
pub fn on_error(
    object: Arc<DeserializeGuard<LoadTest>>,
    error: &Error,
    context: Arc<Context>,
) -> Action {
    let key = object_key(&object);
    let failures = context.count_failure(&key);
    tracing::warn!(loadtest = key, failures, error = %format_error_chain(error), "pass failed");
    let seconds = 1_u64 << failures.saturating_sub(1).min(4);
    Action::requeue(Duration::from_secs(seconds.min(MAX_BACKOFF_SECONDS)))
}

async fn reconcile_test(context: &Context, cached: &LoadTest) -> Result<Action, Error> {
    let namespace = cached.namespace().unwrap_or_default();
    let name = cached.name_any();
    let tests: Api<LoadTest> = Api::namespaced(context.client.clone(), &namespace);
    let test = with_timeout(async {
        tests.get_opt(&name).await.map_err(|e| Error::api("get loadtest", &name, e))
    });
    let test = test.await?;
    // Gone, or on its way: its children follow it by their owner references.
    let Some(test) = test.filter(|test| test.metadata.deletion_timestamp.is_none()) else {
        context.take_cache(&cached.uid().unwrap_or_default());
        context.metrics.count_reconcile("gone");
        return Ok(Action::await_change());
    };
    let run = test.uid().unwrap_or_default();
    let cache = context.take_cache(&run);
    let mut observed = Observed::new(test, cache);
    let passed = Box::pin(with_timeout(run_pipeline(context, &tests, &mut observed))).await;
    let next = passed.as_ref().map(|decision| next_action(decision, &observed)).ok();
    // Numbers that were collected stay, also when the pass failed or took too long.
    if !matches!(passed, Ok(Decision::NothingToDo | Decision::DeleteTest)) {
        if observed.test.status.as_ref().and_then(|s| s.phase).is_some_and(Phase::is_final) {
            observed.cache.drop_results();
        }
        context.store_cache(run, observed.cache);
    }
    context.metrics.count_reconcile(outcome_label(&passed?));
    Ok(next.unwrap_or_else(Action::await_change))
}

/// Looks, decides, acts and tells. What was decided.
async fn run_pipeline(
    context: &Context,
    tests: &Api<LoadTest>,
    observed: &mut Observed,
) -> Result<Decision, Error> {
    observe::observe(context, observed).await?;
    observed.update_timeline();
    let now = Timestamp::now();
    let mut decision = decide(observed, &context.settings, now);
    let (namespace, name) = (observed.test.namespace(), observed.test.name_any());
    tracing::debug!(namespace, name, ?decision, "decided");
    let mut acted = act::act(context, observed, &decision).await;
    if let (Decision::Launch(_), Err(error)) = (&decision, &acted)
        && let Some(fail) = decide_refused(error.status_code(), &format_error_chain(error))
    {
        (decision, acted) = (fail, Ok(()));
    }
    acted?;
    report_status(context, tests, observed, &decision, now).await?;
    Ok(decision)
}

/// When to come again after a decision was carried out.
fn next_action(decision: &Decision, observed: &Observed) -> Action {
    match decision {
        // Later edits wake the controller; so does everything the Job does.
        Decision::NothingToDo | Decision::Reject(_) | Decision::DeleteTest => {
            Action::await_change()
        }
        Decision::Wait(time) | Decision::ReportProgress(_, time) => Action::requeue(time.std()),
        // Its finalizers, if someone gave it any, may take a while.
        Decision::DeleteJob => Action::requeue(Duration::from_secs(1)),
        // Someone did not take the order: not so fast the next time.
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
        Decision::NothingToDo => "settled",
        Decision::Wait(_) => "waiting",
        Decision::Reject(_) => "rejected",
        Decision::Admit(_) => "admitted",
        Decision::Launch(_) => "launched",
        Decision::PersistStart(_) | Decision::ReportStarted(_) => "started",
        Decision::SendStart(..) => "ordered",
        Decision::SendStop(_) => "stopped",
        Decision::ReportAbort(_) => "aborted",
        Decision::ReportProgress(..) => "progressed",
        Decision::Conclude { .. } => "concluded",
        Decision::Fail(..) => "failed",
        Decision::CancelUnstarted => "cancelled",
        Decision::DeleteJob => "job_removed",
        Decision::SendRelease(_) => "released",
        Decision::DeleteTest => "deleted",
    }
}

/// Writes the status when it changed, and tells what is new.
async fn report_status(
    context: &Context,
    tests: &Api<LoadTest>,
    observed: &mut Observed,
    decision: &Decision,
    now: Timestamp,
) -> Result<(), Error> {
    let old = observed.test.status.clone().unwrap_or_default();
    let (next, news) = status::next_status(observed, decision, now);
    if next == old || status::is_throttled(&old, &next, observed.cache.status_written_at, now) {
        return Ok(());
    }
    // Admission is of the very spec that was read: an edit in between is looked at first.
    let version = matches!(decision, Decision::Admit(_) | Decision::Reject(_))
        .then(|| observed.test.resource_version())
        .flatten();
    write_status(tests, &observed.test, &next, version).await?;
    observed.cache.status_written_at = Some(now);
    if next.phase != old.phase || next.verdict != old.verdict {
        tracing::info!(
            namespace = observed.test.namespace(),
            name = observed.test.name_any(),
            phase = next.phase.map(Phase::as_str),
            verdict = next.verdict.map(loadtest_core::resource::Verdict::as_str),
            "phase changed"
        );
    }
    if let Some(news) = news {
        publish_event(context, &observed.test.object_ref(&()), news).await;
    }
    Ok(())
}

async fn write_status(
    tests: &Api<LoadTest>,
    test: &LoadTest,
    status: &LoadTestStatus,
    version: Option<String>,
) -> Result<(), Error> {
    let name = test.name_any();
    let mut object = serde_json::json!({
        "apiVersion": LoadTest::api_version(&()),
        "kind": LoadTest::kind(&()),
        // The UID keeps the status of a replaced test off its successor.
        "metadata": {"name": name, "uid": test.uid()},
        "status": status,
    });
    if let Some(version) = version {
        object["metadata"]["resourceVersion"] = version.into();
    }
    let parameters = PatchParams::apply(OPERATOR_NAME).force();
    tests
        .patch_status(&name, &parameters, &Patch::Apply(object))
        .await
        .map_err(|error| Error::api("write the status of loadtest", &name, error))?;
    Ok(())
}

/// Says on an object that can't be decoded that it can't, through a client that doesn't try.
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
    let Some(found) = found else { return Ok(Action::await_change()) };
    let message = truncated(&format!("the object can't be read: {error}"), 1000);
    let told = found.data["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|c| c["type"] == "Accepted" && c["message"] == message.as_str());
    if told {
        return Ok(Action::await_change());
    }
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let condition = |kind: &str, status: &str| {
        serde_json::json!({
            "type": kind, "status": status, "reason": "Undecodable", "message": message,
            "lastTransitionTime": now,
        })
    };
    let patch = serde_json::json!({
        "apiVersion": LoadTest::api_version(&()),
        "kind": LoadTest::kind(&()),
        "metadata": {"name": name},
        "status": {
            "phase": "Error",
            "conditions": [condition("Accepted", "False"), condition("Finished", "True")],
        },
    });
    api.patch_status(name, &PatchParams::apply(OPERATOR_NAME).force(), &Patch::Apply(patch))
        .await
        .map_err(|e| Error::api("write the status of loadtest", name, e))?;
    let news = EventDraft { reason: "Undecodable".into(), note: message, warning: true };
    publish_event(context, &found.object_ref(&resource), news).await;
    context.metrics.count_reconcile("undecodable");
    Ok(Action::await_change())
}
