//! The table of every percentile of every latency.

use loadtest_core::{
    Duration,
    result::{Distribution, RunResult},
};

use super::table::{format_table, text_row};

/// Returns the LATENCIES section: a row for each latency of each task that has samples.
pub(crate) fn format_latencies(result: &RunResult) -> String {
    let mut rows = vec![text_row([
        "task", "latency", "samples", "min", "mean", "p50", "p90", "p95", "p99", "p99.9", "max",
    ])];
    for task in &result.tasks {
        for (name, latency) in task.result.latencies.measured() {
            rows.push(latency_row(&task.name, name, latency));
        }
    }
    for (name, latency) in result.total.latencies.measured() {
        rows.push(latency_row("all", name, latency));
    }
    format!("\nLATENCIES\n{}", format_table(&rows, 2))
}

fn latency_row(task: &str, name: &str, latency: &Distribution) -> Vec<String> {
    let Distribution { count, mean, min, p50, p90, p95, p99, p999, max, .. } = latency;
    let times = [min, mean, p50, p90, p95, p99, p999, max];
    let times = times.map(|seconds| Duration::from_secs_f64(*seconds).rounded());
    [task.to_owned(), name.to_owned(), count.to_string()].into_iter().chain(times).collect()
}
