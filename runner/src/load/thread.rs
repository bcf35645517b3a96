//! One load-generating thread: a runtime, its users, its recorder.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    io,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use loadtest_core::{
    metrics::{Numbers, Outcome},
    profile::Profile,
    resource::Timeouts,
};
use tokio::{
    runtime::LocalOptions,
    sync::{mpsc, oneshot},
    task::JoinSet,
};

use crate::{
    load::{
        closed_model,
        engine::Ending,
        open_model::{self, Free},
    },
    machine::cpu,
    measure::{
        in_flight::Flight,
        recorder::{Distribution, Sample, TaskRecorder},
        request_log::RawRecorder,
    },
    net::{connector::Connector, kernel_timestamps::Clock},
    prepare::Prepared,
    protocol::connection_pool::Links,
    timer::Pacer,
};

/// Between looks for requests that take too long.
const SHORTEST_LOOK: Duration = Duration::from_millis(1);
const LONGEST_LOOK: Duration = Duration::from_millis(50);

/// The largest read buffer that is kept.
const KEPT_BUFFER: usize = 64 << 10;

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// What the engine tells a worker.
#[derive(Debug)]
pub(crate) enum Order {
    /// Begin the ramp at a moment.
    Start(Instant),
    /// End the load now; open requests may take this long yet.
    Stop(Duration),
    /// Copy the recorder.
    Scrape(oneshot::Sender<Copied>),
}

/// A copy of a worker's recorder, to be made into numbers off its thread.
#[derive(Debug, Default)]
pub(crate) struct Copied {
    tasks: Vec<TaskRecorder>,
    lag: Distribution,
    loop_lag: Distribution,
    users: u64,
    users_peak: u64,
    user_seconds: f64,
    /// How long load has kept the thread on a CPU.
    pub(crate) busy: Duration,
}

impl Copied {
    /// The numbers in the form they are exposed in. Takes milliseconds: not for a load thread.
    pub(crate) fn numbers(&self, prepared: &Prepared) -> Numbers {
        let tasks = prepared.tasks.iter().zip(&self.tasks);
        Numbers {
            tasks: tasks.map(|(task, copy)| (task.name.clone(), copy.numbers())).collect(),
            schedule_lag: self.lag.to_native(),
            loop_lag: self.loop_lag.to_native(),
            users: self.users,
            users_peak: self.users_peak,
            user_seconds: self.user_seconds,
            // Known to the engine.
            elapsed_seconds: 0.0,
            busy_seconds: 0.0,
            throttled_seconds: 0.0,
            memory_bytes: 0.0,
            memory_ratio: 0.0,
        }
    }

    /// One message per task and kind of error.
    pub(crate) fn examples(&self, prepared: &Prepared) -> BTreeMap<(String, String), String> {
        let tasks = prepared.tasks.iter().zip(&self.tasks);
        tasks
            .flat_map(|(task, copy)| {
                copy.examples()
                    .map(|(kind, text)| ((task.name.clone(), kind.to_string()), text.to_owned()))
            })
            .collect()
    }
}

/// A worker's state, shared by its users. One thread: cells, no locks.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) prepared: Arc<Prepared>,
    pub(crate) pacer: Rc<Pacer>,
    http: Option<Links>,
    web_socket: Option<Connector>,
    tasks: RefCell<Vec<TaskRecorder>>,
    raw: Option<RefCell<RawRecorder>>,
    lag: RefCell<Distribution>,
    loop_lag: RefCell<Distribution>,
    /// One for each user that was ever needed.
    flights: RefCell<Vec<Rc<Flight>>>,
    /// Read buffers that nobody uses now.
    buffers: RefCell<Vec<BytesMut>>,
    /// When load ends, and when open requests are given up.
    end: Cell<Instant>,
    hard_end: Cell<Instant>,
    users: Cell<u64>,
    users_peak: Cell<u64>,
    /// A user was lost to a fault of this program.
    lost_user: Cell<bool>,
    /// The user-seconds of users that ended, and the starts of those that run, in seconds.
    ended_user_seconds: Cell<f64>,
    running_starts: Cell<f64>,
    start: Cell<Instant>,
    /// CPU time of this thread when load began and, later, when it had ended.
    cpu: Cell<(Duration, Option<Duration>)>,
}

impl Worker {
    fn new(prepared: Arc<Prepared>, raw: Option<RawRecorder>) -> io::Result<Rc<Self>> {
        let now = Instant::now();
        let tasks = prepared.tasks.iter().map(|_| TaskRecorder::default()).collect();
        let clock = Clock::new();
        let web_socket = prepared.web_socket.clone();
        Ok(Rc::new(Self {
            pacer: Pacer::new()?,
            http: Links::new(&prepared, &clock),
            web_socket: web_socket.map(|endpoint| Connector::new(endpoint, clock)),
            prepared,
            tasks: RefCell::new(tasks),
            raw: raw.map(RefCell::new),
            lag: RefCell::default(),
            loop_lag: RefCell::default(),
            flights: RefCell::default(),
            buffers: RefCell::default(),
            end: Cell::new(now),
            hard_end: Cell::new(now),
            users: Cell::new(0),
            users_peak: Cell::new(0),
            lost_user: Cell::new(false),
            ended_user_seconds: Cell::new(0.0),
            running_starts: Cell::new(0.0),
            start: Cell::new(now),
            cpu: Cell::new((Duration::ZERO, None)),
        }))
    }

