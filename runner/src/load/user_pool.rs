//! How many users of an open load model may be busy at once in one runner.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use loadtest_core::plan::Plan;

/// The time over which the mean number of busy users is taken, in seconds.
const MEAN_TIME: f64 = 20.0;

/// The busy users of one runner, shared by its load threads.
///
/// A runner may have its share of `maxUsers` busy. A small share runs out by chance where a large
/// one does not: with one busy user on average, two are not enough for one arrival in five (Erlang's
/// loss formula), although forty are enough for twenty. So where `maxUsers` is divided among
/// runners, each may exceed its share for a moment, by four standard deviations of a Poisson
/// distribution, while the mean of its busy users is within the share. The means of all runners
/// together stay within `maxUsers`.
#[derive(Debug)]
pub(crate) struct UserPool {
    busy: AtomicU64,
    /// The highest number of busy users so far.
    most_busy: AtomicU64,
    share: u64,
    /// The highest number of busy users for a moment.
    burst: u64,
}

impl UserPool {
    /// The pool of the runner with an index.
    pub(crate) fn of_runner(plan: &Plan, index: u32) -> Arc<Self> {
        let peak = u64::from(plan.test.load.peak_users().get());
        Self::new(plan.runner_partition(index).count_below(peak), plan.runners > 1)
    }

    fn new(share: u64, is_divided: bool) -> Arc<Self> {
        let slack = if is_divided { (16 * share).isqrt() } else { 0 };
        let (busy, most_busy) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { busy, most_busy, share, burst: share + slack })
    }

    /// Returns the highest number of users that were busy at once.
    pub(super) fn most_busy(&self) -> u64 {
        self.most_busy.load(Ordering::Relaxed)
    }

    fn take(self: &Arc<Self>, limit: u64) -> Option<BusyUser> {
        let add = |busy: u64| (busy < limit).then_some(busy + 1);
        let before = self.busy.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok()?;
        self.most_busy.fetch_max(before + 1, Ordering::Relaxed);
        Some(BusyUser(Arc::clone(self)))
    }
}

/// One of the busy users of a [`UserPool`], until it is dropped.
#[derive(Debug)]
pub(super) struct BusyUser(Arc<UserPool>);

impl Drop for BusyUser {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A load thread's view of the pool.
#[derive(Debug)]
pub(super) struct PoolMember {
    pool: Arc<UserPool>,
    /// The mean of the busy users of the whole runner, over [`MEAN_TIME`].
    mean_busy: f64,
    updated: Instant,
}

impl PoolMember {
    pub(super) const fn new(pool: Arc<UserPool>, now: Instant) -> Self {
        Self { pool, mean_busy: 0.0, updated: now }
    }

    /// Makes one more user busy, or returns `None` when there are enough.
    pub(super) fn take(&mut self, now: Instant) -> Option<BusyUser> {
        let busy = self.pool.busy.load(Ordering::Relaxed);
        let passed = now.saturating_duration_since(self.updated).as_secs_f64();
        self.updated = now;
        self.mean_busy += (busy as f64 - self.mean_busy) * (1.0 - (-passed / MEAN_TIME).exp());
        let may_exceed = self.mean_busy <= self.pool.share as f64;
        self.pool.take(if may_exceed { self.pool.burst } else { self.pool.share })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn one_runner_never_exceeds_max_users() {
        let start = Instant::now();
        let pool = UserPool::new(20, false);
        let mut threads = [0, 1].map(|_| PoolMember::new(Arc::clone(&pool), start));
        let busy: Vec<_> =
            (0..100).filter_map(|arrival| threads[arrival % 2].take(start)).collect();
        assert_eq!(busy.len(), 20);
        drop(busy);
        assert_eq!(pool.most_busy(), 20);
        assert!(threads[0].take(start).is_some());
    }

    #[test]
    fn a_share_may_be_exceeded_for_a_moment_only() {
        let start = Instant::now();
        let mut thread = PoolMember::new(UserPool::new(4, true), start);
        // Four and four times the root of four.
        let mut busy: Vec<_> = (0..100).filter_map(|_| thread.take(start)).collect();
        assert_eq!(busy.len(), 12);
        // All twelve are busy for a long time: the target is slower than the share allows.
        for second in 1..=30 {
            assert!(thread.take(start + Duration::from_secs(second)).is_none());
        }
        let end = start + Duration::from_secs(30);
        busy.truncate(4);
        assert!(thread.take(end).is_none());
        busy.truncate(3);
        assert!(thread.take(end).is_some());
    }
}
