//! The plan: what the operator, or the CLI, tells every runner of a test.
//!
//! [`crate::sizing`] turns a spec into it; a runner's share and every user's schedule follow from
//! it alone. All pure.

use serde::{Deserialize, Serialize};

use crate::{
    profile::Profile,
    resource::{Load, Metric, Scenario, Target, Threshold},
    values::{Duration, Quantity},
};

/// The plan's format; a runner refuses another one.
pub const VERSION: u32 = 2;

/// What a runner needs to know. The same for all runners of a test.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// [`VERSION`].
    pub version: u32,
    /// UID of the `LoadTest`, sent to the target as `x-loadtest-run`.
    pub run: String,
    /// Name of the `LoadTest`: the `loadtest` label of every metric.
    pub name: String,
    /// Runners there are.
    pub runners: u32,
    /// Load-generating threads of one runner.
    pub workers: u32,
    /// SHA-256 of the run's token in hex: orders must come with the token.
    pub token_sha256: String,
    /// Where the load goes.
    pub target: Target,
    /// How much load.
    pub load: Load,
    /// What each user does.
    pub scenario: Scenario,
    /// What the test is judged by: says which requests are good.
    #[serde(default)]
    pub thresholds: Vec<Threshold>,
    /// How long a runner waits to be released after its end.
    pub release_grace: Duration,
    /// How long a released runner goes on serving its metrics.
    pub metrics_linger: Duration,
}

impl Plan {
    /// The numbers of the users that a runner has, by its index: *u* belongs to *u mod n*,
    /// so that the ramp is even over runners.
    pub fn users_of(&self, index: u32) -> impl Iterator<Item = u64> + use<> {
        let users = u64::try_from(self.load.peak_users()).unwrap_or(0);
        (u64::from(index)..users).step_by(self.runners.max(1) as usize)
    }
}

/// What a request of a task has to keep to be a good one: of each kind of latency the laxest
/// target of the rows that judge it, as the target of a high percentile is what most must meet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Goals {
    /// From planned to the last byte.
    pub response: Option<Duration>,
    /// From sent to the last byte.
    pub service: Option<Duration>,
    /// From planned to the first content token.
    pub first: Option<Duration>,
    /// The mean time between two tokens.
    pub inter_token: Option<Duration>,
    /// From sent to the first byte.
    pub first_byte: Option<Duration>,
    /// From the start of a WebSocket's connection to its upgrade.
    pub connect: Option<Duration>,
}

impl Goals {
    /// The goals of a task's requests.
    pub fn of(thresholds: &[Threshold], task: &str) -> Self {
        let mut goals = Self::default();
        for threshold in thresholds {
            let judges = threshold.task.as_ref().is_none_or(|judged| judged == task);
            let Quantity::Time(target) = threshold.target.quantity else { continue };
            let goal = match threshold.metric {
                Metric::ResponseTime => &mut goals.response,
                Metric::ServiceTime => &mut goals.service,
                Metric::TimeToFirstResponse => &mut goals.first,
                Metric::InterTokenLatency => &mut goals.inter_token,
                Metric::TimeToFirstByte => &mut goals.first_byte,
                Metric::WebSocketConnect => &mut goals.connect,
                // A message's is no request's.
                Metric::WebSocketRoundTrip
                | Metric::ErrorRate
                | Metric::Throughput
                | Metric::TokensPerSecond
                | Metric::Goodput => continue,
            };
            if judges {
                *goal = Some(goal.map_or(target, |before| before.max(target)));
            }
        }
        goals
    }

    /// True when any request that succeeds is good.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The environment variable of a runner with the value of `target.headersFrom[index]`.
pub fn header_variable(index: usize) -> String {
    format!("LOADTEST_HEADER_{index}")
}

/// User-seconds of a closed load: each user's time, over all its runs.
pub fn user_seconds(load: &Load) -> f64 {
    let profile = Profile::of(load);
    let users = u64::try_from(load.peak_users()).unwrap_or(0);
    let runs = (0..users).flat_map(|user| profile.runs_of(user));
    runs.map(|(start, end)| end.minus(start).as_secs_f64()).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{sizing::size, testing::spec};

    fn plan(users: i64, per_runner: i64) -> Plan {
        let mut spec = spec();
        spec.load.users = Some(users);
        spec.runners.users_per_runner = Some(per_runner);
        let sizing = size(&spec);
        Plan {
            version: VERSION,
            run: "uid".into(),
            name: "test".into(),
            runners: u32::try_from(sizing.runners).unwrap(),
            workers: 1,
            token_sha256: String::new(),
            target: spec.target,
            load: spec.load,
            scenario: spec.scenario,
            thresholds: spec.thresholds,
            release_grace: Duration::ZERO,
            metrics_linger: Duration::ZERO,
        }
    }

    #[test]
    fn a_good_request_meets_the_laxest_target_of_each_kind() {
        let rows: Vec<Threshold> = serde_yaml::from_str(
            r#"
- {task: chat, metric: timeToFirstResponse, statistic: p50, target: "< 500ms"}
- {task: chat, metric: timeToFirstResponse, statistic: p95, target: "< 1s"}
- {metric: responseTime, statistic: p99, target: "< 3s"}
- {task: health, metric: responseTime, statistic: p99, target: "< 50ms"}
- {metric: errorRate, target: "< 1%"}
"#,
        )
        .unwrap();
        let goals = Goals::of(&rows, "chat");
        assert_eq!(goals.first, Some(Duration::from_secs(1)));
        assert_eq!((goals.response, goals.service), (Some(Duration::from_secs(3)), None));
        assert_eq!(Goals::of(&rows, "health").first, None);
        assert!(Goals::of(&rows[4..], "chat").is_empty());
    }

    #[test]
    fn planned_user_seconds_count_the_ramp() {
        let mut spec = spec();
        (spec.load.users, spec.load.spawn_rate) = (Some(3), Some(1.0));
        spec.load.duration = Some(Duration::from_secs(10));
        assert!((user_seconds(&spec.load) - 27.0).abs() < 1e-9);
        // Users that would start after the end never run.
        spec.load.users = Some(1000);
        assert!((user_seconds(&spec.load) - 55.0).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn every_user_belongs_to_exactly_one_runner(users in 1_i64..3000, per_runner in 1_i64..500) {
            let plan = plan(users, per_runner);
            let mut all: Vec<u64> = (0..plan.runners).flat_map(|i| plan.users_of(i)).collect();
            all.sort_unstable();
            prop_assert!(all.iter().copied().eq(0..users.cast_unsigned()));
            for index in 0..plan.runners {
                let share = plan.users_of(index).count().cast_signed() as i64;
                prop_assert!(share >= 1 && share <= per_runner, "{share} of {per_runner}");
            }
        }
    }
}
