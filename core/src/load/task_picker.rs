//! Each user's next task and think time: weighted random choices, reproducible by seed.

use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;

use crate::{
    plan::{Pacing, Scenario},
    resource::Pause,
    values::Duration,
};

/// Picks tasks and think times for the users of a scenario.
#[derive(Clone, Debug)]
pub struct TaskPicker {
    /// Cumulative weights of the tasks.
    cumulative: Vec<u64>,
    pause: Option<Pause>,
    seed: u64,
}

/// The random numbers of one user.
///
/// Tasks have a stream of random numbers of their own, so that a change of think times or messages
/// does not change the sequence of tasks.
#[derive(Clone, Debug)]
pub struct UserRng {
    task_stream: Pcg64Mcg,
    other_stream: Pcg64Mcg,
}

impl TaskPicker {
    /// A picker among the tasks of a scenario.
    pub fn new(scenario: &Scenario) -> Self {
        let mut sum = 0;
        let tasks = scenario.tasks.iter();
        let cumulative = tasks
            .map(|task| {
                sum += u64::from(task.weight);
                sum
            })
            .collect();
        let pause = match scenario.pacing {
            Pacing::Pause(pause) => Some(pause),
            Pacing::None | Pacing::Interval(_) => None,
        };
        Self { cumulative, pause, seed: scenario.seed }
    }

    /// The random numbers of one user. The same seed and user give the same numbers.
    pub fn rng_of_user(&self, user: u64) -> UserRng {
        let stream = |kind: u64| {
            let mut seed = [0; 16];
            seed[..8].copy_from_slice(&self.seed.wrapping_mul(4).wrapping_add(kind).to_le_bytes());
            seed[8..].copy_from_slice(&user.to_le_bytes());
            // An MCG starts alike for neighbouring seeds: mix them first.
            let mut mixed = Pcg64Mcg::from_seed(seed);
            Pcg64Mcg::seed_from_u64(mixed.random::<u64>() ^ user.rotate_left(32) ^ kind)
        };
        UserRng { task_stream: stream(1), other_stream: stream(2) }
    }

    /// The index of a user's next task; 0 when no task has a weight.
    pub fn next_task(&self, rng: &mut UserRng) -> usize {
        let Some(total) = self.cumulative.last().copied().filter(|sum| *sum > 0) else { return 0 };
        let drawn = rng.task_stream.random_range(0..total);
        self.cumulative.partition_point(|sum| *sum <= drawn)
    }

    /// A user's next think time.
    pub fn next_think_time(&self, rng: &mut UserRng) -> Duration {
        match self.pause {
            None => Duration::ZERO,
            Some(Pause { min, max }) => {
                let (low, high) = (min.as_nanos(), max.as_nanos().max(min.as_nanos()));
                Duration::from_nanos(rng.other_stream.random_range(low..=high))
            }
        }
    }
}

impl UserRng {
    /// The index of one of `n` alternatives, each equally likely; 0 when `n` is 0.
    pub fn pick_index(&mut self, n: usize) -> usize {
        if n < 2 { 0 } else { self.other_stream.random_range(0..n) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::valid_test;

    fn sequence(seed: u64, user: u64) -> Vec<usize> {
        let mut scenario = valid_test().scenario;
        scenario.seed = seed;
        let picker = TaskPicker::new(&scenario);
        let mut rng = picker.rng_of_user(user);
        (0..200).map(|_| picker.next_task(&mut rng)).collect()
    }

    #[test]
    fn same_seed_gives_each_user_the_same_sequence() {
        assert_eq!(sequence(7, 3), sequence(7, 3));
        assert_ne!(sequence(7, 3), sequence(7, 4));
        assert_ne!(sequence(7, 3), sequence(8, 3));
    }

    #[test]
    fn think_times_do_not_shift_tasks() {
        let picker = TaskPicker::new(&valid_test().scenario);
        let (mut a, mut b) = (picker.rng_of_user(1), picker.rng_of_user(1));
        for _ in 0..50 {
            let _ = picker.next_think_time(&mut a);
            assert_eq!(picker.next_task(&mut a), picker.next_task(&mut b));
        }
    }

    #[test]
    fn tasks_are_picked_by_weight() {
        let picker = TaskPicker::new(&valid_test().scenario);
        let mut counts = [0_u32; 4];
        for user in 0..2000 {
            let mut rng = picker.rng_of_user(user);
            for _ in 0..10 {
                counts[picker.next_task(&mut rng)] += 1;
            }
        }
        for (count, weight) in counts.into_iter().zip([70.0, 15.0, 10.0, 5.0]) {
            let share = f64::from(count) / 200.0;
            assert!((share - weight).abs() < 1.5, "{share} % instead of {weight} %");
        }
    }

    #[test]
    fn think_times_stay_within_their_bounds() {
        let mut scenario = valid_test().scenario;
        scenario.pacing =
            Pacing::Pause(Pause { min: Duration::from_millis(10), max: Duration::from_millis(20) });
        let picker = TaskPicker::new(&scenario);
        let mut rng = picker.rng_of_user(1);
        for _ in 0..1000 {
            let pause = picker.next_think_time(&mut rng).as_millis_f64();
            assert!((10.0..=20.0).contains(&pause));
        }
    }
}
