//! The parts of a report as plain HTML, in the order of the page.

use std::fmt::Write;

use loadtest_core::{
    Duration,
    judge::split_advice,
    metrics::LatencyMetric,
    result::{Distribution, RunResult, TaskResult},
    values::{Percent, Rate},
};

use super::bullet::bullet;
use crate::text::{escape, name_of, observed_of, target_of, verdict_of};

fn seconds(value: f64) -> String {
    Duration::from_secs_f64(value).rounded()
}

fn fact(name: &str, value: &str) -> String {
    format!("<li><span class=\"muted\">{}</span> <b>{}</b></li>", escape(name), escape(value))
}

/// A cell with a number by which the table can be sorted.
fn number_cell(value: f64, text: &str) -> String {
    format!("<td data-value=\"{value}\">{}</td>", escape(text))
}

/// The class of a column's head: columns of texts are aligned to the left.
fn alignment(name: &str) -> &'static str {
    let is_text = ["verdict", "kind", "example", "missed"].contains(&name);
    if is_text { " class=\"text\"" } else { "" }
}

fn head(names: &[&str]) -> String {
    let cells: Vec<String> = names
        .iter()
        .map(|name| format!("<th scope=\"col\"{}>{name}</th>", alignment(name)))
        .collect();
    format!("<thead><tr>{}</tr></thead>", cells.concat())
}

pub(super) fn verdict(result: &RunResult) -> String {
    let verdict = escape(verdict_of(&result.status));
    let total = &result.total;
    let mut facts = vec![
        fact("requests", &total.requests.to_string()),
        fact("rate", &Rate::per_second(total.throughput).rounded()),
        fact("errors", &Percent::from_fraction(total.error_rate).rounded()),
        fact("users at most", &result.users_peak.to_string()),
        fact("load", &seconds(result.elapsed_seconds)),
    ];
    if let Some(latency) = total.latencies.get(LatencyMetric::ResponseTime) {
        facts.insert(2, fact("response time p95", &seconds(latency.p95)));
    }
    if let Some(start) = &result.status.start_time {
        facts.push(fact("start", &start.0.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()));
    }
    let targets = [&result.spec.target.http, &result.spec.target.web_socket];
    facts.extend(targets.into_iter().flatten().map(|target| fact("target", target)));
    format!(
        "<header class=\"verdict {verdict}\">\n<h1>{}: <span class=\"badge\">{verdict}</span></h1>\n<p>{}</p>\n<ul class=\"facts\">{}</ul>\n</header>\n",
        escape(name_of(result)),
        escape(result.status.verdict_message()),
        facts.concat()
    )
}

pub(super) fn thresholds(result: &RunResult) -> String {
    if result.thresholds.is_empty() {
        return String::new();
    }
    let mut rows = String::new();
    for row in &result.thresholds {
        let bound = |bound: &Option<loadtest_core::result::BoundValue>| {
            bound.as_ref().map_or_else(String::new, |bound| {
                format!("{} {}", bound.comparison, row.unit.format(bound.value))
            })
        };
        let verdict = escape(row.verdict.as_str());
        let _ = writeln!(
            rows,
            "<tr><td>{}</td><td class=\"text\">{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td class=\"{verdict} text\"><span class=\"badge\">{verdict}</span></td></tr>",
            escape(&row.key.to_string()),
            bullet(row),
            escape(&observed_of(row)),
            escape(&target_of(row)),
            escape(&bound(&row.warning)),
            escape(&bound(&row.critical)),
            row.samples,
        );
        if let Some(advice) = &row.advice {
            let _ = writeln!(
                rows,
                "<tr class=\"advice\"><td colspan=\"8\" class=\"text\">{}</td></tr>",
                advice_html(advice)
            );
        }
    }
    let names =
        ["threshold", "", "observed", "target", "warning", "critical", "samples", "verdict"];
    let head = head(&names).replace("<th scope=\"col\"></th>", "<td></td>");
    format!(
        "<section aria-labelledby=\"thresholds\">\n<h2 id=\"thresholds\">Thresholds</h2>\n<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-labelledby=\"thresholds\"><table>{head}<tbody>\n{rows}</tbody></table></div>\n</section>\n"
    )
}

