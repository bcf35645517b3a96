//! `loadtest diff`: two results side by side.

use std::{fmt::Write as _, io::Write};

use loadtest_core::result::{ComparedRow, Comparison, Movement, ValueUnit, compare};
use loadtest_report::RunResult;

use super::read_source;
use crate::{
    arguments::{DiffArguments, DiffFormat},
    exit::Exit,
    output::eprint_line,
    render::format_table,
};

/// Prints the numbers of two runs with their changes. A change is at most a warning, so only `--strict`
/// makes the command fail.
pub(crate) fn print_difference(
    arguments: &DiffArguments,
    out: &mut impl Write,
) -> anyhow::Result<Exit> {
    let DiffArguments { base, new, cluster, strict, format } = arguments;
    let mut results = Vec::new();
    for source in [base, new] {
        match read_source(source, cluster)? {
            Ok(result) => results.push(result),
            Err(message) => {
                eprint_line(&format!("loadtest: {message}"));
                return Ok(Exit::BadInput);
            }
        }
    }
    let [base, new] = results.as_slice() else { return Ok(Exit::BadInput) };
    let comparison = compare(base, new)?;
    match format {
        DiffFormat::Table => write!(out, "{}", format_comparison(base, new, &comparison))?,
        DiffFormat::Markdown => write!(out, "{}", format_markdown(base, new, &comparison))?,
        DiffFormat::Json => writeln!(out, "{}", serde_json::to_string(&comparison)?)?,
    }
    out.flush()?;
    let obstacles = obstacles_of(&comparison);
    for obstacle in &obstacles {
        eprint_line(obstacle);
    }
    if !obstacles.is_empty() {
        return Ok(if *strict { Exit::Inconclusive } else { Exit::Passed });
    }
    let is_worse = comparison.rows.iter().any(|row| row.movement == Movement::Worse);
    Ok(if *strict && is_worse { Exit::Missed } else { Exit::Passed })
}

/// Why the numbers of the runs can't be compared, in sentences. Empty if they can.
fn obstacles_of(comparison: &Comparison) -> Vec<String> {
    let parts = comparison.differences.join(" and ");
    let differ = format!("the runs differ in {parts}: their numbers can't be compared");
    let doubts = comparison.doubts.iter();
    let doubts = doubts.map(|doubt| format!("{doubt}: the numbers can't be compared"));
    (!parts.is_empty()).then_some(differ).into_iter().chain(doubts).collect()
}

/// A change as a signed percentage; that of an error rate in percentage points.
fn change_of(row: &ComparedRow, change: f64) -> String {
    let unit = if row.unit == ValueUnit::Fraction { " pp" } else { "%" };
    // Without `-0.0`.
    let rounded = (change * 1000.0).round() / 10.0 + 0.0;
    format!("{rounded:+.1}{unit}")
}

const fn movement_of(row: &ComparedRow) -> &'static str {
    match row.movement {
        Movement::Worse => "worse",
        Movement::Better => "better",
        Movement::WithinNoise => "within noise",
        Movement::Unknown => "too short",
    }
}

/// The cells of a row: what is compared, both values, the change, its interval and what it means, if that can be said.
fn cells_of(row: &ComparedRow, is_comparable: bool) -> Vec<String> {
    let name = match &row.statistic {
        Some(statistic) => format!("{} {statistic}", row.metric),
        None => row.metric.clone(),
    };
    let text = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    vec![
        row.task.clone().unwrap_or_else(|| "all".to_owned()),
        name,
        row.unit.format(row.base),
        row.unit.format(row.new),
        text(row.change.map(|change| change_of(row, change))),
        text(
            row.interval
                .map(|(low, high)| format!("{} … {}", change_of(row, low), change_of(row, high))),
        ),
        if is_comparable { movement_of(row) } else { "not comparable" }.to_owned(),
    ]
}

const HEAD: [&str; 7] = ["task", "number", "base", "new", "change", "interval", "meaning"];
const NOTE: &str = "The interval (95 %) comes from the noise within the two runs. Two runs of the same target can differ by more:\nrepeat both to be sure. About one in twenty unchanged numbers is reported as a change by chance.\nThere is an interval only for runs of at least a minute.";

pub(crate) fn format_comparison(
    base: &RunResult,
    new: &RunResult,
    comparison: &Comparison,
) -> String {
    let is_comparable = obstacles_of(comparison).is_empty();
    let mut rows = vec![HEAD.map(str::to_owned).to_vec()];
    rows.extend(comparison.rows.iter().map(|row| cells_of(row, is_comparable)));
    format!(
        "  base: {}\n  new:  {}\n\n{}\n{NOTE}\n",
        describe_run(base),
        describe_run(new),
        format_table(&rows, 2)
    )
}

/// The name of a run, its verdict and its UID.
fn describe_run(result: &RunResult) -> String {
    let verdict = result.status.verdict.as_ref().map_or("no verdict", |verdict| verdict.as_str());
    let name = result.name.as_deref().unwrap_or("loadtest");
    format!("{name} ({verdict}, run {})", result.uid)
}

pub(crate) fn format_markdown(
    base: &RunResult,
    new: &RunResult,
    comparison: &Comparison,
) -> String {
    let obstacles = obstacles_of(comparison);
    let mut out = format!("base: {}<br>\nnew: {}\n\n", describe_run(base), describe_run(new));
    for obstacle in &obstacles {
        // Writing to a `String` can't fail.
        let _ = writeln!(out, "> **Warning:** {obstacle}\n");
    }
    let _ = writeln!(out, "| {} |\n|---|---|--:|--:|--:|--:|---|", HEAD.join(" | "));
    for row in &comparison.rows {
        let cells = cells_of(row, obstacles.is_empty());
        let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
        // Writing to a `String` can't fail.
        let _ = writeln!(out, "| {} |", cells.join(" | "));
    }
    let _ = write!(out, "\n{}\n", NOTE.replace('\n', " "));
    out
}
