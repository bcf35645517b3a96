//! The clock of the machine.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Returns the time since 1970 by the clock of the machine, which can be wrong or can change at any moment. It is the
/// clock of the kernel's timestamps of packets, and is good for nothing else. [`std::time::Instant`] is for durations.
#[expect(clippy::disallowed_methods, reason = "the runner needs it for the kernel's timestamps")]
pub(crate) fn machine_time() -> Duration {
    add_error(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

#[cfg(not(feature = "fault-injection"))]
const fn add_error(time: Duration) -> Duration {
    time
}

/// Makes the clock wrong by the seconds in the environment variable `CLOCK_ERROR_SECONDS`.
#[cfg(feature = "fault-injection")]
fn add_error(time: Duration) -> Duration {
    use std::sync::LazyLock;

    const VARIABLE: &str = "CLOCK_ERROR_SECONDS";
    static ERROR: LazyLock<i64> = LazyLock::new(|| {
        let seconds = std::env::var(VARIABLE).ok().and_then(|text| text.parse().ok());
        let seconds = seconds.unwrap_or_default();
        if seconds != 0 {
            tracing::warn!(seconds, "{VARIABLE} makes the clock wrong");
        }
        seconds
    });
    let error = Duration::from_secs(ERROR.unsigned_abs());
    if *ERROR < 0 { time.saturating_sub(error) } else { time.saturating_add(error) }
}
