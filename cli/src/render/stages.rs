//! The table of stages and the breaking point.

use std::fmt::Write;

use loadtest_core::resource::{BreakingPoint, LoadTestStatus};

use super::table::{format_table, text_or_dash, text_row};

/// Returns the STAGES section.
pub(super) fn format_stages(status: &LoadTestStatus) -> String {
    let mut rows = vec![text_row([
        "verdict", "load", "requests", "rate", "p95", "errors", "missed", "observed",
    ])];
    for stage in &status.stages {
        rows.push(vec![
            stage.verdict.as_str().to_owned(),
            stage.load.clone(),
            stage.requests.to_string(),
            stage.throughput.clone(),
            text_or_dash(stage.p95.as_ref()),
            stage.error_rate.clone(),
            text_or_dash(stage.missed.as_ref()),
            text_or_dash(stage.observed.as_ref()),
        ]);
    }
    let mut out = format_table(&rows, 1);
    if let Some(point) = &status.breaking_point {
        let _ = writeln!(out, "  breaking point: {}", describe_breaking_point(point));
    }
    out
}

fn describe_breaking_point(point: &BreakingPoint) -> String {
    let BreakingPoint { last_passed, undecided, first_failed, threshold, observed } = point;
    let mut text = match last_passed {
        Some(load) => format!("all targets were met up to {load}"),
        None => "no load is known to meet all targets".into(),
    };
    if let Some(load) = undecided {
        let _ = write!(text, "; the result is unknown from {load} on");
    }
    if let Some(load) = first_failed {
        let threshold = threshold.as_deref().unwrap_or("a threshold");
        let observed = observed.as_deref().unwrap_or("-");
        let _ = write!(text, "; at {load}, {threshold} was {observed}");
    } else if undecided.is_none() {
        text.push_str("; no target was missed");
    }
    text
}
