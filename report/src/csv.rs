//! Locust's CSV files, with its exact columns. Times are in milliseconds.
//!
//! Two columns differ in what they count: `Average Content Size` is the bytes read from sockets per
//! request, headers included, and `Requests/s` leaves out successes after the end of the load.

use std::fmt::Write;

use loadtest_core::{
    Duration,
    metrics::{LatencyHistogram, LatencyMetric},
    result::{HistogramData, Point, RunResult, TaskPoint, TaskResult},
};

use crate::{
    ReportError,
    text::{millis, type_of_name},
};

const PERCENTILES: [(&str, f64); 11] = [
    ("50%", 0.5),
    ("66%", 0.66),
    ("75%", 0.75),
    ("80%", 0.8),
    ("90%", 0.9),
    ("95%", 0.95),
    ("98%", 0.98),
    ("99%", 0.99),
    ("99.9%", 0.999),
    ("99.99%", 0.9999),
    ("100%", 1.0),
];
const AGGREGATED: &str = "Aggregated";

/// The contents of Locust's four files.
#[derive(Clone, Debug, PartialEq)]
pub struct CsvFiles {
    /// `PREFIX_stats.csv`: one row for each task, and one for all.
    pub stats: String,
    /// `PREFIX_stats_history.csv`: such rows for each interval, as with `--csv-full-history`.
    pub history: String,
    /// `PREFIX_failures.csv`: one row for each task and kind of error.
    pub failures: String,
    /// `PREFIX_exceptions.csv`: the header only, because a test runs no code of users.
    pub exceptions: String,
}

