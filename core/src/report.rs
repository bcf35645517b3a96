//! From merged numbers to what the status says: summaries, rows, errors, measurement. Pure.

use std::collections::BTreeMap;

use crate::{
    metrics::{ConnectStep, Connections, LatencyHistogram, Numbers, TaskNumbers, Tokens, judged},
    plan,
    profile::Profile,
    resource::{
        Aborted, BreakingPoint, ConnectionSummary, ErrorCount, Latency, LoadTestSpec, Measurement,
        Progress, StageRow, Summary, TaskKind, TaskSummary, ThresholdRow, TokenSummary, Verdict,
    },
    summary::{count, summarise},
    timeline::{self, Timeline},
    values::{Duration, Rate, Share},
    verdict,
};

/// The most error rows of a status; the rarest are left out.
pub const MAX_ERRORS: usize = 20;
/// Kinds of error that are the load generator's own.
const GENERATOR_LIMITS: [&str; 2] = ["file_limit", "port_exhausted"];
/// Longest example message of an error, in bytes.
const MAX_EXAMPLE: usize = 256;

/// What the numbers alone don't tell about a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Circumstances {
    /// It was stopped by the user.
    pub cancelled: bool,
    /// The threshold that ended it early.
    pub aborted: Option<Aborted>,
    /// Runners that ended before the test did.
    pub runners_lost: i64,
    /// The spread of the runners' real starts.
    pub start_skew: Option<Duration>,
    /// One message per task and error kind.
    pub examples: BTreeMap<(String, String), String>,
}

/// What a run amounts to.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Did the target pass.
    pub verdict: Verdict,
    /// Why, in one word for programs.
    pub reason: &'static str,
    /// Why, for people.
    pub message: String,
    /// All tasks together.
    pub summary: Summary,
    /// Each task, in the spec's order.
    pub tasks: Vec<TaskSummary>,
    /// Each threshold, in the spec's order.
    pub thresholds: Vec<ThresholdRow>,
    /// Each stage of the load that ended.
    pub stages: Vec<StageRow>,
    /// Where a growing load went beyond what the target takes.
    pub breaking_point: Option<BreakingPoint>,
    /// The most frequent errors.
    pub errors: Vec<ErrorCount>,
    /// How good the numbers are.
    pub measurement: Measurement,
}

/// Judges a finished run, whose course the timeline knows.
pub fn report(
    spec: &LoadTestSpec,
    numbers: &Numbers,
    timeline: &Timeline,
    seen: &Circumstances,
) -> Report {
    let thresholds = timeline.rows(spec, numbers, seen.aborted.as_ref());
    let stages = timeline.stages_at_end(spec, numbers);
    let (verdict, reason, message) = conclude(&thresholds, numbers, seen, spec.load.length());
    Report {
        verdict,
        reason,
        message,
        summary: summarise(&numbers.total(), numbers.elapsed_seconds),
        tasks: tasks(spec, numbers),
        thresholds,
        breaking_point: timeline::breaking_point(spec, &stages, seen.aborted.as_ref()),
        stages,
        errors: errors(numbers, &seen.examples),
        measurement: measurement(spec, numbers, seen),
    }
}

/// Runners that start further apart than this don't make the load that was asked for: a
/// hundredth of the test, and a second at least.
fn tolerated_skew(length: Duration) -> Duration {
    Duration::from_nanos(length.as_nanos() / 100).max(Duration::from_secs(1))
}

