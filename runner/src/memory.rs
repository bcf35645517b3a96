//! How much memory this process has, and of what limit.

use std::{fs, path::Path};

/// Limits beyond it are none: cgroup v1 writes about 2^63 for no limit.
const NO_LIMIT: u64 = 1 << 60;

/// Resident bytes of this process.
pub(crate) fn resident() -> u64 {
    let text = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}

/// The share of its memory limit that this container uses, without files that the kernel can
/// drop; zero without a limit.
pub(crate) fn share_of_limit() -> f64 {
    let read = |path: &str| fs::read_to_string(Path::new("/sys/fs/cgroup").join(path));
    // Version 2, then version 1.
    [
        ("memory.current", "memory.max", "memory.stat", "inactive_file "),
        (
            "memory/memory.usage_in_bytes",
            "memory/memory.limit_in_bytes",
            "memory/memory.stat",
            "total_inactive_file ",
        ),
    ]
    .into_iter()
    .find_map(|(used, limit, stat, field)| {
        Some(share(&read(used).ok()?, &read(limit).ok()?, &read(stat).ok()?, field))
    })
    .unwrap_or(0.0)
}

fn share(used: &str, limit: &str, stat: &str, field: &str) -> f64 {
    let number = |text: &str| text.trim().parse::<u64>().ok();
    // `max` is no number, and no limit.
    let Some(limit) = number(limit).filter(|limit| (1..NO_LIMIT).contains(limit)) else {
        return 0.0;
    };
    let files = stat.lines().find_map(|line| line.strip_prefix(field)).and_then(number);
    let used = number(used).unwrap_or(0).saturating_sub(files.unwrap_or(0));
    used as f64 / limit as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_can_be_dropped_do_not_count() {
        let stat = "anon 5\ninactive_file 200\n";
        let found = share("700\n", "1000\n", stat, "inactive_file ");
        assert!((found - 0.5).abs() < 1e-9, "{found}");
    }

    #[test]
    fn without_a_limit_there_is_no_share() {
        for limit in ["max\n", "9223372036854771712\n", "0", ""] {
            assert!(share("700", limit, "", "inactive_file ").abs() < 1e-9, "{limit}");
        }
    }

    #[test]
    fn a_process_has_memory() {
        assert!(resident() > 1 << 20);
    }
}
