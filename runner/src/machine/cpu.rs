//! What CPU this process gets: how long a thread ran, and how long a limit kept it from it.

use std::{fs, time::Duration};

use rustix::time::{ClockId, clock_gettime};

/// How long the calling thread has been on a CPU.
pub(crate) fn of_this_thread() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// How long this container's CPU limit has kept it from running; zero without a limit, or where
/// the kernel does not say.
pub(crate) fn throttled() -> Duration {
    // cgroup v2, then v1.
    let files = ["/sys/fs/cgroup/cpu.stat", "/sys/fs/cgroup/cpu/cpu.stat"];
    let text = files.iter().find_map(|file| fs::read_to_string(file).ok()).unwrap_or_default();
    read(&text)
}

fn read(text: &str) -> Duration {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().parse::<u64>().ok()
    };
    let micros = field("throttled_usec ").map(Duration::from_micros);
    let nanos = || field("throttled_time ").map(Duration::from_nanos);
    micros.or_else(nanos).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_cgroup_are_read() {
        let two = "usage_usec 5\nnr_throttled 3\nthrottled_usec 1500\n";
        assert_eq!(read(two), Duration::from_micros(1500));
        assert_eq!(read("nr_periods 9\nthrottled_time 2500\n"), Duration::from_nanos(2500));
        assert_eq!(read(""), Duration::ZERO);
    }

    #[test]
    fn a_thread_that_works_uses_cpu() {
        let before = of_this_thread();
        let mut sum = 0_u64;
        while of_this_thread().saturating_sub(before) < Duration::from_millis(2) {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(sum > 0);
    }
}
