//! The text that `loadtest` prints about a test's progress and result. Pure: does no IO.

mod latencies;
mod legacy_summary;
mod stages;
mod summary;
mod table;
mod thresholds;

use std::{collections::BTreeSet, fmt::Write};

pub(crate) use self::{latencies::format_latencies, table::format_table};
use loadtest_core::{
    Duration,
    metrics::Metrics,
    resource::{ErrorCount, Extensible, LoadTest, LoadTestStatus, Measurement, Progress, Summary},
    values::Rate,
};

use self::{
    legacy_summary::format_legacy_summary, stages::format_stages, summary::format_summary,
    table::text_row, thresholds::format_thresholds,
};

/// Returns the header of the progress lines.
pub(crate) fn progress_header() -> String {
    format!(
        "  {:>9} {:>7} {:>11} {:>10} {:>8} {:>9}",
        "elapsed", "users", "rate", "p95", "errors", "left"
    )
}

/// Writes the lines of progress. Their rate counts from the line before, and that of the first line from the
/// start. Everything else is about the run so far.
#[derive(Debug, Default)]
pub(crate) struct ProgressLines {
    /// Seconds of load and successful requests at the last line.
    last: (f64, u64),
}

impl ProgressLines {
    /// Returns the next line.
    pub(crate) fn next_line(
        &mut self,
        progress: &Progress,
        summary: &Summary,
        duration: Duration,
    ) -> String {
        let successes = summary.requests.saturating_sub(summary.failures);
        let now = (progress.elapsed.as_secs_f64(), successes);
        let (seconds, successes) = (now.0 - self.last.0, now.1.saturating_sub(self.last.1));
        let rate = (seconds > 0.0).then(|| Rate::per_second(successes as f64 / seconds).rounded());
        self.last = now;
        progress_line(progress, summary, &rate.unwrap_or_else(|| "-".into()), duration)
    }
}

fn progress_line(progress: &Progress, summary: &Summary, rate: &str, duration: Duration) -> String {
    let second = 1_000_000_000;
    let left = duration.minus(progress.elapsed);
    let left = Duration::from_nanos((left.as_nanos() + second / 2) / second * second);
    format!(
        "  {:>9} {:>7} {:>11} {:>10} {:>8} {:>9}",
        progress.elapsed.rounded(),
        progress.users,
        rate,
        summary.p95.as_deref().unwrap_or("-"),
        summary.error_rate,
        left.to_string(),
    )
}

/// Returns the result of a test: summary, errors, thresholds, stages, measurement and verdict.
/// `metrics` adds the legacy summary; a local run has them, a status on a cluster does not.
pub(crate) fn format_result(
    test: &LoadTest,
    status: &LoadTestStatus,
    metrics: Option<&Metrics>,
) -> String {
    let mut out = String::new();
    if let Some(total) = &status.summary {
        out.push_str("\nSUMMARY\n");
        out.push_str(&format_summary(total, status));
        out.push_str(&metrics.map_or_else(String::new, format_legacy_summary));
    }
    if !status.errors.is_empty() {
        out.push_str("\nERRORS\n");
        out.push_str(&format_errors(&status.errors));
    }
    if !status.thresholds.is_empty() {
        out.push_str("\nTHRESHOLDS\n");
        out.push_str(&format_thresholds(test, status));
    }
    if !status.stages.is_empty() {
        out.push_str("\nSTAGES\n");
        out.push_str(&format_stages(status));
    }
    if let Some(measurement) = &status.measurement {
        let _ = write!(out, "\nMEASUREMENT\n  {}\n", format_measurement(measurement));
    }
    let reason = match status.verdict_message() {
        "" => String::new(),
        message => format!(": {message}"),
    };
    let verdict = status.verdict.as_ref().map_or("none", Extensible::as_str);
    let _ = write!(out, "\nVERDICT  {verdict}{reason}\n");
    out
}

fn format_errors(errors: &[ErrorCount]) -> String {
    let mut rows = vec![text_row(["task", "kind", "count", "example"])];
    for error in errors {
        rows.push(vec![
            error.task.clone(),
            error.kind.clone(),
            error.count.to_string(),
            error.example.clone().unwrap_or_default(),
        ]);
    }
    let mut out = format_table(&rows, 4);
    let mut seen = BTreeSet::new();
    for error in errors.iter().filter(|error| seen.insert(&error.kind)) {
        if let Some(advice) = &error.advice {
            let _ = writeln!(out, "  {}: {advice}", error.kind);
        }
    }
    out
}

fn format_measurement(measurement: &Measurement) -> String {
    let mut facts = vec![format!("percentile error at most {}", measurement.relative_error)];
    let optional = [
        ("start skew", &measurement.start_skew),
        ("schedule lag p99", &measurement.schedule_lag_p99),
        ("busiest thread", &measurement.busiest_thread),
        ("throttled", &measurement.throttled),
        ("coverage", &measurement.coverage),
    ];
    facts.extend(
        optional.iter().filter_map(|(name, value)| Some(format!("{name} {}", value.as_ref()?))),
    );
    if measurement.runners_lost > 0 {
        facts.push(format!("runners lost {}", measurement.runners_lost));
    }
    facts.join(", ")
}