fn conclude(
    rows: &[ThresholdRow],
    numbers: &Numbers,
    seen: &Circumstances,
    length: Duration,
) -> (Verdict, &'static str, String) {
    let total = numbers.total();
    let limits: u64 = GENERATOR_LIMITS.iter().filter_map(|kind| total.errors.get(*kind)).sum();
    if limits > 0 {
        let message = format!(
            "{limits} requests failed for want of files or ports of the load generator itself, not for the target: use fewer users per runner"
        );
        return (Verdict::Inconclusive, "GeneratorLimit", message);
    }
    if let Some(Aborted { threshold, observed, bound, elapsed, .. }) = &seen.aborted {
        let at = elapsed.rounded();
        let message =
            format!("{threshold} was {observed}, critical {bound}, after {at}: load was stopped");
        return (Verdict::Critical, "Aborted", message);
    }
    if seen.cancelled {
        let message = "the test was cancelled before its end".into();
        return (Verdict::Inconclusive, "Cancelled", message);
    }
    if seen.runners_lost > 0 {
        let message = format!("{} runners were lost before the end", seen.runners_lost);
        return (Verdict::Inconclusive, "RunnersLost", message);
    }
    if total.requests.iter().sum::<u64>() + total.dropped == 0 {
        let message = "no request was sent".into();
        return (Verdict::Inconclusive, "NoTraffic", message);
    }
    if let Some(skew) = seen.start_skew.filter(|skew| *skew > tolerated_skew(length)) {
        let message = format!(
            "runners started {} apart, so load was never as it was meant: see whether the operator reaches all of them",
            skew.rounded()
        );
        return (Verdict::Inconclusive, "StartSkew", message);
    }
    let worst = verdict::worst(rows);
    if worst == Verdict::NotJudged {
        return (worst, "NoThresholds", "the test has no thresholds to be judged by".into());
    }
    let decisive: Vec<String> =
        rows.iter().filter(|row| row.verdict == worst).map(describe).collect();
    let reason = match worst {
        Verdict::Pass => "TargetsMet",
        Verdict::Warning => "TargetsMissed",
        Verdict::Fail => "WarningsMissed",
        Verdict::Critical => "CriticalReached",
        Verdict::Inconclusive => "Inconclusive",
        Verdict::NotJudged => "NoThresholds",
    };
    if worst == Verdict::Pass {
        return (worst, reason, format!("all {} thresholds meet their targets", rows.len()));
    }
    (worst, reason, truncated(&decisive.join("; "), 900))
}

/// One row in words: `chat responseTime p95 is 1.2s, target < 1s`.
fn describe(row: &ThresholdRow) -> String {
    let mut name = row.task.as_ref().map_or_else(String::new, |task| format!("{task} "));
    name.push_str(row.metric.as_str());
    if let Some(statistic) = row.statistic {
        name.push_str(&format!(" {statistic}"));
    }
    match (&row.observed, row.verdict) {
        (_, Verdict::Inconclusive) | (None, _) => {
            format!("{name}: {}", row.advice.as_deref().unwrap_or("no samples"))
        }
        (Some(observed), Verdict::Critical) => {
            format!("{name} is {observed}, critical {}", row.bound)
        }
        (Some(observed), _) => format!("{name} is {observed}, not {}", row.bound),
    }
}

/// Cuts a text to at most `bytes`, on a character boundary, with an ellipsis.
pub fn truncated(text: &str, bytes: usize) -> String {
    if text.len() <= bytes {
        return text.to_owned();
    }
    let end = (0..=bytes.saturating_sub(3)).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
    format!("{}…", &text[..end])
}

/// How far a run is. `users` are those running now or, at the end, the most that ran.
pub fn progress(spec: &LoadTestSpec, numbers: &Numbers, runners: usize, users: u64) -> Progress {
    let duration = spec.load.length();
    let elapsed = Duration::from_secs_f64(numbers.elapsed_seconds).min(duration);
    // Whole tenths of a second: the rest changes with every look.
    let tenth = 100_000_000;
    let elapsed = Duration::from_nanos(elapsed.as_nanos() / tenth * tenth);
    let share = elapsed.as_secs_f64() / duration.as_secs_f64().max(1e-9);
    #[expect(clippy::cast_possible_truncation, reason = "a share of a hundred")]
    let percent = (share * 100.0).round() as i64;
    Progress {
        runners: i64::try_from(runners).unwrap_or(i64::MAX),
        users: count(users),
        elapsed,
        percent,
    }
}

fn latency(all: &LatencyHistogram) -> Option<Latency> {
    let at = |p: f64| all.quantile(p).map(Duration::rounded);
    Some(Latency {
        count: count(all.count()),
        mean: all.mean()?.rounded(),
        p50: at(0.5)?,
        p95: at(0.95)?,
        p99: at(0.99)?,
        max: at(1.0)?,
    })
}

fn tokens(measured: &TaskNumbers, elapsed_seconds: f64) -> TokenSummary {
    let Tokens { output, reasoning, tool, prompt } = measured.tokens;
    let rate = |tokens: f64| Rate::per_second(tokens).rounded();
    TokenSummary {
        output: count(output),
        reasoning: count(reasoning),
        tool: count(tool),
        prompt: count(prompt),
        per_second: rate(measured.tokens.generated() as f64 / elapsed_seconds),
        per_user: measured.token_time.mean().map(|time| rate(1.0 / time.as_secs_f64())),
    }
}

/// The share of a task's requests that were good; `None` when nothing says what is.
fn goodput(spec: &LoadTestSpec, task: &str, measured: &TaskNumbers) -> Option<String> {
    let all = measured.wanted() + measured.of(crate::metrics::Outcome::Interrupted);
    let judged = !plan::Goals::of(&spec.thresholds, task).is_empty();
    (judged && all > 0).then(|| Share::of(measured.good, all).rounded())
}

