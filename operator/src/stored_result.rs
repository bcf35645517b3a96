//! The `LoadTestResult` of a test: when it is written, what it holds, and how an operator that was
//! restarted goes on from it. Pure.

use k8s_openapi::{ByteString, jiff::Timestamp};
use loadtest_core::{
    Duration,
    control::ErrorExample,
    load::LoadModel,
    resource::{LoadTest, LoadTestStatus, Phase},
    result::{
        GoneRunner, GoneRunners, LoadTestResult, ResumeState, RunFacts, SeriesRecorder,
        StoredResult, TestReference, build_result,
    },
};

use crate::{
    children::{child_name, result_metadata},
    decide::{Decision, signed_duration},
    observe::state::{Observed, RunCache, StartRecord, WrittenResult, index_of},
};

/// Interval between two writes of the result of a running test.
const WRITE_INTERVAL: Duration = Duration::from_secs(30);
/// Time for which the last write of a result is tried again.
const LAST_WRITE_PATIENCE: Duration = Duration::from_secs(120);

/// Returns true if the result is to be written with a decision and the status that follows from it.
pub(crate) fn is_due(
    observed: &Observed,
    decision: &Decision,
    next: &LoadTestStatus,
    now: Timestamp,
) -> bool {
    let WrittenResult { at, requests, stages, .. } = observed.cache.written_result;
    match decision {
        Decision::ReportStarted(_)
        | Decision::ReportLoss(_)
        | Decision::ReportAbort(_)
        | Decision::Conclude { .. } => observed.known_start().is_some(),
        Decision::SendStart(..) | Decision::ReportProgress(..) => {
            let is_old =
                at.is_none_or(|at| now.duration_since(at) >= signed_duration(WRITE_INTERVAL));
            let count = next.summary.as_ref().map_or(0, |summary| summary.requests);
            next.stages.len() > stages || (is_old && count != requests)
        }
        _ => false,
    }
}

/// Builds the result of a test, with what an operator that is restarted needs to go on. Returns `None`
/// for a test whose spec is invalid.
pub(crate) fn build(observed: &mut Observed, status: &LoadTestStatus) -> Option<StoredResult> {
    let start = observed.known_start()?;
    let valid = observed.valid.clone().ok()?;
    let merged = observed.merge_snapshots();
    let recorder = observed.cache.series.take();
    let mut recorder = recorder.unwrap_or_else(|| SeriesRecorder::new(&valid.load));
    recorder.record_all(&merged);
    let gone = gone_runners(observed, &start);
    let gone_runners = gone.runners.values();
    let losses =
        gone_runners.filter_map(|runner| Some((runner.name.clone(), runner.loss.clone()?)));
    let facts = RunFacts {
        generator: concat!("loadtest-operator ", env!("CARGO_PKG_VERSION")).into(),
        uid: observed.test.metadata.uid.clone().unwrap_or_default(),
        test: &observed.test,
        valid: &valid,
        status,
        losses: losses.collect(),
    };
    let result = build_result(&facts, &merged, recorder.series().clone());
    // Runners that have ended their load wait with their metrics until they are released.
    let is_over = status.known_phase().is_some_and(Phase::is_final);
    let alive = observed
        .cache
        .snapshots
        .iter()
        .filter(|(index, _)| !is_over && !gone.runners.contains_key(index));
    let examples = observed.cache.error_examples.iter();
    let resume = ResumeState {
        recorded: recorder.recorded().clone(),
        runners: alive.map(|(_, snapshot)| snapshot.clone()).collect(),
        error_examples: examples
            .map(|((task, kind), message)| ErrorExample {
                task: task.clone(),
                kind: kind.clone(),
                message: message.clone(),
            })
            .collect(),
        gone,
    };
    observed.cache.series = Some(recorder);
    Some(StoredResult { result, resume: Some(resume) })
}

