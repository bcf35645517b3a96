//! Thresholds on the command line, in k6's spelling and in ours: `p95<500ms`, `p(95)<500`,
//! `errors<1%`, `chat:timeToFirstToken:p95<1s`, `http_req_duration{name:chat}:p(95)<500`.

use loadtest_core::{
    Duration,
    metrics::{LatencyMetric, Metric, Unit},
    values::{Percent, Rate},
};
use serde_json::{Value, json};

/// k6's names, and short names, of our metrics.
const METRIC_NAMES: [(&str, &str); 9] = [
    ("http_req_duration", "responseTime"),
    ("http_req_waiting", "timeToFirstByte"),
    ("http_req_failed", "errorRate"),
    ("http_reqs", "throughput"),
    ("ws_connecting", "webSocketConnect"),
    ("errors", "errorRate"),
    ("rate", "throughput"),
    ("rps", "throughput"),
    ("ttft", "timeToFirstToken"),
];

/// Reads a threshold as a row of `spec.thresholds`.
///
/// The form is `[TASK:][METRIC:]EXPRESSION`. The expression is a statistic, a comparison and a bound;
/// for metrics without statistics it is the name of the metric, a comparison and a bound.
///
/// # Errors
/// When the text has another form; the error says what is right.
pub(crate) fn parse_threshold(text: &str) -> Result<Value, String> {
    let bad = |reason: &str| {
        format!(
            "--threshold {text:?}: {reason}; write for example p95<500ms, errors<1%, throughput>10/s or chat:timeToFirstToken:p95<1s"
        )
    };
    let at = text.find(['<', '>']).ok_or_else(|| bad("there is no < or >"))?;
    let (left, right) = text.split_at(at);
    let length = if right[1..].starts_with('=') { 2 } else { 1 };
    let (comparison, bound) = right.split_at(length);
    let (left, bound) = (left.trim(), bound.trim());
    let (left, tag) = take_name_tag(left);
    let mut parts: Vec<&str> = left.split(':').map(str::trim).collect();
    let expression = parts.pop().filter(|part| !part.is_empty());
    let expression = expression.ok_or_else(|| bad("there is nothing to compare"))?;
    let mut task = tag;
    let mut metric = None;
    for part in parts {
        match find_metric(part) {
            Some(_) if metric.is_some() => return Err(bad("two metrics are named")),
            Some(found) => metric = Some(found),
            None if part.contains(['{', '}']) => return Err(bad("the only tag is {name:TASK}")),
            None if task.is_some() => {
                return Err(bad(&format!("{part:?} is no metric, and the task is named already")));
            }
            None => task = Some(part),
        }
    }
    let response_time = Metric::Latency(LatencyMetric::ResponseTime);
    let metric = metric.or_else(|| find_metric(expression)).unwrap_or(response_time);
    let unit = metric.unit();
    let mut row = json!({
        "metric": metric.as_str(),
        "target": format!("{comparison} {}", with_unit(bound, unit).ok_or_else(|| {
            bad(&format!("{bound:?} is not a valid bound: write a number with a unit, or a fraction below 1 for a share (1% or 0.01)"))
        })?),
    });
    if unit == Unit::Duration {
        let statistic = statistic(expression).ok_or_else(|| {
            if find_metric(expression).is_some() {
                return bad(&format!("{expression} needs a statistic, as in {expression}:p95"));
            }
            bad(&format!("{expression:?} is neither a metric nor a statistic; statistics are min, avg, med, max and percentiles such as p95"))
        })?;
        row["statistic"] = statistic.into();
    } else if find_metric(expression) != Some(metric) && !["rate", "value"].contains(&expression) {
        return Err(bad(&format!("{} has no {expression}", metric.as_str())));
    }
    if let Some(task) = task {
        row["task"] = task.into();
    }
    Ok(row)
}

/// Takes k6's tag with the name of the task out of a text: `{name:chat}` in
/// `http_req_duration{name:chat}:p(95)`.
fn take_name_tag(text: &str) -> (String, Option<&str>) {
    let tag = text.split_once("{name:").and_then(|(before, rest)| {
        let (name, after) = rest.split_once('}')?;
        Some((format!("{before}{after}"), Some(name.trim())))
    });
    tag.unwrap_or_else(|| (text.to_owned(), None))
}

