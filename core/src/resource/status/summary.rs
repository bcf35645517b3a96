//! The numbers of a run in the status: of all tasks, and of each task.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::metrics::LatencyMetric;

/// Counts and response times.
///
/// A response time counts from the planned start of a request. Latencies include successful
/// requests, and timed-out and interrupted requests at their age.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Summary {
    /// Number of completed requests, failed ones included.
    pub requests: u64,
    /// Number of failed requests.
    pub failures: u64,
    /// Number of requests that were in flight when the graceful stop ended. `requests` does not
    /// include them.
    pub interrupted: u64,
    /// Number of arrivals that were not sent: no idle user, or too late. `requests` does
    /// not include them.
    #[serde(skip_serializing_if = "is_zero")]
    pub dropped: u64,
    /// Failed requests and dropped arrivals as a percentage of completed requests and dropped
    /// arrivals.
    pub error_rate: String,
    /// Successful requests that ended while load was on, per second of load.
    pub throughput: String,
    /// Number of responses by HTTP status; with redirects that were followed, by the last one.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub statuses: BTreeMap<String, u64>,
    /// Number of successful chat responses by finish reason; `none` without one.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub finish_reasons: BTreeMap<String, u64>,
    /// Number of WebSocket sessions that the target ended, by close code; 1006 without a close frame.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub web_socket_closes: BTreeMap<String, u64>,
    /// Shortest response time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<String>,
    /// Arithmetic mean of the response time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean: Option<String>,
    /// 50th percentile of the response time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50: Option<String>,
    /// 90th percentile of the response time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p90: Option<String>,
    /// 95th percentile of the response time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p95: Option<String>,
    /// 99th percentile of the response time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99: Option<String>,
    /// 99.9th percentile of the response time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p999: Option<String>,
    /// Longest response time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// One latency of a task.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Latency {
    /// Number of samples.
    pub count: u64,
    /// Arithmetic mean.
    pub mean: String,
    /// 50th percentile.
    pub p50: String,
    /// 95th percentile.
    pub p95: String,
    /// 99th percentile.
    pub p99: String,
    /// Longest sample.
    pub max: String,
}

/// The latencies of a task besides its response time, by the names that thresholds use.
#[derive(Serialize, Clone, Debug, Default, PartialEq)]
pub struct TaskLatencies(BTreeMap<String, Latency>);

/// Skips fields of a newer version that are not latencies.
impl<'de> Deserialize<'de> for TaskLatencies {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Field {
            Latency(Latency),
            Other(serde::de::IgnoredAny),
        }
        let fields = BTreeMap::<String, Field>::deserialize(deserializer)?;
        let latencies = fields.into_iter().filter_map(|(name, field)| match field {
            Field::Latency(latency) => Some((name, latency)),
            Field::Other(_) => None,
        });
        Ok(Self(latencies.collect()))
    }
}

impl TaskLatencies {
    /// True for the latencies that have a field in the status. The response time is in
    /// [`Summary`], and only the CLI shows the service time.
    pub const fn includes(metric: LatencyMetric) -> bool {
        !matches!(metric, LatencyMetric::ResponseTime | LatencyMetric::ServiceTime)
    }

    /// Adds a latency, if it has a field in the status.
    pub fn insert(&mut self, metric: LatencyMetric, latency: Latency) {
        if let Some(judged) = metric.info().judged.filter(|_| Self::includes(metric)) {
            self.0.insert(judged.name.to_owned(), latency);
        }
    }

    /// A latency of the task.
    pub fn get(&self, metric: LatencyMetric) -> Option<&Latency> {
        self.0.get(metric.info().judged?.name)
    }
}

#[cfg(feature = "crd")]
impl schemars::JsonSchema for TaskLatencies {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "TaskLatencies".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let mut properties = serde_json::Map::new();
        for (metric, judged) in LatencyMetric::all_judged().filter(|(m, _)| Self::includes(*m)) {
            let mut schema = Latency::json_schema(generator);
            let info = metric.info();
            let description = format!("{} ({}).", info.description, info.tasks.describe().0);
            schema.insert("description".into(), description.into());
            properties.insert(judged.name.to_owned(), schema.into());
        }
        schemars::json_schema!({"type": "object", "properties": properties})
    }
}

/// The numbers of one task, over all runners.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct TaskSummary {
    /// Name of the task.
    pub name: String,
    /// Counts and response times.
    #[serde(flatten)]
    pub summary: Summary,
    /// Further latencies.
    #[serde(flatten)]
    pub latencies: TaskLatencies,
    /// Tokens of chat tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<TokenSummary>,
    /// Requests that succeeded and met every latency target of the task, as a percentage of all
    /// requests; absent when the task has no latency target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goodput: Option<String>,
    /// Connections that the task's requests opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<ConnectionSummary>,
}

/// Tokens of chat requests, as the target's `usage` counts them. Without `usage` from the target, each
/// event of a stream counts as one token.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct TokenSummary {
    /// Tokens of content.
    pub output: u64,
    /// Tokens of reasoning before the content.
    #[serde(skip_serializing_if = "is_zero")]
    pub reasoning: u64,
    /// Tokens of tool calls.
    #[serde(skip_serializing_if = "is_zero")]
    pub tool: u64,
    /// Tokens of prompts, where the target reports them.
    #[serde(skip_serializing_if = "is_zero")]
    pub prompt: u64,
    /// Generated tokens that came while load was on, per second of load, over all users.
    pub per_second: String,
    /// Tokens per second that one user sees while its response streams: the inverse of the mean
    /// time between two tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_user: Option<String>,
}

/// Connections that a task's requests opened. The times are 95th percentiles.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct ConnectionSummary {
    /// Number of connections opened.
    pub opened: u64,
    /// Number of connections that replaced one which the target or a failure had ended.
    pub reconnects: u64,
    /// Time of the DNS lookup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<String>,
    /// Time of the TCP handshake.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<String>,
    /// Time of the TLS handshake.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<String>,
    /// Time of the WebSocket handshake.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn task_summaries_survive_a_round_trip() {
        let mut summary = TaskSummary { name: "chat".into(), ..TaskSummary::default() };
        let latency = Latency { count: 7, p95: "1s".into(), ..Latency::default() };
        summary.latencies.insert(LatencyMetric::TimeToFirstByte, latency.clone());
        summary.latencies.insert(LatencyMetric::ResponseTime, latency);
        let mut json = serde_json::to_value(&summary).unwrap();
        assert_eq!(json["timeToFirstByte"]["p95"], "1s");
        assert!(json.get("responseTime").is_none());
        // A newer version may add fields of any type.
        json["cost"] = "5".into();
        assert_eq!(serde_json::from_value::<TaskSummary>(json).unwrap(), summary);
    }
}
