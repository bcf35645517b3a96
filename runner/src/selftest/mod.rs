//! `selftest`: checks the load generator on this machine. Each check runs a load against a target
//! that records what really happened, and compares.
//!
//! Only the binary uses this module; load generation must not depend on it.

mod checks;
mod disturbance;
mod run;
mod table;

pub use run::SelftestResult;
pub use table::print_selftest;
