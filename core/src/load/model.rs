//! The load model of a validated test.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    resource::Ramp,
    text::count_of,
    values::{Duration, PositiveRate, Rate, Users},
};

/// How much load there is, and for how long.
///
/// In a closed model, each user waits for the response before the next request. In an open model,
/// requests (arrivals) start at a rate, however long the responses take.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub enum LoadModel {
    /// Closed model with a constant number of users.
    Users(UserLoad),
    /// Open model with a constant rate.
    Arrivals(ArrivalLoad),
    /// Closed model with a number of users that changes.
    UserStages(UserStages),
    /// Open model with a rate that changes.
    ArrivalStages(ArrivalStages),
}

/// Users that start one after the other and run to the end.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct UserLoad {
    /// Users at full load, over all runners.
    pub users: Users,
    /// Users that start per second.
    pub spawn_rate: PositiveRate,
    /// Time from the first user's start to the end.
    pub duration: Duration,
}

/// Arrivals at a constant rate.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ArrivalLoad {
    /// Requests that start per second, over all runners.
    pub rate: PositiveRate,
    /// Maximum of requests in flight, over all runners.
    pub max_users: Users,
    /// Time from the first arrival to the end.
    pub duration: Duration,
}

/// A part of a test that changes the load to a level.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Stage<Level> {
    /// How long the stage takes.
    pub duration: Duration,
    /// The load at the end of the stage.
    pub level: Level,
    /// How the load gets there.
    pub ramp: Ramp,
}

/// Stages of a closed model. At least one has users.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(try_from = "Vec<Stage<u32>>", into = "Vec<Stage<u32>>")]
pub struct UserStages {
    stages: Vec<Stage<u32>>,
    peak: Users,
}

impl UserStages {
    /// Stages of a closed model; `None` when no stage has users.
    pub fn new(stages: Vec<Stage<u32>>) -> Option<Self> {
        let peak = stages.iter().filter_map(|stage| Users::new(stage.level)).max()?;
        Some(Self { stages, peak })
    }

    /// The stages in their order.
    pub fn stages(&self) -> &[Stage<u32>] {
        &self.stages
    }
}

impl TryFrom<Vec<Stage<u32>>> for UserStages {
    type Error = &'static str;

    fn try_from(stages: Vec<Stage<u32>>) -> Result<Self, Self::Error> {
        Self::new(stages).ok_or("at least one stage must have users")
    }
}

impl From<UserStages> for Vec<Stage<u32>> {
    fn from(stages: UserStages) -> Self {
        stages.stages
    }
}

/// Stages of an open model. At least one has a rate above zero.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(try_from = "UncheckedArrivalStages", rename_all = "camelCase")]
pub struct ArrivalStages {
    stages: Vec<Stage<Rate>>,
    max_users: Users,
}

/// The fields of [`ArrivalStages`] before their check.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct UncheckedArrivalStages {
    stages: Vec<Stage<Rate>>,
    max_users: Users,
}

impl TryFrom<UncheckedArrivalStages> for ArrivalStages {
    type Error = &'static str;

    fn try_from(unchecked: UncheckedArrivalStages) -> Result<Self, Self::Error> {
        Self::new(unchecked.stages, unchecked.max_users)
            .ok_or("at least one stage must have a rate above zero")
    }
}

impl ArrivalStages {
    /// Stages of an open model with a maximum of requests in flight; `None` when every rate is
    /// zero.
    pub fn new(stages: Vec<Stage<Rate>>, max_users: Users) -> Option<Self> {
        let any = stages.iter().any(|stage| PositiveRate::new(stage.level).is_some());
        any.then_some(Self { stages, max_users })
    }

    /// The stages in their order.
    pub fn stages(&self) -> &[Stage<Rate>] {
        &self.stages
    }

    /// The highest rate.
    fn peak_rate(&self) -> Rate {
        let highest = self.stages.iter().map(|stage| stage.level.value()).fold(0.0, f64::max);
        Rate::per_second(highest)
    }
}

/// The facts about a stage that the judge needs.
#[derive(Clone, Debug, PartialEq)]
pub struct StageLoad {
    /// The load at the end of the stage in words: `250 users`, `40/s`.
    pub label: String,
    /// The load at the end of the stage, in users or arrivals per second.
    pub level: f64,
    /// How long the stage takes.
    pub duration: Duration,
    /// When the stage ends, from the test's start.
    pub end: Duration,
}

impl LoadModel {
    /// Length of the test, without graceful stop.
    pub fn duration(&self) -> Duration {
        match self {
            Self::Users(load) => load.duration,
            Self::Arrivals(load) => load.duration,
            Self::UserStages(_) | Self::ArrivalStages(_) => {
                self.stages().last().map_or(Duration::ZERO, |stage| stage.end)
            }
        }
    }

