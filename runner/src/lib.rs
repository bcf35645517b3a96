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

mod body;
mod chat;
mod check;
mod clock;
mod closed;
mod connect;
mod connection;
mod cpu;
mod engine;
mod failure;
mod flight;
mod http;
mod http1;
mod http2;
pub mod lifecycle;
mod limits;
mod memory;
mod open;
mod pacer;
pub mod preflight;
mod prepare;
mod raw;
mod record;
pub mod selftest;
pub mod server;
mod socket;
mod upgrade;
mod user;
mod web_socket;
mod wire;
mod worker;

pub use engine::{Engine, Measured};
pub use failure::ErrorKind;
pub use limits::step_back;
pub use prepare::{PrepareError, Prepared, RUN_HEADER};
pub use raw::{COLUMNS, RawRecord};
