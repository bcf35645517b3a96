//! The runner against the simulator on loopback: what was counted is what happened.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't be set up has failed")]

mod accounting;
mod answers;
mod connections;
mod handshake;
mod kinds;
mod life;
mod load;
mod models;
mod orders;
mod raw;
mod sessions;
mod target;
mod tokens;
mod wire;
