//! Keeps a status small. Pure.

use k8s_openapi::jiff::Timestamp;
use loadtest_core::{
    resource::{LoadTestStatus, Summary, TaskSummary},
    text::truncate,
};

use super::conditions::set_condition;

/// Maximum size of a status as JSON, in bytes. Only a test with dozens of tasks reaches it. Every list and every watch of
/// tests carries whole statuses.
const MAX_BYTES: usize = 60_000;
/// Maximum length of the example of an error in a status that is too large, in bytes.
const MAX_EXAMPLE_BYTES: usize = 64;
/// Number of rows with advice in a status that is too large.
const MAX_ADVICE: usize = 10;

/// Number of errors in a status that is too large.
const MAX_ERRORS: usize = 10;

/// A group of details, and how to leave it out.
type Detail = (&'static str, fn(&mut LoadTestStatus));

/// The details to leave out, in this order.
const DETAILS: [Detail; 8] = [
    (
        "latencies, connections, statuses, finish reasons and close codes of single tasks",
        |status| {
            for task in &mut status.tasks {
                let TaskSummary { summary, latencies, connections, .. } = task;
                (*latencies, *connections) = Default::default();
                summary.statuses.clear();
                summary.finish_reasons.clear();
                summary.web_socket_closes.clear();
            }
        },
    ),
    ("some statistics of single tasks", |status| {
        for task in &mut status.tasks {
            let Summary { min, mean, p90, p999, max, .. } = &mut task.summary;
            [min, mean, p90, p999, max].into_iter().for_each(|value| *value = None);
        }
    }),
    ("parts of examples", |status| {
        let examples = status.errors.iter_mut().filter_map(|error| error.example.as_mut());
        examples.for_each(|example| *example = truncate(example, MAX_EXAMPLE_BYTES));
    }),
    ("some advice", |status| {
        let rows = status.thresholds.iter_mut().map(|row| &mut row.advice);
        let errors = status.errors.iter_mut().map(|error| &mut error.advice);
        let advice = rows.filter(|advice| advice.is_some()).skip(MAX_ADVICE);
        advice.chain(errors.skip(MAX_ADVICE)).for_each(|advice| *advice = None);
    }),
    ("what stages missed, and their percentiles", |status| {
        for stage in &mut status.stages {
            (stage.p95, stage.missed, stage.observed) = (None, None, None);
        }
    }),
    ("examples and advice", |status| {
        status.thresholds.iter_mut().for_each(|row| row.advice = None);
        for error in &mut status.errors {
            (error.example, error.advice) = (None, None);
        }
    }),
    ("rare errors", |status| status.errors.truncate(MAX_ERRORS)),
    ("some percentiles of single tasks", |status| {
        for task in &mut status.tasks {
            (task.summary.p50, task.summary.p95) = (None, None);
        }
    }),
];

/// Leaves details out of a status that is too large, and says so. The stored result must have all of them.
pub(crate) fn limit_size(status: &mut LoadTestStatus, now: Timestamp) {
    let is_large = |status: &LoadTestStatus| {
        serde_json::to_vec(status).is_ok_and(|json| json.len() > MAX_BYTES)
    };
    let mut left_out = Vec::new();
    for (name, leave_out) in DETAILS {
        if !is_large(status) {
            break;
        }
        let before = status.clone();
        leave_out(status);
        if *status != before {
            left_out.push(name);
        }
    }
    if left_out.is_empty() {
        return;
    }
    let message = format!(
        "the status leaves out {}, because it would be larger than {} KB; loadtest report shows them",
        left_out.join(", "),
        MAX_BYTES / 1000
    );
    set_condition(status, "StatusShortened", "True", "TooLarge", &message, now);
}
