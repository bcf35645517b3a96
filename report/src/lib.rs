//! Reports of a load test: each is a function of its [`RunResult`], and reads nothing else.
//!
//! | report | for |
//! |---|---|
//! | [`html_report`] | people: one file with charts |
//! | [`live_page`], [`live_update`] | people who watch a running test |
//! | [`csv_files`] | spreadsheets and scripts that read Locust's files |
//! | [`junit_report`] | CI systems: a test case for each threshold |
//! | [`markdown_report`] | comments on pull requests |
//! | [`k6_summary`] | scripts that read k6's `--summary-export` |
//! | [`hdr_log`] | the tools of `HdrHistogram` |

mod csv;
mod hdr_log;
mod html;
mod junit;
mod k6_summary;
mod markdown;
mod text;

pub use csv::{CsvFiles, csv_files};
pub use hdr_log::hdr_log;
pub use html::{html_report, live_page, live_update};
pub use junit::junit_report;
pub use k6_summary::k6_summary;
pub use loadtest_core::result::RunResult;
pub use markdown::markdown_report;

/// Why a report can't be made.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A histogram of the result is malformed, as in a file that was changed.
    #[error("the result is damaged")]
    Histogram(#[from] loadtest_core::metrics::HistogramError),
    /// The samples can't be written in `HdrHistogram`'s format.
    #[error("the samples can't be written in HdrHistogram's format: {0}")]
    HdrHistogram(String),
    /// The result can't be written as JSON.
    #[error("the result can't be written as JSON")]
    Json(#[from] serde_json::Error),
    /// The result can't be compressed.
    #[error("the result can't be compressed")]
    Compress(#[from] std::io::Error),
}

#[cfg(test)]
mod testing;
