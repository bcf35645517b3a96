//! The load generator.
//!
//! ```text
//! Plan ─▶ PreparedPlan ─▶ Engine ─▶ load threads: users ─▶ target
//!                           │            └ recorders
//!                           └─▶ Snapshot ─▶ /metrics, or the CLI
//! ```
//!
//! A load thread is a single-threaded runtime with its users and its recorders. A request uses
//! nothing that threads share. The `loadtest-runner` binary adds a [`server`] and a lifecycle to
//! an [`Engine`]; the CLI runs an engine in its own process.
//!
//! Imports between folders go downward only: `process`, `selftest`, `loopback`, `load`,
//! `protocol`, `measure` and `net`, `prepare`, `machine` and `timer`.

mod failure;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
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
pub use load::engine::Engine;
pub use loopback::run::LoopbackError;
pub use machine::limits::lower_priority;
pub use measure::{request_log::RequestLog, snapshot::Snapshot};
pub use prepare::{error::PrepareError, headers::RUN_HEADER, plan::PreparedPlan};
pub use process::{
    machine_check,
    run::{RunError, RunOptions, run_plan},
    server,
    termination_message::write_termination_message,
    warm_up::warm_up,
};
