use std::time::Instant;

use super::*;
use crate::{
    collect::collection::Answer,
    observe::{skew::RoundTrip, start::START_ANNOTATION},
    testing::{example_test, noon, ready_runner, validated},
};
use k8s_openapi::{
    api::batch::v1::Job,
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::{SignedDuration, ToSpan},
};
use loadtest_core::{
    metrics::{HistoryStep, Identity, Metrics, RunnerMetrics, RunnerState, TaskMetrics},
    resource::StageRow,
};
use serde_json::json;

/// A test under load on two runners that have sent these numbers of requests.
fn running(requests: [u64; 2], seconds: f64) -> Observed {
    let start = StartRecord { at: noon(), pods: vec!["pod-0".into(), "pod-1".into()] };
    let mut observed = Observed::new(example_test(), RunCache::default());
    let record = serde_json::to_string(&start).unwrap();
    let mut job = Job::default();
    job.metadata.annotations = Some([(START_ANNOTATION.to_owned(), record)].into());
    observed.job = Some(job);
    observed.cache.start = Some(start);
    observed.runners = vec![ready_runner(0), ready_runner(1)];
    set_requests(&mut observed, requests, seconds);
    observed
}

fn set_requests(observed: &mut Observed, requests: [u64; 2], seconds: f64) {
    let answer = |index: u32, requests: u64| {
        let mut metrics = Metrics { elapsed_seconds: seconds, users: 5, ..Metrics::default() };
        let task = TaskMetrics { requests: [requests, 0, 0, 0], ..TaskMetrics::default() };
        metrics.tasks.insert("health".into(), task);
        let identity = Identity { index, pod_uid: format!("pod-{index}"), ..Identity::default() };
        let runner = RunnerMetrics { identity, state: RunnerState::Running, metrics };
        let steps = vec![HistoryStep { number: 7, is_cumulative: true, runner }];
        let now = Instant::now();
        let round_trip = RoundTrip { sent_at: now, received_at: now, work_seconds: 0.0 };
        Answer { index, round_trip, elapsed: seconds, steps }
    };
    let asked = (0..).zip(requests).filter(|(_, requests)| *requests > 0);
    let targets = observed.targets().unwrap();
    let collection = Arc::make_mut(&mut observed.cache.collection);
    collection.begin_round();
    for (index, requests) in asked {
        collection.add_answer(answer(index, requests), &targets, noon()).unwrap();
    }
    // A look does not wait for the runner that did not answer.
    collection.end_round(&targets, noon());
    collection.end_round(&targets, noon() + 10.seconds());
}

fn progress() -> Decision {
    Decision::ReportProgress(Phase::Running, Duration::from_secs(2))
}

fn status_with(requests: u64, stages: usize) -> LoadTestStatus {
    let mut status = LoadTestStatus::default();
    status.summary.get_or_insert_default().requests = requests;
    let row = json!({"load": "5 users", "requests": 1, "errorRate": "0%", "throughput": "1/s", "verdict": "Pass"});
    let row: StageRow = serde_json::from_value(row).unwrap();
    status.stages = vec![row; stages];
    status
}

#[test]
fn a_busy_write_waits_half_a_minute_and_delays_no_order() {
    let mut observed = running([10, 10], 2.0);
    observed.cache.written_result.waiting_since = Some(noon());
    let when = |decision: &Decision, stages, seconds: i64| {
        when_busy(&observed, decision, &status_with(20, stages), noon() + seconds.seconds())
    };
    assert_eq!(when(&progress(), 0, 29), WhenBusy::Skip);
    assert_eq!(when(&progress(), 1, 29), WhenBusy::Postpone);
    assert_eq!([when(&progress(), 0, 30), when(&progress(), 1, 30)], [WhenBusy::Write; 2]);
    assert_eq!(when(&Decision::ReportLoss(Vec::new()), 0, 0), WhenBusy::Write);
    let end = Decision::Conclude { cancelled: false, failed: None };
    assert_eq!(when(&end, 1, 0), WhenBusy::Wait);
}

