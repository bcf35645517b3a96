//! Memory: use of this process, and the limit of its container.

use std::{fs, io::Read as _};

/// A larger limit counts as no limit: cgroup v1 writes about 2^63 then.
const NO_LIMIT: u64 = 1 << 60;

/// Reads the program file, so that its code is in the page cache. Otherwise the first requests may
/// wait for the disk.
pub(crate) fn preload_program() {
    // A failure is ignored: it makes only the first requests slower.
    let Ok(mut program) = fs::File::open("/proc/self/exe") else { return };
    let mut block = vec![0; 256 << 10];
    while program.read(&mut block).is_ok_and(|n| n > 0) {}
}

/// Keeps this process from using huge pages. The kernel clears all of a huge page when it is first
/// used, and a load thread would wait for that.
pub(crate) fn avoid_huge_pages() {
    // A kernel without huge pages knows no such setting.
    let _ = nix::sys::prctl::set_thp_disable(true);
}

/// Returns the resident memory of this process in bytes.
pub(crate) fn resident_bytes() -> u64 {
    let text = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}

/// Files of the container's cgroup: use, limit, statistics; and the field of the statistics with
/// file cache that the kernel can drop. Version 2, then version 1.
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

/// Returns the memory use of this container as a ratio of its limit. File cache that the kernel can
/// drop does not count. Zero without a limit.
pub(crate) fn usage_ratio() -> f64 {
    let read = |path: &str| fs::read_to_string(path).ok();
    let ratio = |(used, limit, stat, field): (&str, &str, &str, &str)| {
        Some(parse_usage_ratio(&read(used)?, parse_limit(&read(limit)?)?, &read(stat)?, field))
    };
    CGROUP.into_iter().find_map(ratio).unwrap_or(0.0)
}

/// Returns the memory limit of this container in bytes. `None` without a limit.
pub(crate) fn limit_bytes() -> Option<u64> {
    CGROUP.iter().find_map(|(_, limit, ..)| parse_limit(&fs::read_to_string(limit).ok()?))
}

fn parse_number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// Parses a limit. The text `max` means no limit.
fn parse_limit(text: &str) -> Option<u64> {
    parse_number(text).filter(|limit| (1..NO_LIMIT).contains(limit))
}

fn parse_usage_ratio(used: &str, limit: u64, stat: &str, field: &str) -> f64 {
    let files = stat.lines().find_map(|line| line.strip_prefix(field)).and_then(parse_number);
    let used = parse_number(used).unwrap_or(0).saturating_sub(files.unwrap_or(0));
    used as f64 / limit as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_cache_does_not_count() {
        let stat = "anon 5\ninactive_file 200\n";
        let found = parse_usage_ratio("700\n", 1000, stat, "inactive_file ");
        assert!((found - 0.5).abs() < 1e-9, "{found}");
    }

    #[test]
    fn every_form_of_no_limit_is_recognized() {
        for text in ["max\n", "9223372036854771712\n", "0", ""] {
            assert_eq!(parse_limit(text), None, "{text}");
        }
        assert_eq!(parse_limit("1048576\n"), Some(1 << 20));
    }

    #[test]
    fn resident_memory_is_measured() {
        assert!(resident_bytes() > 1 << 20);
    }
}
