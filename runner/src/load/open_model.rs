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
        user_pool::PoolMember,
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

/// Returns the end of the step of this length that a time falls into.
fn end_of_step(at: Duration, step: Duration) -> Duration {
    let (at, step) = (at.as_nanos(), step.as_nanos());
    let end = if step == 0 { at } else { at.div_ceil(step) * step };
    Duration::from_nanos(u64::try_from(end).unwrap_or(u64::MAX))
}

/// Returns the latest time at which an arrival that is due at `due` may start after the end of the load.
fn latest_start(due: Instant, grace_deadline: Instant) -> Instant {
    grace_deadline.min(due + MAX_OVERSLEEP)
}

/// Starts the arrivals of a load thread, each with an idle user. Drops an arrival without one.
pub(super) async fn run(
    state: &Rc<ThreadState>,
    profile: &LoadProfile,
    partition: Partition,
    start: Instant,
    users: &mut JoinSet<()>,
    idle_users: &IdleUsers,
    mut pool: PoolMember,
) {
    // Users beyond the thread's share have numbers beyond those of all users.
    let mut next_user = partition.first();
    let mut arrivals = 0;
    let planned_end = state.load_end();
    let precision = state.prepared.plan.test.precision.to_std();
    for (number, at) in profile.arrivals(partition.first(), partition.step()) {
        let planned = start + at.to_std();
        let due = start + end_of_step(at.to_std(), precision);
        // The arrival's number seeds its random numbers, so they don't depend on which user is idle.
        let mut rng = state.prepared.task_picker.rng_of_user(number);
        let task = state.prepared.task_picker.next_task(&mut rng);
        let now = Instant::now();
        let starts = if due > now + MIN_SLEEP { due } else { now };
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
            if was_stopped || Instant::now() >= latest_start(due, state.grace_deadline()) {
                state.with_recorder(task, TaskRecorder::count_dropped_arrival);
                continue;
            }
        }
        let mut busy = pool.take(starts);
        // An arrival that is not due yet is not dropped: a user may become idle before it is.
        if busy.is_none() && planned > Instant::now() && state.sleep_until(planned).await {
            busy = pool.take(planned);
        }
        // Latencies of an arrival that starts early count from its start.
        let now = Instant::now();
        let lag = now.saturating_duration_since(due);
        state.record_schedule_lag(lag);
        let planned = planned.min(now);
        let Some(busy) = busy else {
            state.with_recorder(task, TaskRecorder::count_dropped_arrival);
            continue;
        };
        let idle = idle_users.borrow_mut().pop();
        let mut user = idle.unwrap_or_else(|| {
            let number = next_user;
            next_user += partition.step();
            User::new(state, number, state.add_in_flight_request())
        });
        user.rng = rng;
        let (state, idle_users) = (Rc::clone(state), Rc::clone(idle_users));
        users.spawn_local(async move {
            {
                let _active = ActiveUser::new(&state, planned, state.load_end());
                perform_task(&state, &mut user, task, planned, lag).await;
            }
            idle_users.borrow_mut().push(user);
            drop(busy);
        });
        // Remove tasks that have ended, or a long test would keep all of them in memory.
        while users.try_join_next().is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_of_a_step_start_at_its_end() {
        let end = |micros, step| {
            end_of_step(Duration::from_micros(micros), Duration::from_micros(step)).as_micros()
        };
        assert_eq!(
            [end(0, 1000), end(1, 1000), end(1000, 1000), end(1001, 1000)],
            [0, 1000, 1000, 2000]
        );
        assert_eq!(end(123, 0), 123);
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
