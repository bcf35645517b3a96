//! Load threads: [`engine`] starts and stops them, [`thread`] drives one of them, and a load model
//! ([`closed_model`] or [`open_model`]) decides when each [`user`] acts.
//!
//! Imports go downward only: engine, thread, load models, user, state. Protocols and sockets are
//! not handled here.

pub(crate) mod closed_model;
pub(crate) mod completion;
pub(crate) mod engine;
pub(crate) mod open_model;
pub(crate) mod state;
pub(crate) mod thread;
pub(crate) mod user;
pub(crate) mod user_pool;