/// The places of the charts. The page fills them.
pub(super) fn charts() -> String {
    let chart = |id: &str, label: &str| {
        format!("<div class=\"chart\" id=\"{id}\" role=\"group\" aria-label=\"{label}\"></div>")
    };
    let selection_head = head(&[
        "task", "requests", "errors", "rate", "mean", "p50", "p90", "p95", "p99", "p99.9", "max",
    ]);
    [
        "<p class=\"muted\" id=\"chart-problem\" role=\"status\"></p>\n<noscript><p class=\"muted\">The charts need JavaScript.</p></noscript>\n<div id=\"charts\" hidden>\n<section aria-labelledby=\"over-time\">\n<h2 id=\"over-time\">Over time</h2>\n",
        "<div class=\"controls\"><label>Task <select id=\"task\"></select></label><label>Latency <select id=\"metric\"></select></label><label>From <input id=\"from\" type=\"number\" min=\"0\" step=\"any\">s</label><label>to <input id=\"to\" type=\"number\" min=\"0\" step=\"any\">s</label><button class=\"act\" type=\"button\" id=\"reset\">Whole run</button></div>\n<p class=\"muted\">Drag over a chart to select a span. The numbers below are computed from all samples of the span.</p>\n",
        "<h3>Requests per second</h3>\n",
        &chart("rates", "Line chart of successful and failed requests per second over time; the table of the selected span has the numbers"),
        "\n<h3>Latency: all samples as a heat map, and percentiles</h3>\n",
        &chart("latency", "Heat map of the chosen latency over time with lines of p50, p95 and p99; the table of the selected span has the numbers"),
        "\n<div id=\"errors-over-time\"><h3>Errors by kind</h3>\n",
        &chart("errors-chart", "Stacked chart of errors by kind over time; the table of errors has the numbers"),
        "</div>\n<h3>Users</h3>\n",
        &chart("users", "Line chart of running and planned users over time"),
        "\n<h3 id=\"selected\" aria-live=\"polite\"></h3>\n<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Numbers of the selected span\"><table id=\"selection\">",
        &selection_head,
        "<tbody></tbody></table></div>\n</section>\n<div class=\"columns\">\n<section aria-labelledby=\"percentile-title\"><h2 id=\"percentile-title\">Percentiles of the span</h2>\n",
        &chart("percentiles", "Response time and service time by percentile of the selected span"),
        "\n<p class=\"muted\">Response time counts from the planned start of a request, service time from its sending: the gap is the time that requests waited to be sent.</p></section>\n<section aria-labelledby=\"load-title\"><h2 id=\"load-title\">Load against latency</h2>\n",
        &chart("load-latency", "Scatter chart: for each interval of the run, its successful requests per second and the 95th percentile of the chosen latency"),
        "\n</section>\n</div>\n</div>\n",
    ]
    .concat()
}

pub(super) fn tasks(result: &RunResult) -> String {
    let mut rows = String::new();
    for task in &result.tasks {
        rows.push_str(&task_row(&task.name, &task.result));
    }
    let names = [
        "task", "requests", "failures", "errors", "rate", "mean", "p50", "p90", "p95", "p99",
        "p99.9", "max",
    ];
    let mut out = format!(
        "<section aria-labelledby=\"tasks\">\n<h2 id=\"tasks\">Tasks</h2>\n<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-labelledby=\"tasks\"><table class=\"sortable\">{}<tbody>\n{rows}</tbody></table></div>\n",
        head(&names)
    );
    let stages = &result.status.stages;
    if !stages.is_empty() {
        out.push_str("<h3 id=\"stages\">Stages</h3>\n<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-labelledby=\"stages\"><table>");
        out.push_str(&head(&["load", "requests", "errors", "rate", "p95", "verdict", "missed"]));
        out.push_str("<tbody>\n");
        for stage in stages {
            let verdict = escape(stage.verdict.as_str());
            let missed = stage.missed.as_ref().map_or_else(String::new, |missed| {
                format!("{missed}: {}", stage.observed.as_deref().unwrap_or("-"))
            });
            let _ = writeln!(
                out,
                "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td class=\"{verdict} text\"><span class=\"badge\">{verdict}</span></td><td class=\"wrap text\">{}</td></tr>",
                escape(&stage.load),
                stage.requests,
                escape(&stage.error_rate),
                escape(&stage.throughput),
                escape(stage.p95.as_deref().unwrap_or("-")),
                escape(&missed),
            );
        }
        out.push_str("</tbody></table></div>\n");
    }
    if let Some(point) = &result.status.breaking_point {
        let parts = [
            ("highest load that met every target", &point.last_passed),
            ("result unknown from", &point.undecided),
            ("lowest load that missed a target", &point.first_failed),
            ("missed", &point.threshold),
            ("observed", &point.observed),
        ];
        let facts = parts.iter().filter_map(|(name, value)| Some(fact(name, value.as_ref()?)));
        let _ = writeln!(
            out,
            "<h3>Breaking point</h3>\n<ul class=\"facts\">{}</ul>",
            facts.collect::<String>()
        );
    }
    out.push_str("</section>\n");
    out
}

