//! CPU time: how long a thread ran, and how long a CPU limit throttled this container.

use std::{fs, time::Duration};

use rustix::time::{ClockId, clock_gettime};

/// Returns how long the calling thread has run on a CPU.
pub(crate) fn thread_cpu_time() -> Duration {
    cpu_time(ClockId::ThreadCPUTime)
}

/// Returns how long all threads of this process have run on CPUs.
pub(crate) fn process_cpu_time() -> Duration {
    cpu_time(ClockId::ProcessCPUTime)
}

fn cpu_time(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Returns how long the CPU limit has throttled this container. Zero without a limit, or when the
/// kernel does not report it.
pub(crate) fn throttled_time() -> Duration {
    // cgroup v2, then v1.
    let files = ["/sys/fs/cgroup/cpu.stat", "/sys/fs/cgroup/cpu/cpu.stat"];
    let text = files.iter().find_map(|file| fs::read_to_string(file).ok()).unwrap_or_default();
    parse_throttled_time(&text)
}

fn parse_throttled_time(text: &str) -> Duration {
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
    fn both_versions_of_cgroup_are_parsed() {
        let version_2 = "usage_usec 5\nnr_throttled 3\nthrottled_usec 1500\n";
        assert_eq!(parse_throttled_time(version_2), Duration::from_micros(1500));
        assert_eq!(
            parse_throttled_time("nr_periods 9\nthrottled_time 2500\n"),
            Duration::from_nanos(2500)
        );
        assert_eq!(parse_throttled_time(""), Duration::ZERO);
    }

    #[test]
    fn a_busy_thread_uses_cpu_time() {
        let before = thread_cpu_time();
        let mut sum = 0_u64;
        while thread_cpu_time().saturating_sub(before) < Duration::from_millis(2) {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(sum > 0);
    }
}
