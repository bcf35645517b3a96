//! The simulator's time: nanoseconds since it started, which every record is in.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A packet that seems to have lain there for longer was stamped by a clock that was set since.
const LONGEST: Duration = Duration::from_secs(10);
/// Looks at two clocks, when the thread loses its CPU in between.
const LOOKS: u32 = 3;
/// Looks that are so close count as one.
const CLOSE: u64 = 10_000;

/// Counts nanoseconds from the moment it was made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: Instant,
    origin_unix: u64,
}

impl Clock {
    pub(crate) fn start() -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { origin: Instant::now(), origin_unix: whole_nanos(unix) }
    }

    /// Nanoseconds since the start; at least 1, so that 0 can mean "never".
    pub(crate) fn now(&self) -> u64 {
        whole_nanos(self.origin.elapsed()).max(1)
    }

    /// The past moment of a stamp by the other clock, the one since 1970; now for one that can't be
    /// right.
    pub(crate) fn at(&self, stamp: Duration) -> u64 {
        let (mut now, mut ago) = (0, None);
        for _ in 0..LOOKS {
            let before = self.now();
            let real = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            now = self.now();
            ago = real.checked_sub(stamp).filter(|ago| *ago <= LONGEST);
            if now - before < CLOSE {
                break;
            }
        }
        now.saturating_sub(ago.map_or(0, whole_nanos)).max(1)
    }

    /// The start, in nanoseconds since 1970.
    pub(crate) fn origin_unix(&self) -> u64 {
        self.origin_unix
    }

    /// The moment that is this many nanoseconds after the start.
    pub(crate) fn instant(&self, nanos: u64) -> tokio::time::Instant {
        (self.origin + Duration::from_nanos(nanos)).into()
    }

    /// Waits for a moment; returns at once when it has passed.
    pub(crate) async fn sleep_until(&self, nanos: u64) {
        if nanos > self.now() {
            tokio::time::sleep_until(self.instant(nanos)).await;
        }
    }
}

fn whole_nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_a_moment_of_this_clock() {
        let clock = Clock::start();
        let unix = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        std::thread::sleep(Duration::from_millis(5));
        let before = clock.now();
        let stamp = unix();
        let after = clock.now();
        std::thread::sleep(Duration::from_millis(5));
        let at = clock.at(stamp);
        // Two looks at two clocks.
        assert!((before - CLOSE..after + CLOSE).contains(&at), "{before} {at} {after}");
        for wrong in [Duration::ZERO, unix() + Duration::from_mins(1)] {
            let now = clock.now();
            assert!(clock.at(wrong) >= now);
        }
    }
}
