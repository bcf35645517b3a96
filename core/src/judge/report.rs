//! From merged metrics to what the status shows: summaries, rows, errors, measurement. Pure.

use std::collections::BTreeMap;

use super::{
    advice::{error_advice, split_advice},
    stages::breaking_point,
    summary::summarize,
    timeline::{Timeline, coverage_of},
    verdict::{holds_without_lost, make_rate_inconclusive, worst_verdict},
};
use crate::{
    metrics::{LatencyHistogram, LatencyMetric, Metric, Metrics, Outcome, TaskMetrics, Tokens},
    plan::{LatencyTargets, TaskKind, ValidTest},
    resource::{
        Aborted, BreakingPoint, ConnectionSummary, ErrorCount, Latency, Measurement, Progress,
        StageRow, Summary, TaskLatencies, TaskSummary, Threshold, ThresholdRow, TokenSummary,
        Verdict,
    },
    text::{count_of, truncate},
    values::{Duration, Percent, Rate},
};

/// Maximum number of error rows in a status. The rarest errors are left out.
pub const MAX_ERRORS: usize = 20;
/// Error kinds of a load generator that has too little of something.
const GENERATOR_ERRORS: [&str; 2] = ["file_limit", "port_exhausted"];
/// Maximum share of the responses of a task that may be too large for the load generator, before the
/// test can't be judged.
const MAX_TOO_LARGE: f64 = 0.01;
/// Minimum number of failures of a task that has successes too, before the share of its failures says
/// something.
const MIN_FAILURES: u64 = 10;
/// Maximum length of an error's example message, in bytes.
const MAX_EXAMPLE_BYTES: usize = 256;
/// Maximum length of the verdict's message, in bytes.
const MAX_MESSAGE_BYTES: usize = 900;

/// The facts about a run that a report needs besides its metrics.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunContext {
    /// True when `spec.cancel` stopped the run.
    pub cancelled: bool,
    /// The threshold that stopped the run.
    pub aborted: Option<Aborted>,
    /// Number of runners of the test.
    pub runners: u64,
    /// Number of runners that ended before the test did.
    pub runners_lost: u64,
    /// Maximum number of lost runners with which the test is still judged.
    pub tolerated_losses: u64,
    /// Time between the start of the first and of the last runner; `None` when it is unknown.
    pub start_skew: Option<Duration>,
    /// One message for each task and error kind.
    pub examples: BTreeMap<(String, String), String>,
}

/// The report of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The result of the test.
    pub verdict: Verdict,
    /// The reason of the verdict in one word, for programs.
    pub reason: &'static str,
    /// The reason of the verdict in words, for people.
    pub message: String,
    /// The numbers of all tasks together.
    pub summary: Summary,
    /// The numbers of each task, in the order of the spec.
    pub tasks: Vec<TaskSummary>,
    /// The row of each threshold, in the order of the spec.
    pub thresholds: Vec<ThresholdRow>,
    /// The row of each finished stage.
    pub stages: Vec<StageRow>,
    /// The load at which a target was missed first.
    pub breaking_point: Option<BreakingPoint>,
    /// The most frequent errors.
    pub errors: Vec<ErrorCount>,
    /// How good the measurement is.
    pub measurement: Measurement,
}

/// Reports on a run that is over.
pub fn report(
    test: &ValidTest,
    metrics: &Metrics,
    timeline: &Timeline,
    context: &RunContext,
) -> Report {
    let mut thresholds = timeline.rows_at_end(test, metrics, context.aborted.as_ref());
    if context.runners_lost > 0 {
        make_rates_inconclusive(test, &mut thresholds, context.aborted.as_ref());
    }
    let stages = timeline.stages_at_end(test, metrics);
    let (verdict, reason, message) = conclude(test, &thresholds, metrics, context);
    Report {
        verdict,
        reason,
        message,
        summary: summarize(&metrics.all_tasks(), metrics.elapsed_seconds),
        tasks: task_summaries(test, metrics),
        thresholds,
        breaking_point: breaking_point(test, &stages, context.aborted.as_ref()),
        stages,
        errors: error_counts(metrics, &context.examples),
        measurement: measurement(test, metrics, timeline, context),
    }
}

