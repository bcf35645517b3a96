//! `loadtest run`: runs a LoadTest on this machine, without a cluster. `core` sizes, merges and
//! judges as it does for the operator. The runner's [`Engine`] makes the load in this process.

mod init;
mod polling;
mod request;
pub(crate) mod threshold;

use std::{io::Write, sync::Arc, time::Instant};

use anyhow::Context;
use cell0_simulator::{Listen, Settings, Simulator};
use k8s_openapi::jiff::Timestamp;
use loadtest_core::{
    Duration,
    judge::{RunContext, Timeline},
    metrics::RunnerState,
    plan::{Plan, RunIdentity, ValidTest, size_test, warnings},
    resource::{Sizing, Verdict},
    result::SeriesRecorder,
};
use loadtest_runner::{
    Engine, PreparedPlan, RequestLog, Snapshot, lower_priority, machine_check, warm_up,
};
use serde_json::Value;

pub(crate) use self::init::print_file;
use self::{
    polling::{LoadEnd, StopReason, Viewers, poll_until_finished},
    request::build_test,
    threshold::parse_threshold,
};
use crate::{
    arguments::RunArguments,
    exit::Exit,
    live::{
        LiveFeed, LivePage, RunDescription, StopOrder, TerminalView, build_status, give_order,
        has_terminal,
    },
    manifest::{Change, Manifest, check_manifest, read_manifest},
    output::eprint_line,
    outputs::{check_outputs, write_outputs},
    render,
};

