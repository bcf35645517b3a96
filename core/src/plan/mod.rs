//! From a spec to what every runner of a test is told.
//!
//! ```text
//! LoadTestSpec ─ validate ─▶ ValidTest ─ size_test ─▶ Sizing ─ Plan::new ─▶ Plan ─▶ runners
//! ```
//!
//! [`validate()`](validate) is the only way to a [`ValidTest`], and everything behind it takes that value. All pure.

mod latency_targets;
mod partition;
mod sizing;
mod valid_test;
#[cfg(feature = "crd")]
mod validate;

use serde::{Deserialize, Serialize};

pub use latency_targets::LatencyTargets;
pub use partition::Partition;
pub use sizing::{memory_bytes, size_test};
pub use valid_test::{Pacing, RunnerRequest, Scenario, Task, TaskKind, ValidTest};
#[cfg(feature = "crd")]
pub use validate::{MAX_PLAN_BYTES, Problem, validate, warnings};

use crate::{control, resource::Sizing, values::Duration};

/// All that a runner needs to know. All runners of a test have the same plan.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// Version of the contract between operator and runner.
    pub version: u32,
    /// UID of the `LoadTest`, sent to the target in the header `x-loadtest-run`.
    pub run_uid: String,
    /// Name of the `LoadTest`: the value of the label `loadtest` of every metric.
    pub name: String,
    /// Number of runners.
    pub runners: u32,
    /// Number of load threads of one runner.
    pub threads: u32,
    /// SHA-256 of the run's token in hex. Orders must carry the token.
    pub token_sha256: String,
    /// How long a runner waits for a release order after its load.
    pub release_grace: Duration,
    /// How long a released runner goes on serving its metrics.
    pub metrics_linger: Duration,
    /// The work.
    pub test: ValidTest,
}

/// A text is not a plan of this version.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Another version of the contract between operator and runner.
    #[error("the plan has contract version {found}: {}", control::version_advice())]
    ContractVersion {
        /// The version that the plan names.
        found: u32,
    },
    /// No JSON, or not the JSON of a plan.
    #[error("not a plan")]
    Parse(#[from] serde_json::Error),
}

/// Identifies a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunIdentity {
    /// UID of the `LoadTest`.
    pub uid: String,
    /// Name of the `LoadTest`.
    pub name: String,
    /// SHA-256 of the run's token in hex; empty when nobody may send orders.
    pub token_sha256: String,
}

impl Plan {
    /// The plan of a test that [`size_test`] has sized. A runner of this plan exits as soon as it
    /// is over; see [`Plan::with_grace`].
    pub fn new(test: ValidTest, sizing: &Sizing, run: RunIdentity) -> Self {
        Self {
            version: control::VERSION,
            run_uid: run.uid,
            name: run.name,
            runners: sizing.runners.max(1),
            threads: sizing.threads_per_runner.max(1),
            token_sha256: run.token_sha256,
            release_grace: Duration::ZERO,
            metrics_linger: Duration::ZERO,
            test,
        }
    }

    /// Parses the JSON of a plan. Checks the version first, because the other fields differ between
    /// versions.
    ///
    /// # Errors
    /// The text is a plan of another version, or not a plan.
    pub fn parse(text: &str) -> Result<Self, PlanError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let Versioned { version: found } = serde_json::from_str(text)?;
        if found != control::VERSION {
            return Err(PlanError::ContractVersion { found });
        }
        Ok(serde_json::from_str(text)?)
    }

    /// The plan with the times that a runner waits for the operator and for Prometheus.
    #[must_use]
    pub fn with_grace(self, release_grace: Duration, metrics_linger: Duration) -> Self {
        Self { release_grace, metrics_linger, ..self }
    }

    /// The users, or arrivals, of the runner with an index.
    pub fn runner_partition(&self, index: u32) -> Partition {
        Partition::of_runner(index, self.runners)
    }

    /// The users, or arrivals, of one load thread of the runner with an index.
    pub fn thread_partition(&self, index: u32, thread: u32) -> Partition {
        self.runner_partition(index).split(thread, self.threads)
    }
}
