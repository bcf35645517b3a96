//! What this process may open, sockets being files; and who of its threads comes first.

use rustix::process::{Resource, Rlimit, getrlimit, setpriority_process, setrlimit};

/// How far everything else stands behind load threads.
const NICE: i32 = 10;

/// Raises the limit of open files as far as this process may.
///
/// Programs that use `select` need a low soft limit, which is why it is often 1,024; this one
/// does not.
pub(crate) fn raise_file_limit() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    // A system that refuses leaves what there was.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// Files that this process may have open; `None` for any number.
pub(crate) fn file_limit() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// Lets load threads go before the calling one, and before those that it starts from now on: on a
/// core that they share, adding numbers up must not keep a request waiting.
pub fn step_back() {
    // Of a thread, in Linux; and whoever may not, shares evenly.
    let _ = setpriority_process(None, NICE);
}
