//! The termination message of the container.

use std::{fs, io::Write};

/// Content of this file becomes the message of a container that has ended.
const TERMINATION_LOG: &str = "/dev/termination-log";

/// Writes why this runner ends, for the status of its pod.
///
/// The kubelet creates the file. Without a kubelet there is no file, and nothing is written.
pub fn write_termination_message(text: &str) {
    let file = fs::OpenOptions::new().write(true).truncate(true).open(TERMINATION_LOG);
    // A failure is ignored: the log holds the text too.
    let _ = file.and_then(|mut file| file.write_all(text.as_bytes()));
}
