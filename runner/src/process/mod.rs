//! The process of one runner pod: preparation, limits of the machine, orders, probes and exit
//! codes.
//!
//! No load is made here; see `crate::load`.

pub(crate) mod lifecycle;
pub mod machine_check;
pub(crate) mod preflight;
pub(crate) mod run;
pub mod server;
pub(crate) mod termination_message;
pub(crate) mod warm_up;
