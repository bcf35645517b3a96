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
    for (threshold, row) in test.spec.thresholds.iter().zip(&status.thresholds) {
        rows.push(vec![
            row.verdict.as_str().to_owned(),
            threshold.label(),
            text_or_dash(row.observed.as_ref()),
            threshold.target.to_string(),
            bound_or_dash(threshold.warning),
            bound_or_dash(threshold.critical),
            row.samples.to_string(),
        ]);
    }
    let mut out = format_table(&rows, 2);
    for (threshold, row) in test.spec.thresholds.iter().zip(&status.thresholds) {
        if let Some(advice) = &row.advice {
            let _ = writeln!(out, "  {}: {advice}", threshold.label());
        }
    }
    out
}