fn task_row(name: &str, task: &TaskResult) -> String {
    let latency = task.latencies.get(LatencyMetric::ResponseTime);
    let time = |pick: fn(&Distribution) -> f64| {
        latency.map_or_else(
            || number_cell(-1.0, "–"),
            |latency| number_cell(pick(latency), &seconds(pick(latency))),
        )
    };
    format!(
        "<tr><td>{}</td>{}{}{}{}{}{}{}{}{}{}{}</tr>\n",
        escape(name),
        number_cell(task.requests as f64, &task.requests.to_string()),
        number_cell(task.failures as f64, &task.failures.to_string()),
        number_cell(task.error_rate, &Percent::from_fraction(task.error_rate).rounded()),
        number_cell(task.throughput, &Rate::per_second(task.throughput).rounded()),
        time(|latency| latency.mean),
        time(|latency| latency.p50),
        time(|latency| latency.p90),
        time(|latency| latency.p95),
        time(|latency| latency.p99),
        time(|latency| latency.p999),
        time(|latency| latency.max),
    )
}

/// Advice with its link.
fn advice_html(advice: &str) -> String {
    let (text, link) = split_advice(advice);
    let text = escape(text);
    link.map_or_else(
        || text.clone(),
        |link| format!("{text} (<a href=\"{}\">more</a>)", escape(link)),
    )
}

pub(super) fn errors(result: &RunResult) -> String {
    let errors = &result.status.errors;
    if errors.is_empty() {
        return String::new();
    }
    let mut rows = String::new();
    for error in errors {
        let advice = error.advice.as_deref().map_or_else(String::new, advice_html);
        let _ = writeln!(
            rows,
            "<tr><td>{}</td><td class=\"text\">{}</td>{}<td class=\"wrap text\">{}</td><td class=\"wrap text\">{advice}</td></tr>",
            escape(&error.task),
            escape(&error.kind),
            number_cell(error.count as f64, &error.count.to_string()),
            escape(error.example.as_deref().unwrap_or_default()),
        );
    }
    format!(
        "<section aria-labelledby=\"errors\">\n<h2 id=\"errors\">Errors</h2>\n<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-labelledby=\"errors\"><table class=\"sortable\">{}<tbody>\n{rows}</tbody></table></div>\n</section>\n",
        head(&["task", "kind", "count", "example", "advice"])
    )
}

pub(super) fn generator(result: &RunResult) -> String {
    let Some(measurement) = &result.status.measurement else { return String::new() };
    let optional = [
        ("coverage of the planned load", &measurement.coverage),
        ("schedule lag p99", &measurement.schedule_lag_p99),
        ("event loop lag p99", &measurement.event_loop_lag_p99),
        ("busiest thread", &measurement.busiest_thread),
        ("throttled", &measurement.throttled),
        ("start skew", &measurement.start_skew),
        ("memory", &measurement.memory),
        ("not observed", &measurement.unobserved),
        ("imbalance of addresses", &measurement.imbalance),
    ];
    let mut facts: Vec<String> =
        optional.iter().filter_map(|(name, value)| Some(fact(name, value.as_ref()?))).collect();
    if measurement.runners_lost > 0 {
        facts.push(fact("runners lost", &measurement.runners_lost.to_string()));
    }
    facts.push(fact("error of a percentile at most", &measurement.relative_error));
    format!(
        "<section aria-labelledby=\"trust\">\n<h2 id=\"trust\">Can the numbers be trusted?</h2>\n<p>These numbers describe the load generator, not the target.</p>\n<ul class=\"facts\">{}</ul>\n</section>\n",
        facts.concat()
    )
}

pub(super) fn footer(result: &RunResult) -> String {
    format!(
        "<footer>Written by {} · run {} · the file holds the data of all charts and loads nothing</footer>\n",
        escape(&result.generator),
        escape(&result.uid)
    )
}