fn tasks(spec: &LoadTestSpec, numbers: &Numbers) -> Vec<TaskSummary> {
    let none = TaskNumbers::default();
    spec.scenario
        .tasks
        .iter()
        .map(|task| {
            let measured = numbers.tasks.get(&task.name).unwrap_or(&none);
            let is_chat = matches!(task.kind(), Some(TaskKind::Chat(_)));
            let is_web_socket = matches!(task.kind(), Some(TaskKind::WebSocket(_)));
            TaskSummary {
                name: task.name.clone(),
                summary: summarise(measured, numbers.elapsed_seconds),
                time_to_first_response: latency(&judged(&measured.first_response))
                    .filter(|_| is_chat),
                inter_token_latency: latency(&measured.inter_token).filter(|_| is_chat),
                tokens: is_chat.then(|| tokens(measured, numbers.elapsed_seconds)),
                goodput: goodput(spec, &task.name, measured),
                time_to_first_byte: latency(&measured.first_byte),
                web_socket_connect: latency(&judged(&measured.web_socket_connect))
                    .filter(|_| is_web_socket),
                web_socket_round_trip: latency(&measured.round_trip),
                connections: connections(&measured.connections),
            }
        })
        .collect()
}

fn connections(measured: &Connections) -> Option<ConnectionSummary> {
    let Connections { opened, again, steps } = measured;
    let p95 = |step: ConnectStep| steps[step.index()].quantile(0.95).map(Duration::rounded);
    (*opened > 0).then(|| ConnectionSummary {
        opened: count(*opened),
        reconnects: count(*again),
        dns: p95(ConnectStep::Dns),
        tcp: p95(ConnectStep::Tcp),
        tls: p95(ConnectStep::Tls),
        upgrade: p95(ConnectStep::Upgrade),
    })
}

/// Bytes as people read them, and the share of a limit, where there is one.
fn memory(numbers: &Numbers) -> Option<String> {
    let mebibytes = (numbers.memory_bytes / f64::from(1 << 20)).round();
    let share = || Share::of_one((numbers.memory_ratio * 1000.0).round() / 1000.0).rounded();
    let of_limit = if numbers.memory_ratio > 0.0 {
        format!(" ({} of its limit)", share())
    } else {
        String::new()
    };
    (mebibytes > 0.0).then(|| format!("{mebibytes}Mi{of_limit}"))
}

fn errors(numbers: &Numbers, examples: &BTreeMap<(String, String), String>) -> Vec<ErrorCount> {
    let mut rows: Vec<ErrorCount> = numbers
        .tasks
        .iter()
        .flat_map(|(task, measured)| measured.errors.iter().map(move |(kind, n)| (task, kind, *n)))
        .filter(|(_, _, n)| *n > 0)
        .map(|(task, kind, n)| ErrorCount {
            task: task.clone(),
            kind: kind.clone(),
            count: count(n),
            example: examples
                .get(&(task.clone(), kind.clone()))
                .map(|text| truncated(text, MAX_EXAMPLE)),
        })
        .collect();
    rows.sort_by(|a, b| {
        b.count.cmp(&a.count).then_with(|| (&a.task, &a.kind).cmp(&(&b.task, &b.kind)))
    });
    rows.truncate(MAX_ERRORS);
    rows
}

