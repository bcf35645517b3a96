//! Builds the child objects of a test: a ConfigMap with the plan, an Indexed Job with the runners and, if
//! the operator is told so, a NetworkPolicy.
//!
//! Pure: this crate has no client. The operator creates the objects, and the command line prints them.

mod job;
mod metadata;
mod network_policy;
mod pod;
mod settings;
#[cfg(any(test, feature = "testing"))]
#[allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "only tests use these examples")]
pub mod testing;

pub use job::{TOKEN_ANNOTATION, build_config_map, build_job, build_plan};
pub use metadata::{OPERATOR_NAME, child_name, is_controlled_by, result_metadata};
pub use network_policy::build_network_policy;
pub use settings::{METRICS_LINGER, RELEASE_GRACE, START_TIMEOUT, Settings};
