//! The metrics of runners: the catalogue, the numbers, and their exposition.
//!
//! Runners expose these metrics to Prometheus. The operator, the CLI and any Prometheus read the
//! same exposition. All numbers are cumulative, so a later scrape contains an earlier one, and the
//! difference of two snapshots is exactly what happened in between.

pub mod catalog;
#[cfg(feature = "control")]
mod decode;
#[cfg(feature = "control")]
mod encode;
mod histogram;
#[cfg(feature = "control")]
mod history;
pub mod markdown_table;
mod merge;
mod packed;
mod run_metrics;
mod statistic;
#[cfg(feature = "control")]
mod step;
mod task;

pub use catalog::{LatencyMetric, Metric, TaskScope, Unit, names};
#[cfg(feature = "control")]
pub use decode::{ExpositionError, decode, decode_steps};
#[cfg(feature = "control")]
pub use encode::{ExpositionOptions, Format, encode, encode_step};
pub use histogram::{HistogramData, HistogramError, LatencyHistogram, SCHEMA};
#[cfg(feature = "crd")]
pub(crate) use histogram::{is_zero, rank_of, round_seconds};
#[cfg(feature = "control")]
pub use history::RunnerHistory;
pub use merge::RunnerNumbers;
pub use packed::{PackedMetrics, PackedSteps};
pub use run_metrics::{CpuTimes, GeneratorMetrics, Identity, Metrics, RunnerMetrics, RunnerState};
pub use statistic::{Statistic, StatisticError};
#[cfg(feature = "control")]
pub use step::{HistoryStep, apply_steps};
#[cfg(feature = "crd")]
pub(crate) use task::SIZE_LIMIT;
pub use task::{Latencies, Outcome, TaskMetrics, Tokens};
