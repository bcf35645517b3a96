//! The thresholds of a spec: what must hold for a test to pass.

use std::{fmt, num::NonZeroU32, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::{
    metrics::{Metric, Statistic},
    values::{Bound, Duration},
};

/// One row of the table that a test is judged by.
///
/// The fields `task`, `metric`, `statistic` and `window` identify a row.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "crd", schemars(extend("x-kubernetes-validations" = rules())))]
pub struct Threshold {
    /// Name of the task to judge. Default: all tasks together.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "empty_as_none")]
    #[cfg_attr(feature = "crd", schemars(schema_with = "task_name"))]
    pub task: Option<String>,
    /// The metric to judge. The documentation describes each metric: docs/loadtest.md.
    pub metric: Metric,
    /// Statistic of a latency: min, mean, max, or a percentile such as p50, p95 or p99.9. Other
    /// metrics have none.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "empty_as_none")]
    #[cfg_attr(feature = "crd", schemars(schema_with = "statistic_or_none"))]
    pub statistic: Option<Statistic>,
    /// Bound of a Pass, such as "< 500ms".
    pub target: Bound,
    /// Bound of a Warning: the row is a Warning if it meets this bound and misses the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<Bound>,
    /// Bound of Critical, such as "> 5s". A row that meets no bound is a Fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub critical: Option<Bound>,
    /// Length of rolling windows, such as 30s. The row judges the worst window. Default: the row
    /// judges the whole test.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "empty_as_none")]
    #[cfg_attr(feature = "crd", schemars(schema_with = "window_length"))]
    pub window: Option<Duration>,
    /// Stops the load on all runners once the critical bound is met.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort: Option<Abort>,
    /// Minimum number of samples; with fewer, the row is Inconclusive. Default: 5/(1−p) for a
    /// percentile p, else 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(range(min = 1)))]
    pub min_samples: Option<NonZeroU32>,
}

/// When a critical bound stops the load.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Abort {
    /// Earliest time of an abort, from the start of the load.
    #[serde(default)]
    #[cfg_attr(feature = "crd", schemars(schema_with = "abort_delay"))]
    pub after: Duration,
    /// Time for which the critical bound must be met without a break before the test is aborted.
    #[serde(default, rename = "for")]
    #[cfg_attr(feature = "crd", schemars(schema_with = "abort_delay"))]
    pub lasting: Duration,
}

/// The API server needs a value for each key of a list map: an empty text stands for none.
fn empty_as_none<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    match Option::<String>::deserialize(deserializer)?.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(de::Error::custom),
    }
}

#[cfg(feature = "crd")]
fn task_name(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "string", "maxLength": 63, "default": ""})
}

#[cfg(feature = "crd")]
fn statistic_or_none(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "string",
        "maxLength": 8,
        "default": "",
        "x-kubernetes-validations": [{
            "rule": "self == '' || (self.matches('^(min|mean|max|p[0-9]{1,2}([.][0-9]{1,3})?)$') && !self.matches('^p0*([.]0*)?$'))",
            "messageExpression": "'\"' + self + '\" is not a statistic: use min, mean, max or a percentile such as p50, p95 or p99.9'",
        }],
    })
}

#[cfg(feature = "crd")]
fn window_length(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let mut schema = crate::values::optional_schema_between("5s", "1h");
    schema.insert("default".into(), "".into());
    schema
}

#[cfg(feature = "crd")]
fn abort_delay(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    crate::values::schema_between("0s", "168h")
}

