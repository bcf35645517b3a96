//! The load of one runner: load threads, and the sum of their measurements.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use loadtest_core::metrics::{Metrics, RunnerState};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    load::{
        completion::CompletionGuard,
        thread::{ThreadCommand, run_thread},
        user_pool::UserPool,
    },
    machine::{cpu, memory},
    measure::{request_log::RequestLog, snapshot::Snapshot},
    prepare::plan::PreparedPlan,
};

/// Generates one runner's part of a test's load.
#[derive(Debug)]
pub struct Engine {
    prepared: Arc<PreparedPlan>,
    threads: Vec<mpsc::UnboundedSender<ThreadCommand>>,
    start: OnceLock<Instant>,
    /// Time of the first stop order.
    stopped: OnceLock<Instant>,
    /// True when a part of the load is missing although no stop order came.
    cut_short: Arc<AtomicBool>,
    /// Time for which a CPU limit had throttled this process before its load.
    throttled_before: OnceLock<Duration>,
    /// The largest memory use seen, in bytes and as a ratio of the limit.
    memory_peak: Mutex<(u64, f64)>,
    /// The busy users of an open load model.
    user_pool: Arc<UserPool>,
    /// Time at which the measurements became final.
    finished: watch::Receiver<Option<Instant>>,
    finished_sender: watch::Sender<Option<Instant>>,
}

impl Engine {
    /// Starts the load threads. They make no load before [`Engine::start`].
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn new(prepared: Arc<PreparedPlan>, index: u32) -> io::Result<Self> {
        Self::with_request_log(prepared, index, None)
    }

