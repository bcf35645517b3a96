//! The simulator as its clients see it: real sockets on loopback.

#![expect(
    clippy::unwrap_used,
    reason = "clients and set-up here are no test functions, but only tests use them"
)]

mod binary;
mod client;
mod control;
mod failures;
mod http;
mod truth;
mod web_socket;
