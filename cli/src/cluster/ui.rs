//! `loadtest ui`: the live page of a LoadTest on a cluster, served on the viewer's machine.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use loadtest_core::{
    judge::Timeline,
    plan::validate,
    resource::{LoadTest, LoadTestStatus, Phase},
    result::{Series, SeriesRecorder, StoredResult},
};
use loadtest_report::RunResult;

use super::{
    Cluster, may_succeed_later,
    result::{find_result, find_stored, result_of_ended},
    runners::{AnswerCount, Runners, is_forbidden},
};
use crate::{
    arguments::UiArguments,
    exit::Exit,
    live::{LiveFeed, LivePage, RunDescription, StopAction},
    output::eprint_line,
};

/// Time between two updates of the page.
const UPDATE_INTERVAL: Duration = Duration::from_secs(1);
/// Number of updates without an answer of any runner after which the page shows the stored result.
const MAX_SILENT_UPDATES: u32 = 5;
/// Number of updates between two reads of the LoadTest.
const UPDATES_PER_READ: u32 = 3;

/// Serves the page of a test until Ctrl-C.
pub(crate) fn show_page(arguments: &UiArguments) -> anyhow::Result<Exit> {
    let UiArguments { name, cluster, address } = arguments;
    super::block_on(async {
        let cluster = Cluster::connect(cluster).await?;
        let found = cluster.get_test(name).await.context("the LoadTest can't be read")?;
        if found.is_none() {
            // Fails if no result was kept either.
            find_result(&cluster.client, &cluster.namespace, name, None).await?;
        }
        let feed = LiveFeed::new();
        let uid = found.as_ref().and_then(|test| test.metadata.uid.clone());
        let can_stop = found.as_ref().is_some_and(|test| !is_over(test));
        let stop = can_stop.then(|| cancel_action(&cluster.tests, name, uid.as_deref()));
        let page = LivePage::serve(*address, name, &feed, stop).await?;
        eprint_line(&format!(
            "live page: http://{}/  (Ctrl-C ends it; the test goes on)",
            page.address
        ));
        tokio::select! {
            shown = feed_page(&cluster, name, uid.as_deref(), &feed) => shown?,
            _ = tokio::signal::ctrl_c() => {}
        }
        page.end().await;
        Ok(Exit::Passed)
    })
}

fn is_over(test: &LoadTest) -> bool {
    let phase = test.status.as_ref().and_then(LoadTestStatus::known_phase);
    phase.is_some_and(Phase::is_final)
}

/// Feeds the page until the test is over, and then waits.
async fn feed_page(
    cluster: &Cluster,
    name: &str,
    uid: Option<&str>,
    feed: &LiveFeed,
) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(UPDATE_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut last_phase = None;
    let result = loop {
        ticks.tick().await;
        let test = match cluster.get_test(name).await {
            Ok(test) => test,
            Err(error) if may_succeed_later(&error) => {
                tracing::warn!(%error, "the LoadTest can't be read; trying again");
                continue;
            }
            Err(error) => return Err(error.context("the LoadTest can't be read")),
        };
        // A LoadTest that replaces this one is another test.
        let test = test.filter(|test| test.metadata.uid.as_deref() == uid);
        let Some(test) = test else {
            break find_result(&cluster.client, &cluster.namespace, name, uid).await?;
        };
        if is_over(&test) {
            let status = test.status.clone().unwrap_or_default();
            break result_of_ended(cluster, &test, &status).await?;
        }
        let phase = test.status.as_ref().and_then(LoadTestStatus::known_phase);
        if phase != last_phase
            && let Some(status) = &test.status
            && let Some(phase) = &status.phase
        {
            eprint_line(phase.as_str());
        }
        last_phase = phase;
        if matches!(phase, Some(Phase::Running | Phase::Stopping)) {
            show_run(cluster, &test, feed).await?;
        }
    };
    let series = result.series.clone();
    feed.publish(result, &series, true);
    eprint_line("the test is over; the page shows its result");
    std::future::pending().await
}

