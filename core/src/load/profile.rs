//! How load changes over time: when each user runs, and when arrivals are due. Pure.
//!
//! A profile is a chain of straight segments, of users or of a rate. User *u* of a closed model
//! (from 0) runs while the level is above *u*. Arrival *k* of an open model (from 0) is due when
//! the integral of the rate reaches *k*.

use super::model::{LoadModel, Stage};
use crate::{
    resource::Ramp,
    values::{Duration, Rate},
};

/// One straight segment, in seconds from the test's start.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Segment {
    start: f64,
    end: f64,
    start_level: f64,
    end_level: f64,
}

/// The level of a load over time: users of a closed model, a rate per second of an open one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadProfile {
    segments: Vec<Segment>,
}

impl Segment {
    fn slope(&self) -> f64 {
        (self.end_level - self.start_level) / (self.end - self.start)
    }

    fn area(&self) -> f64 {
        f64::midpoint(self.start_level, self.end_level) * (self.end - self.start)
    }

    /// The time at which the segment reaches a level within its range.
    fn time_of_level(&self, level: f64) -> f64 {
        self.start + (level - self.start_level) / self.slope()
    }
}

impl LoadProfile {
    /// The profile of a load model.
    pub fn of(load: &LoadModel) -> Self {
        let mut profile = Self::default();
        match load {
            LoadModel::Users(load) => {
                let length = load.duration.as_secs_f64();
                let (users, rate) = (f64::from(load.users.get()), load.spawn_rate.get().value());
                let ramp = users / rate;
                if ramp < length {
                    profile.push_segment(ramp, 0.0, users);
                    profile.push_segment(length - ramp, users, users);
                } else {
                    profile.push_segment(length, 0.0, rate * length);
                }
            }
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

    fn push_segment(&mut self, length: f64, start_level: f64, end_level: f64) {
        let start = self.segments.last().map_or(0.0, |segment| segment.end);
        if length > 0.0 {
            self.segments.push(Segment { start, end: start + length, start_level, end_level });
        }
    }

    /// The level at a time: at a step the later level, and 0 after the end.
    #[cfg(test)]
    fn level_at(&self, time: Duration) -> f64 {
        let time = time.as_secs_f64();
        let segment = self.segments.iter().find(|segment| time < segment.end);
        segment
            .map_or(0.0, |segment| segment.start_level + segment.slope() * (time - segment.start))
    }

    /// The number of arrivals of an open model in the whole test.
    pub fn arrival_count(&self) -> u64 {
        let area: f64 = self.segments.iter().map(Segment::area).sum();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an area is not negative, and casts saturate"
        )]
        // An arrival that is due at the very end does not start; rounding must not add it.
        let count = (area - 1e-6).ceil().max(0.0) as u64;
        count
    }

    /// The arrivals `first`, `first + step`, … of an open model.
    pub fn arrivals(&self, first: u64, step: u64) -> Arrivals<'_> {
        Arrivals { profile: self, segment: 0, before: 0.0, next: first, step: step.max(1) }
    }

    /// The intervals in which a user of a closed model runs, in order, from the test's start.
    pub fn active_intervals(&self, user: u64) -> Vec<(Duration, Duration)> {
        let level = user as f64;
        let mut intervals: Vec<(f64, f64)> = Vec::new();
        for segment in &self.segments {
            let above_at_start = segment.start_level > level;
            let above_at_end = segment.end_level > level;
            let (start, end) = match (above_at_start, above_at_end) {
                (true, true) => (segment.start, segment.end),
                (false, true) => (segment.time_of_level(level), segment.end),
                (true, false) => (segment.start, segment.time_of_level(level)),
                (false, false) => continue,
            };
            match intervals.last_mut() {
                Some((_, previous_end)) if *previous_end >= start => *previous_end = end,
                _ => intervals.push((start, end)),
            }
        }
        let time = Duration::from_secs_f64;
        intervals.into_iter().map(|(start, end)| (time(start), time(end))).collect()
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

/// Iterates over arrivals in the order of their times.
#[derive(Clone, Debug)]
pub struct Arrivals<'a> {
    profile: &'a LoadProfile,
    segment: usize,
    /// Arrivals before the current segment.
    before: f64,
    next: u64,
    step: u64,
}

