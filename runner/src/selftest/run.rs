//! The order of the checks, and the retries of checks that depend on time.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    loopback::run::LoopbackError,
    selftest::checks::{
        Check, MAX_LAG, check_accounting, check_latency, check_schedule, check_stall,
    },
};

/// Maximum number of attempts of a check that depends on time.
const ATTEMPTS: u32 = 6;
/// A machine is quiet when a thread has woken up in time for this long.
const QUIET_TIME: Duration = Duration::from_secs(1);
/// Maximum time to wait for the machine to become quiet.
const MAX_QUIET_WAIT: Duration = Duration::from_secs(20);

/// Runs every check, and calls `report` with each result. Takes about twenty seconds on a quiet
/// machine.
///
/// # Errors
/// When a check could not run at all.
pub(super) async fn run_selftest(mut report: impl FnMut(&Check)) -> Result<bool, LoopbackError> {
    let mut all_passed = true;
    let mut report_all = |checks: Vec<Check>| {
        for check in checks {
            all_passed &= check.passed;
            report(&check);
        }
    };
    report_all(check_accounting().await?);
    report_all(retry_checks(check_schedule).await?);
    for rate in [100, 1000, 5000] {
        report_all(retry_checks(|| check_latency(rate)).await?);
    }
    report_all(retry_checks(check_stall).await?);
    Ok(all_passed)
}

/// Runs checks until all of them pass, at most [`ATTEMPTS`] times. Waits for a quiet machine before
/// each retry.
///
/// A fault of the generator fails every attempt. Other work on the machine fails only some.
async fn retry_checks<F: Future<Output = Result<Vec<Check>, LoopbackError>>>(
    run_checks: impl Fn() -> F,
) -> Result<Vec<Check>, LoopbackError> {
    let mut checks = run_checks().await?;
    for _ in 1..ATTEMPTS {
        if checks.iter().all(|check| check.passed) {
            break;
        }
        wait_for_quiet_machine();
        checks = run_checks().await?;
    }
    Ok(checks)
}

/// Waits until a thread that sleeps for one millisecond has woken up in time for [`QUIET_TIME`], at
/// most [`MAX_QUIET_WAIT`]. Uses no part of the load generator.
fn wait_for_quiet_machine() {
    let began = Instant::now();
    let (mut quiet_since, mut last) = (began, began);
    while quiet_since.elapsed() < QUIET_TIME && began.elapsed() < MAX_QUIET_WAIT {
        thread::sleep(Duration::from_millis(1));
        let now = Instant::now();
        if now - last > MAX_LAG {
            quiet_since = now;
        }
        last = now;
    }
}
