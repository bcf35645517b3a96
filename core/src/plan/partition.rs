//! How users and arrivals are divided over runners and load threads.

/// The users, or the arrivals, of one runner or of one load thread: `first`, `first + step`, …
///
/// User *u* belongs to runner *u* mod *runners*, and there to thread (*u* / *runners*) mod
/// *threads*. A ramp is therefore even over runners and threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    first: u64,
    step: u64,
}

impl Partition {
    /// The part of the runner with an index. `runners` is at least 1.
    pub fn of_runner(index: u32, runners: u32) -> Self {
        Self { first: u64::from(index), step: u64::from(runners.max(1)) }
    }

    /// The part of one thread of this part's runner. `threads` is at least 1.
    #[must_use]
    pub fn split(self, thread: u32, threads: u32) -> Self {
        Self {
            first: self.first + self.step * u64::from(thread),
            step: self.step * u64::from(threads.max(1)),
        }
    }

    /// The lowest number of the part.
    pub const fn first(self) -> u64 {
        self.first
    }

    /// The distance between two numbers of the part.
    pub const fn step(self) -> u64 {
        self.step
    }

    /// The numbers of the part below `count`, in order.
    pub fn numbers_below(self, count: u64) -> impl Iterator<Item = u64> + Clone + use<> {
        let step = usize::try_from(self.step).unwrap_or(usize::MAX);
        (self.first..count).step_by(step)
    }

    /// How many numbers of the part are below `count`.
    pub const fn count_below(self, count: u64) -> u64 {
        count.saturating_sub(self.first).div_ceil(self.step)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_user_belongs_to_exactly_one_thread(
            users in 0_u64..3000,
            runners in 1_u32..40,
            threads in 1_u32..6,
        ) {
            let runner = |index| Partition::of_runner(index, runners);
            let parts: Vec<Partition> = (0..runners)
                .flat_map(|index| (0..threads).map(move |thread| runner(index).split(thread, threads)))
                .collect();
            let mut all: Vec<u64> = parts.iter().flat_map(|part| part.numbers_below(users)).collect();
            all.sort_unstable();
            prop_assert!(all.into_iter().eq(0..users));
            // The shares of two runners, and of two threads, differ by one user at most.
            let largest = users.div_ceil(u64::from(runners));
            for index in 0..runners {
                let share = runner(index).count_below(users);
                prop_assert_eq!(share, runner(index).numbers_below(users).count() as u64);
                prop_assert!(share == largest || share + 1 == largest || users == 0);
                for thread in 0..threads {
                    let part = runner(index).split(thread, threads);
                    prop_assert!(part.count_below(users) <= share.div_ceil(u64::from(threads)));
                }
            }
        }
    }
}
