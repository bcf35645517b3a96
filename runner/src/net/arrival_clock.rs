//! Receive timestamps of the kernel, converted to [`Instant`].

use std::{
    cell::{Cell, RefCell},
    fmt, io,
    os::fd::OwnedFd,
    rc::Rc,
    time::{Duration, Instant},
};

use kernel_timestamps::{TimestampReader, enable_timestamps, keep_timestamps_enabled};
use tokio::net::TcpStream;

use crate::{
    machine::clock::machine_time,
    net::{
        poll_turns::{MAX_AGE, trusted_age},
        tcp_info,
    },
};

/// Maximum number of bytes of one read.
pub(crate) const MAX_READ: usize = 64 << 10;
/// Two readings that are this close count as simultaneous.
const SIMULTANEOUS: Duration = Duration::from_micros(1);
/// Maximum number of attempts to read both clocks without losing the CPU in between.
const MAX_READINGS: u32 = 3;
/// A larger difference between two clock pairs means that the system clock was set. A smaller one
/// is the error of the readings.
const MIN_CLOCK_STEP: Duration = Duration::from_micros(50);
/// One moment on two clocks: the monotonic clock of this process, and the system clock that the
/// kernel takes timestamps from.
#[derive(Clone, Copy, Debug)]
struct ClockPair {
    instant: Instant,
    wall_clock: Duration,
    /// How long it took to read both clocks.
    reading_time: Duration,
}

impl ClockPair {
    fn read() -> Self {
        let before = Instant::now();
        let wall_clock = machine_time();
        let reading_time = before.elapsed();
        Self { instant: before + reading_time / 2, wall_clock, reading_time }
    }

    /// Reads the clocks until the thread kept its CPU between the readings.
    fn read_precisely() -> Self {
        let mut best = Self::read();
        for _ in 1..MAX_READINGS {
            if best.reading_time < SIMULTANEOUS {
                break;
            }
            let next = Self::read();
            if next.reading_time < best.reading_time {
                best = next;
            }
        }
        best
    }

    /// Converts a timestamp to an [`Instant`], if the instant can be represented.
    fn instant_of(self, timestamp: Duration) -> Option<Instant> {
        match self.wall_clock.checked_sub(timestamp) {
            Some(ago) => self.instant.checked_sub(ago),
            None => self.instant.checked_add(timestamp.saturating_sub(self.wall_clock)),
        }
    }

    /// Returns true if the system clock was not set since an `earlier` pair.
    fn is_steady_since(self, earlier: Self) -> bool {
        let elapsed = self.instant.saturating_duration_since(earlier.instant);
        let elapsed_wall = self.wall_clock.checked_sub(earlier.wall_clock);
        let error = MIN_CLOCK_STEP + self.reading_time + earlier.reading_time;
        elapsed_wall.is_some_and(|elapsed_wall| elapsed_wall.abs_diff(elapsed) <= error)
    }
}

/// The offset between the two clocks.
#[derive(Clone, Copy, Debug)]
struct ClockOffset {
    pair: ClockPair,
    /// When the system clock was last set, as far as this process knows. Earlier timestamps are
    /// invalid.
    valid_from: Instant,
}

impl ClockOffset {
    const fn starting_at(pair: ClockPair) -> Self {
        Self { pair, valid_from: pair.instant }
    }

    fn update(self, pair: ClockPair) -> Self {
        if pair.is_steady_since(self.pair) {
            Self { pair, ..self }
        } else {
            Self::starting_at(pair)
        }
    }

    fn instant_of(self, timestamp: Duration) -> Option<Instant> {
        self.pair.instant_of(timestamp).filter(|at| *at >= self.valid_from)
    }
}

/// Returns when bytes arrived that were read at `now`, by their `timestamp`, and the updated
/// offset.
///
/// The clocks are read again when the offset is older than [`MAX_AGE`] or the timestamp older than
/// `trusted_age`. The timestamp is that of the packet with the last of the bytes. A packet that
/// waited for a retransmission of an earlier packet has a timestamp that is too early. So a timestamp
/// older than `trusted_age` is used only if the connection has had no reordering since.
fn arrival_time(
    offset: ClockOffset,
    timestamp: Duration,
    now: Instant,
    trusted_age: Duration,
    read_clocks: impl FnOnce() -> ClockPair,
    last_reordering: impl FnOnce() -> Instant,
) -> (ClockOffset, Instant) {
    let is_old = |at: Instant| now.saturating_duration_since(at) > trusted_age;
    let offset_age = now.saturating_duration_since(offset.pair.instant);
    let is_stale = offset_age > MAX_AGE || offset.instant_of(timestamp).is_none_or(is_old);
    let offset = if is_stale { offset.update(read_clocks()) } else { offset };
    let at = match offset.instant_of(timestamp) {
        Some(at) if at > now || is_old(at) && at <= last_reordering() => now,
        Some(at) => at,
        None => now,
    };
    (offset, at)
}

