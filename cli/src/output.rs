//! Output to standard error.

use std::io::Write;

/// Prints a line to standard error. Ignores an error: the reader may have closed the pipe.
pub(crate) fn eprint_line(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
