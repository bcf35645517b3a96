//! A Markdown report of at most 60 lines, for a comment on a pull request.

use std::fmt::Write;

use loadtest_core::{
    Duration,
    judge::split_advice,
    metrics::LatencyMetric,
    resource::Verdict,
    result::{Distribution, RunResult, TaskResult},
    values::{Percent, Rate},
};

use crate::text::{name_of, observed_of, target_of, verdict_of};

/// Maximum number of rows of one table. Further rows are counted in a line.
const MAX_ROWS: usize = 12;
/// Maximum length of a cell, in characters.
const MAX_CELL: usize = 160;
/// Maximum number of lines with advice.
const MAX_ADVICE_LINES: usize = 5;
/// Maximum length of advice, in characters.
const MAX_ADVICE: usize = 400;

/// Writes a result as Markdown.
pub fn markdown_report(result: &RunResult) -> String {
    let mark = match result.status.known_verdict() {
        Some(Verdict::Pass) => "✅",
        Some(Verdict::Warning | Verdict::Inconclusive) | None => "⚠️",
        Some(Verdict::Fail | Verdict::Critical) => "❌",
        Some(Verdict::NotJudged) => "ℹ️",
    };
    let mut out = format!(
        "### {mark} Load test {}: {}\n\n{}\n",
        cell(name_of(result)),
        verdict_of(&result.status),
        cell(result.status.verdict_message())
    );
    let _ = write!(
        out,
        "\n{} requests in {}, {}, {} errors, {} users at most\n",
        result.total.requests,
        Duration::from_secs_f64(result.elapsed_seconds).rounded(),
        Rate::per_second(result.total.throughput).rounded(),
        Percent::from_fraction(result.total.error_rate).rounded(),
        result.users_peak,
    );
    if !result.thresholds.is_empty() {
        out.push_str(
            "\n| threshold | observed | target | samples | verdict |\n|---|---|---|---|---|\n",
        );
        let mut rows: Vec<_> = result.thresholds.iter().collect();
        // The worst first; the order of the spec among equals.
        rows.sort_by_key(|row| std::cmp::Reverse(row.verdict.known().map_or(3, Verdict::severity)));
        push_rows(&mut out, &rows, "thresholds", |row| {
            [
                row.key.to_string(),
                observed_of(row),
                target_of(row),
                row.samples.to_string(),
                row.verdict.as_str().to_owned(),
            ]
        });
    }
    out.push_str("\n| task | requests | errors | rate | p50 | p95 | p99 | max |\n|---|---|---|---|---|---|---|---|\n");
    push_rows(&mut out, &result.tasks, "tasks", |task| task_cells(&task.name, &task.result));
    let errors = &result.status.errors;
    if !errors.is_empty() {
        out.push_str("\n| task | error | count | example |\n|---|---|---|---|\n");
        push_rows(&mut out, errors, "errors", |error| {
            [
                error.task.clone(),
                error.kind.clone(),
                error.count.to_string(),
                error.example.clone().unwrap_or_default(),
            ]
        });
    }
    push_advice(&mut out, result);
    out
}

/// A list of advice: first about the worst thresholds, then about the most frequent errors.
fn push_advice(out: &mut String, result: &RunResult) {
    let mut rows: Vec<_> = result.thresholds.iter().collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.verdict.known().map_or(3, Verdict::severity)));
    let thresholds = rows.iter().map(|row| (row.key.to_string(), row.advice.as_deref()));
    let errors = result.status.errors.iter().map(|e| (e.kind.clone(), e.advice.as_deref()));
    let mut lines: Vec<String> = Vec::new();
    for (name, advice) in thresholds.chain(errors) {
        let Some((text, link)) = advice.map(split_advice) else { continue };
        let link = link.map_or_else(String::new, |link| format!(" ([more]({link}))"));
        let item = format!("- {}: {}{link}", cell(&name), cell_of(text, MAX_ADVICE));
        if lines.len() < MAX_ADVICE_LINES && !lines.contains(&item) {
            lines.push(item);
        }
    }
    if !lines.is_empty() {
        let _ = writeln!(out, "\n{}", lines.join("\n"));
    }
}

