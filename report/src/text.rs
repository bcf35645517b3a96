//! Texts that several reports share: the type of a task, the verdict with its reason, numbers.

use loadtest_core::{
    resource::{LoadTestStatus, Task},
    result::{RunResult, ThresholdResult},
};

/// The type of a task as Locust names it: the HTTP method, or `WebSocket`.
pub(crate) fn type_of(task: &Task) -> String {
    if let Some(http) = &task.http {
        http.method.as_str().to_owned()
    } else if task.chat.is_some() {
        "POST".to_owned()
    } else {
        "WebSocket".to_owned()
    }
}

/// The type of the task with a name.
pub(crate) fn type_of_name(result: &RunResult, name: &str) -> String {
    let task = result.spec.scenario.tasks.iter().find(|task| task.name == name);
    task.map_or_else(String::new, type_of)
}

/// The verdict of a run, or the phase of a test that did not end.
pub(crate) fn verdict_of(status: &LoadTestStatus) -> &str {
    let phase = || status.phase.as_ref().map_or("none", |phase| phase.as_str());
    status.verdict.as_ref().map_or_else(phase, |verdict| verdict.as_str())
}

/// The name of the test.
pub(crate) fn name_of(result: &RunResult) -> &str {
    result.name.as_deref().unwrap_or("loadtest")
}

/// The observed value of a threshold; `-` without samples.
pub(crate) fn observed_of(row: &ThresholdResult) -> String {
    row.observed.map_or_else(|| "-".to_owned(), |value| row.unit.format(value))
}

/// The target of a threshold: `< 500ms`.
pub(crate) fn target_of(row: &ThresholdResult) -> String {
    format!("{} {}", row.target.comparison, row.unit.format(row.target.value))
}

/// Seconds as milliseconds.
pub(crate) fn millis(seconds: f64) -> f64 {
    seconds * 1000.0
}

/// The text with the characters replaced that HTML and XML give a meaning.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // XML 1.0 allows no other control characters.
            '\t' | '\n' | '\r' => out.push(character),
            _ if character.is_control() => out.push('\u{fffd}'),
            _ => out.push(character),
        }
    }
    out
}
