//! This machine: CPU, memory and limits of this process.

pub(crate) mod cpu;
pub(crate) mod limits;
pub(crate) mod memory;
