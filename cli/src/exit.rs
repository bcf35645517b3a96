//! The exit codes of `loadtest`.

use std::process::ExitCode;

use loadtest_core::resource::Verdict;

/// Result of a command. The discriminants are the exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The verdict is `Pass`, `Warning` or `NotJudged`.
    Passed = 0,
    /// The verdict is `Fail` or `Critical`.
    Missed = 1,
    /// The file or an argument is invalid.
    BadInput = 2,
    /// The verdict is `Inconclusive`.
    Inconclusive = 3,
    /// The test did not run, or its result could not be written.
    CouldNotRun = 4,
    /// A second Ctrl-C ended the command at once.
    Interrupted = 130,
}

impl Exit {
    /// Returns the result that belongs to a verdict. With `strict`, a Warning is missed too.
    pub(crate) const fn from_verdict(verdict: Verdict, strict: bool) -> Self {
        match verdict {
            Verdict::Warning if strict => Self::Missed,
            Verdict::Pass | Verdict::Warning | Verdict::NotJudged => Self::Passed,
            Verdict::Fail | Verdict::Critical => Self::Missed,
            Verdict::Inconclusive => Self::Inconclusive,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
