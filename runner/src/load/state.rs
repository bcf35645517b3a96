//! The state that the users of one load thread share: measurements, connections, the timer and the
//! end of the load.
//!
//! One thread owns it, so it is made of cells and needs no locks.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, btree_map::Entry},
    io,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use loadtest_core::metrics::Outcome;

use crate::{
    machine::cpu,
    measure::{
        duration_histogram::{DurationHistogram, nanos_of},
        in_flight::InFlightRequest,
        recorder::{RequestTimes, TaskRecorder, Traffic},
        request_log::RequestLogSender,
        snapshot::ThreadSnapshot,
    },
    net::{arrival_clock::ArrivalClock, connector::Connector},
    prepare::plan::PreparedPlan,
    protocol::connection_pool::ConnectionPool,
    timer::PreciseTimer,
};

/// Maximum capacity of a read buffer that is kept for another request.
const MAX_KEPT_BUFFER: usize = 64 << 10;

/// Maximum time that a failed request holds its user.
const MAX_HOLD: Duration = Duration::from_secs(1);
/// Time that a failed request holds its user as long as no request of its task has succeeded. Otherwise one user
/// would try a target that is down thousands of times a second.
const HOLD_BEFORE_FIRST_SUCCESS: Duration = Duration::from_millis(250);

/// State of a load thread, shared by its users.
#[derive(Debug)]
pub(crate) struct ThreadState {
    pub(crate) prepared: Arc<PreparedPlan>,
    pub(crate) timer: Rc<PreciseTimer>,
    connection_pool: Option<ConnectionPool>,
    websocket_connector: Option<Connector>,
    /// One recorder per task, in the plan's order.
    recorders: RefCell<Vec<TaskRecorder>>,
    request_log: Option<RefCell<RequestLogSender>>,
    schedule_lag: RefCell<DurationHistogram>,
    event_loop_lag: RefCell<DurationHistogram>,
    /// One entry for each user that was ever created.
    in_flight_requests: RefCell<Vec<Rc<InFlightRequest>>>,
    /// Read buffers that no request uses now.
    read_buffers: RefCell<Vec<BytesMut>>,
    load_start: Cell<Instant>,
    load_end: Cell<Instant>,
    /// Time at which requests in flight are interrupted.
    grace_deadline: Cell<Instant>,
    active_users: Cell<u64>,
    peak_users: Cell<u64>,
    /// True when a user panicked, which is a fault of this program.
    has_user_panicked: Cell<bool>,
    /// User-seconds of the users that have ended.
    ended_user_seconds: Cell<f64>,
    /// Sum of the start times of the active users, in seconds since the start of the load.
    active_start_seconds: Cell<f64>,
    /// Number of active users whose interval ends before the load, by that end.
    interval_ends: RefCell<BTreeMap<Instant, u32>>,
    /// CPU time of this thread at the start of the load and, later, at its end.
    cpu_times: Cell<(Duration, Option<Duration>)>,
}

impl ThreadState {
    /// Creates the state of a load thread. `thread` is its number among all threads of the run.
    pub(super) fn new(
        prepared: Arc<PreparedPlan>,
        request_log: Option<RequestLogSender>,
        thread: usize,
    ) -> io::Result<Rc<Self>> {
        let now = Instant::now();
        let recorders = prepared.tasks.iter().map(|_| TaskRecorder::default()).collect();
        let timestamps = ArrivalClock::new();
        let websocket = prepared.websocket.clone();
        Ok(Rc::new(Self {
            timer: PreciseTimer::new()?,
            connection_pool: ConnectionPool::new(&prepared, &timestamps, thread),
            websocket_connector: websocket
                .map(|endpoint| Connector::new(endpoint, timestamps, thread)),
            prepared,
            recorders: RefCell::new(recorders),
            request_log: request_log.map(RefCell::new),
            schedule_lag: RefCell::default(),
            event_loop_lag: RefCell::default(),
            in_flight_requests: RefCell::default(),
            read_buffers: RefCell::default(),
            load_start: Cell::new(now),
            load_end: Cell::new(now),
            grace_deadline: Cell::new(now),
            active_users: Cell::new(0),
            peak_users: Cell::new(0),
            has_user_panicked: Cell::new(false),
            ended_user_seconds: Cell::new(0.0),
            active_start_seconds: Cell::new(0.0),
            interval_ends: RefCell::default(),
            cpu_times: Cell::new((Duration::ZERO, None)),
        }))
    }

    /// Sets the start and the end of the load.
    pub(super) fn begin_load(&self, at: Instant) {
        let plan = &self.prepared.plan;
        self.load_start.set(at);
        self.cpu_times.set((cpu::thread_cpu_time(), None));
        self.load_end.set(at + plan.test.load.duration().to_std());
        self.grace_deadline.set(self.load_end.get() + plan.test.graceful_stop.to_std());
    }

