//! What can go wrong, on a real cluster: each test is a row of the table of faults, which `make chaos` prints.
//! `make test` runs those of `quick`.
//!
//! The tests kill and freeze processes and drop packets. So they must run on the node, as root, and the image of
//! the operator must have the feature `fault-injection`.

mod checks;
mod long;
mod quick;
