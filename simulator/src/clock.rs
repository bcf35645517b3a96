//! The simulator's time: nanoseconds since it started, which every record is in.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

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