/// The number of reordered packets of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReorderCount {
    /// Reordered packets at the last check.
    packets: u32,
    /// When the number was last found to have grown. At first, when the connection was opened.
    last_change: Instant,
}

impl ReorderCount {
    pub(crate) const fn new(now: Instant) -> Self {
        Self { packets: 0, last_change: now }
    }

    /// Updates from the kernel's count. `None` means that the kernel does not report it, so
    /// reordering has to be assumed.
    const fn update(self, count: Option<u32>, now: Instant) -> Self {
        match count {
            Some(count) if count == self.packets => self,
            Some(packets) => Self { packets, last_change: now },
            None => Self { last_change: now, ..self },
        }
    }
}

/// The receive timestamps of the sockets of a load thread.
pub(crate) struct ArrivalClock {
    offset: Cell<ClockOffset>,
    /// Buffer that all sockets read into, so that a user that waits for bytes needs no memory of
    /// its own.
    buffer: RefCell<Box<[u8]>>,
    reader: RefCell<TimestampReader>,
    /// See [`keep_timestamps_enabled`]. `None` when there are no timestamps.
    timestamp_socket: Option<OwnedFd>,
}

impl fmt::Debug for ArrivalClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArrivalClock").field("offset", &self.offset).finish_non_exhaustive()
    }
}

