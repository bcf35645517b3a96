//! From metrics to a verdict: thresholds, windows, stages, and the report of a run. All pure.

mod abort;
mod advice;
mod generator_health;
mod observation;
mod report;
mod stages;
mod summary;
mod timeline;
mod verdict;
mod windows;

pub use advice::split_advice;
pub use report::{MAX_ERRORS, Report, RunContext, max_start_skew, progress_of, report};
pub use stages::breaking_point;
pub use summary::summarize;
pub use timeline::{Coverage, Timeline, coverage_of};
pub use verdict::{judge, worst_verdict};
