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
    context::{Context, MANAGER},
    decide::{Decision, decide, refused},
    error::{Error, format_error_chain},
    events::publish_event,
    observe,
    state::Observed,
    status::{self, EventDraft},
};

/// The longest a pass may take: 200 runners that don't answer, and an API server that hangs
/// at one call, fit in.
const PASS: Duration = Duration::from_secs(150);
/// The longest pause between failed passes.
const LONGEST_BACKOFF: u64 = 10;

/// Takes one test one step further.
///
/// # Errors
/// When the world can't be read or written; the controller comes again.
pub async fn reconcile(
    object: Arc<DeserializeGuard<LoadTest>>,
    context: Arc<Context>,
) -> Result<Action, Error> {
    let result = match &object.0 {
        Ok(test) => Box::pin(step(&context, test)).await,
        Err(invalid) => {
            let name = invalid.metadata.name.clone().unwrap_or_default();
            let namespace = invalid.metadata.namespace.clone().unwrap_or_default();
            in_time(undecodable(&context, &namespace, &name, &invalid.error)).await
        }
    };
    match &result {
        Ok(_) => context.forget(&key(&object)),
        Err(error) => context.metrics.reconciled(error.outcome_label()),
    }
    result
}

/// Ends what takes too long.
async fn in_time<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(PASS, work).await.unwrap_or(Err(Error::Timeout(PASS)))
}

/// How an object is told from others.
pub(crate) fn key(object: &DeserializeGuard<LoadTest>) -> String {
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
    let key = key(&object);
    let failures = context.failed(&key);
    tracing::warn!(loadtest = key, failures, error = %format_error_chain(error), "pass failed");
    let seconds = 1_u64 << failures.saturating_sub(1).min(4);
    Action::requeue(Duration::from_secs(seconds.min(LONGEST_BACKOFF)))
}

async fn step(context: &Context, cached: &LoadTest) -> Result<Action, Error> {
    let namespace = cached.namespace().unwrap_or_default();
    let name = cached.name_any();
    let tests: Api<LoadTest> = Api::namespaced(context.client.clone(), &namespace);
    let test = in_time(async {
        tests.get_opt(&name).await.map_err(|e| Error::api("get loadtest", &name, e))
    });
    let test = test.await?;
    // Gone, or on its way: its children follow it by their owner references.
    let Some(test) = test.filter(|test| test.metadata.deletion_timestamp.is_none()) else {
        context.recall(&cached.uid().unwrap_or_default());
        context.metrics.reconciled("gone");
        return Ok(Action::await_change());
    };
    let run = test.uid().unwrap_or_default();
    let memory = context.recall(&run);
    let mut seen = Observed::new(test, memory);
    let passed = Box::pin(in_time(pass(context, &tests, &mut seen))).await;
    let next = passed.as_ref().map(|decision| after(decision, &seen)).ok();
    // Numbers that were collected stay, also when the pass failed or took too long.
    if !matches!(passed, Ok(Decision::Settled | Decision::Delete)) {
        if seen.test.status.as_ref().and_then(|s| s.phase).is_some_and(Phase::is_final) {
            seen.memory.shed();
        }
        context.remember(run, seen.memory);
    }
    context.metrics.reconciled(label(&passed?));
    Ok(next.unwrap_or_else(Action::await_change))
}

/// Looks, decides, acts and tells. What was decided.
async fn pass(
    context: &Context,
    tests: &Api<LoadTest>,
    seen: &mut Observed,
) -> Result<Decision, Error> {
    observe::observe(context, seen).await?;
    seen.look();
    let now = Timestamp::now();
    let mut decision = decide(seen, &context.settings, now);
    let (namespace, name) = (seen.test.namespace(), seen.test.name_any());
    tracing::debug!(namespace, name, ?decision, "decided");
    let mut acted = act::act(context, seen, &decision).await;
    if let (Decision::Launch(_), Err(error)) = (&decision, &acted)
        && let Some(fail) = refused(error.status_code(), &format_error_chain(error))
    {
        (decision, acted) = (fail, Ok(()));
    }
    acted?;
    report(context, tests, seen, &decision, now).await?;
    Ok(decision)
}

