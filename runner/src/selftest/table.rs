//! The table of the self test.

use std::io::Write;

use crate::{
    loopback::run::LoopbackError,
    selftest::{
        checks::Check,
        run::{SelftestResult, run_selftest},
    },
};

/// Runs every check and prints one line for each. Returns the worst result.
///
/// # Errors
/// When a check could not run at all, or `out` could not be written.
pub fn print_selftest(out: &mut impl Write) -> Result<SelftestResult, LoopbackError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    writeln!(out, "{:<4}  {:<58}  {:<24}  measured", "", "check", "expected")?;
    let mut written = Ok(());
    let result = runtime.block_on(run_selftest(|check, result| {
        let Check { name, expected, measured, .. } = check;
        let mark = match result {
            SelftestResult::Passed => "ok",
            SelftestResult::NotJudged => "busy",
            SelftestResult::Failed => "BAD",
        };
        written = writeln!(out, "{mark:<4}  {name:<58}  {expected:<24}  {measured}");
    }))?;
    written?;
    if result == SelftestResult::NotJudged {
        writeln!(
            out,
            "\nother work on this machine held the checks marked `busy` up in every attempt; \
             run the self test again when the machine is quiet"
        )?;
    }
    Ok(result)
}
