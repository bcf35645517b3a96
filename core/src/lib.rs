//! The rules of a load test: the resource, its plan, its metrics, and the verdict.
//!
//! ```text
//! LoadTestSpec ─▶ ValidTest ─▶ Plan ─▶ (runners) ─▶ Metrics ─▶ Report ─▶ LoadTestStatus
//!    resource        plan                load         metrics     judge        resource
//! ```
//!
//! Everything here is pure: no IO, no async, no client. Functions that need the time take it as a value.
//!
//! The feature `crd` adds what needs Kubernetes crates: the kind `LoadTest`, its
//! CustomResourceDefinition, and the validation of a spec. The feature `control` adds the
//! exposition of metrics and the token of orders, which runner and operator share.

pub mod control;
pub mod judge;
pub mod load;
pub mod metrics;
pub mod plan;
pub mod resource;
#[cfg(feature = "crd")]
pub mod result;
#[cfg(test)]
mod testing;
pub mod text;
#[cfg(feature = "control")]
pub mod token;
pub mod values;
pub use values::Duration;