    /// Ends the load now, and the grace period after `grace`.
    pub(super) fn stop_load(&self, grace: Duration) {
        let now = Instant::now();
        self.load_end.set(self.load_end.get().min(now));
        self.grace_deadline.set(self.grace_deadline.get().min(now + grace));
        self.timer.wake_all();
    }

    /// Returns when the load ends.
    pub(crate) fn load_end(&self) -> Instant {
        self.load_end.get()
    }

    /// Returns the minimum time between the planned start of a failed request and the next action of its
    /// user: as long as a successful request usually takes, at most [`MAX_HOLD`].
    pub(crate) fn failure_hold(&self, task: usize) -> Duration {
        let recorders = self.recorders.borrow();
        let usual = recorders.get(task).and_then(TaskRecorder::usual_duration);
        usual.map_or(HOLD_BEFORE_FIRST_SUCCESS, |usual| usual.min(MAX_HOLD))
    }

    /// Returns when requests in flight are interrupted.
    pub(crate) fn grace_deadline(&self) -> Instant {
        self.grace_deadline.get()
    }

    /// Waits until `at`. Returns false when the load ends before `at`.
    pub(crate) async fn sleep_until(&self, at: Instant) -> bool {
        loop {
            let now = Instant::now();
            if now >= self.load_end.get() {
                return false;
            }
            if now >= at {
                return true;
            }
            self.timer.sleep_until(at.min(self.load_end.get())).await;
        }
    }

    /// Records how late a user acted.
    pub(crate) fn record_schedule_lag(&self, lag: Duration) {
        self.schedule_lag.borrow_mut().record(nanos_of(lag));
    }

    /// Records how late the event loop ran a task of its own.
    pub(super) fn record_event_loop_lag(&self, lag: Duration) {
        self.event_loop_lag.borrow_mut().record(nanos_of(lag));
    }

    /// Writes a request to the request log, if there is one.
    pub(crate) fn log_request(&self, task: usize, outcome: Outcome, times: &RequestTimes) {
        if let Some(log) = &self.request_log {
            log.borrow_mut().push(self.load_start.get(), task, outcome, *times);
        }
    }

    /// Hands all rows of the request log to its writer.
    pub(super) fn flush_request_log(&self) {
        if let Some(log) = &self.request_log {
            log.borrow_mut().flush(self.load_start.get());
        }
    }

    /// Counts the traffic of a task.
    pub(crate) fn count_traffic(&self, task: usize, traffic: &Traffic) {
        self.with_recorder(task, |recorder| recorder.count_traffic(traffic));
    }

    /// Calls `write` with the recorder of a task.
    pub(crate) fn with_recorder(&self, task: usize, write: impl FnOnce(&mut TaskRecorder)) {
        if let Some(recorder) = self.recorders.borrow_mut().get_mut(task) {
            write(recorder);
        }
    }

    /// Takes an empty read buffer.
    pub(crate) fn take_read_buffer(&self) -> BytesMut {
        self.read_buffers.borrow_mut().pop().unwrap_or_default()
    }

    /// Puts a read buffer back for another request. A buffer that has grown for a large response is
    /// freed.
    pub(crate) fn return_read_buffer(&self, mut buffer: BytesMut) {
        if buffer.capacity() <= MAX_KEPT_BUFFER {
            buffer.clear();
            self.read_buffers.borrow_mut().push(buffer);
        }
    }

    /// Returns the pool of connections to the HTTP target, if the plan has one.
    pub(crate) const fn connection_pool(&self) -> Option<&ConnectionPool> {
        self.connection_pool.as_ref()
    }

    /// Returns the connector to the WebSocket target, if the plan has one.
    pub(crate) const fn websocket_connector(&self) -> Option<&Connector> {
        self.websocket_connector.as_ref()
    }

    /// Adds the in-flight request of a new user.
    pub(super) fn add_in_flight_request(&self) -> Rc<InFlightRequest> {
        let in_flight = Rc::new(InFlightRequest::new(self.prepared.plan.test.target.timeouts));
        self.in_flight_requests.borrow_mut().push(Rc::clone(&in_flight));
        in_flight
    }

    /// Wakes the users with a request that is past its deadline.
    pub(super) fn check_deadlines(&self, now: Instant) {
        for in_flight in self.in_flight_requests.borrow().iter() {
            in_flight.check_deadline(now);
        }
    }

