//! What a load test is: the resource, its plan and course, the metrics model, the verdict.
//!
//! ```text
//! LoadTestSpec ─▶ plan ─▶ (runners) ─▶ metrics ─▶ report ─▶ LoadTestStatus
//!                  └ profile, mix                   └ verdict
//! ```
//!
//! Pure: no IO, no async, no client; where time matters it comes in as a value.

mod health;
pub mod metrics;
pub mod mix;
pub mod plan;
pub mod profile;
pub mod report;
pub mod resource;
pub mod sizing;
pub mod summary;
#[cfg(test)]
mod testing;
pub mod timeline;
pub mod token;
pub mod validate;
pub mod values;
pub mod verdict;
pub use values::Duration;
