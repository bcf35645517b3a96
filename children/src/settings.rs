//! Settings of the operator that apply to every test.

use k8s_openapi::api::networking::v1::NetworkPolicyPeer;
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
    /// Who may reach the runners of a test, by a NetworkPolicy of its own. `None` for no policy.
    pub runner_peers: Option<Vec<NetworkPolicyPeer>>,
}

/// Default of [`Settings::start_timeout`].
pub const START_TIMEOUT: Duration = Duration::from_secs(300);
/// Default of [`Settings::release_grace`].
pub const RELEASE_GRACE: Duration = Duration::from_secs(300);
/// Default of [`Settings::metrics_linger`]. It is longer than the scrape interval of most Prometheus servers.
pub const METRICS_LINGER: Duration = Duration::from_secs(35);

impl Settings {
    /// Settings with this runner image and the defaults of everything else.
    pub fn with_image(runner_image: &str) -> Self {
        Self {
            runner_image: runner_image.to_owned(),
            start_timeout: START_TIMEOUT,
            release_grace: RELEASE_GRACE,
            metrics_linger: METRICS_LINGER,
            runner_peers: None,
        }
    }
}
