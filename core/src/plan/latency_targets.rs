//! The latency targets that make a request a good one.

use crate::{
    metrics::{LatencyMetric, Metric},
    resource::Threshold,
    values::{Duration, Quantity},
};

/// The latencies that a good request of a task must not exceed. If several thresholds judge one
/// metric, the largest target counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LatencyTargets {
    targets: [Option<Duration>; LatencyMetric::COUNT],
}

impl LatencyTargets {
    /// The targets of a task's requests.
    pub fn of_task(thresholds: &[Threshold], task: &str) -> Self {
        let mut targets = Self::default();
        for threshold in thresholds {
            let Metric::Latency(metric) = threshold.metric else { continue };
            let Quantity::Time(target) = threshold.target.quantity else { continue };
            // A round trip is that of a message, and a request can have many messages.
            if metric == LatencyMetric::WebSocketRoundTrip {
                continue;
            }
            if threshold.task.as_ref().is_none_or(|judged| judged == task) {
                let current = &mut targets.targets[metric as usize];
                *current = Some(current.map_or(target, |before| before.max(target)));
            }
        }
        targets
    }

    /// The target of a metric.
    pub const fn get(&self, metric: LatencyMetric) -> Option<Duration> {
        self.targets[metric as usize]
    }

    /// True when every successful request is a good one.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_request_meets_the_largest_target_of_each_metric() {
        let rows: Vec<Threshold> = crate::testing::yaml(
            r#"
- {task: chat, metric: timeToFirstResponse, statistic: p50, target: "< 500ms"}
- {task: chat, metric: timeToFirstResponse, statistic: p95, target: "< 1s"}
- {metric: responseTime, statistic: p99, target: "< 3s"}
- {task: health, metric: responseTime, statistic: p99, target: "< 50ms"}
- {metric: errorRate, target: "< 1%"}
"#,
        );
        let chat = LatencyTargets::of_task(&rows, "chat");
        assert_eq!(chat.get(LatencyMetric::TimeToFirstResponse), Some(Duration::from_secs(1)));
        assert_eq!(chat.get(LatencyMetric::ResponseTime), Some(Duration::from_secs(3)));
        assert_eq!(chat.get(LatencyMetric::ServiceTime), None);
        let health = LatencyTargets::of_task(&rows, "health");
        assert_eq!(health.get(LatencyMetric::TimeToFirstResponse), None);
        assert!(LatencyTargets::of_task(&rows[4..], "chat").is_empty());
    }
}
