//! The load generator.
//!
//! ```text
//! Plan ─▶ Prepared ─▶ Engine ─▶ worker threads: users ─▶ target
//!                       │            └ recorder
//!                       └─▶ Measured ─▶ /metrics, or the CLI
//! ```
//!
//! A worker is one single-threaded runtime with its users and its recorder; nothing on
//! the way of a request is shared between threads. The `loadtest-runner` binary puts
//! [`server`] and a life cycle around an [`Engine`]; the CLI runs one in its own process.

mod failure;
mod load;
mod loopback;
mod machine;
mod measure;
mod net;
mod prepare;
mod process;
mod protocol;
pub mod selftest;
mod timer;

pub use failure::ErrorKind;
pub use load::engine::{Engine, Measured};
pub use machine::limits::step_back;
pub use measure::request_log::{COLUMNS, RawRecord};
pub use prepare::{PrepareError, Prepared, RUN_HEADER};
pub use process::{lifecycle, preflight, server};
