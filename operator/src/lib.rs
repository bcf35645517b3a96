//! Library of the operator: observe → decide → act → report.
//!
//! ```text
//! observe (reads) ─▶ decide (pure) ─▶ act (writes) ─▶ status (pure) ─▶ reconcile, events (write)
//! ```
//!
//! | modules | task |
//! |---|---|
//! | `observe` | reads the Kubernetes objects and the runners into one value |
//! | `decide`, `status`, `stored_result` | pure: take values and a `now`, and have no client |
//! | `runner_client` | scrapes the runners and sends orders to them |
//! | `act` | writes objects and publishes Events; decides nothing |
//! | [`controller`], [`reconcile`] | run these steps for each changed test |
//! | `clock` | the time: that of the API server |
//! | `observe::crd_check` | compares the installed CRD with the one of this operator |
//! | [`lease`] | which replica may act, and what an order to a runner needs |
//! | `fault_injection` | where tests of faults reach in |
//! | [`context`], [`error`], `metrics`, [`server`] | what the steps share, and the HTTP endpoints |

mod act;
mod clock;
mod collect;
pub mod context;
pub mod controller;
mod decide;
pub mod error;
mod fault_injection;
pub mod lease;
pub mod metrics;
mod observe;
pub mod reconcile;
mod runner_client;
pub mod server;
mod status;
mod stored_result;
#[cfg(test)]
mod testing;
