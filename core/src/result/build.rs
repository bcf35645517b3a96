//! From the metrics of a run to its result.

use std::collections::BTreeMap;

use super::{
    distribution::Distribution,
    document::{
        BoundValue, Connections, EventKind, FORMAT_VERSION, LatencyResults, NamedTaskResult,
        RunEvent, RunResult, RunnerResult, TaskResult, ThresholdResult, ValueUnit,
    },
    series::Series,
};
use crate::{
    judge::coverage_of,
    load::LoadModel,
    metrics::{
        GeneratorMetrics, LatencyHistogram, LatencyMetric, Metrics, Outcome, TaskMetrics,
        catalog::LATENCIES, round_seconds,
    },
    plan::ValidTest,
    resource::{
        LoadTest, LoadTestSpec, LoadTestStatus, Phase, PodTemplate, Task, Threshold, ThresholdRow,
    },
    values::{Bound, Duration, Quantity},
};

/// The facts of a run that are not in its metrics.
#[derive(Clone, Debug)]
pub struct RunFacts<'a> {
    /// The program that writes the result, with its version.
    pub generator: String,
    /// Identifies the run.
    pub uid: String,
    /// The LoadTest that ran.
    pub test: &'a LoadTest,
    /// Its validated spec.
    pub valid: &'a ValidTest,
    /// Its status, with the verdict.
    pub status: &'a LoadTestStatus,
    /// How runners were lost, in words, by their names.
    pub losses: BTreeMap<String, String>,
}

/// Builds the result of a run.
pub fn build_result(facts: &RunFacts<'_>, metrics: &Metrics, series: Series) -> RunResult {
    let RunFacts { generator, uid, test, valid, status, losses } = facts;
    let elapsed = metrics.elapsed_seconds;
    let none = TaskMetrics::default();
    let named_result = |task: &crate::plan::Task| NamedTaskResult {
        name: task.name.clone(),
        result: task_result(metrics.tasks.get(&task.name).unwrap_or(&none), elapsed),
    };
    RunResult {
        version: FORMAT_VERSION,
        generator: generator.clone(),
        name: test.metadata.name.clone(),
        namespace: test.metadata.namespace.clone(),
        uid: uid.clone(),
        spec: without_credentials(&test.spec),
        status: (*status).clone(),
        elapsed_seconds: elapsed,
        user_seconds: metrics.user_seconds,
        users_peak: metrics.users_peak,
        coverage: coverage_of(valid, metrics),
        schedule_lag: Distribution::of(&metrics.schedule_lag),
        event_loop_lag: Distribution::of(&metrics.event_loop_lag),
        total: task_result(&metrics.all_tasks(), elapsed),
        tasks: valid.scenario.tasks.iter().map(named_result).collect(),
        thresholds: threshold_results(&valid.thresholds, &status.thresholds),
        events: run_events(&valid.load, status, elapsed),
        runners: runner_results(metrics, losses),
        series,
    }
}

/// Builds the result of a test that ended before its load, from its status alone. Its spec may be invalid.
pub fn result_without_load(
    generator: String,
    test: &LoadTest,
    status: &LoadTestStatus,
) -> RunResult {
    let nothing = || task_result(&TaskMetrics::default(), 0.0);
    let named_result = |task: &Task| NamedTaskResult { name: task.name.clone(), result: nothing() };
    RunResult {
        version: FORMAT_VERSION,
        generator,
        name: test.metadata.name.clone(),
        namespace: test.metadata.namespace.clone(),
        uid: test.metadata.uid.clone().unwrap_or_default(),
        spec: without_credentials(&test.spec),
        status: status.clone(),
        elapsed_seconds: 0.0,
        user_seconds: 0.0,
        users_peak: 0,
        coverage: 0.0,
        schedule_lag: None,
        event_loop_lag: None,
        total: nothing(),
        tasks: test.spec.scenario.tasks.iter().map(named_result).collect(),
        thresholds: threshold_results(&test.spec.thresholds, &status.thresholds),
        events: Vec::new(),
        runners: Vec::new(),
        series: Series { step_seconds: 1.0, points: Vec::new() },
    }
}

