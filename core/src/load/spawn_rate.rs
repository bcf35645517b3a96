//! When each user of a closed model runs: users start at the spawn rate, or follow the stages. Pure.
//!
//! User *u* (from 0) runs while the level of the profile is above *u*.

use super::{model::UserLoad, profile::LoadProfile};
use crate::values::Duration;

impl LoadProfile {
    /// Appends users that start one after the other, at the spawn rate, and run to the end.
    pub(super) fn push_users(&mut self, load: &UserLoad) {
        let length = load.duration.as_secs_f64();
        let (users, rate) = (f64::from(load.users.get()), load.spawn_rate.get().value());
        let ramp = users / rate;
        if ramp < length {
            self.push_segment(ramp, 0.0, users);
            self.push_segment(length - ramp, users, users);
        } else {
            self.push_segment(length, 0.0, rate * length);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(yaml: &str) -> LoadProfile {
        LoadProfile::of(&crate::testing::load(yaml))
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
}