/// The runners that will never answer again, with their metrics.
fn gone_runners(observed: &Observed, start: &StartRecord) -> GoneRunners {
    let mut gone = observed.cache.gone.clone();
    for (index, pod_uid) in (0..).zip(&start.pods) {
        let key = index_of(index);
        if gone.runners.contains_key(&key) || !observed.is_gone(start, index) {
            continue;
        }
        let snapshot = observed.cache.snapshots.get(&key);
        let is_lost = observed.is_lost(start, index);
        let runner = GoneRunner {
            name: observed.runner_name(key),
            pod_uid: pod_uid.clone(),
            state: snapshot.map(|snapshot| snapshot.state).unwrap_or_default(),
            loss: is_lost.then(|| observed.describe_loss(start, index)),
        };
        gone.runners.insert(key, runner);
        if let Some(snapshot) = snapshot {
            gone.metrics.merge_runner(&observed.runner_name(key), &snapshot.metrics);
        }
    }
    gone
}

/// Fills the empty cache of a process that has never seen the run.
pub(crate) fn restore(
    cache: &mut RunCache,
    load: &LoadModel,
    stored: StoredResult,
    revision: u64,
    now: Timestamp,
) {
    let Some(resume) = stored.resume else { return };
    let ResumeState { recorded, gone, runners, error_examples } = resume;
    cache.written_result = WrittenResult {
        revision,
        at: Some(now),
        requests: stored.result.total.requests,
        stages: stored.result.status.stages.len(),
        failing_since: None,
    };
    cache.series = Some(SeriesRecorder::resume(load, stored.result.series, recorded));
    let alive = runners.into_iter().filter(|r| !gone.runners.contains_key(&r.identity.index));
    cache.snapshots = alive.map(|runner| (runner.identity.index, runner)).collect();
    cache.gone = gone;
    let examples = error_examples.into_iter();
    cache.error_examples = examples.map(|e| ((e.task, e.kind), e.message)).collect();
}

/// Notes an attempt to write the result.
pub(crate) fn note_attempt(
    cache: &mut RunCache,
    requests: u64,
    status: &LoadTestStatus,
    now: Timestamp,
) {
    let written = &mut cache.written_result;
    written.revision += 1;
    written.at = Some(now);
    written.requests = requests;
    written.stages = status.stages.len();
}

/// Notes that the last result of a test can't be written now. Returns true if the operator is to try
/// again: a verdict must not wait for ever for its result.
pub(crate) fn is_retried(cache: &mut RunCache, now: Timestamp) -> bool {
    let since = *cache.written_result.failing_since.get_or_insert(now);
    now.duration_since(since) < signed_duration(LAST_WRITE_PATIENCE)
}

/// The objects of a result: the first one last, because it makes the others count. The objects of two
/// revisions in a row have different names, but for the first one: a write that is cut short leaves
/// the earlier revision whole.
pub(crate) fn build_objects(
    test: &LoadTest,
    head: &LoadTestResult,
    parts: Vec<Vec<u8>>,
    revision: u64,
) -> Vec<LoadTestResult> {
    let count = u32::try_from(parts.len()).unwrap_or(u32::MAX);
    let object = |(part, data): (u32, Vec<u8>)| {
        let mut metadata = result_metadata(test);
        metadata.name = Some(part_name(&child_name(test), revision, part));
        let data = ByteString(data);
        LoadTestResult { metadata, revision, part, parts: count, data, ..head.clone() }
    };
    let mut objects: Vec<LoadTestResult> = (0..).zip(parts).map(object).collect();
    objects.reverse();
    objects
}

/// The name of an object of a result.
pub(crate) fn part_name(name: &str, revision: u64, part: u32) -> String {
    match (part, revision % 2) {
        (0, _) => name.to_owned(),
        (part, 0) => format!("{name}.{part}a"),
        (part, _) => format!("{name}.{part}b"),
    }
}

/// The object of a result without its data.
pub(crate) fn build_head(test: &LoadTest, stored: &StoredResult) -> LoadTestResult {
    let reference = TestReference {
        name: test.metadata.name.clone().unwrap_or_default(),
        uid: test.metadata.uid.clone().unwrap_or_default(),
    };
    LoadTestResult::new(&child_name(test), reference, &stored.result)
}

#[cfg(test)]
mod tests;
