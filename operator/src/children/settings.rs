//! Settings of the operator that apply to every test.

use loadtest_core::Duration;

/// Settings of the operator that apply to every test.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Runner image of tests that name no image.
    pub runner_image: String,
    /// Maximum time until all runners of a test are ready.
    pub start_timeout: Duration,
    /// Time for which a runner waits for its release order after the end of its load.
    pub release_grace: Duration,
    /// Time for which a released runner keeps serving its metrics.
    pub metrics_linger: Duration,
}
