//! The part of a test's load that one load thread makes.

/// Every `step`-th user and arrival, from number `first` on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Partition {
    pub(crate) first: u64,
    pub(crate) step: u64,
}

impl Partition {
    /// Returns the partition of load thread `thread` of runner `runner`.
    ///
    /// User `u` belongs to runner `u mod runners`, and there to load thread
    /// `(u / runners) mod threads`.
    pub(crate) fn new(runner: u32, runners: u32, thread: u32, threads: u32) -> Self {
        let (runner, runners) = (u64::from(runner), u64::from(runners.max(1)));
        Self { first: runner + runners * u64::from(thread), step: runners * u64::from(threads) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_user_belongs_to_exactly_one_load_thread(
            runners in 1_u32..8,
            threads in 1_u32..5,
            users in 0_u64..300,
        ) {
            let mut found: Vec<u64> = (0..runners)
                .flat_map(|runner| (0..threads).map(move |thread| (runner, thread)))
                .map(|(runner, thread)| Partition::new(runner, runners, thread, threads))
                .flat_map(|Partition { first, step }| {
                    (first..users).step_by(usize::try_from(step).unwrap())
                })
                .collect();
            found.sort_unstable();
            prop_assert_eq!(found, (0..users).collect::<Vec<_>>());
        }
    }
}