#[test]
fn a_running_test_writes_its_result_every_half_minute() {
    let mut observed = running([10, 10], 2.0);
    let now = noon();
    assert!(is_due(&observed, &progress(), &status_with(20, 0), now), "never written");
    let objects = WrittenObjects { parts: 1, head_version: Some("5".into()) };
    note_write(&mut observed.cache, 20, objects, &status_with(20, 0), now);
    let later = |seconds: i64| now + SignedDuration::from_secs(seconds);
    assert!(!is_due(&observed, &progress(), &status_with(90, 0), later(29)));
    assert!(is_due(&observed, &progress(), &status_with(90, 0), later(30)));
    assert!(!is_due(&observed, &progress(), &status_with(20, 0), later(30)), "nothing changed");
    assert!(is_due(&observed, &progress(), &status_with(20, 1), later(1)), "a stage has ended");
    observed.cache.written_at = Some(later(28));
    assert!(!is_due(&observed, &progress(), &status_with(90, 0), later(32)), "just after a status");
    assert!(is_due(&observed, &progress(), &status_with(90, 0), later(33)));
    observed.cache.written_at = None;
    let conclude = Decision::Conclude { cancelled: false, failed: None };
    assert!(is_due(&observed, &conclude, &status_with(20, 0), now));
    assert!(is_due(&observed, &Decision::ReportLoss(vec![]), &status_with(20, 0), now));
    assert!(!is_due(&observed, &Decision::NothingToDo, &status_with(20, 0), later(99)));
    note_failure(&mut observed.cache, &status_with(20, 1), now);
    assert_eq!(observed.cache.written_result.revision, 1, "the same revision again");
    assert!(!is_due(&observed, &progress(), &status_with(20, 1), later(29)));
    assert!(is_due(&observed, &progress(), &status_with(20, 1), later(30)), "after a failure");
    let unstarted = Observed::new(example_test(), RunCache::default());
    assert!(!is_due(&unstarted, &conclude, &status_with(0, 0), now));
}

/// Stores the result of a test, and reads it as the next process does.
fn store_and_read(observed: &Observed, status: &LoadTestStatus) -> StoredResult {
    let result = build(observed, status).unwrap();
    let head = build_head(&observed.test, &result.document);
    let parts = result.into_parts().unwrap();
    let mut objects = build_objects(&observed.test, &head, parts, 1, None);
    let first = objects.pop().unwrap();
    StoredResult::from_objects(&first, &objects).unwrap()
}

#[test]
fn a_restarted_operator_keeps_the_numbers_of_lost_runners() {
    let mut observed = running([100, 70], 2.0);
    set_requests(&mut observed, [200, 140], 4.0);
    // The second runner is gone without a last word.
    observed.runners.pop();
    let stored = store_and_read(&observed, &LoadTestStatus::default());
    assert_eq!(stored.result.total.requests, 340);
    let lost = stored.result.runners.iter().find(|runner| runner.loss.is_some()).unwrap();
    assert!(lost.name.starts_with("runner 1") && lost.requests == 140, "{lost:?}");

    let mut next = running([0, 0], 0.0);
    next.cache = RunCache { start: next.cache.start, ..RunCache::default() };
    next.runners.pop();
    let earlier = EarlierResult { stored, revision: 7, head_version: None, parts: 1 };
    assert!(restore(&mut next.cache, &validated(&next.test).load, earlier, noon()));
    assert_eq!(next.merged().all_tasks().completed_requests(), 340);
    let start = next.known_start().unwrap();
    assert!(next.is_lost(&start, 1) && !next.is_lost(&start, 0));
    assert!(next.describe_loss(&start, 1).contains("deleted"));
    // Ten seconds later the first runner answers again.
    set_requests(&mut next, [700, 0], 14.0);
    let stored = store_and_read(&next, &LoadTestStatus::default());
    assert_eq!(stored.result.total.requests, 840);
    let points = &stored.result.series.points;
    let times: Vec<f64> = points.iter().map(|point| point.end).collect();
    let counted: u64 = points.iter().map(|point| point.tasks["health"].requests).sum();
    assert_eq!((times, counted), (vec![2.0, 4.0, 14.0], 840));
    assert_eq!(next.cache.written_result.revision, 7);
}

