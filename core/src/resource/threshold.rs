//! What must hold for a test to pass.

use std::{fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::values::{Bound, Duration, schema_between};

/// One row of the table a test is judged by.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules()))]
pub struct Threshold {
    /// The task it judges; all tasks together when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub task: Option<String>,
    /// What is judged.
    pub metric: Metric,
    /// Which statistic of a latency: min, mean, p50 … p99.9, max.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statistic: Option<Statistic>,
    /// Holds: the row is a Pass.
    pub target: Bound,
    /// Holds while the target does not: the row is a Warning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<Bound>,
    /// Holds: the row is Critical. Between warning and critical it is a Fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub critical: Option<Bound>,
    /// Judges the worst of the test's rolling windows of this length, in place of the whole test.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "window_length")]
    pub window: Option<Duration>,
    /// Ends the test, on all runners, once the critical bound holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort: Option<Abort>,
    /// Samples below which the row is Inconclusive; 5/(1−p) for a percentile when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub min_samples: Option<i64>,
}

/// When a critical bound that holds ends the test.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Abort {
    /// Not before the test has run so long.
    #[serde(default)]
    #[schemars(schema_with = "patience")]
    pub after: Duration,
    /// Not before it has held so long without a break.
    #[serde(default, rename = "for")]
    #[schemars(schema_with = "patience")]
    pub lasting: Duration,
}

fn window_length(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schema_between("5s", "1h")
}

fn patience(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schema_between("0s", "168h")
}

/// Rules over a threshold's fields together. Each says nothing when another one already does.
fn rules() -> serde_json::Value {
    /// A bound's value: what is left of it without its comparison, spaces and unit.
    fn value(bound: &str) -> String {
        let kept = ["<", ">", "=", " ", "%", "/s"];
        kept.iter().fold(bound.to_owned(), |text, cut| format!("{text}.replace('{cut}', '')"))
    }
    /// Metrics that are shares, that are rates, and of which more is better.
    const SHARES: &str = "self.metric in ['errorRate', 'goodput']";
    const RATES: &str = "self.metric in ['throughput', 'tokensPerSecond']";
    const GROWS: &str = "self.metric in ['throughput', 'tokensPerSecond', 'goodput']";
    const TARGET: &str = "self.target";
    const WARNING: &str = "(has(self.warning) ? self.warning : self.target)";
    const CRITICAL: &str =
        "(has(self.critical) ? self.critical : has(self.warning) ? self.warning : self.target)";
    let all = format!("[{TARGET}, {WARNING}, {CRITICAL}]");
    let (target, warning, critical) = (value(TARGET), value(WARNING), value(CRITICAL));
    // A word in the unit of time ends in s, m or h; `/s` is a rate.
    let in_unit = format!(
        "{all}.all(b, b.endsWith('%') ? {SHARES} : b.endsWith('/s') ? {RATES} : !({SHARES} || {RATES}))"
    );
    let durations = format!(
        "{all}.all(b, b.matches('^[<>=]+ ?(([0-9]+([.][0-9]*)?|[.][0-9]+)(ns|us|µs|μs|ms|s|m|h))+$'))"
    );
    let numbers =
        format!("{all}.all(b, b.matches('^[<>=]+ ?([0-9]+([.][0-9]*)?|[.][0-9]+)(%|/s)$'))");
    let rising = |cast: &str| {
        format!("{cast}({target}) <= {cast}({warning}) && {cast}({warning}) <= {cast}({critical})")
    };
    let falling =
        format!("double({target}) >= double({warning}) && double({warning}) >= double({critical})");
    let ordered = format!(
        "!({in_unit}) || ({GROWS} ? (!({numbers}) || ({falling})) : \
         self.metric == 'errorRate' ? (!({numbers}) || ({})) : (!({durations}) || ({})))",
        rising("double"),
        rising("duration"),
    );
    serde_json::json!([
        {
            "rule": format!("has(self.statistic) || {SHARES} || {RATES}"),
            "messageExpression": "'statistic is missing: ' + self.metric + ' needs one of min, mean, p50, p90, p95, p99, p99.9, max'",
        },
        {
            "rule": format!("!has(self.statistic) || !({SHARES} || {RATES})"),
            "messageExpression": "'statistic: ' + self.metric + ' is one number and takes no statistic: remove it'",
        },
        {
            "rule": in_unit,
            "messageExpression": format!("self.metric + ' is bounded by ' + ({SHARES} ? 'a share, such as \"' + ({GROWS} ? '> 99%' : '< 0.1%') + '\"' : {RATES} ? 'a rate, such as \"> 10/s\"' : 'a duration, such as \"< 500ms\"') + ': target, warning and critical must all be so'"),
        },
        {
            "rule": format!("self.target.startsWith({GROWS} ? '>' : '<') && (!has(self.warning) || self.warning.startsWith({GROWS} ? '>' : '<'))"),
            "messageExpression": format!("'target and warning of ' + self.metric + ' say what is good enough: start them with ' + ({GROWS} ? '>' : '<')"),
        },
        {
            "rule": format!("!has(self.critical) || self.critical.startsWith({GROWS} ? '<' : '>')"),
            "messageExpression": format!("'critical of ' + self.metric + ({GROWS} ? ' says what is too little: start it with <' : ' says what is too much: start it with >')"),
        },
        {
            "rule": "!has(self.abort) || has(self.critical)",
            "message": "abort ends the test once critical holds, and critical is missing: add it, or remove abort",
        },
        {
            "rule": ordered,
            "messageExpression": "'target \"' + self.target + '\" must be the strictest bound' + (has(self.warning) ? ', then warning \"' + self.warning + '\"' : '') + (has(self.critical) ? ', then critical \"' + self.critical + '\"' : '')",
        },
    ])
}

