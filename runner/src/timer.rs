//! Wakes users when the load model wants them, to within microseconds.
//!
//! Tokio's timer is 1 ms coarse and rounds up; this one is a heap of deadlines over a
//! single `timerfd`, one per worker thread. Timeouts, which need no precision and are
//! mostly cancelled, stay with tokio.

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

/// The clock of one worker thread.
#[derive(Debug)]
pub(crate) struct Pacer {
    timer: AsyncFd<OwnedFd>,
    waiting: RefCell<BinaryHeap<Reverse<Waiting>>>,
    /// Grows with every [`Pacer::wake_all`].
    generation: Cell<u64>,
}

#[derive(Debug)]
struct Waiting {
    at: Instant,
    waker: Waker,
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}
impl Eq for Waiting {}
impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}

impl Pacer {
    /// A pacer on the current tokio runtime.
    ///
    /// # Errors
    /// When the system has no file descriptor for a timer left.
    pub(crate) fn new() -> io::Result<Rc<Self>> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        // Its successor is unsafe: it wants the promise that the descriptor stays open and
        // the same, which an OwnedFd keeps by its type.
        #[expect(deprecated, reason = "the safe constructor is sound for an OwnedFd")]
        let timer = AsyncFd::new(timer)?;
        Ok(Rc::new(Self {
            timer,
            waiting: RefCell::new(BinaryHeap::new()),
            generation: Cell::new(0),
        }))
    }

    /// Waits until a moment, or until [`Pacer::wake_all`]: who waits looks why it woke.
    pub(crate) fn until(&self, at: Instant) -> Until<'_> {
        Until { pacer: self, at, generation: self.generation.get(), queued: false }
    }

    /// Ends every wait that has begun.
    pub(crate) fn wake_all(&self) {
        self.generation.set(self.generation.get() + 1);
        for Reverse(waiting) in self.waiting.borrow_mut().drain() {
            waiting.waker.wake();
        }
    }

    /// Fires deadlines. Runs for as long as the worker does.
    ///
    /// # Errors
    /// When the timer can't be set.
    pub(crate) async fn drive(&self) -> io::Result<()> {
        loop {
            // Not read: setting the timer anew takes its expirations back, and the next one is
            // an edge of its own.
            self.timer.readable().await?.clear_ready();
            self.fire()?;
        }
    }

    fn fire(&self) -> io::Result<()> {
        let mut waiting = self.waiting.borrow_mut();
        let now = Instant::now();
        while let Some(Reverse(next)) = waiting.peek() {
            if next.at > now {
                return self.arm(next.at, now);
            }
            if let Some(Reverse(due)) = waiting.pop() {
                due.waker.wake();
            }
        }
        Ok(())
    }

    fn arm(&self, at: Instant, now: Instant) -> io::Result<()> {
        // Zero would disarm the timer.
        let wait = at.saturating_duration_since(now).max(Duration::from_nanos(1));
        let value = Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: wait.subsec_nanos().into(),
        };
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let spec = Itimerspec { it_interval: zero, it_value: value };
        timerfd_settime(self.timer.get_ref(), TimerfdTimerFlags::empty(), &spec)?;
        Ok(())
    }
}

/// Completes at a moment, or at a [`Pacer::wake_all`].
#[derive(Debug)]
pub(crate) struct Until<'a> {
    pacer: &'a Pacer,
    at: Instant,
    generation: u64,
    queued: bool,
}

impl Future for Until<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let now = Instant::now();
        if now >= self.at || self.generation != self.pacer.generation.get() {
            return Poll::Ready(());
        }
        if !self.queued {
            let mut waiting = self.pacer.waiting.borrow_mut();
            let first = waiting.peek().is_none_or(|Reverse(next)| self.at < next.at);
            waiting.push(Reverse(Waiting { at: self.at, waker: context.waker().clone() }));
            // A timer that can't be set would hang the user: let it run late instead.
            if first && self.pacer.arm(self.at, now).is_err() {
                context.waker().wake_by_ref();
            }
            drop(waiting);
            self.queued = true;
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_a_worker<T>(run: impl AsyncFnOnce(Rc<Pacer>) -> T) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, async {
            let pacer = Pacer::new().unwrap();
            let driver = Rc::clone(&pacer);
            tokio::task::spawn_local(async move { driver.drive().await });
            run(pacer).await
        })
    }

    #[test]
    fn users_wake_in_the_order_of_their_deadlines_and_never_early() {
        let order = on_a_worker(async |pacer| {
            // All of them wait before the first is due.
            let start = Instant::now() + Duration::from_millis(200);
            let woken = Rc::new(RefCell::new(Vec::new()));
            let mut users = tokio::task::JoinSet::new();
            for millis in [30_u64, 5, 20, 10, 5] {
                let (pacer, woken) = (Rc::clone(&pacer), Rc::clone(&woken));
                users.spawn_local(async move {
                    let at = start + Duration::from_millis(millis);
                    pacer.until(at).await;
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
    fn waking_all_ends_waits_that_would_last_for_ever() {
        on_a_worker(async |pacer| {
            let waiting = Rc::clone(&pacer);
            let user = tokio::task::spawn_local(async move {
                waiting.until(Instant::now() + Duration::from_hours(1)).await;
            });
            tokio::task::yield_now().await;
            pacer.wake_all();
            user.await.unwrap();
        });
    }
}
