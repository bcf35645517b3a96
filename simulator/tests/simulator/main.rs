//! Tests the simulator with clients on loopback sockets.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers are not test functions, but only tests use them"
)]

mod binary;
mod client;
mod control;
mod failures;
mod http;
mod truth;
mod web_socket;
