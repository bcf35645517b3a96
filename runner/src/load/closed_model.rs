//! The closed model: users who wait for their answers, each running when the profile wants it.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use loadtest_core::{metrics::Outcome, profile::Profile};
use tokio::task::JoinSet;

use crate::load::{
    thread::{Running, Share, Worker},
    user::{self, User},
};

/// Starts a worker's users one after the other, each when it first runs.
pub(crate) async fn load(
    worker: &Rc<Worker>,
    profile: &Profile,
    share: Share,
    start: Instant,
    users: &mut JoinSet<()>,
) {
    let peak = u64::try_from(worker.prepared.plan.load.peak_users()).unwrap_or(0);
    let mut number = share.first;
    while number < peak {
        let runs: Vec<(Instant, Instant)> = profile
            .runs_of(number)
            .into_iter()
            .map(|(from, until)| (start + from.std(), start + until.std()))
            .collect();
        // Users start in the order of their numbers: who follows one that never runs, doesn't.
        let Some((first, _)) = runs.first().copied() else { return };
        if first >= worker.end() || !worker.reaches(first).await {
            return;
        }
        let flight = worker.new_flight();
        let worker = Rc::clone(worker);
        users.spawn_local(async move {
            let mut user = User::new(&worker, number, flight);
            let mut free = start;
            for (from, until) in runs {
                // Who waits for an answer past its next run's beginning, or past its end, is kept
                // by the target.
                let from = from.max(free);
                if from >= until {
                    continue;
                }
                if !worker.reaches(from).await {
                    return;
                }
                {
                    let _running = Running::new(&worker, from, until);
                    run(&worker, &mut user, from, until).await;
                }
                user.leave(&worker).await;
                free = Instant::now();
            }
        });
        number += share.step;
    }
}

/// A task, a pause, and again, until a user's run ends.
async fn run(worker: &Worker, user: &mut User, from: Instant, until: Instant) {
    let mut planned = from;
    // A pause that outlasts the run ends with it.
    while user.rest(worker, planned.min(until)).await && planned < until {
        worker.lag(planned.elapsed());
        let task = worker.prepared.mix.next_task(&mut user.choices);
        let outcome = user::perform(worker, user, task, planned).await;
        let ended = Instant::now();
        planned = match worker.prepared.plan.scenario.pacing {
            // A task that took longer than the pacing delays the next one: users wait.
            Some(pacing) => (planned + pacing.std()).max(ended),
            None => ended + pause(worker, user),
        };
        if outcome != Outcome::Success {
            // What fails without a system call, as a name that is known not to resolve, must
            // not keep other users from running. Sockets see to that themselves.
            tokio::task::yield_now().await;
        }
    }
}

fn pause(worker: &Worker, user: &mut User) -> Duration {
    worker.prepared.mix.next_pause(&mut user.choices).std()
}
