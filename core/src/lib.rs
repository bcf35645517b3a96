//! core
pub mod metrics;
pub mod mix;
pub mod plan;
pub mod report;
pub mod resource;
#[cfg(test)]
mod testing;
pub mod token;
pub mod validate;
pub mod values;
pub mod verdict;
pub use values::Duration;