/// Makes rates of the whole test Inconclusive, because they are lower after the loss of a runner. A rate that is high
/// enough all the same stays a Pass. The row that stopped the test keeps its verdict. Windows were judged when they ended.
fn make_rates_inconclusive(test: &ValidTest, rows: &mut [ThresholdRow], aborted: Option<&Aborted>) {
    for row in rows {
        let threshold = threshold_of(test, row).filter(|threshold| threshold.window.is_none());
        let Some(threshold) = threshold else { continue };
        let has_aborted = aborted.is_some_and(|aborted| aborted.key == row.key);
        if !has_aborted && !holds_without_lost(threshold, row) {
            make_rate_inconclusive(row);
        }
    }
}

/// Maximum start skew at which the load still matches the spec: a hundredth of the test, and at
/// least one second.
pub fn max_start_skew(duration: Duration) -> Duration {
    Duration::from_nanos(duration.as_nanos() / 100).max(Duration::from_secs(1))
}

/// The verdict of a test, with its reason for programs and for people.
fn conclude(
    test: &ValidTest,
    rows: &[ThresholdRow],
    metrics: &Metrics,
    context: &RunContext,
) -> (Verdict, &'static str, String) {
    if let Some(reason) = generator_limit(metrics) {
        return (Verdict::Inconclusive, "GeneratorLimit", reason);
    }
    if let Some(Aborted { key, observed, bound, elapsed, .. }) = &context.aborted {
        let elapsed = elapsed.rounded();
        let message = format!(
            "{key} was {observed}, critical {bound}, after {elapsed}: the load was stopped"
        );
        return (Verdict::Critical, "Aborted", message);
    }
    if let Some((reason, message)) = incomplete_run(metrics, context, test.load.duration()) {
        return (Verdict::Inconclusive, reason, message);
    }
    // A row that has failed has failed, also under less load than planned.
    let (verdict, reason, message) = conclude_rows(test, rows);
    if context.runners_lost > context.tolerated_losses
        && verdict.severity() <= Verdict::Inconclusive.severity()
    {
        let lost = count_of(context.runners_lost, "runner");
        let message = format!("{lost} of {} ended before the end of the test", context.runners);
        return (Verdict::Inconclusive, "RunnersLost", message);
    }
    let total = metrics.all_tasks();
    let no_success = total.requests_with(Outcome::Success) == 0;
    if no_success && verdict.severity() <= Verdict::Inconclusive.severity() {
        let message = "no request of the test succeeded: see the errors".to_owned();
        return (Verdict::Inconclusive, "NoSuccess", message);
    }
    if matches!(verdict, Verdict::Pass | Verdict::Warning)
        && let Some(message) = unjudged_failures(test, metrics)
    {
        return (Verdict::Inconclusive, "FailuresNotJudged", message);
    }
    (verdict, reason, message)
}

/// Describes the first task most of whose requests failed, while no threshold judges its failures.
/// Its other thresholds may hold, but they say nothing about what failed.
fn unjudged_failures(test: &ValidTest, metrics: &Metrics) -> Option<String> {
    let is_judged = |name: &String| {
        let judges = |threshold: &&Threshold| {
            matches!(threshold.metric, Metric::ErrorRate | Metric::Goodput)
                && threshold.task.as_ref().is_none_or(|task| task == name)
        };
        test.thresholds.iter().any(|threshold| judges(&threshold))
    };
    metrics.tasks.iter().find_map(|(name, task)| {
        let (failed, all) = (task.failed_requests(), task.completed_requests());
        let is_sure = failed >= MIN_FAILURES || failed == all;
        (failed > all / 2 && is_sure && !is_judged(name)).then(|| {
            format!(
                "{} of the requests of task {name} failed, and no threshold of errorRate or goodput judges that: see the errors",
                Percent::of(failed, all).rounded()
            )
        })
    })
}

