//! The `LoadTestResult` of a test: when it is written, what it holds, and how an operator that was
//! restarted goes on from it. Pure.

use std::sync::Arc;

use k8s_openapi::{ByteString, jiff::Timestamp};
use loadtest_core::{
    Duration,
    control::ErrorExample,
    load::LoadModel,
    metrics::RunnerState,
    resource::{LoadTest, LoadTestStatus, Phase},
    result::{
        LoadTestResult, PackedSeries, ResultToStore, ResumeState, RunFacts, Series, SeriesRecorder,
        StoredResult, TestReference, build_result,
    },
};

use loadtest_children::{child_name, result_metadata};

use crate::{
    collect::{Collection, StartedPods, runner_name},
    decide::{Decision, signed_duration},
    observe::start::StartRecord,
    observe::state::{Observed, RunCache, WrittenResult},
    status::is_recent,
};

/// Interval between two writes of the result of a running test.
const WRITE_INTERVAL: Duration = Duration::from_secs(30);
/// Maximum time for which a write waits for those of other tests.
pub(crate) const MAX_TURN_WAIT: Duration = Duration::from_secs(30);
/// Maximum size of the packed metrics of runners that may answer again, for the result to hold them. More would
/// not fit into its first object. They are read again from the runners, and are lost only if a runner ends while no
/// operator runs.
const MAX_ALIVE_BYTES: usize = 1 << 20;
/// Time for which a result that can't be read after a restart is tried again.
const RESUME_RETRY_TIME: Duration = Duration::from_secs(20);
/// Time for which the last write of a result is tried again.
const LAST_WRITE_RETRY_TIME: Duration = Duration::from_secs(120);

/// Returns true if the result is to be written with a decision and the status that follows from it.
pub(crate) fn is_due(
    observed: &Observed,
    decision: &Decision,
    next: &LoadTestStatus,
    now: Timestamp,
) -> bool {
    let WrittenResult { requests, stages, is_newer, .. } = observed.cache.written_result;
    if is_newer {
        return false;
    }
    match decision {
        Decision::ReportStarted(_)
        | Decision::ReportLoss(_)
        | Decision::ReportAbort(_)
        | Decision::Conclude { .. } => observed.known_start().is_some(),
        Decision::SendStart(..) | Decision::ReportProgress(..) => {
            let count = next.summary.as_ref().map_or(0, |summary| summary.requests);
            next.stages.len() > stages || (is_write_due(observed, now) && count != requests)
        }
        _ => false,
    }
}

/// Returns true if it is time for the next write of the result of a running test. Both status and result count as a write,
/// and some seconds must pass after each one.
fn is_write_due(observed: &Observed, now: Timestamp) -> bool {
    let written_at = observed.cache.written_result.at;
    !is_recent(observed.cache.written_at, now)
        && written_at.is_none_or(|at| now.duration_since(at) >= signed_duration(WRITE_INTERVAL))
}

/// What happens to a write that is due, if as many results as possible are being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WhenBusy {
    /// The write does not wait: an order follows it, or it has waited long enough.
    Write,
    /// The reconciliation waits for its turn.
    Wait,
    /// A later reconciliation writes the result. This one writes the status.
    Skip,
    /// A later reconciliation writes both. The stored result must have each stage before the status has it.
    Postpone,
}

/// Decides about a write that is due while as many results as possible are being written.
pub(crate) fn when_busy(
    observed: &Observed,
    decision: &Decision,
    next: &LoadTestStatus,
    now: Timestamp,
) -> WhenBusy {
    let written = &observed.cache.written_result;
    let has_waited = written
        .waiting_since
        .is_some_and(|since| now.duration_since(since) >= signed_duration(MAX_TURN_WAIT));
    match decision {
        Decision::Conclude { .. } => WhenBusy::Wait,
        Decision::SendStart(..) | Decision::ReportProgress(..) if !has_waited => {
            let ends_stage = next.stages.len() > written.stages;
            if ends_stage { WhenBusy::Postpone } else { WhenBusy::Skip }
        }
        _ => WhenBusy::Write,
    }
}

/// Builds the result of a test, with what an operator that is restarted needs to go on. Returns `None`
/// if the spec of the test is invalid.
pub(crate) fn build(observed: &Observed, status: &LoadTestStatus) -> Option<ResultToStore> {
    let start = observed.known_start()?;
    let valid = observed.valid.as_ref().ok()?;
    let mut collection = Collection::clone(&observed.cache.collection);
    collection.move_gone_runners(StartedPods { start: &start, runners: &observed.runners });
    let merged = collection.merged(|index| runner_name(&observed.runners, index));
    let recorder = collection.series().cloned();
    let mut recorder = recorder.unwrap_or_else(|| SeriesRecorder::new(&valid.load));
    recorder.record_all(&merged);
    let gone = collection.gone().clone();
    let gone_runners = gone.runners.values();
    let losses =
        gone_runners.filter_map(|runner| Some((runner.name.clone(), runner.loss.clone()?)));
    let facts = RunFacts {
        generator: concat!("loadtest-operator ", env!("CARGO_PKG_VERSION")).into(),
        uid: observed.test.metadata.uid.clone().unwrap_or_default(),
        test: &observed.test,
        valid,
        status,
        losses: losses.collect(),
    };
    let result = build_result(&facts, &merged, Series::default());
    // Runners that have ended their load wait with their metrics until they are released.
    let is_over = status.known_phase().is_some_and(Phase::is_final);
    let alive = if is_over { Vec::new() } else { collection.alive(MAX_ALIVE_BYTES) };
    let examples = observed.cache.error_examples.iter();
    let resume = ResumeState {
        pods: start.pods,
        recorded: recorder.recorded(),
        stage_start: collection.stage_start(),
        runners: Vec::new(),
        error_examples: examples
            .map(|((task, kind), message)| ErrorExample {
                task: task.clone(),
                kind: kind.clone(),
                message: message.clone(),
            })
            .collect(),
        gone,
    };
    let document = StoredResult { result, resume: Some(resume) };
    Some(ResultToStore { document, series: recorder.series().clone(), runners: alive })
}

