//! `loadtest watch`: prints the progress of a LoadTest on a cluster until its verdict. Reads only
//! the LoadTest and its status.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use loadtest_core::{
    load::LoadModel,
    plan::validate,
    resource::{LoadTest, LoadTestStatus, Phase, Verdict},
};

use super::{
    Cluster, MAX_OUTAGE, POLL_INTERVAL, RESPONSE_TIMEOUT, may_succeed_later, result::write_result,
};
use crate::{
    arguments::{OutputArguments, WatchArguments},
    exit::Exit,
    output::eprint_line,
    outputs::check_outputs,
    render::{self, ProgressLines},
};

/// Time after which the user is told that no operator has taken up the LoadTest.
const PICK_UP_TIME: Duration = Duration::from_secs(15);

/// Prints the progress of a test until it is over, then its result.
pub(crate) fn watch_test(arguments: &WatchArguments, out: &mut impl Write) -> anyhow::Result<Exit> {
    let WatchArguments { name, cluster, strict, outputs } = arguments;
    check_outputs(outputs)?;
    super::block_on(async {
        let cluster = Cluster::connect(cluster).await?;
        follow_test(&cluster, name, None, *strict, outputs, out).await
    })
}

/// Prints the progress of a test until it is over, then its result. Ctrl-C ends this, and not the test. With a UID, another
/// test of the same name is an error.
pub(super) async fn follow_test(
    cluster: &Cluster,
    name: &str,
    uid: Option<String>,
    strict: bool,
    outputs: &OutputArguments,
    out: &mut impl Write,
) -> anyhow::Result<Exit> {
    tokio::select! {
        exit = poll_status(cluster, name, uid, strict, outputs, out) => exit,
        _ = tokio::signal::ctrl_c() => {
            let namespace = &cluster.namespace;
            anyhow::bail!(
                "stopped watching; the test is still running: kubectl get loadtest {name} -n {namespace}"
            );
        }
    }
}

async fn poll_status(
    cluster: &Cluster,
    name: &str,
    mut uid: Option<String>,
    strict: bool,
    outputs: &OutputArguments,
    out: &mut impl Write,
) -> anyhow::Result<Exit> {
    let namespace = &cluster.namespace;
    let mut last_status = LoadTestStatus::default();
    let mut lines = ProgressLines::default();
    let mut outage_start: Option<Instant> = None;
    let began = Instant::now();
    let mut is_told = false;
    loop {
        let response = tokio::time::timeout(RESPONSE_TIMEOUT, cluster.get_test(name)).await;
        let found = match response.map_err(anyhow::Error::from).flatten() {
            Ok(found) => found,
            // Runners don't need the API server during a test, so a short outage must not end
            // `watch`.
            Err(error)
                if uid.is_some()
                    && may_succeed_later(&error)
                    && outage_start.get_or_insert_with(Instant::now).elapsed() < MAX_OUTAGE =>
            {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "the LoadTest can't be read; trying again"
                );
                tokio::time::sleep(POLL_INTERVAL).await;
                continue;
            }
            Err(error) => return Err(error.context("the LoadTest can't be read")),
        };
        outage_start = None;
        let test = match (found, &uid) {
            (None, None) => anyhow::bail!("no LoadTest {name} in namespace {namespace}"),
            (None, Some(_)) => anyhow::bail!(
                "LoadTest {name} was deleted before its end was seen: loadtest report {name} -n {namespace} shows its result, if it has keepResult: true"
            ),
            (Some(test), Some(uid)) if test.metadata.uid.as_ref() != Some(uid) => anyhow::bail!(
                "LoadTest {name} was deleted, and another one has its name: loadtest watch {name} -n {namespace} shows that one"
            ),
            (Some(test), _) => test,
        };
        uid.clone_from(&test.metadata.uid);
        let status = test.status.clone().unwrap_or_default();
        print_changes(&test, &last_status, &status, &mut lines);
        if status.phase.is_none() && !is_told && began.elapsed() > PICK_UP_TIME {
            is_told = true;
            eprint_line(
                "no operator has taken up the LoadTest yet: check that its Deployment runs, and that it covers this namespace",
            );
        }
        if status.known_phase().is_some_and(Phase::is_final) {
            let written = write_result(cluster, &test, &status, outputs, out).await;
            let exit = match (status.known_phase(), status.known_verdict()) {
                (Some(Phase::Error), _) => Exit::CouldNotRun,
                (_, verdict) => {
                    Exit::from_verdict(verdict.unwrap_or(Verdict::Inconclusive), strict)
                }
            };
            // A verdict that is not a pass counts more than a file that is missing.
            return match written {
                Err(error) if exit == Exit::Passed => Err(error),
                Err(error) => {
                    eprint_line(&format!("loadtest: {error:#}"));
                    Ok(exit)
                }
                Ok(()) => Ok(exit),
            };
        }
        last_status = status;
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Prints the phase and the progress to standard error, if they have changed.
fn print_changes(
    test: &LoadTest,
    before: &LoadTestStatus,
    now: &LoadTestStatus,
    lines: &mut ProgressLines,
) {
    // A spec of a newer version may not be valid for this one; its status can be shown all the same.
    let valid = validate(&test.spec).ok();
    let load = valid.as_ref().map(|valid| &valid.load);
    let duration = load.map_or(loadtest_core::Duration::ZERO, LoadModel::duration);
    if now.phase != before.phase
        && let Some(phase) = &now.phase
    {
        let details = match (phase.known(), &now.plan) {
            (Some(Phase::Pending | Phase::Starting), Some(plan)) if plan.runners == 1 => {
                format!("1 runner, up to {} users", plan.users_per_runner)
            }
            (Some(Phase::Pending | Phase::Starting), Some(plan)) => {
                format!("{} runners, up to {} users each", plan.runners, plan.users_per_runner)
            }
            (Some(Phase::Running), _) => load.map(ToString::to_string).unwrap_or_default(),
            _ => String::new(),
        };
        eprint_line(&format!("{:<10}{details}", phase.as_str()));
        if *phase == Phase::Running {
            eprint_line(&render::progress_header());
        }
    }
    let is_waiting = matches!(now.known_phase(), Some(Phase::Pending | Phase::Starting));
    if let Some(reason) = reason_to_wait(now).filter(|_| is_waiting)
        && Some(reason) != reason_to_wait(before)
    {
        eprint_line(&format!("{:<10}{reason}", ""));
    }
    if now.progress != before.progress
        && let (Some(Phase::Running | Phase::Stopping), Some(progress), Some(summary)) =
            (now.known_phase(), &now.progress, &now.summary)
    {
        eprint_line(&lines.next_line(progress, summary, duration));
    }
}

/// Why a test has not started yet, in the words of the operator.
fn reason_to_wait(status: &LoadTestStatus) -> Option<&str> {
    let started = status.condition("Started").filter(|condition| condition.status == "False");
    started.map(|condition| condition.message.as_str()).filter(|message| !message.is_empty())
}