impl Iterator for Arrivals<'_> {
    /// The arrival's number, and when it is due from the test's start.
    type Item = (u64, Duration);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let segment = self.profile.segments.get(self.segment)?;
            let area = self.next as f64 - self.before;
            // An arrival that is due at a segment's end belongs to the next segment.
            if area >= segment.area() - 1e-6 {
                self.before += segment.area();
                self.segment += 1;
                continue;
            }
            // Solve ∫₀ᵗ (start_level + slope·τ) dτ = area for t, by the form of the quadratic
            // formula that has no cancellation.
            let area = area.max(0.0);
            let square = segment.start_level * segment.start_level + 2.0 * segment.slope() * area;
            let root = square.max(0.0).sqrt();
            let time = if area == 0.0 { 0.0 } else { 2.0 * area / (segment.start_level + root) };
            let number = self.next;
            self.next += self.step;
            let due = (segment.start + time).min(segment.end);
            return Some((number, Duration::from_secs_f64(due)));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn profile(yaml: &str) -> LoadProfile {
        LoadProfile::of(&crate::testing::load(yaml))
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

    fn to_millis(intervals: &[(Duration, Duration)]) -> Vec<(f64, f64)> {
        intervals.iter().map(|(a, b)| (a.as_millis_f64(), b.as_millis_f64())).collect()
    }

    #[test]
    fn users_start_at_the_spawn_rate_and_run_to_the_end() {
        let profile = profile("{users: 3, spawnRate: 2, duration: 10s}");
        assert_eq!(to_millis(&profile.active_intervals(0)), [(0.0, 10_000.0)]);
        assert_eq!(to_millis(&profile.active_intervals(2)), [(1000.0, 10_000.0)]);
        assert_eq!(profile.active_intervals(3), []);
    }

    #[test]
    fn users_that_would_start_after_the_end_never_run() {
        let profile = profile("{users: 1000, spawnRate: 1, duration: 10s}");
        assert_eq!(to_millis(&profile.active_intervals(9)), [(9000.0, 10_000.0)]);
        assert_eq!(profile.active_intervals(10), []);
    }

    #[test]
    fn users_pause_between_stages() {
        let profile = profile(
            "{stages: [{duration: 1s, users: 10}, {duration: 1s, users: 0}, {duration: 1s, users: 10, ramp: Step}]}",
        );
        assert_eq!(to_millis(&profile.active_intervals(5)), [(500.0, 1500.0), (2000.0, 3000.0)]);
        assert!((profile.level_at(Duration::from_millis(500)) - 5.0).abs() < 1e-9);
        assert!((profile.level_at(Duration::from_secs(2)) - 10.0).abs() < 1e-9);
    }

    #[test]
    fn arrivals_of_a_constant_rate_are_evenly_spaced() {
        let profile = profile("{arrivalRate: 50/s, maxUsers: 1, duration: 2s}");
        let due: Vec<_> = profile.arrivals(0, 1).collect();
        assert_eq!((due.len(), profile.arrival_count()), (100, 100));
        assert_eq!(due[1].1.as_nanos(), 20_000_000);
        assert_eq!(due[99].1.as_nanos(), 1_980_000_000);
    }

    #[test]
    fn arrivals_of_a_ramp_accelerate() {
        let profile = profile("{stages: [{duration: 10s, rate: 20/s}], maxUsers: 1}");
        let due: Vec<_> = profile.arrivals(0, 1).map(|(_, at)| at.as_secs_f64()).collect();
        assert_eq!((due.len(), profile.arrival_count()), (100, 100));
        // The integral t² reaches 25 at 5 s, 81 at 9 s.
        assert!((due[25] - 5.0).abs() < 1e-6 && (due[81] - 9.0).abs() < 1e-6);
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
            prop_assert!((running as f64 - profile.level_at(time)).abs() <= 1.0 + 1e-6);
        }

        #[test]
        fn users_start_in_number_order(stages in stages()) {
            let profile = of_stages(&stages, "users: #");
            let starts: Vec<_> = (0..60).filter_map(|u| Some(profile.active_intervals(u).first()?.0)).collect();
            prop_assert!(starts.windows(2).all(|pair| pair[0] <= pair[1]));
        }
    }
}