    /// Records all requests in flight as interrupted at `now`.
    pub(super) fn record_interrupted(&self, now: Instant) {
        for in_flight in self.in_flight_requests.borrow().iter() {
            let Some((task, planned)) = in_flight.current_request() else { continue };
            let Some(prepared) = self.prepared.tasks.get(task) else { continue };
            let times = in_flight.request_times(&prepared.kind, planned, now);
            self.log_request(task, Outcome::Interrupted, &times);
            self.with_recorder(task, |recorder| {
                let opened = in_flight.take_opened_connections();
                opened.iter().for_each(|opened| recorder.record_connection(opened));
                let waited = in_flight.round_trip_age(now);
                if let Some(age) = waited {
                    recorder.record_round_trip(Outcome::Interrupted, age);
                }
                recorder.record_request(Outcome::Interrupted, &times, self.load_end.get());
                recorder.count_response(in_flight.status(), in_flight.resends());
            });
        }
    }

    fn seconds_since_start(&self, at: Instant) -> f64 {
        at.saturating_duration_since(self.load_start.get()).as_secs_f64()
    }

    /// Adds an active user. Returns true if its interval ends before the load.
    fn add_active_user(&self, began: Instant, until: Instant) -> bool {
        let ends_early = until < self.load_end.get();
        if ends_early {
            *self.interval_ends.borrow_mut().entry(until).or_default() += 1;
        }
        self.active_users.set(self.active_users.get() + 1);
        self.peak_users.set(self.peak_users.get().max(self.active_users.get()));
        let starts = self.active_start_seconds.get() + self.seconds_since_start(began);
        self.active_start_seconds.set(starts);
        ends_early
    }

    /// Removes an active user. Its user-seconds end with its interval or with the load, even when
    /// its last request takes longer.
    fn remove_active_user(&self, user: &ActiveUser<'_>) {
        let ActiveUser { began, until, ends_early, .. } = *user;
        let ended = Instant::now().min(self.load_end.get()).min(until);
        self.active_users.set(self.active_users.get() - 1);
        if ends_early
            && let Entry::Occupied(mut entry) = self.interval_ends.borrow_mut().entry(until)
        {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
        let starts = self.active_start_seconds.get() - self.seconds_since_start(began);
        self.active_start_seconds.set(starts);
        let ran = ended.saturating_duration_since(began).as_secs_f64();
        self.ended_user_seconds.set(self.ended_user_seconds.get() + ran);
    }

    fn user_seconds(&self) -> f64 {
        let now = Instant::now().min(self.load_end.get());
        let seconds = self.seconds_since_start(now);
        let active = self.active_users.get() as f64 * seconds - self.active_start_seconds.get();
        // These users wait for a response, and their interval is over.
        let interval_ends = self.interval_ends.borrow();
        let after_interval = interval_ends.range(..now).map(|(until, users)| {
            now.saturating_duration_since(*until).as_secs_f64() * f64::from(*users)
        });
        self.ended_user_seconds.get() + (active - after_interval.sum::<f64>()).max(0.0)
    }

    /// Returns true when a user panicked.
    pub(super) fn has_user_panicked(&self) -> bool {
        self.has_user_panicked.get()
    }

    /// Records the CPU time of this thread at the end of the load.
    pub(super) fn stop_cpu_clock(&self) {
        self.cpu_times.set((self.cpu_times.get().0, Some(cpu::thread_cpu_time())));
    }

    fn busy_time(&self) -> Duration {
        let (began, ended) = self.cpu_times.get();
        ended.unwrap_or_else(cpu::thread_cpu_time).saturating_sub(began)
    }

    /// Copies all measurements. Yields after each task, so that users don't wait for the whole
    /// copy.
    pub(super) async fn take_snapshot(&self) -> ThreadSnapshot {
        let mut tasks = Vec::with_capacity(self.prepared.tasks.len());
        for index in 0..self.prepared.tasks.len() {
            tasks.extend(self.recorders.borrow().get(index).cloned());
            tokio::task::yield_now().await;
        }
        ThreadSnapshot {
            tasks,
            schedule_lag: self.schedule_lag.borrow().clone(),
            event_loop_lag: self.event_loop_lag.borrow().clone(),
            active_users: self.active_users.get(),
            peak_users: self.peak_users.get(),
            user_seconds: self.user_seconds(),
            busy: self.busy_time(),
            taken_at: Instant::now(),
        }
    }
}

/// Counts a user as active until this guard is dropped, also when the user is aborted.
#[derive(Debug)]
pub(crate) struct ActiveUser<'a> {
    state: &'a ThreadState,
    began: Instant,
    until: Instant,
    ends_early: bool,
}

impl<'a> ActiveUser<'a> {
    pub(crate) fn new(state: &'a ThreadState, began: Instant, until: Instant) -> Self {
        let ends_early = state.add_active_user(began, until);
        Self { state, began, until, ends_early }
    }
}

impl Drop for ActiveUser<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.state.has_user_panicked.set(true);
        }
        self.state.remove_active_user(self);
    }
}
