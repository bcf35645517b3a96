//! How much load, for how long: by users who wait for their answers (closed), or by
//! arrivals that wait for nobody (open); constant, or in stages.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::values::{Duration, Rate, schema_between};

/// How much load, for how long. One of `users`, `arrivalRate` and `stages`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "(has(self.users) ? 1 : 0) + (has(self.arrivalRate) ? 1 : 0) + (has(self.stages) ? 1 : 0) == 1",
        "message": "give exactly one of users (with spawnRate and duration), arrivalRate (with maxUsers and duration) and stages",
    },
    {
        "rule": "has(self.spawnRate) || !has(self.users)",
        "message": "spawnRate is missing: the number of users started per second, such as 50",
    },
    {
        "rule": "has(self.users) || !has(self.spawnRate)",
        "message": "spawnRate goes with users alone: stages say themselves how load grows, and arrivals are not users; remove it",
    },
    {
        "rule": "has(self.duration) || has(self.stages)",
        "message": "duration is missing: a number with a unit, such as 2m",
    },
    {
        "rule": "!has(self.duration) || !has(self.stages)",
        "message": "duration and stages exclude each other: stages last as long as their durations together; remove duration",
    },
    {
        "rule": "has(self.maxUsers) || !(has(self.arrivalRate) || (has(self.stages) && self.stages.exists(s, has(s.rate))))",
        "message": "maxUsers is missing: the most requests that may be open at once, such as 100",
    },
    {
        "rule": "!has(self.maxUsers) || has(self.arrivalRate) || (has(self.stages) && self.stages.exists(s, has(s.rate)))",
        "message": "maxUsers goes with arrivalRate, or stages with a rate: remove it, or say users",
    },
    {
        "rule": "!has(self.stages) || self.stages.all(s, has(s.users)) || self.stages.all(s, has(s.rate))",
        "message": "stages must all have users (and no rate), or all have a rate (and no users)",
    },
    {
        "rule": "!has(self.arrivalRate) || !self.arrivalRate.matches('^0*([.]0*)?/s$')",
        "message": "arrivalRate must be above 0/s",
    },
    {
        "rule": "!has(self.stages) || self.stages.exists(s, has(s.users) ? s.users > 0 : has(s.rate) && !s.rate.matches('^0*([.]0*)?/s$'))",
        "message": "every stage ends at 0: give at least one users or a rate above 0",
    },
]))]
pub struct Load {
    /// Closed model: users at full load, over all runners; each waits for its answer before it
    /// goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub users: Option<i64>,
    /// Users started per second until all run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100_000), extend("x-kubernetes-validations" = [{
        "rule": "self > 0.0",
        "message": "must be above 0: the number of users started per second, such as 50",
    }]))]
    pub spawn_rate: Option<f64>,
    /// Open model: requests begun per second over all runners, such as 50/s, however long the
    /// answers take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arrival_rate: Option<Rate>,
    /// Open model: the most requests open at once, over all runners. An arrival that finds no
    /// user free is dropped, and counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_users: Option<i64>,
    /// Length of the test, counted from the first user's start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "test_length")]
    pub duration: Option<Duration>,
    /// Load that changes: one stage after the other, from 0 on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64))]
    pub stages: Vec<Stage>,
    /// How long requests still open at the end may take before they count as interrupted.
    #[serde(default = "default_graceful_stop")]
    #[schemars(schema_with = "graceful_stop_length")]
    pub graceful_stop: Duration,
}

/// A part of a test in which load goes to a number of users, or to a rate.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.users) != has(self.rate)",
    "message": "a stage has either users or a rate",
}]))]
pub struct Stage {
    /// How long it takes.
    #[schemars(schema_with = "test_length")]
    pub duration: Duration,
    /// Closed model: users at its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub users: Option<i64>,
    /// Open model: requests begun per second at its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// How load gets there: evenly over the stage, or at once at its start.
    #[serde(default)]
    pub ramp: Ramp,
}

/// How a stage's load is reached.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Ramp {
    /// Evenly, from the load before it to its own at its end.
    #[default]
    Linear,
    /// At once: its own from its start on.
    Step,
}

impl Load {
    /// Length of the test, without graceful stop.
    pub fn length(&self) -> Duration {
        match self.duration {
            Some(duration) if self.stages.is_empty() => duration,
            _ => self.stages.iter().fold(Duration::ZERO, |sum, stage| sum.plus(stage.duration)),
        }
    }

    /// The most users at once, over all runners.
    pub fn peak_users(&self) -> i64 {
        let of_stages = || self.stages.iter().filter_map(|stage| stage.users).max();
        self.max_users.or(self.users).or_else(of_stages).unwrap_or(0)
    }

    /// True when arrivals wait for nobody.
    pub fn is_open(&self) -> bool {
        self.arrival_rate.is_some() || self.stages.iter().any(|stage| stage.rate.is_some())
    }
}

/// As people say it: `200 users at 50/s for 2m`.
impl std::fmt::Display for Load {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let length = self.length();
        let peak = self.peak_users();
        if let Some(rate) = self.arrival_rate {
            return write!(f, "{rate} by up to {peak} users for {length}");
        }
        if self.stages.is_empty() {
            let spawn_rate = self.spawn_rate.unwrap_or(0.0);
            return write!(f, "{peak} users at {spawn_rate}/s for {length}");
        }
        let rates = self.stages.iter().filter_map(|stage| stage.rate);
        let highest = rates.max_by(|a, b| a.value().total_cmp(&b.value()));
        let by = highest.map_or_else(String::new, |rate| format!("{rate} by up to "));
        let stages = self.stages.len();
        let plural = if stages == 1 { "" } else { "s" };
        write!(f, "{stages} stage{plural} up to {by}{peak} users, {length}")
    }
}

fn test_length(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schema_between("1s", "168h")
}

fn graceful_stop_length(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schema_between("0s", "1h")
}

fn default_graceful_stop() -> Duration {
    Duration::from_secs(30)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(yaml: &str) -> Load {
        serde_yaml::from_str(yaml).unwrap()
    }

    #[test]
    fn each_model_says_what_it_is() {
        for (yaml, said, peak, open) in [
            ("{users: 200, spawnRate: 50, duration: 2m}", "200 users at 50/s for 2m", 200, false),
            (
                "{arrivalRate: 50/s, maxUsers: 80, duration: 2m}",
                "50/s by up to 80 users for 2m",
                80,
                true,
            ),
            (
                "{stages: [{duration: 1m, users: 50}, {duration: 30s, users: 10, ramp: step}]}",
                "2 stages up to 50 users, 1m30s",
                50,
                false,
            ),
            (
                "{stages: [{duration: 1m, rate: 20/s}], maxUsers: 30}",
                "1 stage up to 20/s by up to 30 users, 1m",
                30,
                true,
            ),
        ] {
            let load = load(yaml);
            let found = (load.to_string(), load.peak_users(), load.is_open());
            assert_eq!(found, (said.to_owned(), peak, open));
        }
    }
}