    /// Like [`Engine::new`], and writes every request to a request log.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn with_request_log(
        prepared: Arc<PreparedPlan>,
        index: u32,
        request_log: Option<&RequestLog>,
    ) -> io::Result<Self> {
        let threads = prepared.plan.threads;
        let (finished_sender, finished) = watch::channel(None);
        let remaining_threads = Arc::new(AtomicU32::new(threads));
        let cut_short = Arc::new(AtomicBool::new(false));
        let user_pool = UserPool::of_runner(&prepared.plan, index);
        let senders = (0..threads)
            .map(|thread| {
                let (sender, commands) = mpsc::unbounded_channel();
                let partition = prepared.plan.thread_partition(index, thread);
                let prepared = Arc::clone(&prepared);
                let request_log = request_log.map(RequestLog::new_sender);
                let pool = Arc::clone(&user_pool);
                let completion =
                    CompletionGuard::new(&remaining_threads, &finished_sender, &cut_short);
                let builder = std::thread::Builder::new().name(format!("load-thread-{thread}"));
                builder.spawn(move || {
                    let run =
                        run_thread(prepared, partition, request_log, commands, completion, pool);
                    if let Err(error) = run {
                        tracing::error!(%error, thread, "load thread could not run");
                    }
                })?;
                Ok(sender)
            })
            .collect::<io::Result<_>>()?;
        Ok(Self {
            prepared,
            threads: senders,
            start: OnceLock::new(),
            stopped: OnceLock::new(),
            cut_short,
            throttled_before: OnceLock::new(),
            memory_peak: Mutex::default(),
            user_pool,
            finished,
            finished_sender,
        })
    }

    /// Starts the load at `at`. Returns true for the first call and false for every later call.
    ///
    /// An engine that was stopped before its start never starts, and returns false.
    pub fn start(&self, at: Instant) -> bool {
        if self.stopped.get().is_some() || self.start.set(at).is_err() {
            return false;
        }
        self.throttled_before.get_or_init(cpu::throttled_time);
        self.send_to_threads(|| ThreadCommand::Start(at));
        true
    }

    /// Ends the load now. Requests in flight may take up to `grace` longer.
    pub fn stop(&self, grace: Duration) {
        // The first stop ends the load. A later stop can only shorten the grace period.
        let _ = self.stopped.set(Instant::now());
        if self.start.get().is_none() {
            self.finished_sender.send_replace(Some(Instant::now()));
            return;
        }
        self.send_to_threads(|| ThreadCommand::Stop(grace));
    }

    /// Ends the load now because this process has to exit, although no stop order came.
    ///
    /// Load that the plan still wants is missing then, so the state becomes
    /// [`RunnerState::CutShort`].
    pub fn kill(&self) {
        let is_over = self.load_elapsed(Instant::now()) >= self.load_length();
        if !is_over && self.stopped.get().is_none() {
            self.cut_short.store(true, Ordering::Release);
        }
        self.stop(Duration::ZERO);
    }

    fn send_to_threads(&self, command: impl Fn() -> ThreadCommand) {
        for thread in &self.threads {
            // A thread that has ended has logged the reason.
            let _ = thread.send(command());
        }
    }

    /// Returns whether the load is waiting, running, done or cut short.
    pub fn state(&self) -> RunnerState {
        if self.finished.borrow().is_some() {
            if self.cut_short.load(Ordering::Acquire) {
                return RunnerState::CutShort;
            }
            RunnerState::Done
        } else if self.start.get().is_some() {
            RunnerState::Running
        } else {
            RunnerState::Waiting
        }
    }

    /// Waits until the measurements are final.
    pub async fn wait_until_finished(&self) {
        let mut finished = self.finished.clone();
        // The sender lives as long as the engine, so `wait_for` can't fail.
        let _ = finished.wait_for(Option::is_some).await;
    }

    /// Returns everything measured so far. Values are cumulative: a later snapshot includes an
    /// earlier one.
    pub async fn snapshot(&self) -> Snapshot {
        let mut examples = BTreeMap::new();
        let mut merged: Option<Metrics> = None;
        let mut replies = Vec::with_capacity(self.threads.len());
        for thread in &self.threads {
            let (sender, reply) = oneshot::channel();
            if thread.send(ThreadCommand::Snapshot(sender)).is_ok() {
                replies.push(reply);
            }
        }
        let mut busiest = Duration::ZERO;
        // The time of the last copy. To merge the copies takes longer than to take them.
        let mut taken_at = None;
        for reply in replies {
            let Ok(snapshot) = reply.await else { continue };
            busiest = busiest.max(snapshot.busy);
            taken_at = taken_at.max(Some(snapshot.taken_at));
            for (kind, example) in snapshot.error_examples(&self.prepared) {
                examples.entry(kind).or_insert(example);
            }
            let metrics = snapshot.to_metrics(&self.prepared);
            drop(snapshot);
            // The first copy keeps its counts of zero, which are exposed.
            match &mut merged {
                Some(sum) => sum.merge(&metrics),
                None => merged = Some(metrics),
            }
        }
        let mut metrics = merged.unwrap_or_default();
        let elapsed = self.load_elapsed(taken_at.unwrap_or_else(Instant::now)).as_secs_f64();
        let throttled = cpu::throttled_time()
            .saturating_sub(*self.throttled_before.get_or_init(cpu::throttled_time));
        if self.prepared.plan.test.load.is_open() {
            // The load threads have their maxima at different times.
            metrics.users_peak = self.user_pool.most_busy();
        }
        metrics.elapsed_seconds = elapsed;
        metrics.busy_seconds = busiest.as_secs_f64();
        metrics.throttled_seconds = throttled.as_secs_f64();
        let (bytes, ratio) = self.update_memory_peak();
        metrics.memory_bytes = bytes as f64;
        metrics.memory_ratio = ratio;
        Snapshot { metrics, examples }
    }

    /// Returns the largest memory use seen so far, in bytes and as a ratio of the limit.
    ///
    /// The current use says little after the load has ended, so the peak is kept.
    fn update_memory_peak(&self) -> (u64, f64) {
        let now = (memory::resident_bytes(), memory::usage_ratio());
        // No code that could panic runs under this lock, so it is never poisoned.
        let mut peak = self.memory_peak.lock().unwrap_or_else(PoisonError::into_inner);
        *peak = (peak.0.max(now.0), peak.1.max(now.1));
        *peak
    }

    /// Returns the length of the load.
    fn load_length(&self) -> Duration {
        self.prepared.plan.test.load.duration().to_std()
    }

    /// Returns how long the load has run.
    pub fn elapsed(&self) -> Duration {
        self.load_elapsed(Instant::now())
    }

    /// Returns how long the load has run at `now`.
    ///
    /// The clock stops at the end of the load: no request begins in the grace period after it.
    fn load_elapsed(&self, now: Instant) -> Duration {
        let Some(start) = self.start.get() else { return Duration::ZERO };
        let now = self.stopped.get().map_or(now, |stopped| now.min(*stopped));
        let length = self.load_length();
        now.saturating_duration_since(*start).min(length)
    }

    /// Returns the plan of this engine.
    pub fn prepared(&self) -> &PreparedPlan {
        &self.prepared
    }
}
