//! The table of metrics in `docs/metrics.md`, written from the catalogue.

use std::fmt::Write;

use super::catalog::{COUNTERS, LABELLED, LAGS, LATENCIES, RUNNER, TaskScope, names};

struct Row {
    family: &'static str,
    kind: &'static str,
    labels: String,
    description: String,
}

impl Row {
    fn of_task(
        (family, kind): (&'static str, &'static str),
        label: Option<&str>,
        tasks: TaskScope,
        description: &str,
    ) -> Self {
        let labels = label.map_or_else(String::new, |label| format!(", `{label}`"));
        let scope = match tasks {
            TaskScope::All => String::new(),
            limited => format!(" ({})", limited.describe().0),
        };
        Self {
            family,
            kind,
            labels: format!("`task`{labels}"),
            description: format!("{description}{scope}"),
        }
    }
}

/// The Markdown table of all metrics of a runner.
pub fn metrics_table() -> String {
    let mut rows = vec![
        Row {
            family: names::RUNNER_INFO,
            kind: "gauge",
            labels: "`run`, `index`, `pod_uid`, `contract`".into(),
            description: "Identifies the runner; always 1".into(),
        },
        Row {
            family: names::RUNNER_STATE,
            kind: "gauge",
            labels: String::new(),
            description: "State: 0 waiting, 1 running, 2 done, 3 released, 4 cut short".into(),
        },
    ];
    rows.extend(RUNNER.iter().map(|info| Row {
        family: info.family,
        kind: if info.family.ends_with("_total") { "counter" } else { "gauge" },
        labels: String::new(),
        description: info.description.into(),
    }));
    rows.extend(LAGS.iter().map(|info| Row {
        family: info.family,
        kind: "histogram",
        labels: String::new(),
        description: info.description.into(),
    }));
    for info in &COUNTERS {
        let label = info.label.map(|(name, _)| name);
        if rows.last().is_none_or(|row| row.family != info.family) {
            let family = (info.family, "counter");
            rows.push(Row::of_task(family, label, info.tasks, info.description));
        }
    }
    for info in &LABELLED {
        let family = (info.family, "counter");
        rows.push(Row::of_task(family, Some(info.label), info.tasks, info.description));
    }
    let late = (names::LATE, "histogram");
    let description = "Latencies of requests that the load generator sent over 5 ms late, by the name of the metric in thresholds; the latency families include them";
    rows.push(Row::of_task(late, Some("metric"), TaskScope::All, description));
    for info in &LATENCIES {
        // Metrics of one family differ in a label: one row describes them all.
        if let Some(row) = rows.last_mut().filter(|row| row.family == info.family) {
            let value = info.label.map_or("", |(_, value)| value);
            let _ = write!(row.description, "; `{value}`: {}", info.description);
            continue;
        }
        let label = info.label.map(|(name, _)| name);
        let outcome = info.by_outcome.then_some("outcome");
        let description = match info.label {
            Some((_, value)) => format!("`{value}`: {}", info.description),
            None => info.description.to_owned(),
        };
        let family = (info.family, "histogram");
        rows.push(Row::of_task(family, label.or(outcome), info.tasks, &description));
    }
    let mut table = "| metric | type | labels | meaning |\n|---|---|---|---|\n".to_owned();
    for Row { family, kind, labels, description } in rows {
        // Writing to a String can't fail.
        let _ = writeln!(table, "| `{family}` | {kind} | {labels} | {description} |");
    }
    table
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_committed_table_is_fresh() {
        let committed = include_str!("../../../docs/metrics.md");
        assert!(
            committed.contains(&super::metrics_table()),
            "docs/metrics.md is stale: run make generate"
        );
    }
}
