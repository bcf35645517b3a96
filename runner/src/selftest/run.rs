//! The order of the checks, and the retries of checks that depend on time.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    loopback::run::LoopbackError,
    selftest::{
        checks::{Check, MAX_LAG, check_accounting, check_latency, check_schedule, check_stall},
        disturbance::DisturbanceWatch,
    },
};

/// Maximum number of attempts of a check that depends on time.
const ATTEMPTS: u32 = 6;
/// A machine is quiet when a thread has woken up in time for this long.
const QUIET_TIME: Duration = Duration::from_secs(1);
/// Maximum time to wait for the machine to become quiet.
const MAX_QUIET_WAIT: Duration = Duration::from_secs(20);

/// The result of the self test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SelftestResult {
    /// Every check is within its bound.
    Passed,
    /// A check was outside its bound in each attempt, and other work disturbed each of them.
    NotJudged,
    /// A check was outside its bound in each attempt, and not because of other work.
    Failed,
}

/// Runs every check, and calls `report` with each result. Takes about twenty seconds on a quiet
/// machine.
///
/// # Errors
/// When a check could not run at all.
pub(super) async fn run_selftest(
    mut report: impl FnMut(&Check, SelftestResult),
) -> Result<SelftestResult, LoopbackError> {
    let mut worst = SelftestResult::Passed;
    let mut report_all = |(checks, failure): (Vec<Check>, SelftestResult)| {
        for check in checks {
            let result = match (check.passed, check.is_late) {
                (true, _) => SelftestResult::Passed,
                (false, true) => failure,
                (false, false) => SelftestResult::Failed,
            };
            worst = worst.max(result);
            report(&check, result);
        }
    };
    report_all((check_accounting().await?, SelftestResult::Failed));
    report_all(retry_checks(check_schedule).await?);
    for rate in [100, 1000, 5000] {
        report_all(retry_checks(|| check_latency(rate)).await?);
    }
    report_all(retry_checks(check_stall).await?);
    Ok(worst)
}

/// Runs checks until all of them pass, at most [`ATTEMPTS`] times. Waits for a quiet machine before
/// each retry. Returns the checks of the last attempt, and what a failed one of them means.
///
/// A fault of the generator fails every attempt. Other work on the machine fails only some.
async fn retry_checks<F: Future<Output = Result<Vec<Check>, LoopbackError>>>(
    run_checks: impl Fn() -> F,
) -> Result<(Vec<Check>, SelftestResult), LoopbackError> {
    let mut all_disturbed = true;
    let mut attempt = 1;
    loop {
        let watch = DisturbanceWatch::start();
        let checks = run_checks().await?;
        all_disturbed &= watch.finish();
        if attempt == ATTEMPTS || checks.iter().all(|check| check.passed) {
            let failure =
                if all_disturbed { SelftestResult::NotJudged } else { SelftestResult::Failed };
            return Ok((checks, failure));
        }
        attempt += 1;
        wait_for_quiet_machine();
    }
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
