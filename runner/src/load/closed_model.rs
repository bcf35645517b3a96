//! The closed model: each user waits for a response before its next request, and runs when the
//! load profile says.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use loadtest_core::{
    load::LoadProfile,
    metrics::Outcome,
    plan::{Pacing, Partition},
};
use tokio::task::JoinSet;

use crate::load::{
    state::{ActiveUser, ThreadState},
    user::{User, perform_task},
};

/// Starts the users of a load thread one after another, each at its first active interval.
pub(super) async fn run(
    state: &Rc<ThreadState>,
    profile: &LoadProfile,
    partition: Partition,
    start: Instant,
    users: &mut JoinSet<()>,
) {
    let peak = state.prepared.plan.test.load.peak_users();
    for number in partition.numbers_below(u64::from(peak.get())) {
        let intervals: Vec<(Instant, Instant)> = profile
            .active_intervals(number)
            .into_iter()
            .map(|(from, until)| (start + from.to_std(), start + until.to_std()))
            .collect();
        // Users start in number order, so if one never runs, no later one does either.
        let Some((first, _)) = intervals.first().copied() else { return };
        if first >= state.load_end() || !state.sleep_until(first).await {
            return;
        }
        let in_flight = state.add_in_flight_request();
        let state = Rc::clone(state);
        users.spawn_local(async move {
            let mut user = User::new(&state, number, in_flight);
            let mut free_at = start;
            for (from, until) in intervals {
                // A response may arrive after the start or even the end of the next interval. Then
                // the target delays the user, and an interval that has passed is skipped.
                let from = from.max(free_at);
                if from >= until {
                    continue;
                }
                if !state.sleep_until(from).await {
                    return;
                }
                {
                    let _active = ActiveUser::new(&state, from, until);
                    run_interval(&state, &mut user, from, until).await;
                }
                user.close_sessions(&state).await;
                free_at = Instant::now();
            }
        });
    }
}

/// Alternates between a task and a pause until the interval ends.
///
/// A failed request takes its user at least as long as a successful one usually does. Otherwise
/// users would send most of their requests in the few seconds in which the target fails fast, and
/// one second of outage would count more than minutes of responses.
async fn run_interval(state: &ThreadState, user: &mut User, from: Instant, until: Instant) {
    let pacing = state.prepared.plan.test.scenario.pacing;
    let mut planned = from;
    // True when the next task begins at the moment at which the last one ended.
    let mut is_due = false;
    // A pause that is longer than the rest of the interval ends with the interval.
    while (is_due || user.wait_until(state, planned.min(until)).await) && planned < until {
        let lag = if is_due { Duration::ZERO } else { planned.elapsed() };
        state.record_schedule_lag(lag);
        let task = state.prepared.task_picker.next_task(&mut user.rng);
        let outcome = perform_task(state, user, task, planned, lag).await;
        // Other users run first: they read the responses that have come. Many writes in a row cost
        // less than reads and writes in turn. And a request can fail without a system call, for
        // example when a failed DNS lookup is cached: without a yield, no other user would run.
        if outcome != Outcome::Success || pacing == Pacing::None {
            tokio::task::yield_now().await;
        }
        let ended = match outcome {
            Outcome::Success => Instant::now(),
            _ => Instant::now().max(planned + state.failure_hold(task)),
        };
        planned = match pacing {
            // A task that took longer than the pacing delays the next task.
            Pacing::Interval(interval) => (planned + interval.to_std()).max(ended),
            Pacing::None | Pacing::Pause(_) => ended + next_think_time(state, user),
        };
        is_due = outcome == Outcome::Success
            && planned == ended
            && ended < state.load_end()
            && !user.has_open_session();
    }
}

fn next_think_time(state: &ThreadState, user: &mut User) -> Duration {
    state.prepared.task_picker.next_think_time(&mut user.rng).to_std()
}