/// Shows a test under load until it is over.
async fn show_run(cluster: &Cluster, test: &LoadTest, feed: &LiveFeed) -> anyhow::Result<()> {
    let name = test.metadata.name.as_deref().unwrap_or_default();
    let uid = test.metadata.uid.clone().unwrap_or_default();
    let Ok(valid) = validate(&test.spec) else {
        return show_stored(cluster, name, feed, "this version can't read the spec").await;
    };
    let status = test.status.clone().unwrap_or_default();
    let stored = find_stored(&cluster.client, &cluster.namespace, name, Some(&uid)).await;
    let stored = stored.ok().flatten();
    let StoredParts { series, recorded, gone, known, examples } = parts_of(stored);
    let mut recorder = SeriesRecorder::resume(&valid.load, series, &recorded);
    let seconds = status.progress.as_ref().map_or(0.0, |progress| progress.elapsed.as_secs_f64());
    let mut timeline =
        Timeline::from_status(&valid, status.stages.clone(), &status.thresholds, seconds);
    let pods = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let mut runners = Runners::new(pods, &uid, gone, known, examples);
    let start_time = status.start_time.map_or_else(Timestamp::now, |time| time.0);
    let description = RunDescription { test, valid: &valid, uid, start_time };
    let mut ticks = tokio::time::interval(UPDATE_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut silent_updates = 0;
    for update in 1_u32.. {
        ticks.tick().await;
        match runners.ask_all().await {
            Ok(AnswerCount { answered: 0, .. }) if silent_updates >= MAX_SILENT_UPDATES => {
                let why = "no runner answers through port-forwarding";
                return show_stored(cluster, name, feed, why).await;
            }
            Ok(AnswerCount { asked, answered }) => {
                silent_updates = if answered == 0 { silent_updates + 1 } else { 0 };
                let merged = runners.merged();
                if merged.elapsed_seconds > 0.0 {
                    recorder.record(&merged);
                    timeline.record_snapshot(&valid, &merged);
                    let examples = runners.examples.clone();
                    let mut result = description.result_so_far(&merged, examples, &timeline);
                    if answered < asked {
                        let note = format!(
                            "only {answered} of {asked} runners answer; the others count with their last numbers"
                        );
                        add_to_messages(&mut result, &note);
                    }
                    feed.publish(result, recorder.series(), false);
                }
            }
            Err(error) if is_forbidden(&error) => {
                let why = "you may not forward ports to pods here";
                return show_stored(cluster, name, feed, why).await;
            }
            Err(error) => tracing::warn!(error = format!("{error:#}"), "the runners can't be read"),
        }
        if update % UPDATES_PER_READ == 0 {
            match cluster.get_test(name).await {
                Ok(found) if found.as_ref().is_none_or(is_over) => return Ok(()),
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "the LoadTest can't be read; trying again"
                    );
                }
            }
        }
    }
    Ok(())
}

/// Shows the result that the operator stores, because the runners can't be read.
async fn show_stored(
    cluster: &Cluster,
    name: &str,
    feed: &LiveFeed,
    why: &str,
) -> anyhow::Result<()> {
    eprint_line(&format!(
        "{why}: the page shows the stored result, which is usually up to 30 s old"
    ));
    let mut ticks = tokio::time::interval(5 * UPDATE_INTERVAL);
    loop {
        ticks.tick().await;
        let test = match cluster.get_test(name).await {
            Ok(test) => test,
            Err(error) if may_succeed_later(&error) => {
                tracing::warn!(%error, "the LoadTest can't be read; trying again");
                continue;
            }
            Err(error) => return Err(error.context("the LoadTest can't be read")),
        };
        if test.as_ref().is_none_or(is_over) {
            return Ok(());
        }
        let uid = test.as_ref().and_then(|test| test.metadata.uid.as_deref());
        if let Ok(mut result) = find_result(&cluster.client, &cluster.namespace, name, uid).await {
            let series = std::mem::take(&mut result.series);
            let age = "the numbers are those of the stored result, usually up to 30 s old";
            add_to_messages(&mut result, age);
            feed.publish(result, &series, false);
        }
    }
}

/// Adds a note to the messages that the page shows.
fn add_to_messages(result: &mut RunResult, note: &str) {
    for condition in &mut result.status.conditions {
        condition.message = format!("{}; {note}", condition.message);
    }
}

/// Stops the test with the viewer's rights.
fn cancel_action(tests: &Api<LoadTest>, name: &str, uid: Option<&str>) -> StopAction {
    // With the UID, the API server refuses to cancel another test of the same name.
    let patch = serde_json::json!({"metadata": {"uid": uid}, "spec": {"cancel": true}});
    let (tests, name) = (tests.clone(), name.to_owned());
    Arc::new(move || {
        let (tests, name, patch) = (tests.clone(), name.clone(), Patch::Merge(patch.clone()));
        Box::pin(async move {
            let patched = tests.patch(&name, &PatchParams::default(), &patch).await;
            patched.map(drop).map_err(|error| match error {
                kube::Error::Api(status) => status.message,
                error => error.to_string(),
            })
        })
    })
}

/// The parts of the stored result with which a viewer joins a run.
#[derive(Default)]
struct StoredParts {
    series: Series,
    recorded: loadtest_core::metrics::Metrics,
    gone: loadtest_core::result::GoneRunners,
    known: Vec<loadtest_core::metrics::RunnerMetrics>,
    examples: Vec<loadtest_core::control::ErrorExample>,
}

fn parts_of(stored: Option<StoredResult>) -> StoredParts {
    let Some(StoredResult { result, resume: Some(resume) }) = stored else {
        let series = Series { step_seconds: 1.0, points: Vec::new() };
        return StoredParts { series, ..StoredParts::default() };
    };
    StoredParts {
        series: result.series,
        recorded: resume.recorded,
        gone: resume.gone,
        known: resume.runners,
        examples: resume.error_examples,
    }
}