    /// Maximum of users at once, over all runners.
    pub const fn peak_users(&self) -> Users {
        match self {
            Self::Users(load) => load.users,
            Self::Arrivals(load) => load.max_users,
            Self::UserStages(stages) => stages.peak,
            Self::ArrivalStages(stages) => stages.max_users,
        }
    }

    /// The highest rate of arrivals of an open model; `None` for a closed model.
    pub fn peak_arrival_rate(&self) -> Option<Rate> {
        match self {
            Self::Users(_) | Self::UserStages(_) => None,
            Self::Arrivals(load) => Some(load.rate.get()),
            Self::ArrivalStages(stages) => Some(stages.peak_rate()),
        }
    }

    /// True for an open model.
    pub const fn is_open(&self) -> bool {
        matches!(self, Self::Arrivals(_) | Self::ArrivalStages(_))
    }

    /// The stages in their order, with their ends; none for a constant load.
    pub fn stages(&self) -> Vec<StageLoad> {
        let mut end = Duration::ZERO;
        let mut stage_load = |label: String, level: f64, duration: Duration| {
            end = end.plus(duration);
            StageLoad { label, level, duration, end }
        };
        match self {
            Self::Users(_) | Self::Arrivals(_) => Vec::new(),
            Self::UserStages(load) => {
                let stages = load.stages.iter();
                stages
                    .map(|s| {
                        stage_load(format!("{} users", s.level), f64::from(s.level), s.duration)
                    })
                    .collect()
            }
            Self::ArrivalStages(load) => {
                let stages = load.stages.iter();
                stages
                    .map(|s| stage_load(s.level.to_string(), s.level.value(), s.duration))
                    .collect()
            }
        }
    }
}

/// Writes the load in one line: `200 users at 50/s for 2m`.
impl fmt::Display for LoadModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (duration, peak) = (self.duration(), self.peak_users());
        match self {
            Self::Users(load) => {
                let users = count_of(u64::from(peak.get()), "user");
                write!(f, "{users} at {} for {duration}", load.spawn_rate.get())
            }
            Self::Arrivals(load) => {
                let users = count_of(u64::from(peak.get()), "user");
                write!(f, "{} by up to {users} for {duration}", load.rate.get())
            }
            Self::UserStages(_) | Self::ArrivalStages(_) => {
                let stages = self.stages().len();
                write!(f, "{} up to ", count_of(stages as u64, "stage"))?;
                if let Some(rate) = self.peak_arrival_rate() {
                    write!(f, "{rate} by up to ")?;
                }
                write!(f, "{peak} users, {duration}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::load;

    #[test]
    fn each_model_describes_itself() {
        for (yaml, text, peak, open) in [
            ("{users: 200, spawnRate: 50, duration: 2m}", "200 users at 50/s for 2m", 200, false),
            (
                "{arrivalRate: 50/s, maxUsers: 80, duration: 2m}",
                "50/s by up to 80 users for 2m",
                80,
                true,
            ),
            (
                "{stages: [{duration: 1m, users: 50}, {duration: 30s, users: 10, ramp: Step}]}",
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
            let found = (load.to_string(), load.peak_users().get(), load.is_open());
            assert_eq!(found, (text.to_owned(), peak, open));
        }
    }

    #[test]
    fn stages_end_one_after_the_other() {
        let ends: Vec<_> =
            load("{stages: [{duration: 1m, users: 50}, {duration: 30s, users: 10}]}")
                .stages()
                .into_iter()
                .map(|stage| (stage.label, stage.end))
                .collect();
        let expected = [
            ("50 users".to_owned(), Duration::from_secs(60)),
            ("10 users".to_owned(), Duration::from_secs(90)),
        ];
        assert_eq!(ends, expected);
    }

    #[test]
    fn a_load_of_nothing_can_not_be_built() {
        let stage = |level| Stage { duration: Duration::from_secs(1), level, ramp: Ramp::Linear };
        assert_eq!(UserStages::new(vec![stage(0)]), None);
        assert!(serde_json::from_str::<UserStages>("[]").is_err());
        let idle = Stage {
            duration: Duration::from_secs(1),
            level: Rate::per_second(0.0),
            ramp: Ramp::Linear,
        };
        assert_eq!(ArrivalStages::new(vec![idle], Users::ONE), None);
        let empty = r#"{"stages": [], "maxUsers": 1}"#;
        assert!(serde_json::from_str::<ArrivalStages>(empty).is_err());
    }
}
