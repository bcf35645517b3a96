//! The metrics that thresholds can judge.

use super::{
    latencies::{JudgedLatency, LatencyMetric},
    scope::TaskScope,
};

/// Anything that a threshold can judge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Metric {
    /// A statistic of a latency.
    Latency(LatencyMetric),
    /// Failed requests and dropped arrivals as a percentage of completed requests and dropped
    /// arrivals.
    ErrorRate,
    /// Successful requests per second of load.
    Throughput,
    /// Generated tokens per second of load.
    TokensPerSecond,
    /// Good requests as a percentage of all requests.
    Goodput,
}

/// The unit of a metric's bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A duration: `< 500ms`.
    Duration,
    /// A percentage: `< 0.1%`.
    Percent,
    /// A rate: `> 10/s`.
    Rate,
}

/// A row of the catalogue: one metric that is a single number and not a latency.
#[derive(Clone, Copy, Debug)]
struct SingleInfo {
    metric: Metric,
    name: &'static str,
    unit: Unit,
    higher_is_better: bool,
    tasks: TaskScope,
    description: &'static str,
}

const SINGLES: [SingleInfo; 4] = [
    SingleInfo {
        metric: Metric::ErrorRate,
        name: "errorRate",
        unit: Unit::Percent,
        higher_is_better: false,
        tasks: TaskScope::All,
        description: "Failed requests and dropped arrivals as a percentage of completed requests and dropped arrivals",
    },
    SingleInfo {
        metric: Metric::Throughput,
        name: "throughput",
        unit: Unit::Rate,
        higher_is_better: true,
        tasks: TaskScope::All,
        description: "Successful requests per second of load",
    },
    SingleInfo {
        metric: Metric::TokensPerSecond,
        name: "tokensPerSecond",
        unit: Unit::Rate,
        higher_is_better: true,
        tasks: TaskScope::Chats,
        description: "Tokens that the target generated per second of load",
    },
    SingleInfo {
        metric: Metric::Goodput,
        name: "goodput",
        unit: Unit::Percent,
        higher_is_better: true,
        tasks: TaskScope::All,
        description: "Requests that succeeded and met every latency target of their task, as a percentage of all requests",
    },
];

impl Metric {
    /// Every metric, latencies first.
    pub fn all() -> impl Iterator<Item = Self> {
        let latencies = LatencyMetric::all_judged().map(|(metric, _)| Self::Latency(metric));
        latencies.chain(SINGLES.iter().map(|info| info.metric))
    }

    /// The metric with a name in a spec.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::all().find(|metric| metric.as_str() == name)
    }

    fn single(self) -> Option<&'static SingleInfo> {
        SINGLES.iter().find(|info| info.metric == self)
    }

    fn judged_latency(self) -> Option<JudgedLatency> {
        match self {
            Self::Latency(metric) => metric.info().judged,
            _ => None,
        }
    }

    /// The name in a spec.
    pub fn as_str(self) -> &'static str {
        let latency = self.judged_latency().map(|judged| judged.name);
        latency.or_else(|| self.single().map(|info| info.name)).unwrap_or_default()
    }

    /// A description of the metric: one sentence without a period.
    pub fn description(self) -> &'static str {
        match self {
            Self::Latency(metric) => metric.info().description,
            _ => self.single().map_or("", |info| info.description),
        }
    }

    /// Why successful requests have no sample of this metric; `None` if that can't be.
    pub const fn why_no_samples(self) -> Option<&'static str> {
        match self {
            Self::Latency(LatencyMetric::InterTokenLatency | LatencyMetric::TimePerOutputToken) => {
                Some("no response had a second token, so there is no time between tokens")
            }
            Self::Latency(LatencyMetric::TimeToFirstToken) => Some("no response had a token"),
            Self::Latency(LatencyMetric::TimeToFirstResponse) => {
                Some("no response had a token of content: see the finish reasons")
            }
            _ => None,
        }
    }

    /// The unit of the metric's bounds.
    pub fn unit(self) -> Unit {
        self.single().map_or(Unit::Duration, |info| info.unit)
    }

    /// True for a rate, which is lower when runners are missing.
    pub fn is_rate(self) -> bool {
        matches!(self, Self::Throughput | Self::TokensPerSecond)
    }

    /// True when a larger value is better.
    pub fn is_higher_better(self) -> bool {
        self.single().is_some_and(|info| info.higher_is_better)
    }

    /// The tasks that the metric is measured on.
    pub fn tasks(self) -> TaskScope {
        match self {
            Self::Latency(metric) => metric.info().tasks,
            _ => self.single().map_or(TaskScope::All, |info| info.tasks),
        }
    }
}

impl serde::Serialize for Metric {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> serde::Deserialize<'de> for Metric {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::from_name(&name).ok_or_else(|| {
            let known: Vec<_> = Self::all().map(Self::as_str).collect();
            let known = known.join(", ");
            serde::de::Error::custom(format!("{name:?} is not a metric: use one of {known}"))
        })
    }
}

#[cfg(feature = "crd")]
impl schemars::JsonSchema for Metric {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Metric".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let names: Vec<_> = Self::all().map(Self::as_str).collect();
        schemars::json_schema!({"type": "string", "enum": names})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_one_name() {
        for metric in Metric::all() {
            assert_eq!(Metric::from_name(metric.as_str()), Some(metric));
            assert!(!metric.description().is_empty());
        }
        let unknown = serde_json::from_str::<Metric>("\"latency\"").unwrap_err().to_string();
        assert!(unknown.contains("use one of responseTime, serviceTime"), "{unknown}");
    }
}