fn task_cells(name: &str, task: &TaskResult) -> [String; 8] {
    let latency = task.latencies.get(LatencyMetric::ResponseTime);
    let time = |pick: fn(&Distribution) -> f64| {
        latency.map_or_else(
            || "-".to_owned(),
            |latency| Duration::from_secs_f64(pick(latency)).rounded(),
        )
    };
    [
        name.to_owned(),
        task.requests.to_string(),
        Percent::from_fraction(task.error_rate).rounded(),
        Rate::per_second(task.throughput).rounded(),
        time(|latency| latency.p50),
        time(|latency| latency.p95),
        time(|latency| latency.p99),
        time(|latency| latency.max),
    ]
}

fn push_rows<Row, const N: usize>(
    out: &mut String,
    rows: &[Row],
    what: &str,
    cells: impl Fn(&Row) -> [String; N],
) {
    for row in rows.iter().take(MAX_ROWS) {
        let cells = cells(row).map(|text| cell(&text));
        let _ = writeln!(out, "| {} |", cells.join(" | "));
    }
    if let Some(rest) = rows.len().checked_sub(MAX_ROWS).filter(|rest| *rest > 0) {
        let _ = writeln!(out, "\nand {rest} more {what}");
    }
}

/// A text in one line, without the characters that Markdown and HTML give a meaning, and without
/// mentions of users.
fn cell(text: &str) -> String {
    cell_of(text, MAX_CELL)
}

fn cell_of(text: &str, max_length: usize) -> String {
    let mut out = String::new();
    for (index, character) in text.chars().enumerate() {
        if index == max_length {
            out.push('…');
            break;
        }
        match character {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '@' => out.push_str("@\u{200b}"),
            '\\' | '|' | '`' | '*' | '_' | '[' | ']' | '#' | '~' => {
                out.push('\\');
                out.push(character);
            }
            _ if character.is_control() => out.push(' '),
            _ => out.push(character),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use loadtest_core::resource::ErrorCount;

    use super::*;
    use crate::testing::example;

    #[test]
    fn the_worst_threshold_comes_first() {
        let text = markdown_report(&example());
        assert!(text.starts_with("### ❌ Load test burst: Fail\n"), "{text}");
        let rows: Vec<&str> = text.lines().filter(|line| line.contains("Fail |")).collect();
        assert!(rows[0].starts_with("| chat timeToFirstResponse p50"), "{text}");
        assert!(text.lines().count() <= 60, "{text}");
    }

    #[test]
    fn a_large_result_has_at_most_60_lines() {
        const ADVICE: &str = "look here (https://example.com/page#part)";
        let mut result = example();
        let error = ErrorCount {
            task: "chat".into(),
            kind: "http_503".into(),
            count: 30,
            example: Some("<b>|`x`|\n@cell0\u{1b}[31m ".repeat(99)),
            advice: Some(ADVICE.into()),
        };
        result.status.errors = vec![error; 20];
        result.thresholds = result.thresholds.iter().cycle().take(64).cloned().collect();
        result.tasks = result.tasks.iter().cycle().take(64).cloned().collect();
        let text = markdown_report(&result);
        assert!(text.lines().count() <= 60, "{text}");
        assert!(text.contains("and 52 more thresholds"), "{text}");
        let advice = "- http\\_503: look here ([more](https://example.com/page#part))";
        assert_eq!(text.matches(advice).count(), 1, "{text}");
        assert!(!text.contains("<b>") && !text.contains('\u{1b}') && !text.contains("@cell0"));
        for line in text.lines().filter(|line| line.starts_with("| chat | http\\_503")) {
            assert_eq!(line.replace("\\|", "").matches('|').count(), 5, "{line}");
        }
    }
}
