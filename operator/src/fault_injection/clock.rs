//! The clock of the operator.

use k8s_openapi::jiff::Timestamp;

/// Returns the time.
#[cfg(not(feature = "fault-injection"))]
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}

/// Returns the time of a clock that is wrong by the seconds in the environment variable `CLOCK_ERROR_SECONDS`.
#[cfg(feature = "fault-injection")]
pub(crate) fn now() -> Timestamp {
    use k8s_openapi::jiff::SignedDuration;
    use std::sync::LazyLock;

    static ERROR: LazyLock<SignedDuration> = LazyLock::new(|| {
        let seconds = std::env::var("CLOCK_ERROR_SECONDS").ok().and_then(|text| text.parse().ok());
        SignedDuration::from_secs(seconds.unwrap_or_default())
    });
    Timestamp::now().saturating_add(*ERROR).unwrap_or(Timestamp::MAX)
}
