//! The metrics of runners: the catalogue, the numbers, and their exposition.
//!
//! Runners expose these metrics to Prometheus. The operator, the CLI and any Prometheus read the
//! same exposition. All numbers are cumulative, so a later scrape contains an earlier one, and the
//! difference of two snapshots is exactly what happened in between.

pub mod catalog;
#[cfg(feature = "control")]
mod decode;
pub mod document;
#[cfg(feature = "control")]
mod encode;
mod histogram;
mod merge;
mod run;
mod statistic;
mod task;

pub use catalog::{LatencyMetric, Metric, TaskScope, Unit, names};
#[cfg(feature = "control")]
pub use decode::{ExpositionError, decode};
#[cfg(feature = "control")]
pub use encode::{ExpositionOptions, Format, encode};
pub use histogram::{HistogramError, LatencyHistogram, SCHEMA};
pub use run::{Identity, Metrics, RunnerMetrics, RunnerState};
pub use statistic::{Statistic, StatisticError};
pub use task::{Latencies, Outcome, TaskMetrics, Tokens};
