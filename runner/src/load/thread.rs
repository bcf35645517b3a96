//! The driver of one load thread: a runtime, the load model, the deadlines of requests in flight
//! and the engine's commands.

use std::{
    io,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use loadtest_core::{load::LoadProfile, plan::Partition, resource::Timeouts};
use tokio::{
    runtime::LocalOptions,
    sync::{mpsc, oneshot},
    task::JoinSet,
};

use crate::{
    load::{
        closed_model,
        completion::CompletionGuard,
        open_model,
        state::ThreadState,
        user::IdleUsers,
        user_pool::{PoolMember, UserPool},
    },
    measure::{request_log::RequestLogSender, snapshot::ThreadSnapshot},
    net::poll_turns,
    prepare::plan::PreparedPlan,
};

/// Bounds of the interval between two checks of deadlines.
const MIN_CHECK_INTERVAL: Duration = Duration::from_millis(1);
const MAX_CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// A command from the engine to a load thread.
#[derive(Debug)]
pub(crate) enum ThreadCommand {
    /// Starts the load at a moment.
    Start(Instant),
    /// Ends the load now. Requests in flight may take this much longer.
    Stop(Duration),
    /// Copies the measurements.
    Snapshot(oneshot::Sender<ThreadSnapshot>),
}

/// Runs a load thread on the calling thread until the channel of its commands closes.
///
/// `completion` is dropped when the measurements are final.
///
/// # Errors
/// When the system refuses a runtime or a timer, or the timer fails later.
pub(crate) fn run_thread(
    prepared: Arc<PreparedPlan>,
    partition: Partition,
    request_log: Option<RequestLogSender>,
    mut commands: mpsc::UnboundedReceiver<ThreadCommand>,
    completion: CompletionGuard,
    user_pool: Arc<UserPool>,
) -> io::Result<()> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.on_thread_park(poll_turns::begin_wait).on_thread_unpark(poll_turns::end_wait);
    let runtime = runtime.enable_all().build_local(LocalOptions::default())?;
    let thread = usize::try_from(partition.first()).unwrap_or(0);
    runtime.block_on(async move {
        let state = ThreadState::new(prepared, request_log, thread)?;
        let mut load = Some((completion, user_pool));
        let serve = async {
            while let Some(command) = commands.recv().await {
                match command {
                    ThreadCommand::Start(at) => {
                        let Some((completion, user_pool)) = load.take() else { continue };
                        state.begin_load(at);
                        let state = Rc::clone(&state);
                        tokio::task::spawn_local(async move {
                            if run_load(&state, partition, at, user_pool).await {
                                completion.complete();
                            }
                        });
                    }
                    ThreadCommand::Stop(grace) => state.stop_load(grace),
                    ThreadCommand::Snapshot(reply) => {
                        // The receiver may be gone by now.
                        let _ = reply.send(state.take_snapshot().await);
                    }
                }
            }
        };
        // Without its timer, the thread would send nothing and seem to run.
        tokio::select! {
            error = state.timer.drive() => error,
            () = serve => Ok(()),
        }
    })
}

/// Runs the load of this thread, waits for its users, and records requests that are still in
/// flight after the grace period as interrupted.
///
/// Returns false when a user panicked.
async fn run_load(
    state: &Rc<ThreadState>,
    partition: Partition,
    start: Instant,
    user_pool: Arc<UserPool>,
) -> bool {
    let profile = LoadProfile::of(&state.prepared.plan.test.load);
    let mut users = JoinSet::new();
    let watch = tokio::task::spawn_local(watch_timeouts(Rc::clone(state)));
    // The closed model has no idle users.
    let idle_users = IdleUsers::default();
    if state.prepared.plan.test.load.is_open() {
        let pool = PoolMember::new(user_pool, start);
        open_model::run(state, &profile, partition, start, &mut users, &idle_users, pool).await;
    } else {
        closed_model::run(state, &profile, partition, start, &mut users).await;
    }
    // The load lasts to its end, even when the profile starts nothing more before it.
    state.sleep_until(state.load_end()).await;
    state.stop_cpu_clock();
    // A user that was woken a moment ago starts its request before it can be interrupted.
    tokio::task::yield_now().await;
    while !users.is_empty() && Instant::now() < state.grace_deadline() {
        tokio::select! {
            _ = users.join_next() => {}
            () = state.timer.sleep_until(state.grace_deadline()) => {}
        }
    }
    watch.abort();
    // Sessions of all users are closed at the same time, because each close may take a while.
    futures_util::future::join_all(
        idle_users.take().iter_mut().map(|user| user.close_sessions(state)),
    )
    .await;
    state.record_interrupted(Instant::now());
    state.flush_request_log();
    users.shutdown().await;
    !state.has_user_panicked()
}

/// Checks the deadlines of requests in flight, at most a twentieth of the shortest timeout late.
async fn watch_timeouts(state: Rc<ThreadState>) {
    let Timeouts { connect, first_byte } = state.prepared.plan.test.target.timeouts;
    let phases = [connect, first_byte].into_iter().flatten().map(loadtest_core::Duration::to_std);
    let shortest = state.prepared.tasks.iter().map(|task| task.timeout).chain(phases).min();
    let interval =
        (shortest.unwrap_or_default() / 20).clamp(MIN_CHECK_INTERVAL, MAX_CHECK_INTERVAL);
    loop {
        let due = Instant::now() + interval;
        state.timer.sleep_until(due).await;
        let now = Instant::now();
        // Only this thread can delay the wake-up, so the delay is the event loop lag.
        state.record_event_loop_lag(now.saturating_duration_since(due));
        state.check_deadlines(now);
    }
}
