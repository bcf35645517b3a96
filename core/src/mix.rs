//! What a user does next: weighted choice and think time, reproducible by seed.

use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;

use crate::{
    resource::{Pause, Scenario},
    values::Duration,
};

/// The weighted choice among a scenario's tasks.
#[derive(Clone, Debug)]
pub struct Mix {
    /// Running sums of the weights.
    edges: Vec<u64>,
    pause: Option<Pause>,
    seed: u64,
}

/// One user's own random choices.
///
/// Tasks are drawn from a stream of their own, so that a change of pauses or messages
/// leaves the sequence of tasks as it was.
#[derive(Clone, Debug)]
pub struct Choices {
    tasks: Pcg64Mcg,
    rest: Pcg64Mcg,
}

impl Mix {
    /// The choice among a scenario's tasks; weights below zero count as zero.
    pub fn new(scenario: &Scenario) -> Self {
        let mut sum = 0;
        let edges = scenario
            .tasks
            .iter()
            .map(|task| {
                sum += u64::try_from(task.weight).unwrap_or(0);
                sum
            })
            .collect();
        Self { edges, pause: scenario.pause, seed: scenario.seed.unsigned_abs() }
    }

    /// The random choices of one user. The same seed and user give the same choices.
    pub fn choices_of(&self, user: u64) -> Choices {
        let stream = |kind: u64| {
            let mut seed = [0; 16];
            seed[..8].copy_from_slice(&self.seed.wrapping_mul(4).wrapping_add(kind).to_le_bytes());
            seed[8..].copy_from_slice(&user.to_le_bytes());
            // Neighbouring seeds of an MCG begin alike: mix them first.
            let mut mixed = Pcg64Mcg::from_seed(seed);
            Pcg64Mcg::seed_from_u64(mixed.random::<u64>() ^ user.rotate_left(32) ^ kind)
        };
        Choices { tasks: stream(1), rest: stream(2) }
    }

    /// The index of a user's next task; 0 when no task has a weight.
    pub fn next_task(&self, choices: &mut Choices) -> usize {
        let Some(total) = self.edges.last().copied().filter(|sum| *sum > 0) else { return 0 };
        let at = choices.tasks.random_range(0..total);
        self.edges.partition_point(|edge| *edge <= at)
    }

    /// A user's next think time.
    pub fn next_pause(&self, choices: &mut Choices) -> Duration {
        match self.pause {
            None => Duration::ZERO,
            Some(Pause { min, max }) => {
                let (low, high) = (min.as_nanos(), max.as_nanos().max(min.as_nanos()));
                Duration::from_nanos(choices.rest.random_range(low..=high))
            }
        }
    }
}

impl Choices {
    /// One of `n` alternatives, evenly; 0 when there are none.
    pub fn pick(&mut self, n: usize) -> usize {
        if n < 2 { 0 } else { self.rest.random_range(0..n) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::spec;

    fn sequence(seed: i64, user: u64) -> Vec<usize> {
        let mut scenario = spec().scenario;
        scenario.seed = seed;
        let mix = Mix::new(&scenario);
        let mut choices = mix.choices_of(user);
        (0..200).map(|_| mix.next_task(&mut choices)).collect()
    }

    #[test]
    fn the_same_seed_gives_each_user_the_same_sequence() {
        assert_eq!(sequence(7, 3), sequence(7, 3));
        assert_ne!(sequence(7, 3), sequence(7, 4));
        assert_ne!(sequence(7, 3), sequence(8, 3));
    }

    #[test]
    fn pauses_do_not_shift_the_tasks() {
        let mix = Mix::new(&spec().scenario);
        let (mut a, mut b) = (mix.choices_of(1), mix.choices_of(1));
        for _ in 0..50 {
            let _ = mix.next_pause(&mut a);
            assert_eq!(mix.next_task(&mut a), mix.next_task(&mut b));
        }
    }

    #[test]
    fn tasks_come_up_by_their_weights_over_users() {
        let mix = Mix::new(&spec().scenario);
        let mut counts = [0_u32; 4];
        for user in 0..2000 {
            let mut choices = mix.choices_of(user);
            for _ in 0..10 {
                counts[mix.next_task(&mut choices)] += 1;
            }
        }
        for (count, weight) in counts.into_iter().zip([70.0, 15.0, 10.0, 5.0]) {
            let share = f64::from(count) / 200.0;
            assert!((share - weight).abs() < 1.5, "{share} % instead of {weight} %");
        }
    }

    #[test]
    fn pauses_stay_within_their_bounds() {
        let mut scenario = spec().scenario;
        scenario.pause =
            Some(Pause { min: Duration::from_millis(10), max: Duration::from_millis(20) });
        let mix = Mix::new(&scenario);
        let mut choices = mix.choices_of(1);
        for _ in 0..1000 {
            let pause = mix.next_pause(&mut choices).as_millis_f64();
            assert!((10.0..=20.0).contains(&pause));
        }
    }
}
