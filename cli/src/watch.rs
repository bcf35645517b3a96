//! `loadtest watch`: a LoadTest on a cluster, from now to its verdict, read from its status.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use anyhow::Context;
use kube::{Api, Client, Config};
use loadtest_core::resource::{LoadTest, LoadTestStatus, Phase, Verdict};

use crate::{Exit, WatchArguments, render};

/// Between looks at the status, which changes every 5 s at most.
const LOOK: Duration = Duration::from_secs(1);

/// How long one answer of the API server may take.
const ANSWER: Duration = Duration::from_secs(20);

/// How long the API server may be away.
const PATIENCE: Duration = Duration::from_mins(2);

/// Prints a test's progress until it is over, then its result.
pub(crate) fn watch(arguments: &WatchArguments, out: &mut impl Write) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        tokio::select! {
            exit = follow(arguments, out) => exit,
            _ = tokio::signal::ctrl_c() => {
                let WatchArguments { name, namespace } = arguments;
                let namespace = namespace.as_ref().map_or_else(String::new, |it| format!(" -n {it}"));
                anyhow::bail!(
                    "no longer watching; the test goes on, see kubectl get loadtest {name}{namespace}"
                );
            }
        }
    })
}

async fn follow(arguments: &WatchArguments, out: &mut impl Write) -> anyhow::Result<Exit> {
    let WatchArguments { name, namespace } = arguments;
    let config = Config::infer().await.context("no Kubernetes configuration was found")?;
    let namespace = namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    let client = Client::try_from(config).context("no Kubernetes client")?;
    let tests: Api<LoadTest> = Api::namespaced(client, &namespace);
    let mut seen = LoadTestStatus::default();
    let mut unheard: Option<Instant> = None;
    loop {
        let asked = tokio::time::timeout(ANSWER, tests.get_opt(name)).await;
        let found = match asked.map_err(anyhow::Error::from).and_then(|found| Ok(found?)) {
            Ok(found) => found,
            // The test goes on without the API server, and so does this.
            Err(error) if unheard.get_or_insert_with(Instant::now).elapsed() < PATIENCE => {
                tracing::warn!(%error, "the API server can't be asked; trying again");
                tokio::time::sleep(LOOK).await;
                continue;
            }
            Err(error) => return Err(error.context("the API server can't be asked")),
        };
        unheard = None;
        let test = found.with_context(|| format!("no LoadTest {name} in namespace {namespace}"))?;
        let status = test.status.clone().unwrap_or_default();
        tell(&test, &seen, &status, out)?;
        if status.phase.is_some_and(Phase::is_final) {
            write!(out, "{}", render::result(&test, &status, None))?;
            out.flush()?;
            return Ok(match (status.phase, status.verdict) {
                (Some(Phase::Error), _) => Exit::CouldNotRun,
                (_, verdict) => Exit::of(verdict.unwrap_or(Verdict::Inconclusive)),
            });
        }
        seen = status;
        tokio::time::sleep(LOOK).await;
    }
}

fn tell(
    test: &LoadTest,
    before: &LoadTestStatus,
    now: &LoadTestStatus,
    out: &mut impl Write,
) -> std::io::Result<()> {
    if now.phase != before.phase
        && let Some(phase) = now.phase
    {
        let what = match (phase, &now.plan) {
            (Phase::Pending | Phase::Starting, Some(plan)) => {
                format!("{} runners, up to {} users each", plan.runners, plan.users_per_runner)
            }
            (Phase::Running, _) => test.spec.load.to_string(),
            _ => String::new(),
        };
        writeln!(out, "{:<10}{what}", phase.as_str())?;
        if phase == Phase::Running {
            writeln!(out, "{}", render::progress_head())?;
        }
    }
    if now.progress != before.progress
        && let (Some(Phase::Running | Phase::Stopping), Some(progress), Some(summary)) =
            (now.phase, &now.progress, &now.summary)
    {
        writeln!(out, "{}", render::progress(progress, summary, test.spec.load.length()))?;
    }
    out.flush()
}
