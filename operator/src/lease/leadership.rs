//! Tells the operator whether this process may act. The thread that keeps the Lease writes this state.

use std::{future::poll_fn, pin::pin, task::Poll, time::Instant};

use tokio::sync::watch;

/// The knowledge of the thread that keeps the Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LeaseState {
    /// The Lease was not read yet.
    Unknown,
    /// Another replica holds the Lease.
    Waiting,
    /// This process holds the Lease, and may act until a time. `None`: for ever.
    Held { number: u64, until: Option<Instant> },
    /// This process held the Lease, and another replica has taken it.
    Lost,
}

/// Tells whether this process may act. All clones share one state.
#[derive(Clone, Debug)]
pub struct Leadership(watch::Receiver<LeaseState>);

impl Leadership {
    pub(super) const fn new(states: watch::Receiver<LeaseState>) -> Self {
        Self(states)
    }

    /// The leadership of a process without other replicas, for tests.
    pub(crate) fn without_lease() -> Self {
        Self(watch::channel(LeaseState::Held { number: 1, until: None }).1)
    }

    fn state(&self) -> LeaseState {
        *self.0.borrow()
    }

    /// Returns true while this process may act.
    pub fn is_leader(&self) -> bool {
        match self.state() {
            LeaseState::Held { until, .. } => until.is_none_or(|until| Instant::now() < until),
            LeaseState::Unknown | LeaseState::Waiting | LeaseState::Lost => false,
        }
    }

    /// Returns true when another replica has taken the Lease of this process.
    pub fn is_lost(&self) -> bool {
        self.state() == LeaseState::Lost
    }

    /// Returns the number of the Lease, which grows each time a replica takes it. Zero if this process
    /// never held it.
    pub(crate) fn number(&self) -> u64 {
        match self.state() {
            LeaseState::Held { number, .. } => number,
            LeaseState::Unknown | LeaseState::Waiting | LeaseState::Lost => 0,
        }
    }

    /// Waits until the Lease was read once, no matter which replica holds it.
    pub async fn wait_until_known(&self) {
        self.wait_for(|state| state != LeaseState::Unknown).await;
    }

    /// Waits until this process holds the Lease.
    pub async fn wait_until_held(&self) {
        self.wait_for(|state| matches!(state, LeaseState::Held { .. })).await;
    }

    /// Waits until another replica has taken the Lease of this process. The wait also ends when the thread
    /// that keeps the Lease has ended.
    pub async fn wait_until_lost(&self) {
        let mut states = self.0.clone();
        let _ = states.wait_for(|state| *state == LeaseState::Lost).await;
    }

    async fn wait_for(&self, condition: impl Fn(LeaseState) -> bool) {
        let mut states = self.0.clone();
        if states.wait_for(|state| condition(*state)).await.is_err() {
            // The state never changes again.
            std::future::pending::<()>().await;
        }
    }

    /// Waits until this process may no longer act.
    async fn wait_for_end(&self) {
        let mut states = self.0.clone();
        loop {
            let LeaseState::Held { until, .. } = *states.borrow_and_update() else { return };
            let end = async {
                match until {
                    Some(until) => tokio::time::sleep_until(until.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                Ok(()) = states.changed() => {}
                () = end => return,
            }
        }
    }

    /// Does `work` as long as this process may act. Returns `None` if it may not, or if it may no longer
    /// act before the end of `work`; what is left of `work` is then not done.
    pub(crate) async fn while_leader<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let (mut end, mut work) = (pin!(self.wait_for_end()), pin!(work));
        poll_fn(|context| {
            // A process that was frozen may see its timers late, so the clock is asked each time.
            if !self.is_leader() || end.as_mut().poll(context).is_ready() {
                return Poll::Ready(None);
            }
            work.as_mut().poll(context).map(Some)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, time::Duration};

    use super::*;

    fn held(seconds: u64) -> LeaseState {
        LeaseState::Held { number: 3, until: Some(Instant::now() + Duration::from_secs(seconds)) }
    }

    #[tokio::test]
    async fn work_ends_with_the_lease() {
        let (sender, receiver) = watch::channel(LeaseState::Waiting);
        let leadership = Leadership::new(receiver);
        assert_eq!(leadership.while_leader(async { 1 }).await, None);
        sender.send_replace(held(60));
        assert_eq!(leadership.while_leader(async { 1 }).await, Some(1));
        assert_eq!((leadership.is_leader(), leadership.number()), (true, 3));
        let work = leadership.while_leader(pending::<()>());
        let losing = async { sender.send_replace(LeaseState::Lost) };
        assert_eq!(tokio::join!(work, losing).0, None);
        assert!(leadership.is_lost() && !leadership.is_leader());
    }

    #[tokio::test]
    async fn a_renewal_in_time_lets_work_go_on() {
        let soon = Instant::now() + Duration::from_millis(50);
        let state = LeaseState::Held { number: 3, until: Some(soon) };
        let (sender, receiver) = watch::channel(state);
        let leadership = Leadership::new(receiver);
        let work = leadership.while_leader(tokio::time::sleep(Duration::from_millis(100)));
        let renewal = async { sender.send_replace(held(60)) };
        assert_eq!(tokio::join!(work, renewal).0, Some(()));
        // Without a renewal the work ends, and the number stays known.
        sender.send_replace(state);
        assert_eq!(leadership.while_leader(pending::<()>()).await, None);
        assert_eq!((leadership.is_leader(), leadership.number()), (false, 3));
    }
}