fn measurement(spec: &LoadTestSpec, numbers: &Numbers, seen: &Circumstances) -> Measurement {
    let (ran, planned) = if spec.load.is_open() {
        let begun: u64 = numbers.total().requests.iter().sum();
        (begun as f64, Profile::of(&spec.load).arrivals() as f64)
    } else {
        (numbers.user_seconds, plan::user_seconds(&spec.load))
    };
    // Clocks of runners differ by a little: more than everything is everything.
    let coverage = (ran / planned.max(1e-9)).min(1.0);
    Measurement {
        relative_error: "0.2%".into(),
        start_skew: seen.start_skew.map(Duration::rounded),
        schedule_lag_p99: numbers.schedule_lag.quantile(0.99).map(Duration::rounded),
        busiest_thread: (numbers.busy_seconds > 0.0)
            .then(|| Share::of_one((numbers.thread_busy() * 1000.0).round() / 1000.0).rounded()),
        throttled: (numbers.throttled_seconds > 0.0)
            .then(|| Duration::from_secs_f64(numbers.throttled_seconds).rounded()),
        event_loop_lag_p99: numbers.loop_lag.quantile(0.99).map(Duration::rounded),
        memory: memory(numbers),
        runners_lost: seen.runners_lost,
        // Two digits: the rest is start-up noise.
        coverage: Some(format!("{}%", (coverage * 1000.0).round() / 10.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{metrics::Outcome, testing::spec};

    fn healthy() -> Numbers {
        let mut numbers = Numbers { elapsed_seconds: 120.0, ..Numbers::default() };
        for task in ["chat", "health", "models", "websocket"] {
            let measured = numbers.tasks.entry(task.into()).or_default();
            measured.requests[Outcome::Success.index()] = 1000;
            measured.response_time[Outcome::Success.index()].record(0.1, 1000);
            measured.first_response[Outcome::Success.index()].record(0.05, 1000);
        }
        numbers.user_seconds = plan::user_seconds(&spec().load);
        numbers
    }

    fn judged_as(numbers: &Numbers, seen: &Circumstances) -> Report {
        report(&spec(), numbers, &Timeline::default(), seen)
    }

    #[test]
    fn a_healthy_run_passes_and_says_so() {
        let report = judged_as(&healthy(), &Circumstances::default());
        assert_eq!((report.verdict, report.reason), (Verdict::Pass, "TargetsMet"));
        assert_eq!(report.summary.requests, 4000);
        assert_eq!(report.summary.throughput, "33.33/s");
        assert_eq!(report.measurement.coverage.as_deref(), Some("100%"));
    }

    #[test]
    fn only_chat_tasks_show_a_time_to_first_response() {
        let report = judged_as(&healthy(), &Circumstances::default());
        let shown: Vec<bool> =
            report.tasks.iter().map(|task| task.time_to_first_response.is_some()).collect();
        assert_eq!(shown, [true, false, false, false]);
    }

    #[test]
    fn a_lost_runner_never_makes_a_test_pass() {
        let lost = Circumstances { runners_lost: 1, ..Circumstances::default() };
        let report = judged_as(&healthy(), &lost);
        assert_eq!((report.verdict, report.reason), (Verdict::Inconclusive, "RunnersLost"));
    }

    #[test]
    fn a_cancelled_run_never_passes() {
        let cancelled = Circumstances { cancelled: true, ..Circumstances::default() };
        assert_eq!(judged_as(&healthy(), &cancelled).verdict, Verdict::Inconclusive);
    }

    #[test]
    fn without_thresholds_a_lost_runner_still_says_so() {
        let mut spec = spec();
        spec.thresholds.clear();
        let lost = Circumstances { runners_lost: 1, ..Circumstances::default() };
        let verdict = |seen| report(&spec, &healthy(), &Timeline::default(), &seen).verdict;
        assert_eq!(verdict(lost), Verdict::Inconclusive);
        assert_eq!(verdict(Circumstances::default()), Verdict::NotJudged);
    }

    #[test]
    fn runners_that_start_far_apart_never_pass() {
        let skewed = |millis| {
            let start_skew = Some(Duration::from_millis(millis));
            judged_as(&healthy(), &Circumstances { start_skew, ..Circumstances::default() })
        };
        assert_eq!(skewed(900).verdict, Verdict::Pass);
        assert_eq!(skewed(1300).reason, "StartSkew");
    }

    #[test]
    fn the_generators_own_limits_are_no_fault_of_the_target() {
        let mut numbers = healthy();
        numbers.tasks.get_mut("chat").unwrap().errors.insert("file_limit".into(), 3);
        let report = judged_as(&numbers, &Circumstances::default());
        assert_eq!((report.verdict, report.reason), (Verdict::Inconclusive, "GeneratorLimit"));
    }

    #[test]
    fn no_traffic_is_inconclusive() {
        let report = judged_as(&Numbers::default(), &Circumstances::default());
        assert_eq!((report.verdict, report.reason), (Verdict::Inconclusive, "NoTraffic"));
    }

    #[test]
    fn the_most_frequent_errors_come_first_and_few_are_kept() {
        let mut numbers = healthy();
        let chat = numbers.tasks.get_mut("chat").unwrap();
        for n in 0..40 {
            chat.errors.insert(format!("http_{}", 400 + n), n);
        }
        let rows = errors(&numbers, &BTreeMap::new());
        assert_eq!((rows.len(), rows[0].count), (MAX_ERRORS, 39));
    }

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(truncated("äöü", 6), "äöü");
        assert_eq!(truncated("äöüß", 7), "äö…");
    }
}
