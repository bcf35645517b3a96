//! The machine under this process: CPU time, memory and limits. Nothing here knows about load.

pub(crate) mod clock;
pub(crate) mod cpu;
pub(crate) mod limits;
pub(crate) mod memory;
