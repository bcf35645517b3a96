//! What this process may open: sockets are files.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit of open files as far as this process may; what it is now, `None` for none.
///
/// Programs that use `select` need a low soft limit, which is why it is often 1,024; this one
/// does not.
pub(crate) fn raise_file_limit() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: maximum, maximum };
    // A system that refuses leaves what there was.
    if setrlimit(Resource::Nofile, raised).is_ok() { maximum } else { current }
}
