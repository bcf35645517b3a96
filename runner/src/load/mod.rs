//! Load threads: when users act, and what each of them does.

pub(crate) mod closed_model;
pub(crate) mod engine;
pub(crate) mod open_model;
pub(crate) mod thread;
pub(crate) mod user;