impl CsvFiles {
    /// The ends of the files' names, after the prefix.
    pub const SUFFIXES: [&'static str; 4] =
        ["_stats.csv", "_stats_history.csv", "_failures.csv", "_exceptions.csv"];

    /// Each file with the end of its name: `PREFIX` + `_stats.csv`.
    pub fn with_suffixes(self) -> [(&'static str, String); 4] {
        let [stats, history, failures, exceptions] = Self::SUFFIXES;
        [
            (stats, self.stats),
            (history, self.history),
            (failures, self.failures),
            (exceptions, self.exceptions),
        ]
    }
}

/// Writes a result as Locust's CSV files.
///
/// # Errors
/// When a histogram of the result is malformed.
pub fn csv_files(result: &RunResult) -> Result<CsvFiles, ReportError> {
    Ok(CsvFiles {
        stats: stats(result)?,
        history: history(result)?,
        failures: failures(result),
        exceptions: "Count,Message,Traceback,Nodes\n".to_owned(),
    })
}

fn percentile_header() -> String {
    PERCENTILES.map(|(name, _)| name).join(",")
}

/// The percentiles in whole milliseconds, as Locust writes them; `N/A` without samples.
fn percentile_columns(histogram: &LatencyHistogram) -> String {
    let column = |(_, p): (&str, f64)| {
        let value = histogram.quantile(p).map(Duration::as_millis_f64);
        value.map_or_else(|| "N/A".to_owned(), |millis| format!("{millis:.0}"))
    };
    PERCENTILES.map(column).join(",")
}

fn stats(result: &RunResult) -> Result<String, ReportError> {
    let mut out = format!(
        "Type,Name,Request Count,Failure Count,Median Response Time,Average Response Time,Min Response Time,Max Response Time,Average Content Size,Requests/s,Failures/s,{}\n",
        percentile_header()
    );
    let rows = result
        .tasks
        .iter()
        .map(|task| (type_of_name(result, &task.name), task.name.as_str(), &task.result));
    for (kind, name, task) in rows.chain([(String::new(), AGGREGATED, &result.total)]) {
        let latency = task.latencies.get(LatencyMetric::ResponseTime);
        let time = |pick: fn(&loadtest_core::result::Distribution) -> f64| {
            latency.map_or(0.0, |latency| millis(pick(latency)))
        };
        let histogram = latency.map(|latency| latency.histogram.to_histogram()).transpose()?;
        let _ = writeln!(
            out,
            "{},{},{},{},{:.0},{},{},{},{},{},{},{}",
            quote(&kind),
            quote(name),
            task.requests,
            task.failures,
            time(|latency| latency.p50),
            time(|latency| latency.mean),
            time(|latency| latency.min),
            time(|latency| latency.max),
            content_size(task.received_bytes, task.requests),
            task.throughput + per_second(task.failures, result.elapsed_seconds),
            per_second(task.failures, result.elapsed_seconds),
            percentile_columns(&histogram.unwrap_or_default()),
        );
    }
    Ok(out)
}

/// Counts and response times of one task, or of all tasks together.
#[derive(Clone, Default)]
struct Numbers {
    requests: u64,
    failures: u64,
    successes_in_load: u64,
    received_bytes: u64,
    response_time: LatencyHistogram,
}

impl Numbers {
    fn of(task: &TaskPoint) -> Result<Self, ReportError> {
        let times = task.latency(LatencyMetric::ResponseTime).map(HistogramData::to_histogram);
        Ok(Self {
            requests: task.requests,
            failures: task.failures,
            successes_in_load: task.successes_in_load,
            received_bytes: task.received_bytes,
            response_time: times.transpose()?.unwrap_or_default(),
        })
    }

    fn add(&mut self, other: &Self) {
        // A file that was changed may hold any number.
        self.requests = self.requests.saturating_add(other.requests);
        self.failures = self.failures.saturating_add(other.failures);
        self.successes_in_load = self.successes_in_load.saturating_add(other.successes_in_load);
        self.received_bytes = self.received_bytes.saturating_add(other.received_bytes);
        self.response_time.merge(&other.response_time);
    }
}

fn history(result: &RunResult) -> Result<String, ReportError> {
    let mut out = format!(
        "Timestamp,User Count,Type,Name,Requests/s,Failures/s,{},Total Request Count,Total Failure Count,Total Median Response Time,Total Average Response Time,Total Min Response Time,Total Max Response Time,Total Average Content Size\n",
        percentile_header()
    );
    let start = start_seconds(result);
    let none = TaskPoint::default();
    let mut sums = vec![Numbers::default(); result.tasks.len()];
    let mut sum_of_all = Numbers::default();
    for point in &result.series.points {
        let mut all = Numbers::default();
        for (task, sum) in result.tasks.iter().zip(&mut sums) {
            let now = Numbers::of(point.tasks.get(&task.name).unwrap_or(&none))?;
            sum.add(&now);
            all.add(&now);
            let kind = type_of_name(result, &task.name);
            push_history_row(&mut out, start, point, (&kind, &task.name), &now, sum);
        }
        sum_of_all.add(&all);
        push_history_row(&mut out, start, point, ("", AGGREGATED), &all, &sum_of_all);
    }
    Ok(out)
}

/// Adds the row of an interval: its numbers, and their sums from the start of the run.
fn push_history_row(
    out: &mut String,
    start: f64,
    point: &Point,
    (kind, name): (&str, &str),
    now: &Numbers,
    sum: &Numbers,
) {
    let time = |p| sum.response_time.quantile(p).map_or(0.0, Duration::as_millis_f64);
    let _ = writeln!(
        out,
        "{:.0},{},{},{},{},{},{},{},{},{:.0},{},{},{},{}",
        start + point.end,
        point.users,
        quote(kind),
        quote(name),
        per_second(now.successes_in_load.saturating_add(now.failures), point.seconds()),
        per_second(now.failures, point.seconds()),
        percentile_columns(&now.response_time),
        sum.requests,
        sum.failures,
        time(0.5),
        sum.response_time.mean().map_or(0.0, Duration::as_millis_f64),
        time(0.0),
        time(1.0),
        content_size(sum.received_bytes, sum.requests),
    );
}

fn failures(result: &RunResult) -> String {
    let mut out = "Method,Name,Error,Occurrences,First Seen,Last Seen\n".to_owned();
    let start = start_seconds(result);
    for task in &result.tasks {
        let rows: Vec<(&String, &u64)> = errors_of(&task.result).collect();
        for (kind, count) in rows {
            let seen = || {
                let points = result.series.points.iter();
                points.filter(|point| {
                    let errors = point.tasks.get(&task.name).map(|task| &task.errors);
                    errors.is_some_and(|errors| errors.contains_key(kind))
                })
            };
            let time = |point: Option<&Point>| {
                point.map_or_else(String::new, |point| format!("{:.0}", start + point.end))
            };
            let errors = &result.status.errors;
            let example = errors.iter().find(|e| e.task == task.name && e.kind == *kind);
            let example = example.and_then(|error| error.example.as_ref());
            let error = example.map_or_else(|| kind.clone(), |text| format!("{kind}: {text}"));
            let _ = writeln!(
                out,
                "{},{},{},{count},{},{}",
                quote(&type_of_name(result, &task.name)),
                quote(&task.name),
                quote(&error),
                time(seen().next()),
                time(seen().next_back()),
            );
        }
    }
    out
}

fn errors_of(task: &TaskResult) -> impl Iterator<Item = (&String, &u64)> {
    task.errors.iter().filter(|(_, count)| **count > 0)
}

/// The start of the load, in seconds since 1970.
fn start_seconds(result: &RunResult) -> f64 {
    let start = result.status.start_time.as_ref();
    start.map_or(0.0, |start| start.0.as_microsecond() as f64 / 1e6)
}

fn per_second(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

fn content_size(bytes: u64, requests: u64) -> f64 {
    if requests == 0 { 0.0 } else { bytes as f64 / requests as f64 }
}

/// A field as Python's `csv` module writes it. A text that a spreadsheet would run as a formula gets a
/// quote in front.
fn quote(text: &str) -> String {
    let text =
        if text.starts_with(['=', '+', '-', '@']) { format!("'{text}") } else { text.to_owned() };
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::example;

    #[test]
    fn columns_are_those_of_locust() {
        let files = csv_files(&example()).unwrap();
        let header = |text: &str| text.lines().next().unwrap().to_owned();
        assert_eq!(
            header(&files.stats),
            "Type,Name,Request Count,Failure Count,Median Response Time,Average Response Time,Min Response Time,Max Response Time,Average Content Size,Requests/s,Failures/s,50%,66%,75%,80%,90%,95%,98%,99%,99.9%,99.99%,100%"
        );
        for file in [&files.stats, &files.history] {
            let columns = header(file).split(',').count();
            assert!(file.lines().all(|line| line.split(',').count() == columns), "{file}");
        }
        assert_eq!(files.exceptions.lines().count(), 1);
    }

    #[test]
    fn rows_hold_the_numbers_of_the_result() {
        let result = example();
        let files = csv_files(&result).unwrap();
        let last = files.stats.lines().last().unwrap();
        assert!(last.starts_with(",Aggregated,"), "{last}");
        assert_eq!(last.split(',').nth(2).unwrap(), result.total.requests.to_string());
        // The totals of the last interval are those of the run.
        let last = files.history.lines().last().unwrap();
        assert_eq!(last.split(',').nth(17).unwrap(), result.total.requests.to_string());
        assert_eq!(last.split(',').nth(18).unwrap(), result.total.failures.to_string());
    }

    #[test]
    fn a_task_may_have_the_name_of_the_sum() {
        let mut result = example();
        for (index, name) in [(0, AGGREGATED), (1, "other")] {
            let old = std::mem::replace(&mut result.tasks[index].name, name.into());
            for point in &mut result.series.points {
                let numbers = point.tasks.remove(&old).unwrap_or_default();
                point.tasks.insert(name.into(), numbers);
            }
        }
        let files = csv_files(&result).unwrap();
        let last = files.history.lines().last().unwrap();
        assert_eq!(last.split(',').nth(17).unwrap(), result.total.requests.to_string());
    }

    #[test]
    fn texts_of_a_target_stay_one_field() {
        assert_eq!(quote("a,\"b\"\n"), "\"a,\"\"b\"\"\n\"");
        assert_eq!(quote("=1+1"), "'=1+1");
        assert_eq!(quote("GET"), "GET");
    }
}
