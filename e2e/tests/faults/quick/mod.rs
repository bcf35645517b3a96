//! Rows that settle quickly, or that matter most.

mod api_cost;
mod cancellation;
pub(crate) mod kill_points;
mod leadership;
mod objects;
pub(crate) mod runners;
mod targets;
mod versions;