/// Headers whose values a result shows. All others may be credentials.
const SHOWN_HEADERS: [&str; 4] = ["accept", "accept-encoding", "content-type", "user-agent"];

/// The spec with `***` in place of the values of headers and variables that may be credentials.
fn without_credentials(spec: &LoadTestSpec) -> LoadTestSpec {
    let mut spec = spec.clone();
    let variables = spec.runners.env.iter_mut().filter_map(|variable| variable.value.as_mut());
    variables.for_each(|value| "***".clone_into(value));
    spec.runners.pod_template.iter_mut().for_each(PodTemplate::hide_variables);
    let in_tasks = spec.scenario.tasks.iter_mut().filter_map(Task::headers_mut);
    for headers in std::iter::once(&mut spec.target.headers).chain(in_tasks) {
        let is_shown =
            |name: &str| SHOWN_HEADERS.iter().any(|shown| name.eq_ignore_ascii_case(shown));
        for (_, value) in headers.iter_mut().filter(|(name, _)| !is_shown(name)) {
            "***".clone_into(value);
        }
    }
    spec
}

fn task_result(task: &TaskMetrics, elapsed: f64) -> TaskResult {
    let share = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
    let per_second = |count: u64| if elapsed > 0.0 { count as f64 / elapsed } else { 0.0 };
    let errors = task.errors.iter().filter(|(_, count)| **count > 0);
    let latencies = LatencyMetric::all_judged().map(|(metric, judged)| {
        (judged.name.to_owned(), Distribution::of(&task.latencies.samples(metric)))
    });
    TaskResult {
        requests: task.completed_requests(),
        failures: task.failed_requests(),
        timeouts: task.requests_with(Outcome::Timeout),
        interrupted: task.requests_with(Outcome::Interrupted),
        dropped: task.dropped,
        error_rate: share(task.errors_and_dropped(), task.judged_requests()),
        throughput: per_second(task.successes_in_load),
        tokens_per_second: per_second(task.tokens_in_load),
        tokens: task.tokens.into(),
        good: task.good,
        messages_sent: task.messages_sent,
        messages_received: task.messages_received,
        connections: connections(task),
        errors: errors.map(|(kind, count)| (kind.clone(), *count)).collect(),
        statuses: task.statuses.clone(),
        finish_reasons: task.finish_reasons.clone(),
        web_socket_closes: task.websocket_closes.clone(),
        addresses: task.addresses.clone(),
        resent: task.resent,
        sent_bytes: task.sent_bytes,
        received_bytes: task.received_bytes,
        latencies: LatencyResults(latencies.collect()),
    }
}

fn connections(task: &TaskMetrics) -> Connections {
    let step_time = |step: &str| {
        let info = LATENCIES.iter().find(|info| info.label == Some(("step", step)))?;
        Distribution::of(&task.latencies.samples(info.metric))
    };
    Connections {
        opened: task.connections,
        reconnects: task.reconnects,
        tls_resumed: task.tls_resumed,
        dns: step_time("dns"),
        tcp: step_time("tcp"),
        tls: step_time("tls"),
        upgrade: step_time("upgrade"),
    }
}

/// One entry for each runner, also for those that were lost before they were heard.
fn runner_results(metrics: &Metrics, losses: &BTreeMap<String, String>) -> Vec<RunnerResult> {
    let unheard = GeneratorMetrics::default();
    let mut runners: BTreeMap<&String, &GeneratorMetrics> = metrics.runners.iter().collect();
    for name in losses.keys() {
        runners.entry(name).or_insert(&unheard);
    }
    let result = |(name, runner): (&String, &GeneratorMetrics)| {
        runner_result(name, runner, losses.get(name))
    };
    runners.into_iter().map(result).collect()
}