fn find_metric(name: &str) -> Option<Metric> {
    let name = METRIC_NAMES.iter().find(|(other, _)| *other == name).map_or(name, |(_, own)| own);
    Metric::all().find(|metric| metric.as_str() == name)
}

/// Our spelling of a statistic: `p(95)` is `p95`, `avg` is `mean`, `med` is `p50`.
fn statistic(text: &str) -> Option<String> {
    match text {
        "min" | "max" | "mean" => Some(text.to_owned()),
        "avg" => Some("mean".into()),
        "med" => Some("p50".into()),
        _ => {
            let digits = text.strip_prefix('p')?;
            let digits =
                digits.strip_prefix('(').and_then(|d| d.strip_suffix(')')).unwrap_or(digits);
            digits.parse::<f64>().ok().map(|_| format!("p{digits}"))
        }
    }
}

/// The bound with its unit. As in k6, a bare number is in milliseconds for a latency, a fraction of
/// one for a share, and per second for a rate.
fn with_unit(bound: &str, unit: Unit) -> Option<String> {
    let Ok(number) = bound.parse::<f64>() else {
        return (!bound.is_empty()).then(|| bound.to_owned());
    };
    // Whoever writes errors<1 means one percent.
    let is_share = unit != Unit::Percent || number < 1.0;
    (number.is_finite() && number >= 0.0 && is_share).then(|| match unit {
        Unit::Duration => Duration::from_secs_f64(number / 1000.0).to_string(),
        Unit::Percent => Percent::from_fraction(number).to_string(),
        Unit::Rate => Rate::per_second(number).to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_are_no_metric_are_named() {
        for (text, reason) in [
            ("timeToFirstTokn:chat:p95<1s", "\"chat\" is no metric"),
            ("timeToFirstToken:responseTime:p95<1s", "two metrics are named"),
            ("http_req_duration{expected_response:true}:p(95)<500", "the only tag is"),
        ] {
            let error = parse_threshold(text).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn both_spellings_are_read() {
        for (text, row) in [
            (
                "p95<500ms",
                json!({"metric": "responseTime", "statistic": "p95", "target": "< 500ms"}),
            ),
            (
                "p(95) < 500",
                json!({"metric": "responseTime", "statistic": "p95", "target": "< 500ms"}),
            ),
            (
                "avg<=1.5s",
                json!({"metric": "responseTime", "statistic": "mean", "target": "<= 1.5s"}),
            ),
            ("errors<1%", json!({"metric": "errorRate", "target": "< 1%"})),
            ("errorRate<0.1%", json!({"metric": "errorRate", "target": "< 0.1%"})),
            ("http_req_failed:rate<0.01", json!({"metric": "errorRate", "target": "< 1%"})),
            (
                "http_req_duration:med<200",
                json!({"metric": "responseTime", "statistic": "p50", "target": "< 200ms"}),
            ),
            ("throughput>10/s", json!({"metric": "throughput", "target": "> 10/s"})),
            ("rate>10", json!({"metric": "throughput", "target": "> 10/s"})),
            (
                "chat:timeToFirstToken:p99.9<1s",
                json!({"task": "chat", "metric": "timeToFirstToken", "statistic": "p99.9", "target": "< 1s"}),
            ),
            (
                "chat:p95<1s",
                json!({"task": "chat", "metric": "responseTime", "statistic": "p95", "target": "< 1s"}),
            ),
            (
                "http_req_duration{name:chat}: p(95)<500",
                json!({"task": "chat", "metric": "responseTime", "statistic": "p95", "target": "< 500ms"}),
            ),
            ("chat:errors<1%", json!({"task": "chat", "metric": "errorRate", "target": "< 1%"})),
        ] {
            assert_eq!(parse_threshold(text), Ok(row), "{text}");
        }
    }

    #[test]
    fn other_texts_are_refused_with_examples() {
        for text in [
            "",
            "p95",
            "<5",
            "fast<500ms",
            "p95<",
            "timeToFirstToken<1s",
            "p(x)<5",
            "p95<-5",
            "errors<NaN",
            "errors:p99<1%",
            "http_reqs:count>1000",
        ] {
            let error = parse_threshold(text).unwrap_err();
            assert!(error.contains("write for example p95<500ms"), "{text}: {error}");
        }
    }
}
