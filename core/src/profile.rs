//! The course of a load over time: which users run when, and when arrivals are due. Pure.
//!
//! A profile is a chain of straight pieces, of users or of a rate. A closed model's user *u*
//! (from 0) runs while more than *u* users are wanted; an open model's arrival *k* (from 0)
//! is due when the rate's integral reaches *k*.

use crate::{
    resource::{Load, Ramp},
    values::Duration,
};

/// One straight piece, in seconds from the test's start.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Piece {
    start: f64,
    end: f64,
    from: f64,
    to: f64,
}

/// The course of a load: users of a closed model, a rate per second of an open one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Profile {
    pieces: Vec<Piece>,
}

impl Piece {
    fn slope(&self) -> f64 {
        (self.to - self.from) / (self.end - self.start)
    }

    fn area(&self) -> f64 {
        f64::midpoint(self.from, self.to) * (self.end - self.start)
    }

    /// When the straight line is at a level within it.
    fn reaches(&self, level: f64) -> f64 {
        self.start + (level - self.from) / self.slope()
    }
}

impl Profile {
    /// The course of a load.
    pub fn of(load: &Load) -> Self {
        let mut profile = Self::default();
        if load.stages.is_empty() {
            let length = load.length().as_secs_f64();
            if let Some(rate) = load.arrival_rate {
                profile.push(length, rate.value(), rate.value());
                return profile;
            }
            let (users, rate) = (load.peak_users() as f64, load.spawn_rate.unwrap_or(0.0));
            let ramp = users / rate;
            if ramp.is_finite() && ramp < length {
                profile.push(ramp, 0.0, users);
                profile.push(length - ramp, users, users);
            } else {
                profile.push(length, 0.0, rate * length);
            }
            return profile;
        }
        let mut level = 0.0;
        for stage in &load.stages {
            let rate = stage.rate.map(crate::values::Rate::value);
            let to = rate.unwrap_or_else(|| stage.users.unwrap_or(0) as f64);
            let from = match stage.ramp {
                Ramp::Linear => level,
                Ramp::Step => to,
            };
            profile.push(stage.duration.as_secs_f64(), from, to);
            level = to;
        }
        profile
    }

    fn push(&mut self, length: f64, from: f64, to: f64) {
        let start = self.pieces.last().map_or(0.0, |piece| piece.end);
        if length > 0.0 {
            self.pieces.push(Piece { start, end: start + length, from, to });
        }
    }

    /// The level at a time, at a step the later one; 0 after the end.
    #[cfg(test)]
    fn at(&self, time: Duration) -> f64 {
        let time = time.as_secs_f64();
        let piece = self.pieces.iter().find(|piece| time < piece.end);
        piece.map_or(0.0, |piece| piece.from + piece.slope() * (time - piece.start))
    }

    /// Arrivals of an open model over the whole test.
    pub fn arrivals(&self) -> u64 {
        let area: f64 = self.pieces.iter().map(Piece::area).sum();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an area is not negative, and casts saturate"
        )]
        // One due at the very end is not begun; rounding must not add it.
        let count = (area - 1e-6).ceil().max(0.0) as u64;
        count
    }

    /// When the arrivals `first`, `first + step`, … of an open model are due.
    pub fn due(&self, first: u64, step: u64) -> Due<'_> {
        Due { profile: self, piece: 0, before: 0.0, next: first, step: step.max(1) }
    }

    /// When a user of a closed model runs, from the test's start, one interval after the other.
    pub fn runs_of(&self, user: u64) -> Vec<(Duration, Duration)> {
        let level = user as f64;
        let mut runs: Vec<(f64, f64)> = Vec::new();
        for piece in &self.pieces {
            let (above_first, above_last) = (piece.from > level, piece.to > level);
            let (start, end) = match (above_first, above_last) {
                (true, true) => (piece.start, piece.end),
                (false, true) => (piece.reaches(level), piece.end),
                (true, false) => (piece.start, piece.reaches(level)),
                (false, false) => continue,
            };
            match runs.last_mut() {
                Some((_, before)) if *before >= start => *before = end,
                _ => runs.push((start, end)),
            }
        }
        let time = Duration::from_secs_f64;
        runs.into_iter().map(|(start, end)| (time(start), time(end))).collect()
    }
}

/// The times at which arrivals are due, in order.
#[derive(Clone, Debug)]
pub struct Due<'a> {
    profile: &'a Profile,
    piece: usize,
    /// Arrivals before the current piece.
    before: f64,
    next: u64,
    step: u64,
}

