//! Output to the standard streams.

use std::io::{self, ErrorKind, Write};

/// Prints a line to standard error. Ignores an error: the reader may have closed the pipe.
pub(crate) fn eprint_line(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Returns false if the user wants no colors (no-color.org).
pub(crate) fn allows_color() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A writer that goes on when its reader is gone, as in `loadtest report … | head`: the command still writes its files, and
/// ends with the exit code of its verdict.
#[derive(Debug)]
pub(crate) struct PatientWriter<W>(pub(crate) W);

impl<W: Write> Write for PatientWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.write(bytes) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(bytes.len()),
            written => written,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.0.flush() {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            flushed => flushed,
        }
    }
}
