//! The table of the self test.

use std::io::Write;

use crate::{
    loopback::run::LoopbackError,
    selftest::{checks::Check, run::run_selftest},
};

/// Runs every check and prints one line for each. Returns true when all of them passed.
///
/// # Errors
/// When a check could not run at all, or `out` could not be written.
pub fn print_selftest(out: &mut impl Write) -> Result<bool, LoopbackError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    writeln!(out, "{:<4}  {:<58}  {:<24}  measured", "", "check", "expected")?;
    let mut written = Ok(());
    let passed = runtime.block_on(run_selftest(|Check { name, expected, measured, passed }| {
        let mark = if *passed { "ok" } else { "BAD" };
        written = writeln!(out, "{mark:<4}  {name:<58}  {expected:<24}  {measured}");
    }))?;
    written?;
    Ok(passed)
}