    /// When the load ends.
    pub(crate) fn end(&self) -> Instant {
        self.end.get()
    }

    /// When what is still open is interrupted.
    pub(crate) fn hard_end(&self) -> Instant {
        self.hard_end.get()
    }

    /// Records how late a user acted.
    pub(crate) fn lag(&self, lag: Duration) {
        self.lag.borrow_mut().record(nanos(lag));
    }

    /// Keeps a request in the raw record, if there is one.
    pub(crate) fn keep(&self, task: usize, outcome: Outcome, sample: &Sample) {
        if let Some(raw) = &self.raw {
            raw.borrow_mut().record(self.start.get(), task, outcome, *sample);
        }
    }

    /// Counts bytes and WebSocket messages, sent and received, of a task.
    pub(crate) fn count(&self, task: usize, bytes: (u64, u64), messages: (u64, u64)) {
        self.record(task, |recorder| {
            recorder.bytes(bytes.0, bytes.1);
            recorder.messages(messages.0, messages.1);
        });
    }

    /// Records something of a task.
    pub(crate) fn record(&self, task: usize, write: impl FnOnce(&mut TaskRecorder)) {
        if let Some(recorder) = self.tasks.borrow_mut().get_mut(task) {
            write(recorder);
        }
    }

    /// An empty read buffer.
    pub(crate) fn take_buffer(&self) -> BytesMut {
        self.buffers.borrow_mut().pop().unwrap_or_default()
    }

    /// Gives a read buffer back. Large ones, of large answers, are let go.
    pub(crate) fn give_buffer(&self, mut buffer: BytesMut) {
        if buffer.capacity() <= KEPT_BUFFER {
            buffer.clear();
            self.buffers.borrow_mut().push(buffer);
        }
    }

    /// The way to the HTTP target, and the connections that no user owns.
    pub(crate) const fn links(&self) -> Option<&Links> {
        self.http.as_ref()
    }

    /// The way to the WebSocket target.
    pub(crate) const fn web_socket(&self) -> Option<&Connector> {
        self.web_socket.as_ref()
    }

    fn since_start(&self, at: Instant) -> f64 {
        at.saturating_duration_since(self.start.get()).as_secs_f64()
    }

    fn user_begins(&self, at: Instant) {
        self.users.set(self.users.get() + 1);
        self.users_peak.set(self.users_peak.get().max(self.users.get()));
        self.running_starts.set(self.running_starts.get() + self.since_start(at));
    }

    /// A user's load ends with its run or the test, even when its last request takes longer.
    fn user_ends(&self, began: Instant, until: Instant) {
        let ended = Instant::now().min(self.end.get()).min(until);
        self.users.set(self.users.get() - 1);
        self.running_starts.set(self.running_starts.get() - self.since_start(began));
        let ran = ended.saturating_duration_since(began).as_secs_f64();
        self.ended_user_seconds.set(self.ended_user_seconds.get() + ran);
    }

    fn user_seconds(&self) -> f64 {
        let now = self.since_start(Instant::now().min(self.end.get()));
        let running = self.users.get() as f64 * now - self.running_starts.get();
        self.ended_user_seconds.get() + running.max(0.0)
    }

    /// Copies the recorder one task at a time, so that no user waits for all of it.
    async fn copy(&self) -> Copied {
        let mut tasks = Vec::with_capacity(self.prepared.tasks.len());
        for index in 0..self.prepared.tasks.len() {
            tasks.extend(self.tasks.borrow().get(index).cloned());
            tokio::task::yield_now().await;
        }
        Copied {
            tasks,
            lag: self.lag.borrow().clone(),
            loop_lag: self.loop_lag.borrow().clone(),
            users: self.users.get(),
            users_peak: self.users_peak.get(),
            user_seconds: self.user_seconds(),
            busy: {
                let (began, ended) = self.cpu.get();
                ended.unwrap_or_else(cpu::of_this_thread).saturating_sub(began)
            },
        }
    }

    fn stop(&self, grace: Duration) {
        let now = Instant::now();
        self.end.set(self.end.get().min(now));
        self.hard_end.set(self.hard_end.get().min(now + grace));
        self.pacer.wake_all();
    }