fn runner_result(name: &str, runner: &GeneratorMetrics, loss: Option<&String>) -> RunnerResult {
    let p99 = |lag: &LatencyHistogram| lag.quantile(0.99).map(Duration::as_secs_f64);
    RunnerResult {
        name: name.to_owned(),
        requests: runner.requests,
        loss: loss.cloned(),
        user_seconds: round_seconds(runner.user_seconds),
        schedule_lag_p99: p99(&runner.schedule_lag),
        event_loop_lag_p99: p99(&runner.event_loop_lag),
        busiest_thread: runner.busiest_thread_share(),
        throttled_seconds: runner.throttled_seconds,
    }
}

/// The judged thresholds in numbers, with all bounds, in the order of the spec.
pub fn threshold_results(thresholds: &[Threshold], rows: &[ThresholdRow]) -> Vec<ThresholdResult> {
    let result = |threshold: &Threshold| {
        let key = threshold.key();
        let row = rows.iter().find(|row| row.key == key)?;
        let (unit, _) = number_of(threshold.target.quantity);
        let observed = row.observed.as_ref().and_then(|text| text.parse::<Quantity>().ok());
        Some(ThresholdResult {
            key,
            unit,
            observed: observed.map(|quantity| number_of(quantity).1),
            target: bound_value(threshold.target),
            warning: threshold.warning.map(bound_value),
            critical: threshold.critical.map(bound_value),
            samples: row.samples,
            verdict: row.verdict.clone(),
            advice: row.advice.clone(),
        })
    };
    thresholds.iter().filter_map(result).collect()
}

fn number_of(quantity: Quantity) -> (ValueUnit, f64) {
    match quantity {
        Quantity::Time(time) => (ValueUnit::Seconds, time.as_secs_f64()),
        Quantity::Rate(rate) => (ValueUnit::PerSecond, rate.value()),
        Quantity::Percent(percent) => (ValueUnit::Fraction, percent.as_fraction()),
    }
}

fn bound_value(bound: Bound) -> BoundValue {
    BoundValue {
        comparison: bound.comparison.as_symbol().to_owned(),
        value: number_of(bound.quantity).1,
    }
}

/// The events of a run in their order. `elapsed` is the time of load so far, in seconds.
pub fn run_events(load: &LoadModel, status: &LoadTestStatus, elapsed: f64) -> Vec<RunEvent> {
    let event = |seconds: f64, kind, message: String| RunEvent { seconds, kind, message };
    let mut events = vec![event(0.0, EventKind::Started, format!("load started: {load}"))];
    let ended = load.stages().into_iter().zip(&status.stages);
    events.extend(ended.map(|(stage, row)| {
        let message = format!("stage of {} ended: {}", stage.label, row.verdict.as_str());
        event(stage.end.as_secs_f64(), EventKind::StageEnded, message)
    }));
    if let Some(aborted) = &status.aborted {
        let message = format!(
            "load stopped: {} was {}, critical {}",
            aborted.key, aborted.observed, aborted.bound
        );
        events.push(event(aborted.elapsed.as_secs_f64(), EventKind::Aborted, message));
    }
    events.extend(loss_event(status));
    // Events of the same time keep this order.
    events.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    let phase = status.known_phase();
    if phase == Some(Phase::Cancelled) {
        events.push(event(elapsed, EventKind::Cancelled, "test cancelled".to_owned()));
    }
    if phase.is_none_or(|phase| phase.is_final() || phase == Phase::Stopping) {
        events.push(event(elapsed, EventKind::LoadEnded, "load ended".to_owned()));
    }
    events
}

/// The first loss of runners, with the words of the condition.
fn loss_event(status: &LoadTestStatus) -> Option<RunEvent> {
    let condition = status.condition("RunnersLost")?;
    let start = status.start_time.as_ref()?.0;
    // The time of a condition has whole seconds.
    let seconds = condition.last_transition_time.0.duration_since(start).as_secs_f64().max(0.0);
    let message = condition.message.clone();
    Some(RunEvent { seconds, kind: EventKind::RunnersLost, message })
}

#[cfg(test)]
mod tests;
