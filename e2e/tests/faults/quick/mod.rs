//! Rows that settle quickly, or that matter most. Those outside of `alone` may run at the same time.

pub(crate) mod alone;
mod api_cost;
mod objects;
pub(crate) mod runners;
mod targets;
