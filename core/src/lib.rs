//! core
pub mod values;
pub use values::Duration;
