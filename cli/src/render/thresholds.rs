//! The table of thresholds.

use std::fmt::Write;

use loadtest_core::{
    resource::{LoadTest, LoadTestStatus},
    values::Bound,
};

use super::table::{format_table, text_or_dash, text_row};

/// Returns the THRESHOLDS section.
pub(super) fn format_thresholds(test: &LoadTest, status: &LoadTestStatus) -> String {
    let mut rows = vec![text_row([
        "verdict",
        "threshold",
        "observed",
        "target",
        "warning",
        "critical",
        "samples",
    ])];
    let bound_or_dash =
        |bound: Option<Bound>| bound.map_or_else(|| "-".into(), |bound| bound.to_string());
    for row in &status.thresholds {
        let threshold = test.spec.thresholds.iter().find(|threshold| threshold.key() == row.key);
        rows.push(vec![
            row.verdict.as_str().to_owned(),
            row.key.to_string(),
            text_or_dash(row.observed.as_ref()),
            bound_or_dash(threshold.map(|threshold| threshold.target)),
            bound_or_dash(threshold.and_then(|threshold| threshold.warning)),
            bound_or_dash(threshold.and_then(|threshold| threshold.critical)),
            row.samples.to_string(),
        ]);
    }
    let mut out = format_table(&rows, 2);
    for row in &status.thresholds {
        if let Some(advice) = &row.advice {
            let _ = writeln!(out, "  {}: {advice}", row.key);
        }
    }
    out
}
