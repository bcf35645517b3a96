//! The simulator's clock: nanoseconds since its start, the unit of all records.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Maximum age of a kernel timestamp. The system clock was set after an older one was taken.
const MAX_TIMESTAMP_AGE: Duration = Duration::from_secs(10);
/// Attempts to read two clocks at the same time: a thread can lose its CPU between two reads.
const MAX_READ_ATTEMPTS: u32 = 3;
/// Two clock reads within this many nanoseconds count as simultaneous.
const MAX_READ_GAP: u64 = 10_000;

/// Counts nanoseconds since its creation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
    start_unix: u64,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { start: Instant::now(), start_unix: whole_nanos(machine_time()) }
    }

    /// Returns the nanoseconds since the start. The result is at least 1, so 0 can mean "never".
    pub(crate) fn now(&self) -> u64 {
        whole_nanos(self.start.elapsed()).max(1)
    }

    /// Converts a kernel timestamp (system clock, since 1970) to nanoseconds since the start.
    ///
    /// Returns the current time for a timestamp in the future and for one older than
    /// [`MAX_TIMESTAMP_AGE`].
    pub(crate) fn convert_timestamp(&self, timestamp: Duration) -> u64 {
        let (mut now, mut age) = (0, None);
        for _ in 0..MAX_READ_ATTEMPTS {
            let before = self.now();
            let system = machine_time();
            now = self.now();
            age = system.checked_sub(timestamp).filter(|age| *age <= MAX_TIMESTAMP_AGE);
            if now - before < MAX_READ_GAP {
                break;
            }
        }
        now.saturating_sub(age.map_or(0, whole_nanos)).max(1)
    }

    /// Returns the start in nanoseconds since 1970.
    pub(crate) fn start_unix(&self) -> u64 {
        self.start_unix
    }

    /// Returns the tokio instant that is `nanos` nanoseconds after the start.
    pub(crate) fn instant_at(&self, nanos: u64) -> tokio::time::Instant {
        (self.start + Duration::from_nanos(nanos)).into()
    }

    /// Sleeps until `nanos` nanoseconds after the start; returns at once if this time has passed.
    pub(crate) async fn sleep_until(&self, nanos: u64) {
        if nanos > self.now() {
            tokio::time::sleep_until(self.instant_at(nanos)).await;
        }
    }
}

/// Returns the time since 1970 by the clock of the machine.
#[expect(clippy::disallowed_methods, reason = "it is compared with the kernel's timestamps")]
fn machine_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn whole_nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_timestamps_convert_to_simulator_time() {
        let clock = Clock::start();
        std::thread::sleep(Duration::from_millis(5));
        let before = clock.now();
        let timestamp = machine_time();
        let after = clock.now();
        std::thread::sleep(Duration::from_millis(5));
        let converted = clock.convert_timestamp(timestamp);
        // The conversion reads two clocks, so it may be off by one read gap.
        let expected = before - MAX_READ_GAP..after + MAX_READ_GAP;
        assert!(expected.contains(&converted), "{before} {converted} {after}");
        for wrong in [Duration::ZERO, machine_time() + Duration::from_mins(1)] {
            let now = clock.now();
            assert!(clock.convert_timestamp(wrong) >= now);
        }
    }
}
