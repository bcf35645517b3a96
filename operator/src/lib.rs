//! The controller: observe → decide → act → report.
//!
//! ```text
//! observe (reads) ─▶ decide (pure) ─▶ act (writes) ─▶ status (pure) ─▶ report (writes)
//! ```
//!
//! [`decide`], [`status`] and [`resources`] take values and a `now` and know no client;
//! the rest touches the world and decides nothing.

mod act;
mod collect;
pub mod context;
pub mod controller;
pub mod decide;
pub mod error;
mod events;
pub mod metrics;
mod observe;
pub mod reconcile;
pub mod resources;
pub mod server;
pub mod skew;
pub mod state;
pub mod status;
#[cfg(test)]
mod testing;
