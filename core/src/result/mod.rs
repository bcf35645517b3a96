//! The result of a run: one versioned document for programs, reports and comparisons. Pure.
//!
//! [`RunResult`] holds everything that a run produced. Reports are functions of it and read nothing
//! else. Its series keeps a histogram of each latency for each interval, so that percentiles of any
//! span can be computed later: histograms add.

mod build;
mod compare;
mod distribution;
mod document;
mod kind;
mod resume;
mod schema;
mod series;
mod stored;

pub use crate::metrics::HistogramData;
pub use build::{RunFacts, build_result, result_without_load, run_events, threshold_results};
pub use compare::{ComparedRow, Comparison, Movement, compare};
pub use distribution::Distribution;
pub use document::{
    BoundValue, Connections, EventKind, FORMAT_VERSION, LatencyResults, NamedTaskResult, RunEvent,
    RunResult, RunnerResult, TaskResult, ThresholdResult, TokenCounts, ValueUnit,
};
pub use kind::{
    LoadTestResult, MAX_DATA_BYTES, MAX_PARTS, ResultSummary, TestReference, result_crd_yaml,
};
pub use resume::{GoneRunner, GoneRunners, ResumeState};
pub use schema::result_schema;
pub use series::{PackedSeries, Point, PointList, Series, SeriesRecorder, TaskPoint};
pub use stored::{PackedRunner, ResultToStore, StoredResult, StoredResultError};
