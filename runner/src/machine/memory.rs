//! How much memory this process has, and of what limit.

use std::{fs, io::Read as _};

/// Limits beyond it are none: cgroup v1 writes about 2^63 for no limit.
const NO_LIMIT: u64 = 1 << 60;

/// Brings this program's own code into memory: who runs for the first time, or after a while,
/// waits for the disk otherwise, in the midst of its first requests.
pub(crate) fn warm_up() {
    // A system that does not show it runs it all the same.
    let Ok(mut program) = fs::File::open("/proc/self/exe") else { return };
    let mut block = vec![0; 256 << 10];
    while program.read(&mut block).is_ok_and(|n| n > 0) {}
}

/// Resident bytes of this process.
pub(crate) fn resident() -> u64 {
    let text = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}

/// Files of this container's cgroup: what it uses, its limit, and its statistics with the field
/// of files that the kernel can drop. Version 2, then version 1.
const CGROUP: [(&str, &str, &str, &str); 2] = [
    (
        "/sys/fs/cgroup/memory.current",
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory.stat",
        "inactive_file ",
    ),
    (
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
        "total_inactive_file ",
    ),
];

/// The share of its memory limit that this container uses, without files that the kernel can
/// drop; zero without a limit.
pub(crate) fn share_of_limit() -> f64 {
    let read = |path: &str| fs::read_to_string(path).ok();
    let share = |(used, limit, stat, field): (&str, &str, &str, &str)| {
        Some(share(&read(used)?, limit_of(&read(limit)?)?, &read(stat)?, field))
    };
    CGROUP.into_iter().find_map(share).unwrap_or(0.0)
}

/// Bytes of memory that this container may have; `None` for what there is.
pub(crate) fn limit() -> Option<u64> {
    CGROUP.iter().find_map(|(_, limit, ..)| limit_of(&fs::read_to_string(limit).ok()?))
}

fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// `max` is no number, and no limit.
fn limit_of(text: &str) -> Option<u64> {
    number(text).filter(|limit| (1..NO_LIMIT).contains(limit))
}

fn share(used: &str, limit: u64, stat: &str, field: &str) -> f64 {
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
        let found = share("700\n", 1000, stat, "inactive_file ");
        assert!((found - 0.5).abs() < 1e-9, "{found}");
    }

    #[test]
    fn no_limit_has_many_forms() {
        for text in ["max\n", "9223372036854771712\n", "0", ""] {
            assert_eq!(limit_of(text), None, "{text}");
        }
        assert_eq!(limit_of("1048576\n"), Some(1 << 20));
    }

    #[test]
    fn a_process_has_memory() {
        assert!(resident() > 1 << 20);
    }
}