fn generator_limit(metrics: &Metrics) -> Option<String> {
    let total = metrics.all_tasks();
    let count: u64 = GENERATOR_ERRORS.iter().filter_map(|kind| total.errors.get(*kind)).sum();
    if count > 0 {
        return Some(format!(
            "{count} requests failed because the load generator ran out of files or ports, and not because of the target: use fewer users per runner"
        ));
    }
    metrics.tasks.iter().find_map(|(name, task)| {
        let (too_large, all) = (task.too_large(), task.completed_requests());
        (too_large as f64 > MAX_TOO_LARGE * all as f64).then(|| {
            format!(
                "{} of the responses of task {name} were too large for the load generator, which is not the target's fault: see the errors",
                Percent::of(too_large, all).rounded()
            )
        })
    })
}

/// Why a run did not make the load that the spec asks for.
fn incomplete_run(
    metrics: &Metrics,
    context: &RunContext,
    duration: Duration,
) -> Option<(&'static str, String)> {
    if context.cancelled {
        return Some(("Cancelled", "the test was cancelled before its end".into()));
    }
    let total = metrics.all_tasks();
    if total.requests.iter().sum::<u64>() + total.dropped == 0 {
        return Some(("NoTraffic", "no request was sent".into()));
    }
    let limit = max_start_skew(duration);
    let left = context.runners.saturating_sub(context.runners_lost);
    let is_judged = context.runners_lost <= context.tolerated_losses;
    if context.start_skew.is_none() && is_judged && left > 1 {
        let message = "it is unknown whether the runners started together: the operator was away while the load ran";
        return Some(("StartSkew", message.to_owned()));
    }
    context.start_skew.filter(|skew| *skew > limit).map(|skew| {
        let message = format!(
            "runners started {} apart (limit {}), so the load did not match the spec; check that the operator can reach every runner pod",
            skew.rounded(),
            limit.rounded()
        );
        ("StartSkew", message)
    })
}

fn conclude_rows(test: &ValidTest, rows: &[ThresholdRow]) -> (Verdict, &'static str, String) {
    let worst = worst_verdict(rows);
    let reason = match worst {
        Verdict::Pass => "TargetsMet",
        Verdict::Warning => "TargetsMissed",
        Verdict::Fail if misses_targets(test, rows) => "TargetsMissed",
        Verdict::Fail => "WarningsMissed",
        Verdict::Critical => "CriticalReached",
        Verdict::Inconclusive => "Inconclusive",
        Verdict::NotJudged => "NoThresholds",
    };
    let message = match worst {
        Verdict::NotJudged => "the test has no thresholds to be judged by".into(),
        Verdict::Pass if rows.len() == 1 => "the threshold meets its target".into(),
        Verdict::Pass => format!("all {} thresholds meet their targets", rows.len()),
        _ => {
            let decisive = rows.iter().filter(|row| row.verdict == worst).map(describe_row);
            truncate(&decisive.collect::<Vec<_>>().join("; "), MAX_MESSAGE_BYTES)
        }
    };
    (worst, reason, message)
}

/// True when the rows that fail have no warning bound: they miss their targets.
fn misses_targets(test: &ValidTest, rows: &[ThresholdRow]) -> bool {
    let failed = rows.iter().filter(|row| row.verdict == Verdict::Fail);
    let mut thresholds = failed.filter_map(|row| threshold_of(test, row));
    thresholds.all(|threshold| threshold.warning.is_none())
}

fn threshold_of<'a>(test: &'a ValidTest, row: &ThresholdRow) -> Option<&'a Threshold> {
    test.thresholds.iter().find(|threshold| threshold.key() == row.key)
}

/// Describes a row that is not a Pass: `chat responseTime p95 is 1.2s, not < 1s`.
fn describe_row(row: &ThresholdRow) -> String {
    let name = &row.key;
    match (&row.observed, row.verdict.known()) {
        (Some(observed), Some(Verdict::Critical)) => {
            format!("{name} is {observed}, critical {}", row.bound)
        }
        (Some(observed), Some(Verdict::Warning | Verdict::Fail)) => {
            format!("{name} is {observed}, not {}", row.bound)
        }
        _ => {
            let (reason, _) = split_advice(row.advice.as_deref().unwrap_or("no samples"));
            format!("{name}: {reason}")
        }
    }
}