impl Iterator for Due<'_> {
    /// The arrival's number, and when it is due from the test's start.
    type Item = (u64, Duration);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let piece = self.profile.pieces.get(self.piece)?;
            let into = self.next as f64 - self.before;
            // One that is due at a piece's end belongs to the next.
            if into >= piece.area() - 1e-6 {
                self.before += piece.area();
                self.piece += 1;
                continue;
            }
            // ∫ from + slope·τ = into, by the root formula that does not cancel.
            let into = into.max(0.0);
            let root = (piece.from * piece.from + 2.0 * piece.slope() * into).max(0.0).sqrt();
            let after = if into == 0.0 { 0.0 } else { 2.0 * into / (piece.from + root) };
            let number = self.next;
            self.next += self.step;
            let at = (piece.start + after).min(piece.end);
            return Some((number, Duration::from_secs_f64(at)));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn profile(yaml: &str) -> Profile {
        Profile::of(&serde_yaml::from_str(yaml).unwrap())
    }

    fn millis(runs: &[(Duration, Duration)]) -> Vec<(f64, f64)> {
        runs.iter().map(|(a, b)| (a.as_millis_f64(), b.as_millis_f64())).collect()
    }

    #[test]
    fn users_start_at_the_spawn_rate_and_run_to_the_end() {
        let profile = profile("{users: 3, spawnRate: 2, duration: 10s}");
        assert_eq!(millis(&profile.runs_of(0)), [(0.0, 10_000.0)]);
        assert_eq!(millis(&profile.runs_of(2)), [(1000.0, 10_000.0)]);
        assert_eq!(profile.runs_of(3), []);
    }

    #[test]
    fn users_that_would_start_after_the_end_never_run() {
        let profile = profile("{users: 1000, spawnRate: 1, duration: 10s}");
        assert_eq!(millis(&profile.runs_of(9)), [(9000.0, 10_000.0)]);
        assert_eq!(profile.runs_of(10), []);
    }

    #[test]
    fn stages_let_users_go_and_take_them_back() {
        let profile = profile(
            "{stages: [{duration: 1s, users: 10}, {duration: 1s, users: 0}, {duration: 1s, users: 10, ramp: step}]}",
        );
        assert_eq!(millis(&profile.runs_of(5)), [(500.0, 1500.0), (2000.0, 3000.0)]);
        assert!((profile.at(Duration::from_millis(500)) - 5.0).abs() < 1e-9);
        assert!((profile.at(Duration::from_secs(2)) - 10.0).abs() < 1e-9);
    }

    #[test]
    fn arrivals_of_a_constant_rate_are_evenly_spaced() {
        let profile = profile("{arrivalRate: 50/s, maxUsers: 1, duration: 2s}");
        let due: Vec<_> = profile.due(0, 1).collect();
        assert_eq!((due.len(), profile.arrivals()), (100, 100));
        assert_eq!(due[1].1.as_nanos(), 20_000_000);
        assert_eq!(due[99].1.as_nanos(), 1_980_000_000);
    }

    #[test]
    fn arrivals_of_a_ramp_come_faster_and_faster() {
        let profile = profile("{stages: [{duration: 10s, rate: 20/s}], maxUsers: 1}");
        let due: Vec<_> = profile.due(0, 1).map(|(_, at)| at.as_secs_f64()).collect();
        assert_eq!((due.len(), profile.arrivals()), (100, 100));
        // The integral t² reaches 25 at 5 s, 81 at 9 s.
        assert!((due[25] - 5.0).abs() < 1e-6 && (due[81] - 9.0).abs() < 1e-6);
    }

    fn stages() -> impl Strategy<Value = Vec<(u32, u32, bool)>> {
        prop::collection::vec((1_u32..20, 0_u32..60, any::<bool>()), 1..6)
    }

    fn of_stages(stages: &[(u32, u32, bool)], unit: &str) -> Profile {
        let texts: Vec<String> = stages
            .iter()
            .map(|(seconds, level, step)| {
                let ramp = if *step { "step" } else { "linear" };
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
        fn any_split_of_the_arrivals_adds_up_to_all_of_them(stages in stages(), runners in 1_u64..7) {
            let profile = of_stages(&stages, "rate: '#/s'");
            let all: Vec<_> = profile.due(0, 1).collect();
            prop_assert_eq!(all.len() as u64, profile.arrivals());
            prop_assert!(all.windows(2).all(|pair| pair[0].1 <= pair[1].1));
            let mut merged: Vec<_> = (0..runners).flat_map(|i| profile.due(i, runners)).collect();
            merged.sort_unstable();
            prop_assert_eq!(merged, all);
        }

        #[test]
        fn as_many_users_run_as_are_wanted(stages in stages(), at in 0.0_f64..100.0) {
            let profile = of_stages(&stages, "users: #");
            let time = Duration::from_secs_f64(at);
            let running = (0..60)
                .filter(|user| profile.runs_of(*user).iter().any(|(a, b)| *a <= time && time < *b))
                .count();
            prop_assert!((running as f64 - profile.at(time)).abs() <= 1.0 + 1e-6);
        }

        #[test]
        fn users_start_in_the_order_of_their_numbers(stages in stages()) {
            let profile = of_stages(&stages, "users: #");
            let starts: Vec<_> = (0..60).filter_map(|u| Some(profile.runs_of(u).first()?.0)).collect();
            prop_assert!(starts.windows(2).all(|pair| pair[0] <= pair[1]));
        }
    }
}
