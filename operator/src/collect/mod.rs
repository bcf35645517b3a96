//! Collects the metrics of the runners of each running test.
//!
//! Each run has a task of its own ([`collector`]), which asks the runners on its own clock ([`scrape`] over
//! [`connection`]), whatever the API server does. [`collection`] holds their answers. A reconciliation reads the latest state
//! and never waits for a runner.

mod budget;
pub(crate) mod collection;
mod collector;
mod connection;
mod judged_sum;
mod part;
pub(crate) mod scrape;
mod slots;
mod targets;

pub(crate) use collection::Collection;
pub(crate) use collector::Collectors;
pub(crate) use judged_sum::timeline_of;
pub(crate) use targets::{StartedPods, Targets, runner_name, time_to_next_boundary};
