//! One load-generating thread: a runtime, its users, its recorder.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    io,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use loadtest_core::metrics::{Numbers, Outcome};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};

use crate::{
    connect::Connector,
    failure::{ErrorKind, Failure},
    flight::Flight,
    pacer::Pacer,
    prepare::Prepared,
    record::{Distribution, Sample, TaskRecorder},
    user,
};

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
    users: u64,
    users_peak: u64,
    user_seconds: f64,
}

impl Copied {
    /// The numbers in the form they are exposed in. Takes milliseconds: not for a load thread.
    pub(crate) fn numbers(&self, prepared: &Prepared) -> Numbers {
        let tasks = prepared.tasks.iter().zip(&self.tasks);
        Numbers {
            tasks: tasks.map(|(task, copy)| (task.name.clone(), copy.numbers())).collect(),
            schedule_lag: self.lag.to_native(),
            users: self.users,
            users_peak: self.users_peak,
            user_seconds: self.user_seconds,
            elapsed_seconds: 0.0,
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
    http: Option<Connector>,
    web_socket: Option<Connector>,
    tasks: RefCell<Vec<TaskRecorder>>,
    lag: RefCell<Distribution>,
    /// When load ends, and when open requests are given up.
    end: Cell<Instant>,
    hard_end: Cell<Instant>,
    users: Cell<u64>,
    users_peak: Cell<u64>,
    /// The user-seconds of users that ended, and the starts of those that run, in seconds.
    ended_user_seconds: Cell<f64>,
    running_starts: Cell<f64>,
    start: Cell<Instant>,
}

impl Worker {
    fn new(prepared: Arc<Prepared>) -> io::Result<Rc<Self>> {
        let now = Instant::now();
        let tasks = prepared.tasks.iter().map(|_| TaskRecorder::default()).collect();
        Ok(Rc::new(Self {
            pacer: Pacer::new()?,
            http: prepared.http.clone().map(Connector::new),
            web_socket: prepared.web_socket.clone().map(Connector::new),
            prepared,
            tasks: RefCell::new(tasks),
            lag: RefCell::default(),
            end: Cell::new(now),
            hard_end: Cell::new(now),
            users: Cell::new(0),
            users_peak: Cell::new(0),
            ended_user_seconds: Cell::new(0.0),
            running_starts: Cell::new(0.0),
            start: Cell::new(now),
        }))
    }

    /// When the load ends.
    pub(crate) fn end(&self) -> Instant {
        self.end.get()
    }

    /// Records how late a user acted.
    pub(crate) fn lag(&self, lag: Duration) {
        self.lag.borrow_mut().record(u64::try_from(lag.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Records a request of a task.
    pub(crate) fn record(&self, task: usize, write: impl FnOnce(&mut TaskRecorder)) {
        if let Some(recorder) = self.tasks.borrow_mut().get_mut(task) {
            write(recorder);
        }
    }

    /// The way to the HTTP target.
    pub(crate) fn http(&self) -> Result<&Connector, Failure> {
        self.http.as_ref().ok_or_else(|| Failure::new(ErrorKind::Connect, "no target.http"))
    }

    /// The way to the WebSocket target.
    pub(crate) fn web_socket(&self) -> Result<&Connector, Failure> {
        let missing = || Failure::new(ErrorKind::Connect, "no target.webSocket");
        self.web_socket.as_ref().ok_or_else(missing)
    }

    fn since_start(&self, at: Instant) -> f64 {
        at.saturating_duration_since(self.start.get()).as_secs_f64()
    }

    fn user_begins(&self, at: Instant) {
        self.users.set(self.users.get() + 1);
        self.users_peak.set(self.users_peak.get().max(self.users.get()));
        self.running_starts.set(self.running_starts.get() + self.since_start(at));
    }

    /// A user's load ends with the test, even when its last request takes longer.
    fn user_ends(&self, began: Instant) {
        let ended = Instant::now().min(self.end.get());
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
            users: self.users.get(),
            users_peak: self.users_peak.get(),
            user_seconds: self.user_seconds(),
        }
    }

    fn stop(&self, grace: Duration) {
        let now = Instant::now();
        self.end.set(self.end.get().min(now));
        self.hard_end.set(self.hard_end.get().min(now + grace));
        self.pacer.wake_all();
    }

    /// Starts users one after the other, waits for them, and counts what is still open at
    /// the end as interrupted.
    async fn load(self: &Rc<Self>, mine: Vec<u64>, start: Instant) {
        let mut users = JoinSet::new();
        let mut flights = Vec::with_capacity(mine.len());
        for number in mine {
            let at = start + self.prepared.plan.start_of(number).std();
            while Instant::now() < at.min(self.end.get()) {
                self.pacer.until(at.min(self.end.get())).await;
            }
            if at >= self.end.get() || Instant::now() >= self.end.get() {
                break;
            }
            let flight = Rc::new(Flight::new());
            flights.push(Rc::clone(&flight));
            let worker = Rc::clone(self);
            users.spawn_local(async move {
                let _running = Running::new(Rc::clone(&worker), at);
                user::run(worker, flight, number, at).await;
            });
        }
        while !users.is_empty() && Instant::now() < self.hard_end.get() {
            tokio::select! {
                _ = users.join_next() => {}
                () = self.pacer.until(self.hard_end.get()) => {}
            }
        }
        let now = Instant::now();
        for flight in flights {
            let Some((task, planned)) = flight.open() else { continue };
            let sample =
                Sample { planned, sent: flight.sent(), first: None, last: now, connect: None };
            self.record(task, |recorder| recorder.record(Outcome::Interrupted, &sample));
        }
        users.shutdown().await;
    }
}

/// Counts a user for as long as it lives, even when it is aborted.
struct Running {
    worker: Rc<Worker>,
    began: Instant,
}

impl Running {
    fn new(worker: Rc<Worker>, began: Instant) -> Self {
        worker.user_begins(began);
        Self { worker, began }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.worker.user_ends(self.began);
    }
}

/// Runs a worker on the calling thread until its orders end.
///
/// `finished` is called once, when its numbers are final.
///
/// # Errors
/// When the system refuses a runtime or a timer.
pub(crate) fn run(
    prepared: Arc<Prepared>,
    mine: Vec<u64>,
    mut orders: mpsc::UnboundedReceiver<Order>,
    finished: impl FnOnce() + 'static,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        let worker = Worker::new(prepared)?;
        let driver = Rc::clone(&worker.pacer);
        tokio::task::spawn_local(async move { driver.drive().await });
        let mut start = Some((mine, finished));
        while let Some(order) = orders.recv().await {
            match order {
                Order::Start(at) => {
                    let Some((mine, finished)) = start.take() else { continue };
                    let plan = &worker.prepared.plan;
                    worker.start.set(at);
                    worker.end.set(at + plan.load.duration.std());
                    worker.hard_end.set(worker.end.get() + plan.load.graceful_stop.std());
                    let worker = Rc::clone(&worker);
                    tokio::task::spawn_local(async move {
                        worker.load(mine, at).await;
                        finished();
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
