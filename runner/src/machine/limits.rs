//! Limits of this process: open files (a socket is a file), and the priority of its threads.

use rustix::process::{Resource, Rlimit, getrlimit, setpriority_process, setrlimit};

/// Niceness of threads that are not load threads.
const NICENESS: i32 = 10;

/// Raises the limit of open files to the hard limit.
///
/// The soft limit is often 1,024 because programs that use `select` need a low limit. This program
/// does not use `select`.
pub(crate) fn raise_file_limit() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    // If the system refuses, the old limit stays.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// Returns how many files this process may have open. `None` without a limit.
pub(crate) fn file_limit() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// Lowers the priority of the calling thread and of the threads that it starts later.
///
/// Load threads keep their priority, so that work such as merging metrics does not delay a request
/// on the same core.
pub fn lower_priority() {
    // Linux applies the niceness to the calling thread. If the system refuses, threads share the
    // CPU equally.
    let _ = setpriority_process(None, NICENESS);
}