/// When to come again after a decision was carried out.
fn after(decision: &Decision, seen: &Observed) -> Action {
    match decision {
        // Later edits wake the controller; so does everything the Job does.
        Decision::Settled | Decision::Reject(_) | Decision::Delete => Action::await_change(),
        Decision::Wait(time) | Decision::Progress(_, time) => Action::requeue(time.std()),
        // Its finalizers, if someone gave it any, may take a while.
        Decision::RemoveJob => Action::requeue(Duration::from_secs(1)),
        // Someone did not take the order: not so fast the next time.
        Decision::Order(_, pods) if pods.iter().any(|uid| !seen.memory.ordered.contains(uid)) => {
            Action::requeue(Duration::from_millis(500))
        }
        Decision::Stop(pods) if pods.iter().any(|uid| !seen.memory.stopped.contains(uid)) => {
            Action::requeue(Duration::from_millis(500))
        }
        Decision::Release(pods) if pods.iter().any(|uid| !seen.memory.released.contains(uid)) => {
            Action::requeue(Duration::from_secs(2))
        }
        _ => Action::requeue(Duration::ZERO),
    }
}

const fn label(decision: &Decision) -> &'static str {
    match decision {
        Decision::Settled => "settled",
        Decision::Wait(_) => "waiting",
        Decision::Reject(_) => "rejected",
        Decision::Admit(_) => "admitted",
        Decision::Launch(_) => "launched",
        Decision::Start(_) | Decision::Started(_) => "started",
        Decision::Order(..) => "ordered",
        Decision::Stop(_) => "stopped",
        Decision::Abort(_) => "aborted",
        Decision::Progress(..) => "progressed",
        Decision::Conclude { .. } => "concluded",
        Decision::Fail(..) => "failed",
        Decision::CancelUnstarted => "cancelled",
        Decision::RemoveJob => "job_removed",
        Decision::Release(_) => "released",
        Decision::Delete => "deleted",
    }
}

/// Writes the status when it changed, and tells what is new.
async fn report(
    context: &Context,
    tests: &Api<LoadTest>,
    seen: &mut Observed,
    decision: &Decision,
    now: Timestamp,
) -> Result<(), Error> {
    let old = seen.test.status.clone().unwrap_or_default();
    let (next, news) = status::next(seen, decision, now);
    if next == old || status::can_wait(&old, &next, seen.memory.reported, now) {
        return Ok(());
    }
    // Admission is of the very spec that was read: an edit in between is looked at first.
    let version = matches!(decision, Decision::Admit(_) | Decision::Reject(_))
        .then(|| seen.test.resource_version())
        .flatten();
    write(tests, &seen.test, &next, version).await?;
    seen.memory.reported = Some(now);
    if next.phase != old.phase || next.verdict != old.verdict {
        tracing::info!(
            namespace = seen.test.namespace(),
            name = seen.test.name_any(),
            phase = next.phase.map(Phase::as_str),
            verdict = next.verdict.map(loadtest_core::resource::Verdict::as_str),
            "phase changed"
        );
    }
    if let Some(news) = news {
        publish_event(context, &seen.test.object_ref(&()), news).await;
    }
    Ok(())
}

async fn write(
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
    let parameters = PatchParams::apply(MANAGER).force();
    tests
        .patch_status(&name, &parameters, &Patch::Apply(object))
        .await
        .map_err(|error| Error::api("write the status of loadtest", &name, error))?;
    Ok(())
}

/// Says on an object that can't be decoded that it can't, through a client that doesn't try.
async fn undecodable(
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
    api.patch_status(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(patch))
        .await
        .map_err(|e| Error::api("write the status of loadtest", name, e))?;
    let news = EventDraft { reason: "Undecodable".into(), note: message, warning: true };
    publish_event(context, &found.object_ref(&resource), news).await;
    context.metrics.reconciled("undecodable");
    Ok(Action::await_change())
}
