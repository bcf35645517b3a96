//! When a load thread polls its sockets, and since when timestamps of the kernel can be trusted
//! without a further check.
//!
//! A packet that waited for the retransmission of an earlier one has a timestamp that is too early.
//! A thread that slept would have been woken when the bytes could be read, so an old timestamp is
//! suspicious there. A busy thread finds bytes that came while it was busy: their timestamps are as
//! old as its last turn, and the error of a reordered packet is no larger than that.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

/// Timestamps that are no older than this are always trusted.
pub(super) const MAX_AGE: Duration = Duration::from_millis(1);
/// Timestamps that are older than this are never trusted.
const MAX_TURN: Duration = Duration::from_millis(20);

thread_local! {
    static TURNS: Cell<Option<PollTurns>> = const { Cell::new(None) };
}

/// The latest turn of a thread: it waits for events, and handles them.
#[derive(Clone, Copy, Debug)]
struct PollTurns {
    /// When the thread last began to wait for events.
    wait_began: Instant,
    /// When the last wait ended.
    woke: Instant,
    /// Bytes that are handled in this turn and came later than this came while the thread was busy.
    busy_since: Instant,
}

impl PollTurns {
    const fn starting_at(now: Instant) -> Self {
        Self { wait_began: now, woke: now, busy_since: now }
    }

    fn end_wait(self, now: Instant) -> Self {
        let has_slept = now.saturating_duration_since(self.wait_began) > MAX_AGE;
        Self { busy_since: if has_slept { now } else { self.woke }, woke: now, ..self }
    }

    /// Returns the age from which timestamps are suspicious at `now`.
    fn trusted_age(self, now: Instant) -> Duration {
        now.saturating_duration_since(self.busy_since).clamp(MAX_AGE, MAX_TURN)
    }
}

/// Notes that this thread begins to wait for events.
pub(crate) fn begin_wait() {
    let now = Instant::now();
    let turns = TURNS.get().unwrap_or(PollTurns::starting_at(now));
    TURNS.set(Some(PollTurns { wait_began: now, ..turns }));
}

/// Notes that this thread has stopped waiting for events.
pub(crate) fn end_wait() {
    let now = Instant::now();
    let turns = TURNS.get().unwrap_or(PollTurns::starting_at(now));
    TURNS.set(Some(turns.end_wait(now)));
}

/// Returns the age from which timestamps are suspicious on this thread at `now`.
pub(super) fn trusted_age(now: Instant) -> Duration {
    TURNS.get().map_or(MAX_AGE, |turns| turns.trusted_age(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_busy_thread_trusts_older_timestamps() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let turn = |turns: PollTurns, began, ended| {
            PollTurns { wait_began: at(began), ..turns }.end_wait(at(ended))
        };
        let age = |turns: PollTurns, now| turns.trusted_age(at(now)).as_millis();
        // It woke at 10 ms, was busy until 15 ms, and waited for nothing.
        let busy = turn(turn(PollTurns::starting_at(start), 0, 10), 15, 15);
        assert_eq!((age(busy, 15), age(busy, 17), age(busy, 100)), (5, 7, 20));
        // It slept from 15 to 18 ms.
        let slept = turn(turn(PollTurns::starting_at(start), 0, 10), 15, 18);
        assert_eq!((age(slept, 18), age(slept, 20)), (1, 2));
    }

    #[test]
    fn other_threads_trust_new_timestamps_only() {
        std::thread::spawn(|| assert_eq!(trusted_age(Instant::now()), MAX_AGE)).join().unwrap();
    }
}