/// How far a run has come. `users` are those running now or, at the end, the maximum that ran.
pub fn progress_of(test: &ValidTest, metrics: &Metrics, runners: u64, users: u64) -> Progress {
    let duration = test.load.duration();
    let elapsed = Duration::from_secs_f64(metrics.elapsed_seconds).min(duration);
    // Tenths of a second: finer digits would change with every scrape.
    let tenth = 100_000_000;
    let elapsed = Duration::from_nanos(elapsed.as_nanos() / tenth * tenth);
    let half = duration.as_nanos() / 2;
    let percent =
        elapsed.as_nanos().saturating_mul(100).saturating_add(half) / duration.as_nanos().max(1);
    Progress { runners, users, elapsed, percent, judged: None }
}

fn latency_summary(samples: &LatencyHistogram) -> Option<Latency> {
    let quantile = |p: f64| samples.quantile(p).map(Duration::rounded);
    Some(Latency {
        count: samples.count(),
        mean: samples.mean()?.rounded(),
        p50: quantile(0.5)?,
        p95: quantile(0.95)?,
        p99: quantile(0.99)?,
        max: quantile(1.0)?,
    })
}

fn token_summary(task: &TaskMetrics, elapsed_seconds: f64) -> TokenSummary {
    let Tokens { output, reasoning, tool, prompt } = task.tokens;
    let rate = |tokens: f64| Rate::per_second(tokens).rounded();
    // A stream that arrives in one read has no time between its tokens, so its speed is unknown.
    let time_per_token = task.latencies.samples(LatencyMetric::InterTokenLatency).mean();
    let time_per_token = time_per_token.filter(|time| *time > Duration::ZERO);
    TokenSummary {
        output,
        reasoning,
        tool,
        prompt,
        per_second: rate(task.tokens_in_load as f64 / elapsed_seconds),
        per_user: time_per_token.map(|time| rate(1.0 / time.as_secs_f64())),
    }
}

/// The percentage of a task's requests that were good; `None` without a latency target.
fn goodput(test: &ValidTest, name: &str, task: &TaskMetrics) -> Option<String> {
    let all = task.judged_requests() + task.requests_with(Outcome::Interrupted);
    let has_target = !LatencyTargets::of_task(&test.thresholds, name).is_empty();
    (has_target && all > 0).then(|| Percent::of(task.good, all).rounded())
}

fn task_summaries(test: &ValidTest, metrics: &Metrics) -> Vec<TaskSummary> {
    let none = TaskMetrics::default();
    let summary = |planned: &crate::plan::Task| {
        let task = metrics.tasks.get(&planned.name).unwrap_or(&none);
        let mut latencies = TaskLatencies::default();
        for (metric, _) in LatencyMetric::all_judged() {
            if planned.kind.is_measured_by(metric.info().tasks)
                && let Some(latency) = latency_summary(&task.latencies.samples(metric))
            {
                latencies.insert(metric, latency);
            }
        }
        TaskSummary {
            name: planned.name.clone(),
            summary: summarize(task, metrics.elapsed_seconds),
            latencies,
            tokens: matches!(planned.kind, TaskKind::Chat(_))
                .then(|| token_summary(task, metrics.elapsed_seconds)),
            goodput: goodput(test, &planned.name, task),
            connections: connection_summary(task),
        }
    };
    test.scenario.tasks.iter().map(summary).collect()
}

fn connection_summary(task: &TaskMetrics) -> Option<ConnectionSummary> {
    let p95 = |metric| task.latencies.samples(metric).quantile(0.95).map(Duration::rounded);
    (task.connections > 0).then(|| ConnectionSummary {
        opened: task.connections,
        reconnects: task.reconnects,
        dns: p95(LatencyMetric::ConnectDns),
        tcp: p95(LatencyMetric::ConnectTcp),
        tls: p95(LatencyMetric::ConnectTls),
        upgrade: p95(LatencyMetric::ConnectUpgrade),
    })
}

