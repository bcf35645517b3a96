//! Load against a target in this process, over the loopback interface. The warm-up and the self
//! test use it.

pub(crate) mod run;
pub(crate) mod target;
