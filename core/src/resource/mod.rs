//! The `LoadTest` resource: the spec of a user and the status of the operator.
//!
//! Schema and CEL rules stand beside the fields that they check. With the feature `crd`, `crd()`
//! turns them into the CustomResourceDefinition. [`crate::plan::validate`] checks the rest.

mod check;
#[cfg(feature = "crd")]
mod crd;
#[cfg(feature = "crd")]
mod kind;
mod labels;
mod load;
#[cfg(feature = "crd")]
mod pod_template;
#[cfg(feature = "crd")]
mod runners;
mod scenario;
mod status;
mod target;
mod task;
mod threshold;

pub use crate::values::{Extensible, Named};
pub use check::Check;
#[cfg(feature = "crd")]
pub(crate) use crd::add_limits;
#[cfg(feature = "crd")]
pub use crd::{CrdEdition, crd, crd_yaml, schema};
#[cfg(feature = "crd")]
pub use kind::{LoadTest, LoadTestSpec, LoadTestStatus, OnRunnerLoss};
pub use labels::{NAME_LABEL, UID_LABEL, name_label_of};
pub use load::{Load, Ramp, Stage};
#[cfg(feature = "crd")]
pub use pod_template::PodTemplate;
#[cfg(feature = "crd")]
pub use runners::{RunnerSecurity, Runners};
pub use scenario::{Pause, Scenario};
pub use status::{
    Aborted, BreakingPoint, ConnectionSummary, ErrorCount, Latency, Measurement, Phase, Progress,
    Sizing, StageRow, Summary, TaskLatencies, TaskSummary, ThresholdRow, TokenSummary, Verdict,
};
pub use target::{
    ConnectionLimits, ConnectionReuse, HeaderFrom, HttpVersion, Preflight, SecretKey,
    SessionResumption, Target, Timeouts, Tls,
};
pub use task::{
    ChatTask, HttpTask, MAX_REGEX_BYTES, MessageFormat, Method, Reply, Session, Task, WebSocketTask,
};
pub use threshold::{Abort, Threshold, ThresholdKey};

/// The API group of every kind.
pub const GROUP: &str = "loadtest.cell0.io";
/// Maximum number of runners of one test.
pub const MAX_RUNNERS: u32 = 1000;
/// Maximum number of users of one test.
pub const MAX_USERS: u32 = 5_000_000;
/// Maximum number of tasks, and of thresholds, of one test.
pub const MAX_ROWS: usize = 64;
