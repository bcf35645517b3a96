//! A status as a person reads it. Pure.

use std::fmt::Write;

use loadtest_core::{
    Duration,
    metrics::{LatencyHistogram, Numbers, judged},
    resource::{
        BreakingPoint, ConnectionSummary, LoadTest, LoadTestStatus, Progress, Summary, Verdict,
    },
};

/// Rows of cells in columns as wide as their widest cell; the first `left` columns are text.
fn table(rows: &[Vec<String>], left: usize) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|c| rows.iter().filter_map(|r| r.get(c)).map(|t| t.chars().count()).max().unwrap_or(0))
        .collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let pad = " ".repeat(width - cell.chars().count());
            let cell = if column < left { format!("{cell}{pad}") } else { format!("{pad}{cell}") };
            // Writing to a String can't fail; neither can the writes below.
            let _ = write!(line, "  {cell}");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// The head of the progress lines.
pub(crate) fn progress_head() -> String {
    format!(
        "  {:>9} {:>7} {:>11} {:>10} {:>8} {:>9}",
        "elapsed", "users", "rate", "p95", "errors", "left"
    )
}

/// One line of progress.
pub(crate) fn progress(progress: &Progress, summary: &Summary, duration: Duration) -> String {
    let second = 1_000_000_000;
    let left = duration.minus(progress.elapsed);
    let left = Duration::from_nanos((left.as_nanos() + second / 2) / second * second);
    format!(
        "  {:>9} {:>7} {:>11} {:>10} {:>8} {:>9}",
        progress.elapsed.rounded(),
        progress.users,
        summary.throughput,
        summary.p95.as_deref().unwrap_or("-"),
        summary.error_rate,
        left.to_string(),
    )
}

/// The end of a test: summary, errors, thresholds, verdict. `numbers`, where they are at hand,
/// add the lines that Cell 0's people know.
pub(crate) fn result(
    test: &LoadTest,
    status: &LoadTestStatus,
    numbers: Option<&Numbers>,
) -> String {
    let mut out = String::new();
    if let Some(total) = &status.summary {
        out.push_str("\nSUMMARY\n");
        out.push_str(&summary(total, status));
        out.push_str(&numbers.map_or_else(String::new, familiar));
    }
    if !status.errors.is_empty() {
        out.push_str("\nERRORS\n");
        let mut rows = vec![cells(["task", "kind", "count", "example"])];
        for error in &status.errors {
            rows.push(vec![
                error.task.clone(),
                error.kind.clone(),
                error.count.to_string(),
                error.example.clone().unwrap_or_default(),
            ]);
        }
        out.push_str(&table(&rows, 4));
    }
    if !status.thresholds.is_empty() {
        out.push_str("\nTHRESHOLDS\n");
        out.push_str(&thresholds(test, status));
    }
    if !status.stages.is_empty() {
        out.push_str("\nSTAGES\n");
        out.push_str(&stages(status));
    }
    if let Some(measured) = &status.measurement {
        let mut facts = vec![format!("percentiles within {}", measured.relative_error)];
        let named = [
            ("start skew", &measured.start_skew),
            ("schedule lag p99", &measured.schedule_lag_p99),
            ("busiest thread", &measured.busiest_thread),
            ("throttled", &measured.throttled),
            ("coverage", &measured.coverage),
        ];
        facts.extend(named.iter().filter_map(|(n, v)| v.as_ref().map(|v| format!("{n} {v}"))));
        if measured.runners_lost > 0 {
            facts.push(format!("runners lost {}", measured.runners_lost));
        }
        let _ = write!(out, "\nMEASUREMENT\n  {}\n", facts.join(", "));
    }
    let why = ["Passed", "Finished"]
        .iter()
        .find_map(|kind| status.condition(kind))
        .map_or_else(String::new, |condition| format!(": {}", condition.message));
    let verdict = status.verdict.map_or("none", Verdict::as_str);
    let _ = write!(out, "\nVERDICT  {verdict}{why}\n");
    out
}

