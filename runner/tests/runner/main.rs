//! Integration tests of the runner. They run the runner against the simulator or a small test
//! server on loopback, and compare its metrics with the requests that the server received.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't be set up has failed")]

mod connections;
mod control_server;
mod error_kinds;
mod harness;
mod http2_servers;
mod lifecycle;
mod load_models;
mod protocol;
mod real_servers;
mod request_counts;
mod request_log;
mod responses;
mod scripted_target;
mod target;
mod tls_servers;
mod tokens;
mod web_socket_handshake;
mod web_socket_servers;
mod web_socket_sessions;