impl ArrivalClock {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self {
            offset: Cell::new(ClockOffset::starting_at(ClockPair::read_precisely())),
            buffer: RefCell::new(vec![0; MAX_READ].into_boxed_slice()),
            reader: RefCell::new(TimestampReader::new()),
            timestamp_socket: tcp_info::is_supported().then(keep_timestamps_enabled).flatten(),
        })
    }

    /// Asks the kernel for timestamps on a connection, if they are available.
    pub(crate) fn enable_for(&self, tcp: &TcpStream) {
        if self.timestamp_socket.is_some() {
            enable_timestamps(tcp);
        }
    }

    /// Reads at most `room` bytes and hands them to `on_data`. Returns their number and when they
    /// arrived.
    pub(crate) fn read(
        &self,
        tcp: &TcpStream,
        room: usize,
        reordering: &Cell<ReorderCount>,
        on_data: impl FnOnce(&[u8]),
    ) -> io::Result<(usize, Instant)> {
        let mut bytes = self.buffer.borrow_mut();
        let room = room.min(bytes.len());
        let (n, timestamp) = self.reader.borrow_mut().receive_bytes(tcp, &mut bytes[..room])?;
        on_data(&bytes[..n]);
        let now = Instant::now();
        let Some(timestamp) = timestamp else { return Ok((n, now)) };
        let (offset, at) = arrival_time(
            self.offset.get(),
            timestamp,
            now,
            trusted_age(now),
            ClockPair::read_precisely,
            || {
                let count = tcp_info::reordered_packets(tcp);
                reordering.set(reordering.get().update(count, now));
                reordering.get().last_change
            },
        );
        self.offset.set(offset);
        Ok((n, at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICRO: Duration = Duration::from_micros(1);
    const WALL_CLOCK: Duration = Duration::from_hours(500_000);

    /// Returns a moment that has a past of some hours.
    fn now() -> Instant {
        Instant::now() + Duration::from_hours(2)
    }

    /// Returns an offset that was read `ago` before `now`, when the system clock showed
    /// `wall_clock`.
    fn offset_from(now: Instant, ago: Duration, wall_clock: Duration) -> ClockOffset {
        let instant = now.checked_sub(ago).unwrap();
        let valid_from = now.checked_sub(Duration::from_hours(1)).unwrap();
        ClockOffset {
            pair: ClockPair { instant, wall_clock, reading_time: Duration::ZERO },
            valid_from,
        }
    }

    /// Returns a timestamp from `ago` before `WALL_CLOCK`.
    fn timestamp(ago: Duration) -> Duration {
        WALL_CLOCK.checked_sub(ago).unwrap()
    }

    fn no_clock_reading() -> ClockPair {
        panic!("the clocks were read again")
    }

    fn no_order_check() -> Instant {
        panic!("the order of packets was checked")
    }

    #[test]
    fn bytes_arrive_at_their_timestamp() {
        let now = now();
        let offset = offset_from(now, 400 * MICRO, timestamp(400 * MICRO));
        for ago in [0, 1, 399, 400, 401, 999] {
            let (_, at) = arrival_time(
                offset,
                timestamp(ago * MICRO),
                now,
                MAX_AGE,
                no_clock_reading,
                no_order_check,
            );
            assert_eq!(now - at, ago * MICRO);
        }
    }

    #[test]
    fn a_trusted_timestamp_is_used_without_a_check() {
        let now = now();
        let offset = offset_from(now, 400 * MICRO, timestamp(400 * MICRO));
        let (stamp, trusted) = (timestamp(5000 * MICRO), 6 * MAX_AGE);
        let (_, at) = arrival_time(offset, stamp, now, trusted, no_clock_reading, no_order_check);
        assert_eq!(now - at, 5000 * MICRO);
    }

    #[test]
    fn an_old_offset_or_timestamp_makes_the_clocks_be_read_again() {
        let now = now();
        let read_clocks = || offset_from(now, Duration::ZERO, WALL_CLOCK).pair;
        let old = offset_from(now, 2 * MAX_AGE, timestamp(2 * MAX_AGE));
        let (offset, at) =
            arrival_time(old, timestamp(10 * MICRO), now, MAX_AGE, read_clocks, no_order_check);
        assert_eq!(
            (now - at, offset.pair.instant, offset.valid_from),
            (10 * MICRO, now, old.valid_from)
        );
        // Bytes that lay in the socket for a second.
        let second = Duration::from_secs(1);
        let offset = offset_from(now, 10 * MICRO, timestamp(10 * MICRO));
        let last_reordering = || offset.valid_from;
        assert_eq!(
            now - arrival_time(
                offset,
                timestamp(second),
                now,
                MAX_AGE,
                read_clocks,
                last_reordering
            )
            .1,
            second
        );
    }

    #[test]
    fn timestamps_are_ignored_after_possible_reordering() {
        let read = now();
        let read_clocks = || offset_from(read, Duration::ZERO, WALL_CLOCK).pair;
        let offset = offset_from(read, 10 * MICRO, timestamp(10 * MICRO));
        let (beginning, age) = (offset.valid_from, 5 * MAX_AGE);
        let at = |reordering: ReorderCount| {
            arrival_time(offset, timestamp(age), read, MAX_AGE, read_clocks, || {
                reordering.last_change
            })
            .1
        };
        let reordering = ReorderCount::new(beginning);
        assert_eq!(read - at(reordering.update(Some(0), read)), age);
        // Two reordered packets were found by this read, and this packet may be one of them.
        let reordered = reordering.update(Some(2), read);
        assert_eq!(at(reordered), read);
        // Reordering was found by an earlier read, after this packet had arrived.
        let before = read.checked_sub(MAX_AGE).unwrap();
        assert_eq!(at(reordering.update(Some(2), before).update(Some(2), read)), read);
        // The packet arrived after all reordering.
        let before = read.checked_sub(2 * age).unwrap();
        assert_eq!(read - at(reordering.update(Some(2), before).update(Some(2), read)), age);
        assert_eq!(at(reordering.update(None, read)), read);
    }

    #[test]
    fn timestamps_from_the_future_are_ignored() {
        let now = now();
        let offset = offset_from(now, Duration::ZERO, WALL_CLOCK);
        for timestamp in
            [WALL_CLOCK + 20 * MICRO, WALL_CLOCK + Duration::from_hours(1), Duration::MAX]
        {
            assert_eq!(
                arrival_time(offset, timestamp, now, MAX_AGE, || offset.pair, no_order_check).1,
                now
            );
        }
    }

    #[test]
    fn timestamps_from_before_a_clock_change_are_ignored() {
        let now = now();
        let read_clocks = || offset_from(now, Duration::ZERO, WALL_CLOCK).pair;
        for change in [Duration::from_secs(2), Duration::from_hours(1)] {
            for (wall_clock, stamp) in [
                // The clock was set back: the timestamp is from the future.
                (WALL_CLOCK + change, WALL_CLOCK + change),
                // The clock was set forward: the timestamp is from long ago.
                (timestamp(change), timestamp(change + 5 * MICRO)),
            ] {
                let old = offset_from(now, 2 * MAX_AGE, wall_clock);
                let (offset, at) =
                    arrival_time(old, stamp, now, MAX_AGE, read_clocks, no_order_check);
                assert_eq!((at, offset.valid_from), (now, now), "{change:?}");
                // The next timestamp from before the change is not used either.
                let (_, at) =
                    arrival_time(offset, stamp, now, MAX_AGE, read_clocks, no_order_check);
                assert_eq!(at, now, "{change:?}");
            }
        }
        // A timestamp of zero.
        let offset = offset_from(now, Duration::ZERO, WALL_CLOCK);
        assert_eq!(
            arrival_time(offset, Duration::ZERO, now, MAX_AGE, read_clocks, no_order_check).1,
            now
        );
    }
}
