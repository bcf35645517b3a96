//! The load of one runner: workers on threads of their own, and their numbers together.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use loadtest_core::metrics::{Numbers, RunnerState};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    load::thread::{self, Order, Share},
    machine::{cpu, memory},
    measure::request_log::RawRecord,
    prepare::Prepared,
};

/// Generates one runner's share of a test's load.
#[derive(Debug)]
pub struct Engine {
    prepared: Arc<Prepared>,
    workers: Vec<mpsc::UnboundedSender<Order>>,
    start: OnceLock<Instant>,
    /// When it was told to stop before its end.
    stopped: OnceLock<Instant>,
    /// Some of the load was not made, and nobody had told it to stop.
    cut_short: Arc<AtomicBool>,
    /// How long a CPU limit had held this process up before its load.
    throttled: OnceLock<Duration>,
    /// The most memory that was seen, and of its limit.
    memory: Mutex<(u64, f64)>,
    /// When the numbers became final.
    finished: watch::Receiver<Option<Instant>>,
    done: watch::Sender<Option<Instant>>,
}

/// Held by a worker until its load is over, however it ends; the last one to go says so.
#[derive(Debug)]
pub(crate) struct Ending {
    left: Arc<AtomicU32>,
    done: watch::Sender<Option<Instant>>,
    cut_short: Arc<AtomicBool>,
    /// Its load was made to the end.
    whole: bool,
}

impl Ending {
    /// The load was made to the end: one that is let go without this was cut short.
    pub(crate) fn whole(mut self) {
        self.whole = true;
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.cut_short.fetch_or(!self.whole, Ordering::AcqRel);
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.done.send_replace(Some(Instant::now()));
        }
    }
}

/// What an engine has measured so far.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Numbers of all workers.
    pub numbers: Numbers,
    /// One message per task and kind of error.
    pub examples: BTreeMap<(String, String), String>,
}

impl Engine {
    /// Starts the workers; they wait for [`Engine::start`].
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn new(prepared: Arc<Prepared>, index: u32) -> io::Result<Self> {
        Self::recorded(prepared, index, None)
    }

    /// The same, with every request kept in a raw record.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn recorded(
        prepared: Arc<Prepared>,
        index: u32,
        record: Option<&RawRecord>,
    ) -> io::Result<Self> {
        let workers = prepared.plan.workers.max(1);
        let (done, finished) = watch::channel(None);
        let left = Arc::new(AtomicU32::new(workers));
        let cut_short = Arc::new(AtomicBool::new(false));
        let senders = (0..workers)
            .map(|worker| {
                let (sender, orders) = mpsc::unbounded_channel();
                // User u belongs to runner u mod n, and there to worker (u / n) mod w.
                let (runner, runners) = (u64::from(index), u64::from(prepared.plan.runners.max(1)));
                let share = Share {
                    first: runner + runners * u64::from(worker),
                    step: runners * u64::from(workers),
                };
                let prepared = Arc::clone(&prepared);
                let raw = record.map(RawRecord::recorder);
                let ending = Ending {
                    left: Arc::clone(&left),
                    done: done.clone(),
                    cut_short: Arc::clone(&cut_short),
                    whole: false,
                };
                std::thread::Builder::new().name(format!("worker-{worker}")).spawn(move || {
                    if let Err(error) = thread::run(prepared, share, raw, orders, ending) {
                        tracing::error!(%error, worker, "worker could not run");
                    }
                })?;
                Ok(sender)
            })
            .collect::<io::Result<_>>()?;
        Ok(Self {
            prepared,
            workers: senders,
            start: OnceLock::new(),
            stopped: OnceLock::new(),
            cut_short,
            throttled: OnceLock::new(),
            memory: Mutex::default(),
            finished,
            done,
        })
    }

    /// Begins the load at a moment. Only the first call counts; false for the others.
    ///
    /// One that was told to stop before is over, and never starts.
    pub fn start(&self, at: Instant) -> bool {
        if self.stopped.get().is_some() || self.start.set(at).is_err() {
            return false;
        }
        self.throttled.get_or_init(cpu::throttled);
        self.order(|| Order::Start(at));
        true
    }

    /// Ends the load now; open requests may take `grace` yet.
    pub fn stop(&self, grace: Duration) {
        // The first stop is when load ended; a later one only shortens the grace.
        let _ = self.stopped.set(Instant::now());
        if self.start.get().is_none() {
            self.done.send_replace(Some(Instant::now()));
            return;
        }
        self.order(|| Order::Stop(grace));
    }

    /// Ends the load now, though nobody told it to stop: this runner has to go. What it has not
    /// made of its load by then is missing.
    pub fn kill(&self) {
        let over = self.elapsed(Instant::now()) >= self.prepared.plan.load.length().std();
        if !over && self.stopped.get().is_none() {
            self.cut_short.store(true, Ordering::Release);
        }
        self.stop(Duration::ZERO);
    }

    fn order(&self, order: impl Fn() -> Order) {
        for worker in &self.workers {
            // A worker that ended has logged why.
            let _ = worker.send(order());
        }
    }

    /// Waiting, running, done, or cut short.
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

    /// Waits until the numbers are final.
    pub async fn finished(&self) {
        let mut finished = self.finished.clone();
        // The sender lives as long as this does.
        let _ = finished.wait_for(Option::is_some).await;
    }

    /// What was measured so far. Cumulative: a later answer includes an earlier one.
    pub async fn measured(&self) -> Measured {
        let mut all = Measured::default();
        let mut answers = Vec::with_capacity(self.workers.len());
        for worker in &self.workers {
            let (answer, copied) = oneshot::channel();
            if worker.send(Order::Scrape(answer)).is_ok() {
                answers.push(copied);
            }
        }
        let mut busiest = Duration::ZERO;
        for copied in answers {
            let Ok(copied) = copied.await else { continue };
            busiest = busiest.max(copied.busy);
            all.numbers.merge(&copied.numbers(&self.prepared));
            for (kind, example) in copied.examples(&self.prepared) {
                all.examples.entry(kind).or_insert(example);
            }
        }
        let elapsed = self.elapsed(Instant::now()).as_secs_f64();
        let throttled =
            cpu::throttled().saturating_sub(*self.throttled.get_or_init(cpu::throttled));
        all.numbers.elapsed_seconds = elapsed;
        all.numbers.busy_seconds = busiest.as_secs_f64();
        all.numbers.throttled_seconds = throttled.as_secs_f64();
        let (bytes, ratio) = self.memory_peak();
        all.numbers.memory_bytes = bytes as f64;
        all.numbers.memory_ratio = ratio;
        all
    }

    /// The most memory, and the largest share of its limit, that were ever seen: once load is over,
    /// both say little.
    fn memory_peak(&self) -> (u64, f64) {
        let now = (memory::resident(), memory::share_of_limit());
        // Poisoned by nobody: no code runs under it that could panic.
        let mut peak = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        *peak = (peak.0.max(now.0), peak.1.max(now.1));
        *peak
    }

    /// How long load has been on. It ends with the load: what open requests may take after it
    /// is no time in which others were begun.
    fn elapsed(&self, now: Instant) -> Duration {
        let Some(start) = self.start.get() else { return Duration::ZERO };
        let now = self.stopped.get().map_or(now, |stopped| now.min(*stopped));
        let length = self.prepared.plan.load.length().std();
        now.saturating_duration_since(*start).min(length)
    }

    /// The plan being run.
    pub fn prepared(&self) -> &Prepared {
        &self.prepared
    }
}