/// CEL rules on several fields of a threshold. At most one of them fails for one mistake.
#[cfg(feature = "crd")]
fn rules() -> serde_json::Value {
    use crate::metrics::Unit;

    /// The number of a bound: the bound without its comparison, spaces and unit.
    fn number_of(bound: &str) -> String {
        let kept = ["<", ">", "=", " ", "%", "/s"];
        kept.iter().fold(bound.to_owned(), |text, cut| format!("{text}.replace('{cut}', '')"))
    }
    /// A CEL test for the metrics that a condition selects.
    fn is_one_of(select: impl Fn(Metric) -> bool) -> String {
        let names: Vec<_> = Metric::all().filter(|metric| select(*metric)).collect();
        let names: Vec<_> = names.iter().map(|metric| format!("'{}'", metric.as_str())).collect();
        format!("self.metric in [{}]", names.join(", "))
    }
    const TARGET: &str = "self.target";
    const WARNING: &str = "(has(self.warning) ? self.warning : self.target)";
    const CRITICAL: &str =
        "(has(self.critical) ? self.critical : has(self.warning) ? self.warning : self.target)";
    let is_percent = is_one_of(|metric| metric.unit() == Unit::Percent);
    let is_rate = is_one_of(|metric| metric.unit() == Unit::Rate);
    let is_higher_better = is_one_of(Metric::is_higher_better);
    let all = format!("[{TARGET}, {WARNING}, {CRITICAL}]");
    let (target, warning, critical) = (number_of(TARGET), number_of(WARNING), number_of(CRITICAL));
    // A duration ends in s, m or h, and a rate in `/s`.
    let in_unit = format!(
        "{all}.all(b, b.endsWith('%') ? {is_percent} : b.endsWith('/s') ? {is_rate} : !({is_percent} || {is_rate}))"
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
        "!({in_unit}) || ({is_higher_better} ? (!({numbers}) || ({falling})) : \
         self.metric == 'errorRate' ? (!({numbers}) || ({})) : (!({durations}) || ({})))",
        rising("double"),
        rising("duration"),
    );
    serde_json::json!([
        {
            "rule": format!("self.statistic != '' || {is_percent} || {is_rate}"),
            "messageExpression": "'statistic is missing: ' + self.metric + ' needs one of min, mean, p50, p90, p95, p99, p99.9, max'",
        },
        {
            "rule": format!("self.statistic == '' || !({is_percent} || {is_rate})"),
            "messageExpression": "'statistic: ' + self.metric + ' is a single number without statistics: remove it'",
        },
        {
            "rule": in_unit,
            "messageExpression": format!("self.metric + ' is bounded by ' + ({is_percent} ? 'a percentage, such as \"' + ({is_higher_better} ? '> 99%' : '< 0.1%') + '\"' : {is_rate} ? 'a rate, such as \"> 10/s\"' : 'a duration, such as \"< 500ms\"') + ': write target, warning and critical in this unit'"),
        },
        {
            "rule": format!("self.target.startsWith({is_higher_better} ? '>' : '<') && (!has(self.warning) || self.warning.startsWith({is_higher_better} ? '>' : '<'))"),
            "messageExpression": format!("'target and warning of ' + self.metric + ' limit the good values: start them with ' + ({is_higher_better} ? '>' : '<')"),
        },
        {
            "rule": format!("!has(self.critical) || self.critical.startsWith({is_higher_better} ? '<' : '>')"),
            "messageExpression": format!("'critical of ' + self.metric + ' limits the bad values: start it with ' + ({is_higher_better} ? '<' : '>')"),
        },
        {
            "rule": "!has(self.abort) || has(self.critical)",
            "message": "abort stops the test once critical is met, and critical is missing: add critical, or remove abort",
        },
        {
            "rule": ordered,
            "messageExpression": "'target \"' + self.target + '\" must be the strictest bound' + (has(self.warning) ? ', then warning \"' + self.warning + '\"' : '') + (has(self.critical) ? ', then critical \"' + self.critical + '\"' : '')",
        },
    ])
}

/// Identifies a threshold and its row in the status.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ThresholdKey {
    /// Name of the judged task; absent for all tasks together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// The judged metric.
    pub metric: String,
    /// The statistic of a latency.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statistic: Option<String>,
    /// Length of the rolling windows; absent when the row judges the whole test.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<String>,
}

/// Writes the row's name: `chat timeToFirstResponse p95 over 30s`.
impl fmt::Display for ThresholdKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(task) = &self.task {
            write!(f, "{task} ")?;
        }
        f.write_str(&self.metric)?;
        if let Some(statistic) = &self.statistic {
            write!(f, " {statistic}")?;
        }
        match &self.window {
            Some(window) => write!(f, " over {window}"),
            None => Ok(()),
        }
    }
}

impl Threshold {
    /// The fields that identify this threshold.
    pub fn key(&self) -> ThresholdKey {
        ThresholdKey {
            task: self.task.clone(),
            metric: self.metric.as_str().to_owned(),
            statistic: self.statistic.as_ref().map(ToString::to_string),
            window: self.window.as_ref().map(ToString::to_string),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_keys_stand_for_none() {
        let threshold: Threshold = serde_json::from_str(
            r#"{"task": "", "metric": "errorRate", "statistic": "", "window": "", "target": "< 1%"}"#,
        )
        .unwrap();
        assert_eq!(threshold.key().to_string(), "errorRate");
        let json = serde_json::to_string(&threshold).unwrap();
        assert_eq!(json, r#"{"metric":"errorRate","target":"< 1%"}"#);
    }

    #[test]
    fn rows_are_named_by_their_key() {
        let threshold: Threshold = serde_json::from_str(
            r#"{"task": "chat", "metric": "responseTime", "statistic": "p95", "window": "30s", "target": "< 1s"}"#,
        )
        .unwrap();
        assert_eq!(threshold.key().to_string(), "chat responseTime p95 over 30s");
    }
}
