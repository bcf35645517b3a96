//! The open model: arrivals that come when the profile wants them, whatever the answers do.

use std::{
    cell::RefCell,
    rc::Rc,
    time::{Duration, Instant},
};

use loadtest_core::profile::Profile;
use tokio::task::JoinSet;

use crate::{
    load::{
        thread::{Running, Share, Worker},
        user::{self, User},
    },
    measure::recorder::TaskRecorder,
};

/// Arrivals begun before others get a turn on this thread.
const BATCH: u32 = 32;

/// An arrival that is due so soon begins now: for less the thread would hardly have gone to
/// sleep before it was woken, and a wake-up costs more than the request.
const SOON: Duration = Duration::from_micros(90);

/// An arrival that was due before the end begins after it when its thread was woken late, by less
/// than this: that is not the load's doing. What is further behind is dropped.
const OVERSLEPT: Duration = Duration::from_millis(100);

/// Users that wait for an arrival. The one used last is the next: its connection is the warmest.
pub(crate) type Free = Rc<RefCell<Vec<User>>>;

/// Until when an arrival that its thread has overslept may begin after the load's end.
fn latest(planned: Instant, hard_end: Instant) -> Instant {
    hard_end.min(planned + OVERSLEPT)
}

/// Begins a worker's arrivals, each with a free user, or drops it.
pub(crate) async fn load(
    worker: &Rc<Worker>,
    profile: &Profile,
    share: Share,
    start: Instant,
    users: &mut JoinSet<()>,
    free: &Free,
) {
    let peak = u64::try_from(worker.prepared.plan.load.peak_users()).unwrap_or(0);
    let mut unborn = (share.first..peak).step_by(usize::try_from(share.step).unwrap_or(1));
    let mut born = || {
        let number = unborn.next()?;
        Some(User::new(worker, number, worker.new_flight()))
    };
    let mut batch = 0;
    let whole = worker.end();
    for (number, at) in profile.due(share.first, share.step) {
        let planned = start + at.std();
        // Drawn by the arrival's number: the same, whichever user is free.
        let mut choices = worker.prepared.mix.choices_of(number);
        let task = worker.prepared.mix.next_task(&mut choices);
        let now = Instant::now();
        let begins = if planned > now + SOON { planned } else { now };
        // However far behind this is, others get their turn: answers that came free their users.
        batch += 1;
        if batch % BATCH == 0 {
            tokio::task::yield_now().await;
        }
        if !worker.reaches(begins).await {
            let end = worker.end();
            if planned >= end {
                return;
            }
            // Due before the end, and the end was there before it could begin.
            let stopped = end < whole;
            if stopped || Instant::now() >= latest(planned, worker.hard_end()) {
                worker.record(task, TaskRecorder::drop_arrival);
                continue;
            }
        }
        let mut user = free.borrow_mut().pop().or_else(&mut born);
        // Before its time it is not dropped: until then a user may come free.
        if user.is_none() && planned > Instant::now() && worker.reaches(planned).await {
            user = free.borrow_mut().pop();
        }
        // Latencies count from when it began, if that was before its time.
        let now = Instant::now();
        worker.lag(now.saturating_duration_since(planned));
        let planned = planned.min(now);
        let Some(mut user) = user else {
            worker.record(task, TaskRecorder::drop_arrival);
            continue;
        };
        user.choices = choices;
        let (worker, free) = (Rc::clone(worker), Rc::clone(free));
        users.spawn_local(async move {
            {
                let _running = Running::new(&worker, planned, worker.end());
                user::perform(&worker, &mut user, task, planned).await;
            }
            free.borrow_mut().push(user);
        });
        // What has ended is let go of, or a long test would keep it all.
        while users.try_join_next().is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_overslept_begins_unless_it_is_far_behind_or_everything_is_over() {
        let end = Instant::now() + Duration::from_secs(1);
        let due = end.checked_sub(Duration::from_millis(40)).unwrap();
        let graceful = end + Duration::from_secs(30);
        assert_eq!(latest(due, graceful), end + Duration::from_millis(60));
        assert_eq!(latest(due, end), end);
    }
}