impl Threshold {
    /// How people name the row: `chat timeToFirstResponse p95 over 30s`.
    pub fn label(&self) -> String {
        let mut label = self.task.as_ref().map_or_else(String::new, |task| format!("{task} "));
        label.push_str(self.metric.as_str());
        if let Some(statistic) = &self.statistic {
            label.push(' ');
            label.push_str(&statistic.to_string());
        }
        if let Some(window) = &self.window {
            label.push_str(&format!(" over {window}"));
        }
        label
    }
}

/// What a threshold can judge.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Metric {
    /// From when a request was planned to its last byte.
    ResponseTime,
    /// From when a request was sent to its last byte.
    ServiceTime,
    /// From when a chat request was planned to its first content token.
    TimeToFirstResponse,
    /// Between two tokens of a streamed chat.
    InterTokenLatency,
    /// From when an http or chat request was sent to the first byte of its answer.
    TimeToFirstByte,
    /// From the start of a WebSocket's connection to its upgrade.
    WebSocketConnect,
    /// From a WebSocket message that was sent to the last reply it awaits.
    WebSocketRoundTrip,
    /// Failed requests as a share of all completed ones.
    ErrorRate,
    /// Successful requests per second of load.
    Throughput,
    /// Tokens that a chat's target made, per second of load.
    TokensPerSecond,
    /// Requests that succeeded and met every latency target of their task, as a share of all.
    Goodput,
}

impl Metric {
    /// The name as it stands in a spec.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ResponseTime => "responseTime",
            Self::ServiceTime => "serviceTime",
            Self::TimeToFirstResponse => "timeToFirstResponse",
            Self::InterTokenLatency => "interTokenLatency",
            Self::TimeToFirstByte => "timeToFirstByte",
            Self::WebSocketConnect => "webSocketConnect",
            Self::WebSocketRoundTrip => "webSocketRoundTrip",
            Self::ErrorRate => "errorRate",
            Self::Throughput => "throughput",
            Self::TokensPerSecond => "tokensPerSecond",
            Self::Goodput => "goodput",
        }
    }

    /// True for the counts that a load generator which is itself late makes smaller.
    pub const fn needs_pace(self) -> bool {
        matches!(self, Self::Throughput | Self::TokensPerSecond | Self::Goodput)
    }

    /// True for the metrics that are distributions of durations.
    pub const fn is_latency(self) -> bool {
        !matches!(self, Self::ErrorRate | Self::Goodput | Self::Throughput | Self::TokensPerSecond)
    }
}

/// One number out of a distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Statistic {
    /// The smallest value.
    Min,
    /// The arithmetic mean.
    Mean,
    /// The quantile at a share of one: `p95` is 0.95.
    Quantile(f64),
    /// The largest value.
    Max,
}

/// A text that names no statistic.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a statistic: use min, mean, max or a percentile such as p50, p95 or p99.9"
)]
pub struct StatisticError {
    text: String,
}

impl FromStr for Statistic {
    type Err = StatisticError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let percentile = |digits: &str| {
            let plain = digits.bytes().all(|b| b.is_ascii_digit() || b == b'.');
            let value = digits.parse::<f64>().ok().filter(|_| plain && digits.len() <= 6)?;
            (value > 0.0 && value < 100.0).then_some(Self::Quantile(value / 100.0))
        };
        match text {
            "min" => Some(Self::Min),
            "mean" => Some(Self::Mean),
            "max" => Some(Self::Max),
            _ => text.strip_prefix('p').and_then(percentile),
        }
        .ok_or_else(|| StatisticError { text: text.to_owned() })
    }
}

impl fmt::Display for Statistic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Min => f.write_str("min"),
            Self::Mean => f.write_str("mean"),
            Self::Max => f.write_str("max"),
            Self::Quantile(p) => write!(f, "p{}", (p * 1e5).round() / 1e3),
        }
    }
}

impl Serialize for Statistic {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Statistic {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Statistic {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Statistic".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "maxLength": 8,
            "x-kubernetes-validations": [{
                "rule": "self.matches('^(min|mean|max|p[0-9]{1,2}([.][0-9]{1,3})?)$') && !self.matches('^p0*([.]0*)?$')",
                "messageExpression": "'\"' + self + '\" is not a statistic: use min, mean, max or a percentile such as p50, p95 or p99.9'",
            }],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_print_as_they_are_written() {
        for text in ["min", "mean", "max", "p50", "p95", "p99", "p99.9", "p99.99", "p1"] {
            assert_eq!(text.parse::<Statistic>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_statistic_is_refused() {
        for text in ["", "p", "p0", "p100", "p-1", "p1e1", "median", "95", "P95", "pNaN"] {
            assert!(text.parse::<Statistic>().is_err(), "{text:?}");
        }
    }
}
