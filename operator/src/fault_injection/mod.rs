//! Where tests of faults reach into the operator: kill points in a pass, and the clock.
//!
//! Only with the Cargo feature `fault-injection`, which images of releases do not have.

mod clock;
mod kill_point;

pub(crate) use clock::now;
pub(crate) use kill_point::{KillPoint, pause_at};
