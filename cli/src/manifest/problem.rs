//! A problem in a file, and its text form.

use std::fmt;

/// One problem in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// Line and column, counted from 1. `None` if the problem has no place in the file.
    pub(crate) position: Option<(usize, usize)>,
    /// Names the field and the problem.
    pub(crate) message: String,
}

/// Displays the problems of a file, one per line.
pub(super) struct ProblemList<'a> {
    pub(super) path: &'a str,
    pub(super) problems: &'a [Problem],
}

impl fmt::Display for ProblemList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Problem { position, message }) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            match position {
                Some((line, column)) => write!(f, "{}:{line}:{column}: {message}", self.path)?,
                None => write!(f, "{}: {message}", self.path)?,
            }
        }
        Ok(())
    }
}
