//! The summary table and the lines about each task below it.

use std::{collections::BTreeMap, fmt::Write};

use loadtest_core::{
    metrics::LatencyMetric,
    resource::{ConnectionSummary, LoadTestStatus, Summary, TokenSummary},
    text::count_of,
};

use super::table::{format_table, text_or_dash, text_row};

/// Returns the SUMMARY section.
pub(super) fn format_summary(total: &Summary, status: &LoadTestStatus) -> String {
    let mut rows = vec![text_row([
        "task",
        "requests",
        "failures",
        "interrupted",
        "rate",
        "mean",
        "p50",
        "p90",
        "p95",
        "p99",
        "max",
    ])];
    rows.extend(status.tasks.iter().map(|task| summary_row(&task.name, &task.summary)));
    rows.push(summary_row("all", total));
    let mut out = format_table(&rows, 1);
    if total.dropped > 0 {
        let _ = writeln!(out, "  {} arrivals were dropped: no user was idle", total.dropped);
    }
    out.push_str(&describe_statuses(&total.statuses));
    for task in &status.tasks {
        for (metric, judged) in LatencyMetric::all_judged() {
            let Some(l) = task.latencies.get(metric) else { continue };
            let _ = writeln!(
                out,
                "  {} {}: mean {}, p50 {}, p95 {}, p99 {}, max {}",
                task.name, judged.name, l.mean, l.p50, l.p95, l.p99, l.max
            );
        }
        if let Some(tokens) = &task.tokens {
            let _ = writeln!(out, "  {} tokens: {}", task.name, describe_tokens(tokens));
        }
        for (what, counts) in [
            ("finish reasons", &task.summary.finish_reasons),
            ("sessions ended by the target, by close code", &task.summary.web_socket_closes),
        ] {
            if !counts.is_empty() {
                let _ = writeln!(out, "  {} {what}: {}", task.name, describe_counts(counts));
            }
        }
        if let Some(connections) = &task.connections {
            let _ = writeln!(out, "  {}: {}", task.name, describe_connections(connections));
        }
        if let Some(goodput) = &task.goodput {
            let _ = writeln!(
                out,
                "  {} goodput: {goodput} of requests met every latency target",
                task.name
            );
        }
    }
    out
}

/// Returns a text such as `stop (97), length (3)`.
fn describe_counts(counts: &BTreeMap<String, u64>) -> String {
    let texts: Vec<String> =
        counts.iter().map(|(value, count)| format!("{value} ({count})")).collect();
    texts.join(", ")
}

/// Returns a line such as `  statuses: 200 (97), 302 (3)`, and a note about redirects. Empty without
/// responses.
fn describe_statuses(statuses: &BTreeMap<String, u64>) -> String {
    if statuses.is_empty() {
        return String::new();
    }
    let redirects: u64 =
        ["301", "302", "303", "307", "308"].iter().filter_map(|status| statuses.get(*status)).sum();
    let note = if redirects > 0 {
        format!("; {} not followed, see maxRedirects", count_of(redirects, "redirect"))
    } else {
        String::new()
    };
    format!("  statuses: {}{note}\n", describe_counts(statuses))
}

fn summary_row(name: &str, summary: &Summary) -> Vec<String> {
    vec![
        name.to_owned(),
        summary.requests.to_string(),
        summary.failures.to_string(),
        summary.interrupted.to_string(),
        summary.throughput.clone(),
        text_or_dash(summary.mean.as_ref()),
        text_or_dash(summary.p50.as_ref()),
        text_or_dash(summary.p90.as_ref()),
        text_or_dash(summary.p95.as_ref()),
        text_or_dash(summary.p99.as_ref()),
        text_or_dash(summary.max.as_ref()),
    ]
}

/// Returns a text such as `7578 generated, 63/s in total, 1/s per user`.
fn describe_tokens(tokens: &TokenSummary) -> String {
    let generated = tokens.output + tokens.reasoning + tokens.tool;
    let per_user =
        tokens.per_user.as_ref().map_or_else(String::new, |rate| format!(", {rate} per user"));
    format!("{generated} generated, {} in total{per_user}", tokens.per_second)
}

/// Returns a text such as `8 connections opened, 2 reconnects; p95 tcp 0.2ms, tls 1.1ms`.
fn describe_connections(connections: &ConnectionSummary) -> String {
    let ConnectionSummary { opened, reconnects, dns, tcp, tls, upgrade } = connections;
    let mut out = format!("{} opened", count_of(*opened, "connection"));
    if *reconnects > 0 {
        let _ = write!(out, ", {}", count_of(*reconnects, "reconnect"));
    }
    let steps = [("dns", dns), ("tcp", tcp), ("tls", tls), ("upgrade", upgrade)];
    let times = steps.into_iter().filter_map(|(step, time)| Some((step, time.as_ref()?)));
    let times: Vec<String> = times.map(|(step, time)| format!("{step} {time}")).collect();
    if !times.is_empty() {
        let _ = write!(out, "; p95 {}", times.join(", "));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_that_were_not_followed_are_named() {
        let statuses = [("200".to_owned(), 7), ("302".to_owned(), 1)].into();
        assert_eq!(
            describe_statuses(&statuses),
            "  statuses: 200 (7), 302 (1); 1 redirect not followed, see maxRedirects\n"
        );
    }

    #[test]
    fn connections_are_described_in_words() {
        let mut connections = ConnectionSummary { opened: 8, ..ConnectionSummary::default() };
        assert_eq!(describe_connections(&connections), "8 connections opened");
        (connections.reconnects, connections.tcp) = (2, Some("0.2ms".into()));
        assert_eq!(
            describe_connections(&connections),
            "8 connections opened, 2 reconnects; p95 tcp 0.2ms"
        );
    }
}