/// A result that an earlier process wrote.
#[derive(Clone, Debug)]
pub(crate) struct EarlierResult {
    /// The document.
    pub(crate) stored: StoredResult,
    /// Its revision.
    pub(crate) revision: u64,
    /// Resource version of its first object.
    pub(crate) head_version: Option<String>,
    /// Number of its objects.
    pub(crate) parts: u32,
}

/// The objects of a write of a result.
#[derive(Clone, Debug, Default)]
pub(crate) struct WrittenObjects {
    /// Number of the objects.
    pub(crate) parts: u32,
    /// Resource version of the first one.
    pub(crate) head_version: Option<String>,
}

/// Fills the empty cache of a process that has never seen the run. Returns false if another version
/// wrote what this one would need to go on.
pub(crate) fn restore(
    cache: &mut RunCache,
    load: &LoadModel,
    earlier: EarlierResult,
    now: Timestamp,
) -> bool {
    let EarlierResult { stored, revision, head_version, parts } = earlier;
    cache.written_result = WrittenResult {
        revision,
        head_version,
        at: Some(now),
        requests: stored.result.total.requests,
        stages: stored.result.status.stages.len(),
        most_parts: parts,
        failing_since: None,
        waiting_since: None,
        is_newer: false,
    };
    let Some(resume) = stored.resume else { return false };
    let ResumeState { pods, recorded, stage_start, gone, runners, error_examples } = resume;
    if let (None, Some(at), false) =
        (&cache.start, stored.result.status.start_time, pods.is_empty())
    {
        cache.start = Some(StartRecord { at: at.0, pods });
    }
    let series = SeriesRecorder::resume(load, PackedSeries::of(stored.result.series), &recorded);
    // A runner that waited at the last write may run by now.
    let alive = runners.into_iter().filter(|runner| runner.state != RunnerState::Waiting);
    cache.collection =
        Arc::new(Collection::restored(gone, alive.collect(), series, stage_start.as_ref()));
    let examples = error_examples.into_iter();
    cache.error_examples = examples.map(|e| ((e.task, e.kind), e.message)).collect();
    true
}

/// Notes that the result was written as the next revision, in these objects.
pub(crate) fn note_write(
    cache: &mut RunCache,
    requests: u64,
    objects: WrittenObjects,
    status: &LoadTestStatus,
    now: Timestamp,
) {
    let written = &mut cache.written_result;
    *written = WrittenResult {
        revision: written.revision + 1,
        head_version: objects.head_version,
        at: Some(now),
        requests,
        stages: status.stages.len(),
        most_parts: written.most_parts.max(objects.parts),
        failing_since: None,
        waiting_since: None,
        is_newer: false,
    };
}

/// Records that a write failed. The next attempt has the same revision, so that it does not touch the objects of the
/// revision before. The attempt follows after [`WRITE_INTERVAL`], even if nothing has changed by then.
pub(crate) fn note_failure(cache: &mut RunCache, status: &LoadTestStatus, now: Timestamp) {
    let written = &mut cache.written_result;
    written.at = Some(now);
    written.waiting_since = None;
    written.requests = u64::MAX;
    written.stages = status.stages.len();
}

/// Records the start of an attempt at the last write. Returns true if the operator must try again after a failure of
/// this attempt. After [`LAST_WRITE_RETRY_TIME`] it returns false, because a verdict must not wait for its result for ever.
pub(crate) fn begin_last_write(cache: &mut RunCache, now: Timestamp) -> bool {
    let since = *cache.written_result.failing_since.get_or_insert(now);
    now.duration_since(since) < signed_duration(LAST_WRITE_RETRY_TIME)
}

/// Records that the result of an earlier process can't be read. Returns true if the operator must try again.
pub(crate) fn note_resume_failure(cache: &mut RunCache, now: Timestamp) -> bool {
    let since = *cache.resume_failing_since.get_or_insert(now);
    now.duration_since(since) < signed_duration(RESUME_RETRY_TIME)
}

/// The objects of a result. The first one replaces only the object of this resource version, if there is one: another
/// replica may have written a later result. The first object is written last, because readers use the revision that it names.
/// The other objects of two consecutive revisions have different names, so that an interrupted write leaves the earlier
/// revision complete.
pub(crate) fn build_objects(
    test: &LoadTest,
    head: &LoadTestResult,
    parts: Vec<Vec<u8>>,
    revision: u64,
    head_version: Option<&str>,
) -> Vec<LoadTestResult> {
    let count = u32::try_from(parts.len()).unwrap_or(u32::MAX);
    let object = |(part, data): (u32, Vec<u8>)| {
        let mut metadata = result_metadata(test);
        metadata.name = Some(part_name(&child_name(test), revision, part));
        metadata.resource_version = head_version.filter(|_| part == 0).map(str::to_owned);
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

/// The names of the objects that earlier revisions may have left behind, after the last revision was
/// written in `parts` objects. No earlier revision had more than `most`.
pub(crate) fn stale_names(name: &str, revision: u64, parts: u32, most: u32) -> Vec<String> {
    let earlier = (1..most).map(|part| part_name(name, revision + 1, part));
    let shrunk = (parts.max(1)..most).map(|part| part_name(name, revision, part));
    earlier.chain(shrunk).collect()
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