/// Runs a test and prints its result.
pub(crate) fn run_test(arguments: &RunArguments, out: &mut impl Write) -> anyhow::Result<Exit> {
    // The simulator has its own threads, as a remote target would have.
    let simulator = if arguments.simulator {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let simulator = runtime
            .block_on(Simulator::start(Settings::default(), Listen::loopback()))
            .context("the simulator can't be started")?;
        Some((simulator, runtime))
    } else {
        None
    };
    let manifest = read_test(arguments, simulator.as_ref().map(|(simulator, _)| simulator));
    let manifest = match manifest {
        Ok(manifest) => manifest,
        Err(message) => {
            eprint_line(&format!("loadtest: {message}"));
            return Ok(Exit::BadInput);
        }
    };
    for warning in warnings(&manifest.test.spec) {
        eprint_line(&format!("warning: {}: {warning}", source_name(arguments)));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let exit = runtime.block_on(run_load(&manifest, arguments, out));
    if let Some((simulator, runtime)) = simulator {
        runtime.block_on(simulator.shutdown());
    }
    exit
}

/// Reads the test from the file or from the options of the command line. Errors are messages for the
/// user.
fn read_test(arguments: &RunArguments, simulator: Option<&Simulator>) -> Result<Manifest, String> {
    let changes = collect_changes(arguments, simulator)?;
    let manifest = match arguments.file.as_ref().or(arguments.filename.as_ref()) {
        Some(file) => read_manifest(file, arguments.name.as_deref(), &changes),
        None => check_manifest(&build_test(&arguments.request, arguments.users)?, &changes),
    };
    manifest.map_err(|error| error.message())
}

/// The place that the test comes from, for messages.
fn source_name(arguments: &RunArguments) -> &str {
    let file = arguments.file.as_deref().or(arguments.filename.as_deref());
    file.unwrap_or("command line")
}

/// Returns the changes of the spec that the command line asks for. `--set` comes last, so that it counts more
/// than other options. It also comes first, because it may change the kind of load that `-u` and `-t` set.
fn collect_changes(
    arguments: &RunArguments,
    simulator: Option<&Simulator>,
) -> Result<Vec<Change>, String> {
    let RunArguments { users, spawn_rate, duration, host, ws_host, threshold, .. } = arguments;
    let simulator_url = |address: Option<std::net::SocketAddr>, scheme: &str| {
        address.map(|address| format!("{scheme}://{address}"))
    };
    let http = host.clone().or_else(|| simulator_url(simulator.map(Simulator::http_addr), "http"));
    let ws = simulator_url(simulator.map(Simulator::websocket_addr), "ws");
    let ws = ws_host.clone().or(ws);
    // With --rate, users are the maximum of an open load.
    let users = users.filter(|_| arguments.request.rate.is_none());
    let load = [
        ("-u", "users", users.map(Value::from)),
        ("-r", "spawnRate", spawn_rate.clone().map(Value::from)),
        ("-t", "duration", duration.as_deref().map(with_unit).map(Value::from)),
    ];
    let set_load = |(option, field, value): (_, _, Option<Value>)| {
        Some(Change::SetLoad { option, field, value: value? })
    };
    let parse = |text: &String| Change::parse(text).map_err(|error| format!("--set: {error}"));
    let settings: Vec<Change> = arguments.set.iter().map(parse).collect::<Result<_, _>>()?;
    let mut changes = settings.clone();
    changes.extend(load.into_iter().filter_map(set_load));
    let target = [
        ("spec.target.http", http.map(Value::from)),
        ("spec.target.webSocket", ws.map(Value::from)),
    ];
    let set = |(field, value): (&str, Option<Value>)| Some(Change::Set(field.to_owned(), value?));
    changes.extend(target.into_iter().filter_map(set));
    for text in threshold {
        changes.push(Change::AddThreshold(parse_threshold(text)?));
    }
    changes.extend(settings);
    Ok(changes)
}

/// Adds the unit to a number without one: seconds, as in Locust.
fn with_unit(duration: &str) -> String {
    if duration.parse::<f64>().is_ok() { format!("{duration}s") } else { duration.to_owned() }
}

/// Builds the plan of a run in this process: one runner, even if a cluster would need several, with
/// at most one load thread per core.
fn build_plan(name: Option<String>, test: &ValidTest) -> Plan {
    let sizing = size_test(test);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = sizing.runners.saturating_mul(sizing.threads_per_runner);
    let threads_per_runner = threads.min(u32::try_from(cores).unwrap_or(u32::MAX));
    let run = RunIdentity {
        uid: format!("local-{:x}", Timestamp::now().as_nanosecond()),
        name: name.unwrap_or_else(|| "loadtest".into()),
        token_sha256: String::new(),
    };
    Plan::new(test.clone(), &Sizing { runners: 1, threads_per_runner, ..sizing }, run)
}

/// Starts the live page and the view in the terminal, where they are wanted.
async fn start_viewers(
    arguments: &RunArguments,
    name: &str,
    feed: &LiveFeed,
    stop_order: &StopOrder,
) -> anyhow::Result<(Option<LivePage>, Option<TerminalView>)> {
    let page = match arguments.web {
        None => None,
        Some(address) => {
            let page = LivePage::serve(address, name, feed, Some(give_order(stop_order))).await?;
            eprint_line(&format!("live page: http://{}/", page.address));
            Some(page)
        }
    };
    if !has_terminal() || arguments.plain {
        return Ok((page, None));
    }
    // Lines of progress do as well.
    let view = TerminalView::start(feed);
    let view = view.inspect_err(|error| tracing::warn!(%error, "the terminal can't show charts"));
    Ok((page, view.ok()))
}

async fn run_load(
    manifest: &Manifest,
    arguments: &RunArguments,
    out: &mut impl Write,
) -> anyhow::Result<Exit> {
    let Manifest { test, valid, .. } = manifest;
    let plan = build_plan(test.metadata.name.clone(), valid);
    let prepared = match PreparedPlan::new(plan, |variable| std::env::var(variable).ok()) {
        Ok(prepared) => prepared,
        Err(error) => {
            eprint_line(&format!("loadtest: {}: {error}", source_name(arguments)));
            return Ok(Exit::BadInput);
        }
    };
    warm_up();
    let limits = machine_check::Limits::of_this_machine();
    let problems = machine_check::find_problems(&prepared, 0, &limits, arguments.simulator);
    anyhow::ensure!(
        problems.is_empty(),
        "this machine can't make the load: {}",
        problems.join("; ")
    );
    check_outputs(&arguments.outputs)?;
    let task_names = valid.scenario.tasks.iter().map(|task| task.name.clone()).collect();
    let request_log =
        arguments.request_log.as_ref().map(|path| RequestLog::create(path, task_names)).transpose();
    let request_log = request_log.context("--request-log: the file can't be written")?;
    let engine = Engine::with_request_log(Arc::clone(&prepared), 0, request_log.as_ref())
        .context("the load can't be started")?;
    lower_priority();
    let urls = [&valid.target.http, &valid.target.web_socket];
    let urls: Vec<&str> = urls.into_iter().flatten().map(String::as_str).collect();
    let (name, load) = (&prepared.plan().name, &valid.load);
    let header = render::progress_header();
    eprint_line(&format!("{name}: {load} against {}\n{header}", urls.join(", ")));
    let feed = LiveFeed::new();
    let stop_order = StopOrder::new();
    let (page, view) = start_viewers(arguments, name, &feed, &stop_order).await?;
    let is_watched = view.is_some() || page.is_some();
    let start_time = Timestamp::now();
    let description =
        RunDescription { test, valid, uid: prepared.plan().run_uid.clone(), start_time };
    engine.start(Instant::now());
    let mut timeline = Timeline::default();
    let mut series = SeriesRecorder::new(&valid.load);
    let mut publish = |snapshot: Snapshot, timeline: &Timeline, series: &SeriesRecorder| {
        if is_watched {
            let Snapshot { mut metrics, examples } = snapshot;
            metrics.runners.insert("local".into(), metrics.generator());
            let result = description.result_so_far(&metrics, examples, timeline);
            feed.publish(result, series.series(), false);
        }
    };
    let viewers = Viewers { stop_order: &stop_order, prints_progress: view.is_none() };
    let polled =
        poll_until_finished(&engine, valid, &mut timeline, &mut series, &viewers, &mut publish);
    let end = polled.await?;
    // What follows is printed on the restored terminal.
    drop(view);
    let LoadEnd::Finished(stop_reason) = end else {
        eprint_line("stopped by a second signal: the result is lost");
        return Ok(Exit::Interrupted);
    };
    let Snapshot { mut metrics, examples } = engine.snapshot().await;
    metrics.runners.insert("local".into(), metrics.generator());
    let runner_lost = engine.state() == RunnerState::CutShort;
    drop(engine);
    let log_result = request_log.map(RequestLog::finish).transpose();
    timeline.record_snapshot(valid, &metrics);
    let context = RunContext {
        cancelled: stop_reason == Some(StopReason::ByUser),
        aborted: match stop_reason {
            Some(StopReason::ByThreshold(aborted)) => Some(aborted),
            _ => None,
        },
        runners: 1,
        runners_lost: u64::from(runner_lost),
        start_skew: Some(Duration::ZERO),
        examples,
        ..RunContext::default()
    };
    let status = build_status(valid, &metrics, &timeline, &context, start_time);
    let result = description.result(&status, &metrics, series.finish(&metrics));
    if let Some(page) = page {
        feed.publish(result.clone(), &result.series, true);
        page.end().await;
    }
    // A file that can't be written does not lose the others, or the result on the terminal.
    let written = write_outputs(&arguments.outputs, &result);
    let table = || render::format_result(test, &status, Some(&metrics));
    let text = arguments.outputs.format.render(&result, table)?;
    write!(out, "{text}").and_then(|()| out.flush())?;
    written?;
    log_result.context("--request-log: the file can't be written")?;
    let verdict = status.known_verdict().unwrap_or(Verdict::Inconclusive);
    Ok(Exit::from_verdict(verdict, arguments.strict))
}