    /// Makes the load of its users, waits for them, and counts what is still open at the end
    /// as interrupted. False when a user was lost to a fault of this program.
    async fn load(self: &Rc<Self>, share: Share, start: Instant) -> bool {
        let profile = Profile::of(&self.prepared.plan.load);
        let mut users = JoinSet::new();
        let watch = tokio::task::spawn_local(Rc::clone(self).watch_timeouts());
        // Users that wait for an arrival; of a closed load there are none.
        let free = Free::default();
        if self.prepared.plan.load.is_open() {
            open_model::load(self, &profile, share, start, &mut users, &free).await;
        } else {
            closed_model::load(self, &profile, share, start, &mut users).await;
        }
        // Load lasts to its end, even when nothing more was wanted before.
        self.reaches(self.end.get()).await;
        self.cpu.set((self.cpu.get().0, Some(cpu::of_this_thread())));
        // Users that were given work a moment ago take it before they can be interrupted at it.
        tokio::task::yield_now().await;
        while !users.is_empty() && Instant::now() < self.hard_end.get() {
            tokio::select! {
                _ = users.join_next() => {}
                () = self.pacer.until(self.hard_end.get()) => {}
            }
        }
        watch.abort();
        // All at once: each takes its time.
        futures::future::join_all(free.take().iter_mut().map(|user| user.leave(self))).await;
        let now = Instant::now();
        for flight in self.flights.borrow().iter() {
            let Some((task, planned)) = flight.open() else { continue };
            let Some(prepared) = self.prepared.tasks.get(task) else { continue };
            let sample = flight.sample(&prepared.kind, Outcome::Interrupted, planned, now);
            self.keep(task, Outcome::Interrupted, &sample);
            self.record(task, |recorder| {
                flight.take_opened().iter().for_each(|opened| recorder.opened(opened));
                flight.awaiting(now).into_iter().for_each(|age| recorder.round_trip(age));
                recorder.record(Outcome::Interrupted, &sample);
            });
        }
        if let Some(raw) = &self.raw {
            raw.borrow_mut().flush(self.start.get());
        }
        users.shutdown().await;
        !self.lost_user.get()
    }

    /// Looks for requests that take too long, a twentieth of the shortest timeout late at most.
    async fn watch_timeouts(self: Rc<Self>) {
        let Timeouts { connect, first_byte } = self.prepared.plan.target.timeouts;
        let parts = [connect, first_byte].into_iter().flatten().map(loadtest_core::Duration::std);
        let shortest = self.prepared.tasks.iter().map(|task| task.timeout).chain(parts).min();
        let every = (shortest.unwrap_or_default() / 20).clamp(SHORTEST_LOOK, LONGEST_LOOK);
        loop {
            let due = Instant::now() + every;
            self.pacer.until(due).await;
            let now = Instant::now();
            // Nobody waits for this but the thread itself: later than due, it was kept.
            self.loop_lag.borrow_mut().record(nanos(now.saturating_duration_since(due)));
            for flight in self.flights.borrow().iter() {
                flight.look(now);
            }
        }
    }

    /// The open request of a new user.
    pub(crate) fn new_flight(&self) -> Rc<Flight> {
        let flight = Rc::new(Flight::new(self.prepared.plan.target.timeouts));
        self.flights.borrow_mut().push(Rc::clone(&flight));
        flight
    }

    /// Waits until a moment or the end of the load; false when that came first.
    pub(crate) async fn reaches(&self, at: Instant) -> bool {
        loop {
            let now = Instant::now();
            if now >= self.end.get() {
                return false;
            }
            if now >= at {
                return true;
            }
            self.pacer.until(at.min(self.end.get())).await;
        }
    }
}

/// What of a test's load one worker makes: every `step`-th of its users and arrivals.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    pub(crate) first: u64,
    pub(crate) step: u64,
}

/// Counts a user for as long as it runs, even when it is aborted.
#[derive(Debug)]
pub(crate) struct Running<'a> {
    worker: &'a Worker,
    began: Instant,
    until: Instant,
}

impl<'a> Running<'a> {
    pub(crate) fn new(worker: &'a Worker, began: Instant, until: Instant) -> Self {
        worker.user_begins(began);
        Self { worker, began, until }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.worker.lost_user.set(true);
        }
        self.worker.user_ends(self.began, self.until);
    }
}

/// Runs a worker on the calling thread until its orders end.
///
/// `ending` is let go when its numbers are final.
///
/// # Errors
/// When the system refuses a runtime or a timer.
pub(crate) fn run(
    prepared: Arc<Prepared>,
    share: Share,
    raw: Option<RawRecorder>,
    mut orders: mpsc::UnboundedReceiver<Order>,
    ending: Ending,
) -> io::Result<()> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build_local(LocalOptions::default())?;
    runtime.block_on(async move {
        let worker = Worker::new(prepared, raw)?;
        let driver = Rc::clone(&worker.pacer);
        tokio::task::spawn_local(async move { driver.drive().await });
        let mut start = Some(ending);
        while let Some(order) = orders.recv().await {
            match order {
                Order::Start(at) => {
                    let Some(ending) = start.take() else { continue };
                    let plan = &worker.prepared.plan;
                    worker.start.set(at);
                    worker.cpu.set((cpu::of_this_thread(), None));
                    worker.end.set(at + plan.load.length().std());
                    worker.hard_end.set(worker.end.get() + plan.load.graceful_stop.std());
                    let worker = Rc::clone(&worker);
                    tokio::task::spawn_local(async move {
                        if worker.load(share, at).await {
                            ending.whole();
                        }
                    });
                }
                Order::Stop(grace) => worker.stop(grace),
                Order::Scrape(answer) => {
                    // Who asked may be gone by now.
                    let _ = answer.send(worker.copy().await);
                }
            }
        }
        Ok(())
    })
}
