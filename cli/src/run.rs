//! `loadtest run`: a LoadTest on this machine, no cluster. The same core sizes, merges and
//! judges; the runner's engine makes the load in this process.

use std::{
    io::Write,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use cell0_simulator::{Listen, Settings, Simulator};
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use loadtest_core::{
    metrics::{Numbers, RunnerState},
    plan::{Plan, VERSION},
    report::{Circumstances, progress, report},
    resource::{Aborted, LoadTest, LoadTestStatus, Phase, Verdict},
    sizing,
    summary::summarise,
    timeline::Timeline,
};
use loadtest_runner::{
    Engine, PreparedPlan, RequestLog, Snapshot, lower_priority, preflight, warm_up,
};
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use crate::{Exit, RunArguments, file, render, result};

/// Between looks at the windows of thresholds.
const LOOK: Duration = Duration::from_secs(1);
/// Open requests may take this long yet when the user ends the test.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// Runs a test and prints its result.
pub(crate) fn run(arguments: &RunArguments, out: &mut impl Write) -> anyhow::Result<Exit> {
    // On threads of its own, as a target elsewhere would have.
    let simulator = if arguments.simulator {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let simulator = runtime
            .block_on(Simulator::start(Settings::default(), Listen::loopback()))
            .context("the simulator can't be started")?;
        Some((simulator, runtime))
    } else {
        None
    };
    let overrides = overrides(arguments, simulator.as_ref().map(|(simulator, _)| simulator));
    let accepted = match file::read(&arguments.file, &overrides) {
        Ok(accepted) => accepted,
        Err(error) => return Ok(bad_input(&error)),
    };
    for warning in &accepted.warnings {
        let at = warning.at.map_or_else(String::new, |(l, c)| format!(":{l}:{c}"));
        say(&format!("warning: {}{at}: {}", arguments.file, warning.message));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let exit = runtime.block_on(load(&accepted.test, arguments, out));
    if let Some((simulator, runtime)) = simulator {
        runtime.block_on(simulator.shutdown());
    }
    exit
}

fn bad_input(error: &file::FileError) -> Exit {
    let source = std::error::Error::source(error).map(|s| format!(": {s}")).unwrap_or_default();
    say(&format!("loadtest: {error}{source}"));
    Exit::BadInput
}

/// A closed standard error is the reader's choice.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn overrides(
    arguments: &RunArguments,
    simulator: Option<&Simulator>,
) -> Vec<(&'static str, Value)> {
    let RunArguments {
        users,
        spawn_rate,
        duration,
        host,
        ws_host,
        file: _,
        simulator: _,
        json: _,
        record: _,
    } = arguments;
    let simulated = |address: Option<std::net::SocketAddr>, scheme: &str| {
        address.map(|address| format!("{scheme}://{address}"))
    };
    let http = host.clone().or_else(|| simulated(simulator.map(Simulator::http_addr), "http"));
    let ws = simulated(simulator.map(Simulator::websocket_addr), "ws");
    let ws = ws_host.clone().or(ws);
    [
        ("spec.load.users", users.map(Value::from)),
        ("spec.load.spawnRate", spawn_rate.map(Value::from)),
        ("spec.load.duration", duration.clone().map(Value::from)),
        ("spec.target.http", http.map(Value::from)),
        ("spec.target.webSocket", ws.map(Value::from)),
    ]
    .into_iter()
    .filter_map(|(field, value)| Some((field, value?)))
    .collect()
}

fn plan(test: &LoadTest) -> Plan {
    let sizing = sizing::size(&test.spec);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let wanted = u32::try_from(sizing.runners * sizing.workers).unwrap_or(u32::MAX);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Plan {
        version: VERSION,
        run: format!("local-{:x}", now.as_nanos()),
        name: test.metadata.name.clone().unwrap_or_else(|| "loadtest".into()),
        // One process is one runner, whatever a cluster would make of it.
        runners: 1,
        workers: wanted.min(u32::try_from(cores).unwrap_or(1)),
        token_sha256: String::new(),
        target: test.spec.target.clone(),
        load: test.spec.load.clone(),
        scenario: test.spec.scenario.clone(),
        thresholds: test.spec.thresholds.clone(),
        release_grace: loadtest_core::Duration::ZERO,
        metrics_linger: loadtest_core::Duration::ZERO,
    }
}

async fn load(
    test: &LoadTest,
    arguments: &RunArguments,
    out: &mut impl Write,
) -> anyhow::Result<Exit> {
    let plan = plan(test);
    let prepared = match PreparedPlan::new(plan, |variable| std::env::var(variable).ok()) {
        Ok(prepared) => prepared,
        Err(error) => {
            say(&format!("loadtest: {}: {error}", arguments.file));
            return Ok(Exit::BadInput);
        }
    };
    warm_up();
    let limits = preflight::Limits::of_this_machine();
    let problems = preflight::find_problems(&prepared, 0, &limits, arguments.simulator);
    anyhow::ensure!(
        problems.is_empty(),
        "this machine can't make the load: {}",
        problems.join("; ")
    );
    let names = prepared.plan().scenario.tasks.iter().map(|task| task.name.clone()).collect();
    let record = arguments.record.as_ref().map(|path| RequestLog::create(path, names)).transpose();
    let record = record.context("--record: the file can't be written")?;
    let engine = Engine::with_request_log(Arc::clone(&prepared), 0, record.as_ref())
        .context("the load can't be started")?;
    lower_priority();
    let target = [&test.spec.target.http, &test.spec.target.web_socket];
    let target: Vec<&str> = target.into_iter().flatten().map(String::as_str).collect();
    let (name, load, head) = (&prepared.plan().name, &test.spec.load, render::progress_head());
    let _ = writeln!(out, "{name}: {load} against {}\n{head}", target.join(", "));
    let started = Timestamp::now();
    engine.start(Instant::now());
    let mut timeline = Timeline::default();
    let stopped = watch(&engine, test, &mut timeline, out).await?;
    let Snapshot { numbers, examples } = engine.snapshot().await;
    let lost = engine.state() == RunnerState::CutShort;
    drop(engine);
    let recorded = record.map(RequestLog::finish).transpose();
    timeline.look(&test.spec, &numbers);
    let seen = Circumstances {
        cancelled: stopped == Some(Stopped::ByUser),
        aborted: match stopped {
            Some(Stopped::By(aborted)) => Some(aborted),
            _ => None,
        },
        runners_lost: i64::from(lost),
        examples,
        ..Circumstances::default()
    };
    let status = status(test, &numbers, &timeline, &seen, started);
    if let Some(path) = &arguments.json {
        let value = result::result(test, &status, &numbers);
        std::fs::write(path, format!("{value:#}\n"))
            .with_context(|| format!("result can't be written to {}", path.display()))?;
    }
    write!(out, "{}", render::result(test, &status, Some(&numbers)))?;
    out.flush()?;
    // Only now: a full disk must not cost the result.
    recorded.context("--record: the file could not be written")?;
    Ok(Exit::of(status.verdict.unwrap_or(Verdict::Inconclusive)))
}

/// What ended a load before its time.
#[derive(Clone, Debug, PartialEq)]
enum Stopped {
    ByUser,
    By(Aborted),
}

/// Prints progress until the load is over; what ended it before its time.
async fn watch(
    engine: &Engine,
    test: &LoadTest,
    timeline: &mut Timeline,
    out: &mut impl Write,
) -> anyhow::Result<Option<Stopped>> {
    let duration = test.spec.load.length();
    let every = Duration::from_secs_f64((duration.as_secs_f64() / 60.0).clamp(1.0, 10.0));
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
    let mut looks = looks(test);
    let (mut stopped, mut interrupted) = (None, false);
    let mut interrupts = signal(SignalKind::interrupt())?;
    loop {
        tokio::select! {
            () = engine.wait_until_finished() => return Ok(stopped),
            _ = interrupts.recv() => {
                if interrupted {
                    anyhow::bail!("interrupted twice: the result is lost");
                }
                interrupted = true;
                // What a threshold has ended stays ended by it.
                stopped.get_or_insert(Stopped::ByUser);
                say("stopping; once more to stop at once");
                engine.stop(STOP_GRACE);
            }
            () = looks.next() => {
                let numbers = engine.snapshot().await.numbers;
                if let (Some(aborted), None) = (timeline.look(&test.spec, &numbers), &stopped) {
                    say(&format!("{} is {}: stopping", aborted.threshold, aborted.observed));
                    engine.stop(STOP_GRACE.min(test.spec.load.graceful_stop.std()));
                    stopped = Some(Stopped::By(aborted));
                }
            }
            _ = ticks.tick() => {
                let numbers = engine.snapshot().await.numbers;
                let summary = summarise(&numbers.total(), numbers.elapsed_seconds);
                let progress = progress(&test.spec, &numbers, 1, numbers.users);
                // Who reads no further wants the result all the same: see --json.
                let line = render::progress(&progress, &summary, duration);
                let _ = writeln!(out, "{line}").and_then(|()| out.flush());
            }
        }
    }
}

/// The moments at which a test's course has to be looked at.
struct Looks {
    ticks: Option<tokio::time::Interval>,
    boundaries: Vec<tokio::time::Instant>,
}

fn looks(test: &LoadTest) -> Looks {
    let spec = &test.spec;
    let watched = spec.thresholds.iter().any(|t| t.window.is_some() || t.abort.is_some());
    let start = tokio::time::Instant::now();
    let mut boundaries: Vec<_> = spec
        .load
        .stages
        .iter()
        .scan(Duration::ZERO, |end, stage| {
            *end += stage.duration.std();
            Some(start + *end)
        })
        .collect();
    boundaries.reverse();
    Looks { ticks: watched.then(|| tokio::time::interval(LOOK)), boundaries }
}

impl Looks {
    /// Waits for the next one; for ever when there is none.
    async fn next(&mut self) {
        let boundary = self.boundaries.last().copied();
        let tick = async {
            match &mut self.ticks {
                Some(ticks) => {
                    ticks.tick().await;
                }
                None => std::future::pending().await,
            }
        };
        let at = async {
            match boundary {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = tick => {}
            () = at => {
                self.boundaries.pop();
            }
        }
    }
}

fn status(
    test: &LoadTest,
    numbers: &Numbers,
    timeline: &Timeline,
    seen: &Circumstances,
    started: Timestamp,
) -> LoadTestStatus {
    let report = report(&test.spec, numbers, timeline, seen);
    let condition = Condition {
        type_: "Passed".into(),
        status: report.verdict.passed().into(),
        reason: report.reason.into(),
        message: report.message,
        last_transition_time: Time(Timestamp::now()),
        observed_generation: None,
    };
    LoadTestStatus {
        phase: Some(if seen.cancelled { Phase::Cancelled } else { Phase::Finished }),
        verdict: Some(report.verdict),
        conditions: vec![condition],
        start_time: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(started)),
        finish_time: Some(Time(Timestamp::now())),
        progress: Some(progress(&test.spec, numbers, 1, numbers.users_peak)),
        summary: Some(report.summary),
        tasks: report.tasks,
        thresholds: report.thresholds,
        stages: report.stages,
        breaking_point: report.breaking_point,
        aborted: seen.aborted.clone(),
        errors: report.errors,
        measurement: Some(report.measurement),
        ..LoadTestStatus::default()
    }
}
