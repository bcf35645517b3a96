//! Rows that stop or replace what all tests share. They run one after the other.

pub(crate) mod kill_points;
mod leadership;
mod versions;