fn cells<const N: usize>(texts: [&str; N]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

fn summary(total: &Summary, status: &LoadTestStatus) -> String {
    let mut rows = vec![cells([
        "task", "requests", "failures", "open", "rate", "mean", "p50", "p90", "p95", "p99", "max",
    ])];
    let row = |name: &str, s: &Summary| {
        let shown = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
        vec![
            name.to_owned(),
            s.requests.to_string(),
            s.failures.to_string(),
            s.interrupted.to_string(),
            s.throughput.clone(),
            shown(&s.mean),
            shown(&s.p50),
            shown(&s.p90),
            shown(&s.p95),
            shown(&s.p99),
            shown(&s.max),
        ]
    };
    rows.extend(status.tasks.iter().map(|task| row(&task.name, &task.summary)));
    rows.push(row("all", total));
    let mut out = table(&rows, 1);
    if total.dropped > 0 {
        let _ = writeln!(out, "  {} arrivals were dropped: no user was free", total.dropped);
    }
    for task in &status.tasks {
        for (what, latency) in [
            ("time to first response", &task.time_to_first_response),
            ("inter-token latency", &task.inter_token_latency),
            ("webSocket connect", &task.web_socket_connect),
            ("webSocket round trip", &task.web_socket_round_trip),
        ] {
            let Some(l) = latency else { continue };
            let _ = writeln!(
                out,
                "  {} {what}: mean {}, p50 {}, p95 {}, p99 {}, max {}",
                task.name, l.mean, l.p50, l.p95, l.p99, l.max
            );
        }
        if let Some(tokens) = &task.tokens {
            let user =
                tokens.per_user.as_ref().map_or_else(String::new, |r| format!(", {r} a user"));
            let rate = &tokens.per_second;
            let _ = writeln!(
                out,
                "  {} tokens: {} made, {rate} in all{user}",
                task.name,
                tokens.output + tokens.reasoning + tokens.tool
            );
        }
        if let Some(connections) = &task.connections {
            let _ = writeln!(out, "  {} connections: {}", task.name, opened(connections));
        }
        if let Some(goodput) = &task.goodput {
            let _ = writeln!(out, "  {} goodput: {goodput} met every latency target", task.name);
        }
    }
    out
}

/// Connections in words: `8 opened, 2 of them again; p95 tcp 0.2ms, tls 1.1ms`.
fn opened(connections: &ConnectionSummary) -> String {
    let ConnectionSummary { opened, reconnects, dns, tcp, tls, upgrade } = connections;
    let mut out = format!("{opened} opened");
    if *reconnects > 0 {
        let _ = write!(out, ", {reconnects} of them again");
    }
    let steps = [("dns", dns), ("tcp", tcp), ("tls", tls), ("upgrade", upgrade)];
    let times = steps.into_iter().filter_map(|(step, time)| Some((step, time.as_ref()?)));
    let times: Vec<String> = times.map(|(step, time)| format!("{step} {time}")).collect();
    if !times.is_empty() {
        let _ = write!(out, "; p95 {}", times.join(", "));
    }
    out
}

fn thresholds(test: &LoadTest, status: &LoadTestStatus) -> String {
    let mut rows = vec![cells([
        "verdict",
        "threshold",
        "observed",
        "target",
        "warning",
        "critical",
        "samples",
    ])];
    for (threshold, row) in test.spec.thresholds.iter().zip(&status.thresholds) {
        let shown = |bound: Option<loadtest_core::values::Bound>| {
            bound.map_or_else(|| "-".into(), |bound| bound.to_string())
        };
        rows.push(vec![
            row.verdict.as_str().to_owned(),
            threshold.label(),
            row.observed.clone().unwrap_or_else(|| "-".into()),
            shown(Some(threshold.target)),
            shown(threshold.warning),
            shown(threshold.critical),
            row.samples.to_string(),
        ]);
    }
    let mut out = table(&rows, 2);
    for (threshold, row) in test.spec.thresholds.iter().zip(&status.thresholds) {
        if let Some(advice) = &row.advice {
            let _ = writeln!(out, "  {}: {advice}", threshold.label());
        }
    }
    out
}

fn stages(status: &LoadTestStatus) -> String {
    let mut rows =
        vec![cells(["verdict", "load", "requests", "rate", "p95", "errors", "missed", "observed"])];
    for stage in &status.stages {
        rows.push(vec![
            stage.verdict.as_str().to_owned(),
            stage.load.clone(),
            stage.requests.to_string(),
            stage.throughput.clone(),
            stage.p95.clone().unwrap_or_else(|| "-".into()),
            stage.error_rate.clone(),
            stage.missed.clone().unwrap_or_else(|| "-".into()),
            stage.observed.clone().unwrap_or_else(|| "-".into()),
        ]);
    }
    let mut out = table(&rows, 1);
    if let Some(point) = &status.breaking_point {
        let _ = writeln!(out, "  breaking point: {}", breaking_point(point));
    }
    out
}

fn breaking_point(point: &BreakingPoint) -> String {
    let BreakingPoint { held, unknown, broke, threshold, observed } = point;
    let mut text = format!("every target held up to {}", held.as_deref().unwrap_or("no load"));
    if let Some(unknown) = unknown {
        let _ = write!(text, "; from {unknown} on the numbers don't say");
    }
    if let Some(broke) = broke {
        let threshold = threshold.as_deref().unwrap_or("a threshold");
        let observed = observed.as_deref().unwrap_or("-");
        let _ = write!(text, "; at {broke} {threshold} was {observed}");
    } else if unknown.is_none() {
        text.push_str("; nothing broke");
    }
    text
}

/// The lines that Cell 0's people know from their script.
fn familiar(numbers: &Numbers) -> String {
    let mut chat = LatencyHistogram::default();
    let mut connect = LatencyHistogram::default();
    for task in numbers.tasks.values() {
        chat.merge(&judged(&task.first_response));
        connect.merge(&judged(&task.web_socket_connect));
    }
    let total = numbers.total();
    let millis = |time: Option<Duration>| {
        time.map_or_else(|| "-".into(), |time| format!("{:.1}", time.as_millis_f64()))
    };
    let kinds: Vec<String> = total
        .errors
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(kind, count)| format!("{kind}={count}"))
        .collect();
    let rows = [
        ("chat_latency_avg_ms", millis(chat.mean())),
        ("chat_latency_p95_ms", millis(chat.quantile(0.95))),
        ("chat_latency_p99_ms", millis(chat.quantile(0.99))),
        ("ws_connect_avg_ms", millis(connect.mean())),
        ("total_errors", total.failures().to_string()),
        ("error_types", if kinds.is_empty() { "none".into() } else { kinds.join(" ") }),
    ];
    rows.iter().fold(String::new(), |mut out, (name, value)| {
        let _ = writeln!(out, "  {name}: {value}");
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let text = table(&[cells(["task", "n"]), cells(["chat", "12345"]), cells(["é", "1"])], 1);
        assert_eq!(text, "  task      n\n  chat  12345\n  é         1\n");
    }

    #[test]
    fn connections_are_told_in_words() {
        let mut connections = ConnectionSummary { opened: 8, ..ConnectionSummary::default() };
        assert_eq!(opened(&connections), "8 opened");
        (connections.reconnects, connections.tcp) = (2, Some("0.2ms".into()));
        assert_eq!(opened(&connections), "8 opened, 2 of them again; p95 tcp 0.2ms");
    }

    #[test]
    fn an_empty_run_has_familiar_lines_without_numbers() {
        let text = familiar(&Numbers::default());
        assert!(text.contains("chat_latency_p95_ms: -\n"), "{text}");
        assert!(text.contains("total_errors: 0\n") && text.contains("error_types: none\n"));
    }
}
