//! The open model: arrivals happen when the load profile says, independent of responses.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use loadtest_core::{load::LoadProfile, plan::Partition};
use tokio::task::JoinSet;

use crate::{
    load::{
        state::{ActiveUser, ThreadState},
        user::{IdleUsers, User, perform_task},
    },
    measure::recorder::TaskRecorder,
};

/// Number of arrivals after which the thread yields to its other tasks.
const ARRIVALS_PER_YIELD: u32 = 32;

/// An arrival that is due within this time starts at once. The thread would hardly have gone to
/// sleep before its wake-up, and a wake-up costs more than the request.
const MIN_SLEEP: Duration = Duration::from_micros(90);

/// Maximum delay of an arrival that starts after the end of the load.
///
/// Such an arrival was due before the end and is late because its thread woke up late, not because
/// of the load. An arrival with a longer delay is dropped.
const MAX_OVERSLEEP: Duration = Duration::from_millis(100);

/// Returns the latest time at which an arrival may start after the end of the load.
fn latest_start(planned: Instant, grace_deadline: Instant) -> Instant {
    grace_deadline.min(planned + MAX_OVERSLEEP)
}

/// The time over which the mean number of busy users is taken.
const MEAN_TIME: f64 = 5.0;

/// How many users a load thread may have: its share of `maxUsers`, and a few more in a burst.
///
/// A small share of users runs out by chance where a large one does not: with one busy user on
/// average, two are not enough for one arrival in five (Erlang's loss formula), although forty are
/// enough for twenty. So a thread may exceed its share for a moment, by four standard deviations of
/// a Poisson distribution, while the mean of its busy users is within the share. The means of all
/// threads together stay within `maxUsers`.
#[derive(Debug)]
struct UserQuota {
    share: u64,
    created: u64,
    mean_busy: f64,
    updated: Instant,
}

impl UserQuota {
    const fn new(share: u64, now: Instant) -> Self {
        Self { share, created: 0, mean_busy: 0.0, updated: now }
    }

    /// Takes the number of busy users into the mean.
    fn observe(&mut self, busy: u64, now: Instant) {
        let passed = now.saturating_duration_since(self.updated).as_secs_f64();
        self.updated = now;
        self.mean_busy += (busy as f64 - self.mean_busy) * (1.0 - (-passed / MEAN_TIME).exp());
    }

    /// Returns true, and counts a user, when there may be one more.
    fn take(&mut self) -> bool {
        let share = self.share as f64;
        let limit = if self.mean_busy <= share { share + 4.0 * share.sqrt() } else { share };
        let may_create = (self.created as f64) < limit;
        self.created += u64::from(may_create);
        may_create
    }

    /// Returns true when the mean of the busy users allows a user beyond the share to work.
    fn allows(&self, busy: u64) -> bool {
        busy < self.share || self.mean_busy <= self.share as f64
    }
}

/// Starts the arrivals of a load thread, each with an idle user. Drops an arrival without one.
pub(super) async fn run(
    state: &Rc<ThreadState>,
    profile: &LoadProfile,
    partition: Partition,
    start: Instant,
    users: &mut JoinSet<()>,
    idle_users: &IdleUsers,
) {
    let peak = state.prepared.plan.test.load.peak_users();
    let share = partition.count_below(u64::from(peak.get()));
    let mut quota = UserQuota::new(share, start);
    // Users beyond the share have numbers beyond those of all users.
    let mut numbers = (partition.first()..).step_by(usize::try_from(partition.step()).unwrap_or(1));
    let mut arrivals = 0;
    let planned_end = state.load_end();
    for (number, at) in profile.arrivals(partition.first(), partition.step()) {
        let planned = start + at.to_std();
        // The arrival's number seeds its random numbers, so they don't depend on which user is idle.
        let mut rng = state.prepared.task_picker.rng_of_user(number);
        let task = state.prepared.task_picker.next_task(&mut rng);
        let now = Instant::now();
        let starts = if planned > now + MIN_SLEEP { planned } else { now };
        // The thread yields even when it is late, because responses make users idle again.
        arrivals += 1;
        if arrivals % ARRIVALS_PER_YIELD == 0 {
            tokio::task::yield_now().await;
        }
        if !state.sleep_until(starts).await {
            let end = state.load_end();
            if planned >= end {
                return;
            }
            // The arrival was due before the end of the load but could not start before it.
            let was_stopped = end < planned_end;
            if was_stopped || Instant::now() >= latest_start(planned, state.grace_deadline()) {
                state.with_recorder(task, TaskRecorder::count_dropped_arrival);
                continue;
            }
        }
        let busy = state.active_users();
        quota.observe(busy, now);
        let mut user = None;
        if quota.allows(busy) {
            user = idle_users.borrow_mut().pop();
            if user.is_none() && quota.take() {
                let number = numbers.next();
                user = number.map(|n| User::new(state, n, state.add_in_flight_request()));
            }
        }
        // An arrival that is not due yet is not dropped: a user may become idle before it is.
        if user.is_none() && planned > Instant::now() && state.sleep_until(planned).await {
            user = idle_users.borrow_mut().pop();
        }
        // Latencies of an arrival that starts early count from its start.
        let now = Instant::now();
        let lag = now.saturating_duration_since(planned);
        state.record_schedule_lag(lag);
        let planned = planned.min(now);
        let Some(mut user) = user else {
            state.with_recorder(task, TaskRecorder::count_dropped_arrival);
            continue;
        };
        user.rng = rng;
        let (state, idle_users) = (Rc::clone(state), Rc::clone(idle_users));
        users.spawn_local(async move {
            {
                let _active = ActiveUser::new(&state, planned, state.load_end());
                perform_task(&state, &mut user, task, planned, lag).await;
            }
            idle_users.borrow_mut().push(user);
        });
        // Remove tasks that have ended, or a long test would keep all of them in memory.
        while users.try_join_next().is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_may_be_exceeded_for_a_moment_only() {
        let start = Instant::now();
        let mut quota = UserQuota::new(4, start);
        // Four and four times the root of four.
        assert_eq!((0..100).filter(|_| quota.take()).count(), 12);
        assert!(quota.allows(11));
        // All twelve are busy for a long time: the target is slower than the share allows.
        for second in 1..=30 {
            quota.observe(12, start + Duration::from_secs(second));
        }
        assert!(!quota.allows(11) && quota.allows(3));
    }

    #[test]
    fn late_arrivals_start_within_100_ms_of_their_due_time() {
        let end = Instant::now() + Duration::from_secs(1);
        let due = end.checked_sub(Duration::from_millis(40)).unwrap();
        let grace_deadline = end + Duration::from_secs(30);
        assert_eq!(latest_start(due, grace_deadline), end + Duration::from_millis(60));
        assert_eq!(latest_start(due, end), end);
    }
}
