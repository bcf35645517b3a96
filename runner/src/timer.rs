//! A timer that wakes users within microseconds of the planned time.
//!
//! Tokio's timer has a resolution of 1 ms and rounds up. [`PreciseTimer`] is a heap of deadlines
//! over a single `timerfd`, one per load thread.

use std::{
    cell::{Cell, RefCell},
    cmp::Reverse,
    collections::BinaryHeap,
    future::Future,
    io,
    os::fd::OwnedFd,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;

/// The timer of one load thread.
#[derive(Debug)]
pub(crate) struct PreciseTimer {
    timerfd: AsyncFd<OwnedFd>,
    sleepers: RefCell<BinaryHeap<Reverse<Sleeper>>>,
    /// Grows with every [`PreciseTimer::wake_all`].
    generation: Cell<u64>,
}

#[derive(Debug)]
struct Sleeper {
    at: Instant,
    waker: Waker,
}

impl PartialEq for Sleeper {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}
impl Eq for Sleeper {}
impl PartialOrd for Sleeper {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Sleeper {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}

impl PreciseTimer {
    /// Creates a timer on the current tokio runtime.
    ///
    /// # Errors
    /// When the system has no file descriptor left for a timer.
    pub(crate) fn new() -> io::Result<Rc<Self>> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timerfd = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        // The successor of `AsyncFd::new` is unsafe: the caller promises that the descriptor stays
        // open and the same. The type `OwnedFd` keeps this promise.
        #[expect(deprecated, reason = "the safe constructor is sound for an OwnedFd")]
        let timerfd = AsyncFd::new(timerfd)?;
        Ok(Rc::new(Self {
            timerfd,
            sleepers: RefCell::new(BinaryHeap::new()),
            generation: Cell::new(0),
        }))
    }

    /// Waits until `at`, or until [`PreciseTimer::wake_all`]. The caller has to check which of them
    /// woke it.
    pub(crate) fn sleep_until(&self, at: Instant) -> Sleep<'_> {
        Sleep { timer: self, at, generation: self.generation.get(), is_queued: false }
    }

    /// Ends every sleep that has begun.
    pub(crate) fn wake_all(&self) {
        self.generation.set(self.generation.get() + 1);
        for Reverse(sleeper) in self.sleepers.borrow_mut().drain() {
            sleeper.waker.wake();
        }
    }

    /// Wakes sleepers at their deadlines. Runs as long as the load thread.
    ///
    /// # Errors
    /// When the timer can't be set.
    pub(crate) async fn drive(&self) -> io::Result<()> {
        loop {
            // The descriptor is not read: setting the timer clears its expirations, and the next
            // expiration is a new edge.
            self.timerfd.readable().await?.clear_ready();
            self.wake_due()?;
        }
    }

    fn wake_due(&self) -> io::Result<()> {
        let mut sleepers = self.sleepers.borrow_mut();
        let now = Instant::now();
        while let Some(Reverse(next)) = sleepers.peek() {
            if next.at > now {
                return self.set_timerfd(next.at, now);
            }
            if let Some(Reverse(due)) = sleepers.pop() {
                due.waker.wake();
            }
        }
        Ok(())
    }

    fn set_timerfd(&self, at: Instant, now: Instant) -> io::Result<()> {
        // Zero would disarm the timer.
        let wait = at.saturating_duration_since(now).max(Duration::from_nanos(1));
        let value = Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: wait.subsec_nanos().into(),
        };
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let spec = Itimerspec { it_interval: zero, it_value: value };
        timerfd_settime(self.timerfd.get_ref(), TimerfdTimerFlags::empty(), &spec)?;
        Ok(())
    }
}

/// Completes at a moment, or at a [`PreciseTimer::wake_all`].
#[derive(Debug)]
pub(crate) struct Sleep<'a> {
    timer: &'a PreciseTimer,
    at: Instant,
    generation: u64,
    is_queued: bool,
}

impl Future for Sleep<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let now = Instant::now();
        if now >= self.at || self.generation != self.timer.generation.get() {
            return Poll::Ready(());
        }
        if !self.is_queued {
            let mut sleepers = self.timer.sleepers.borrow_mut();
            let is_first = sleepers.peek().is_none_or(|Reverse(next)| self.at < next.at);
            sleepers.push(Reverse(Sleeper { at: self.at, waker: context.waker().clone() }));
            // If the timer can't be set, the user polls again instead of waiting forever.
            if is_first && self.timer.set_timerfd(self.at, now).is_err() {
                context.waker().wake_by_ref();
            }
            drop(sleepers);
            self.is_queued = true;
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_with_timer<T>(run: impl AsyncFnOnce(Rc<PreciseTimer>) -> T) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, async {
            let timer = PreciseTimer::new().unwrap();
            let driver = Rc::clone(&timer);
            tokio::task::spawn_local(async move { driver.drive().await });
            run(timer).await
        })
    }

    #[test]
    fn users_wake_in_the_order_of_their_deadlines_and_never_early() {
        let order = run_with_timer(async |timer| {
            // All of them sleep before the first deadline.
            let start = Instant::now() + Duration::from_millis(200);
            let woken = Rc::new(RefCell::new(Vec::new()));
            let mut users = tokio::task::JoinSet::new();
            for millis in [30_u64, 5, 20, 10, 5] {
                let (timer, woken) = (Rc::clone(&timer), Rc::clone(&woken));
                users.spawn_local(async move {
                    let at = start + Duration::from_millis(millis);
                    timer.sleep_until(at).await;
                    assert!(Instant::now() >= at);
                    woken.borrow_mut().push(millis);
                });
            }
            users.join_all().await;
            woken.take()
        });
        assert_eq!(order, [5, 5, 10, 20, 30]);
    }

    #[test]
    fn wake_all_ends_every_sleep() {
        run_with_timer(async |timer| {
            let sleeping = Rc::clone(&timer);
            let user = tokio::task::spawn_local(async move {
                sleeping.sleep_until(Instant::now() + Duration::from_hours(1)).await;
            });
            tokio::task::yield_now().await;
            timer.wake_all();
            user.await.unwrap();
        });
    }
}