/// The memory in MiB and, where there is a limit, the percentage of the limit.
fn describe_memory(metrics: &Metrics) -> Option<String> {
    let mebibytes = (metrics.memory_bytes / f64::from(1 << 20)).round();
    let of_limit = if metrics.memory_ratio > 0.0 {
        format!(" ({} of its limit)", rounded_percent(metrics.memory_ratio))
    } else {
        String::new()
    };
    (mebibytes > 0.0).then(|| format!("{mebibytes}Mi{of_limit}"))
}

/// A percentage with one decimal.
fn rounded_percent(fraction: f64) -> String {
    Percent::from_fraction((fraction * 1000.0).round() / 1000.0).rounded()
}

fn error_counts(
    metrics: &Metrics,
    examples: &BTreeMap<(String, String), String>,
) -> Vec<ErrorCount> {
    let tasks = metrics.tasks.iter();
    let mut rows: Vec<ErrorCount> = tasks
        .flat_map(|(task, metrics)| metrics.errors.iter().map(move |(kind, n)| (task, kind, *n)))
        .filter(|(_, _, count)| *count > 0)
        .map(|(task, kind, count)| ErrorCount {
            task: task.clone(),
            kind: kind.clone(),
            count,
            example: examples
                .get(&(task.clone(), kind.clone()))
                .map(|text| truncate(text, MAX_EXAMPLE_BYTES)),
            advice: error_advice(kind),
        })
        .collect();
    rows.sort_by(|a, b| {
        b.count.cmp(&a.count).then_with(|| (&a.task, &a.kind).cmp(&(&b.task, &b.kind)))
    });
    rows.truncate(MAX_ERRORS);
    rows
}

/// The status reports an imbalance if the busiest address got more than this many times the mean of all addresses.
const MAX_IMBALANCE: f64 = 1.5;

/// Describes how unevenly the requests went to the addresses of the target; `None` when they are in
/// balance. The two base URLs of a target have addresses of their own.
fn address_imbalance(test: &ValidTest, metrics: &Metrics) -> Option<String> {
    let is_web_socket = |task: &crate::plan::Task| matches!(task.kind, TaskKind::WebSocket(_));
    [false, true].into_iter().find_map(|web_socket| {
        let tasks = test.scenario.tasks.iter().filter(|task| is_web_socket(task) == web_socket);
        let mut addresses = BTreeMap::<&str, u64>::new();
        for task in tasks.filter_map(|task| metrics.tasks.get(&task.name)) {
            for (address, count) in &task.addresses {
                *addresses.entry(address).or_default() += count;
            }
        }
        let total: u64 = addresses.values().sum();
        let (busiest, most) = addresses.iter().max_by_key(|(_, count)| **count)?;
        let mean = total as f64 / addresses.len() as f64;
        let ratio = *most as f64 / mean.max(1.0);
        (ratio > MAX_IMBALANCE).then(|| {
            format!(
                "{busiest} got {ratio:.1} times the mean of {} addresses; see target.connectionLimits",
                addresses.len()
            )
        })
    })
}

fn measurement(
    test: &ValidTest,
    metrics: &Metrics,
    timeline: &Timeline,
    context: &RunContext,
) -> Measurement {
    let coverage = coverage_of(test, metrics);
    Measurement {
        relative_error: "0.2%".into(),
        start_skew: context.start_skew.map(Duration::rounded),
        schedule_lag_p99: metrics.schedule_lag.quantile(0.99).map(Duration::rounded),
        busiest_thread: (metrics.busy_seconds > 0.0)
            .then(|| rounded_percent(metrics.busiest_thread_share())),
        throttled: (metrics.throttled_seconds > 0.0)
            .then(|| Duration::from_secs_f64(metrics.throttled_seconds).rounded()),
        event_loop_lag_p99: metrics.event_loop_lag.quantile(0.99).map(Duration::rounded),
        memory: describe_memory(metrics),
        runners_lost: context.runners_lost,
        unobserved: Some(timeline.unobserved())
            .filter(|time| *time > Duration::ZERO)
            .map(Duration::rounded),
        imbalance: address_imbalance(test, metrics),
        // One decimal: finer digits are noise of the start.
        coverage: Some(format!("{}%", (coverage * 1000.0).round() / 10.0)),
    }
}

#[cfg(test)]
mod tests;
