//! Library of the operator: observe → decide → act → report.
//!
//! ```text
//! observe (reads) ─▶ decide (pure) ─▶ act (writes) ─▶ status (pure) ─▶ reconcile, events (write)
//! ```
//!
//! | modules | task |
//! |---|---|
//! | `observe`, `collect`, `state` | read the Kubernetes objects and the runners into one value |
//! | `decide`, `status`, `resources`, `skew` | pure: take values and a `now`, and have no client |
//! | `act`, `events` | write objects, send orders and publish Events; decide nothing |
//! | [`controller`], [`reconcile`] | run these steps for each changed test |
//! | [`context`], [`error`], `metrics`, [`server`] | what the steps share, and the HTTP endpoints |

mod act;
mod collect;
pub mod context;
pub mod controller;
mod decide;
pub mod error;
mod events;
mod metrics;
mod observe;
pub mod reconcile;
pub mod resources;
pub mod server;
mod skew;
mod state;
mod status;
#[cfg(test)]
mod testing;
