//! The process of one runner pod.

pub mod lifecycle;
pub mod preflight;
pub mod server;