#[test]
fn a_restarted_operator_knows_the_start_without_the_job() {
    let observed = running([100, 70], 2.0);
    let status = LoadTestStatus {
        phase: Some(Phase::Running.into()),
        start_time: Some(MicroTime(noon())),
        ..Default::default()
    };
    let stored = store_and_read(&observed, &status);
    let mut next = Observed::new(example_test(), RunCache::default());
    next.test.status = Some(status);
    let earlier = EarlierResult { stored, revision: 2, head_version: None, parts: 1 };
    assert!(restore(&mut next.cache, &validated(&next.test).load, earlier, noon()));
    assert_eq!(next.known_start(), observed.known_start());
    let conclude = Decision::Conclude { cancelled: false, failed: None };
    assert!(is_due(&next, &conclude, &LoadTestStatus::default(), noon()));
    let last = store_and_read(&next, &LoadTestStatus::default()).result;
    assert_eq!(last.total.requests, 170);
    assert!(last.runners.iter().all(|runner| runner.loss.is_some()), "{:?}", last.runners);
    next.cache.written_result.is_newer = true;
    assert!(!is_due(&next, &conclude, &LoadTestStatus::default(), noon()));
}

#[test]
fn the_last_result_needs_no_runners_that_can_still_be_asked() {
    let observed = running([100, 70], 2.0);
    let status = LoadTestStatus { phase: Some(Phase::Finished.into()), ..Default::default() };
    let resume = store_and_read(&observed, &status).resume.unwrap();
    assert!(resume.runners.is_empty() && resume.gone.runners.is_empty());
}

#[test]
fn a_verdict_does_not_wait_for_ever_for_its_result() {
    let mut cache = RunCache::default();
    assert!(begin_last_write(&mut cache, noon()));
    assert!(begin_last_write(&mut cache, noon() + 119.seconds()));
    assert!(!begin_last_write(&mut cache, noon() + 120.seconds()));
}

#[test]
fn revisions_share_only_the_first_object_which_comes_last() {
    let observed = running([100, 70], 2.0);
    let stored = store_and_read(&observed, &LoadTestStatus::default());
    let head = build_head(&observed.test, &stored);
    let names = |revision: u64| -> Vec<String> {
        let parts = vec![vec![1], vec![2], vec![3]];
        let objects = build_objects(&observed.test, &head, parts, revision, Some("5"));
        assert!(objects.iter().all(|object| object.parts == 3 && object.revision == revision));
        let versions: Vec<_> =
            objects.iter().map(|object| object.metadata.resource_version.as_deref()).collect();
        assert_eq!(versions, [None, None, Some("5")]);
        objects.into_iter().filter_map(|object| object.metadata.name).collect()
    };
    assert_eq!(names(4), ["burst-0a1b2c3d.2a", "burst-0a1b2c3d.1a", "burst-0a1b2c3d"]);
    assert_eq!(names(5), ["burst-0a1b2c3d.2b", "burst-0a1b2c3d.1b", "burst-0a1b2c3d"]);
}

#[test]
fn a_result_that_shrank_leaves_no_part_behind() {
    // Revisions 4 and 5 had three parts, and the last one has two.
    assert_eq!(stale_names("burst", 6, 2, 3), ["burst.1b", "burst.2b", "burst.2a"]);
    assert_eq!(stale_names("burst", 6, 1, 3).len(), 4);
    assert!(stale_names("burst", 6, 1, 1).is_empty());
}

#[test]
fn a_result_without_a_resume_state_keeps_its_revision() {
    let observed = running([100, 70], 2.0);
    let mut stored = store_and_read(&observed, &LoadTestStatus::default());
    stored.resume = None;
    let mut cache = RunCache::default();
    let earlier = EarlierResult { stored, revision: 7, head_version: None, parts: 2 };
    assert!(!restore(&mut cache, &validated(&observed.test).load, earlier, noon()));
    assert_eq!((cache.written_result.revision, cache.written_result.most_parts), (7, 2));
}

#[test]
fn a_kept_result_has_no_owner() {
    let mut test = example_test();
    assert!(result_metadata(&test).owner_references.is_some());
    test.spec.keep_result = true;
    let metadata = result_metadata(&test);
    assert_eq!(metadata.owner_references, None);
    let labels = metadata.labels.unwrap();
    assert_eq!(labels["loadtest.cell0.io/name"], "burst");
    assert!(!labels.contains_key("app.kubernetes.io/name"));
}
