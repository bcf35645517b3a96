//! A target in this process.

pub(crate) mod target;
