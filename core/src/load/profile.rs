//! How load changes over time: the stages of a test and their ramps. Pure.
//!
//! A profile is a chain of straight segments, of users or of a rate. The module `spawn_rate` says
//! when each user runs, and the module `arrivals` when each arrival is due.

use super::model::{LoadModel, Stage};
use crate::{resource::Ramp, values::Rate};

/// One straight segment, in seconds from the test's start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Segment {
    pub(super) start: f64,
    pub(super) end: f64,
    pub(super) start_level: f64,
    pub(super) end_level: f64,
}

/// The level of a load over time: users of a closed model, a rate per second of an open one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadProfile {
    pub(super) segments: Vec<Segment>,
}

impl Segment {
    pub(super) fn slope(&self) -> f64 {
        (self.end_level - self.start_level) / (self.end - self.start)
    }

    pub(super) fn area(&self) -> f64 {
        f64::midpoint(self.start_level, self.end_level) * (self.end - self.start)
    }

    /// The level at a time within the segment.
    fn level_at(&self, time: f64) -> f64 {
        self.start_level + self.slope() * (time - self.start)
    }

    /// The time at which the segment reaches a level within its range.
    pub(super) fn time_of_level(&self, level: f64) -> f64 {
        self.start + (level - self.start_level) / self.slope()
    }
}

impl LoadProfile {
    /// The profile of a load model.
    pub fn of(load: &LoadModel) -> Self {
        let mut profile = Self::default();
        match load {
            LoadModel::Users(load) => profile.push_users(load),
            LoadModel::Arrivals(load) => {
                let rate = load.rate.get().value();
                profile.push_segment(load.duration.as_secs_f64(), rate, rate);
            }
            LoadModel::UserStages(load) => {
                profile.push_stages(load.stages(), f64::from);
            }
            LoadModel::ArrivalStages(load) => {
                profile.push_stages(load.stages(), Rate::value);
            }
        }
        profile
    }

    fn push_stages<Level: Copy>(&mut self, stages: &[Stage<Level>], value: fn(Level) -> f64) {
        let mut level = 0.0;
        for stage in stages {
            let end_level = value(stage.level);
            let start_level = match stage.ramp {
                Ramp::Linear => level,
                Ramp::Step => end_level,
            };
            self.push_segment(stage.duration.as_secs_f64(), start_level, end_level);
            level = end_level;
        }
    }

    pub(super) fn push_segment(&mut self, length: f64, start_level: f64, end_level: f64) {
        let start = self.segments.last().map_or(0.0, |segment| segment.end);
        if length > 0.0 {
            self.segments.push(Segment { start, end: start + length, start_level, end_level });
        }
    }

    /// The mean level from `start` to `end`, in seconds from the test's start; the level at `end` if
    /// both are equal. The level after the end of the test is 0.
    pub fn mean_level(&self, start: f64, end: f64) -> f64 {
        if end <= start {
            let segment = self.segments.iter().find(|segment| end < segment.end);
            return segment.map_or(0.0, |segment| segment.level_at(end));
        }
        let area = self.segments.iter().map(|segment| {
            let (from, to) = (start.max(segment.start), end.min(segment.end));
            let middle = f64::midpoint(from, to);
            if from < to { segment.level_at(middle) * (to - from) } else { 0.0 }
        });
        area.sum::<f64>() / (end - start)
    }
}

impl LoadModel {
    /// The plan of a load model: user-seconds of a closed model, arrivals of an open one.
    pub fn planned_work(&self) -> f64 {
        let profile = LoadProfile::of(self);
        if self.is_open() {
            return profile.arrival_count() as f64;
        }
        let users = 0..u64::from(self.peak_users().get());
        let intervals = users.flat_map(|user| profile.active_intervals(user));
        intervals.map(|(start, end)| end.minus(start).as_secs_f64()).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::values::Duration;

    fn profile(yaml: &str) -> LoadProfile {
        LoadProfile::of(&crate::testing::load(yaml))
    }

    fn to_millis(intervals: &[(Duration, Duration)]) -> Vec<(f64, f64)> {
        intervals.iter().map(|(a, b)| (a.as_millis_f64(), b.as_millis_f64())).collect()
    }

    #[test]
    fn users_pause_between_stages() {
        let profile = profile(
            "{stages: [{duration: 1s, users: 10}, {duration: 1s, users: 0}, {duration: 1s, users: 10, ramp: Step}]}",
        );
        assert_eq!(to_millis(&profile.active_intervals(5)), [(500.0, 1500.0), (2000.0, 3000.0)]);
        for (start, end, mean) in
            [(0.5, 0.5, 5.0), (2.0, 2.0, 10.0), (0.0, 1.0, 5.0), (0.5, 1.5, 7.5), (2.5, 3.5, 5.0)]
        {
            assert!((profile.mean_level(start, end) - mean).abs() < 1e-9, "{start} to {end}");
        }
    }

    #[test]
    fn planned_user_seconds_include_the_ramp() {
        let planned = |users: u32| {
            crate::testing::load(&format!("{{users: {users}, spawnRate: 1, duration: 10s}}"))
                .planned_work()
        };
        assert!((planned(3) - 27.0).abs() < 1e-9);
        // Users that would start after the end never run.
        assert!((planned(1000) - 55.0).abs() < 1e-9);
    }

    fn stages() -> impl Strategy<Value = Vec<(u32, u32, bool)>> {
        let stage = (1_u32..20, 0_u32..60, any::<bool>());
        prop::collection::vec(stage, 1..6)
            .prop_filter("some load", |stages| stages.iter().any(|(_, level, _)| *level > 0))
    }

    fn of_stages(stages: &[(u32, u32, bool)], unit: &str) -> LoadProfile {
        let texts: Vec<String> = stages
            .iter()
            .map(|(seconds, level, step)| {
                let ramp = if *step { "Step" } else { "Linear" };
                format!(
                    "{{duration: {seconds}s, {}, ramp: {ramp}}}",
                    unit.replace('#', &level.to_string())
                )
            })
            .collect();
        profile(&format!("{{maxUsers: 1, stages: [{}]}}", texts.join(", ")))
    }

    proptest! {
        #[test]
        fn any_split_of_arrivals_adds_up_to_all(stages in stages(), runners in 1_u64..7) {
            let profile = of_stages(&stages, "rate: '#/s'");
            let all: Vec<_> = profile.arrivals(0, 1).collect();
            prop_assert_eq!(all.len() as u64, profile.arrival_count());
            prop_assert!(all.windows(2).all(|pair| pair[0].1 <= pair[1].1));
            let mut merged: Vec<_> = (0..runners).flat_map(|i| profile.arrivals(i, runners)).collect();
            merged.sort_unstable();
            prop_assert_eq!(merged, all);
        }

        #[test]
        fn running_users_follow_the_level(stages in stages(), at in 0.0_f64..100.0) {
            let profile = of_stages(&stages, "users: #");
            let time = Duration::from_secs_f64(at);
            let running = (0..60)
                .filter(|user| profile.active_intervals(*user).iter().any(|(a, b)| *a <= time && time < *b))
                .count();
            prop_assert!((running as f64 - profile.mean_level(time.as_secs_f64(), time.as_secs_f64())).abs() <= 1.0 + 1e-6);
        }

        #[test]
        fn users_start_in_number_order(stages in stages()) {
            let profile = of_stages(&stages, "users: #");
            let starts: Vec<_> = (0..60).filter_map(|u| Some(profile.active_intervals(u).first()?.0)).collect();
            prop_assert!(starts.windows(2).all(|pair| pair[0] <= pair[1]));
        }
    }
}
