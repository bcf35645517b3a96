//! Whether other work on the machine disturbed a check. Uses no part of the load generator.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::{machine::cpu::process_cpu_time, selftest::checks::MAX_LAG};

/// How long each watching thread sleeps at a time.
const SLEEP: Duration = Duration::from_millis(1);
/// A CPU that ran none of our threads for a larger part of the time was held up.
const MAX_HELD_UP: f64 = 0.005;
/// A process that used a larger part of its CPUs held itself up.
const MAX_OWN_USE: f64 = 0.8;

/// Watches each CPU with a thread that sleeps and measures how late it wakes up.
#[derive(Debug)]
pub(super) struct DisturbanceWatch {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Duration>>,
    began: Instant,
    cpu_time_before: Duration,
}

impl DisturbanceWatch {
    /// Starts one thread on each CPU that this process may use.
    pub(super) fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let cpus = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
        let threads = (0..CpuSet::MAX_CPU).filter(|cpu| cpus.is_set(*cpu)).map(|cpu| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || watch_cpu(cpu, &stop))
        });
        Self {
            threads: threads.collect(),
            stop,
            began: Instant::now(),
            cpu_time_before: process_cpu_time(),
        }
    }

    /// Returns true when something outside this process held its threads up.
    pub(super) fn finish(self) -> bool {
        let elapsed = self.began.elapsed().as_secs_f64();
        let cpu_time = process_cpu_time().saturating_sub(self.cpu_time_before).as_secs_f64();
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        self.stop.store(true, Ordering::Relaxed);
        let late = self.threads.into_iter().filter_map(|thread| thread.join().ok()).max();
        let held_up = late.unwrap_or_default().as_secs_f64() / elapsed;
        is_disturbed(held_up, cpu_time / (elapsed * cpus as f64))
    }
}

/// `held_up` is the part of the time in which a CPU ran none of our threads, and `own_use` the part
/// of its CPUs that this process used.
fn is_disturbed(held_up: f64, own_use: f64) -> bool {
    held_up > MAX_HELD_UP && own_use < MAX_OWN_USE
}

/// Returns by how much the wake-ups on a CPU were late, in total.
fn watch_cpu(cpu: usize, stop: &AtomicBool) -> Duration {
    let mut only = CpuSet::new();
    only.set(cpu);
    // A thread that can't be pinned watches the CPUs that it runs on.
    let _ = sched_setaffinity(None, &only);
    let (mut late, mut last) = (Duration::ZERO, Instant::now());
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(SLEEP);
        let now = Instant::now();
        let overslept = (now - last).saturating_sub(SLEEP);
        if overslept > MAX_LAG {
            late += overslept;
        }
        last = now;
    }
    late
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generator_that_uses_the_cpu_itself_is_not_excused() {
        assert!(is_disturbed(0.01, 0.5));
        assert!(!is_disturbed(0.01, 0.9));
        assert!(!is_disturbed(0.0, 0.5));
    }

    #[test]
    fn every_cpu_is_watched() {
        let watch = DisturbanceWatch::start();
        let cpus = sched_getaffinity(None).unwrap();
        assert_eq!(watch.threads.len(), cpus.count() as usize);
        watch.finish();
    }
}
