//! `selftest`: is the load generator right on this machine? Each check runs it against a target
//! that knows what really happened, and compares.

use std::{
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use loadtest_core::{
    metrics::{LatencyHistogram, Numbers, Outcome, judged},
    plan::{Plan, VERSION},
    resource::LoadTestSpec,
};

use crate::loopback::target::{Oracle, Script, Seen};
use crate::{
    load::engine::Engine,
    prepare::{PrepareError, Prepared},
};

/// How long threads have to get ready.
const READY: Duration = Duration::from_millis(300);
/// A generator later than this makes a verdict Inconclusive.
const LATE: Duration = Duration::from_millis(5);
/// What a machine with other work may add to a latency. A quiet one adds a tenth of a millisecond.
const ADDED: Duration = Duration::from_millis(10);

/// How often a check of time is tried.
const ATTEMPTS: u32 = 6;
/// A machine on which a thread woke in time for so long has come to rest.
const RESTFUL: Duration = Duration::from_secs(1);
/// A machine that has not come to rest within this won't.
const RESTLESS: Duration = Duration::from_secs(20);

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Check {
    /// What was checked.
    pub name: String,
    /// What should have come out.
    pub wanted: String,
    /// What did.
    pub found: String,
    /// Whether it is within its bound.
    pub good: bool,
}

/// What keeps a check from running.
#[derive(Debug, thiserror::Error)]
pub enum SelftestError {
    /// The system refused a thread, a socket or a timer.
    #[error("selftest could not run")]
    Io(#[from] io::Error),
    /// A plan of ours that is none.
    #[error("selftest has a wrong plan")]
    Plan(#[from] PrepareError),
    /// A spec of ours that is none.
    #[error("selftest has a wrong spec")]
    Spec(#[from] serde_json::Error),
}

/// Runs every check, each told to `report` as it ends. Takes about twenty seconds on a quiet
/// machine.
///
/// # Errors
/// When a check could not run at all.
pub async fn selftest(mut report: impl FnMut(&Check)) -> Result<bool, SelftestError> {
    let mut good = true;
    let mut tell = |checks: Vec<Check>| {
        for check in checks {
            good &= check.good;
            report(&check);
        }
    };
    tell(accounting().await?);
    tell(quietest(schedule).await?);
    for rate in [100, 1000, 5000] {
        tell(quietest(|| latency(rate)).await?);
    }
    tell(quietest(stall).await?);
    Ok(good)
}

/// Runs checks of time until they are good, a few times at most, each time when the machine has
/// come to rest: what is wrong with the generator is wrong each time, while a machine is busy, or
/// stands still, now and then.
async fn quietest<F: Future<Output = Result<Vec<Check>, SelftestError>>>(
    checks: impl Fn() -> F,
) -> Result<Vec<Check>, SelftestError> {
    let mut found = checks().await?;
    for _ in 1..ATTEMPTS {
        if found.iter().all(|check| check.good) {
            break;
        }
        rest();
        found = checks().await?;
    }
    Ok(found)
}

/// Waits until a thread that wants to wake each millisecond does so in time for a while, or for
/// [`RESTLESS`] when it never does. Nothing of the load generator has a part in it.
fn rest() {
    let began = Instant::now();
    let (mut quiet_since, mut last) = (began, began);
    while quiet_since.elapsed() < RESTFUL && began.elapsed() < RESTLESS {
        thread::sleep(Duration::from_millis(1));
        let now = Instant::now();
        if now - last > LATE {
            quiet_since = now;
        }
        last = now;
    }
}

/// Makes a little load against this process itself, so that a test's first requests find the
/// program where it runs: what runs for the first time may wait for the system, the first request
/// of all for 10 to 40 ms in a virtual machine. Takes a tenth of a second.
///
/// # Errors
/// When it could not run.
pub(crate) fn rehearse() -> Result<(), SelftestError> {
    let load = serde_json::json!({"arrivalRate": "500/s", "maxUsers": 10, "duration": "100ms"});
    // Who calls may be in a runtime already.
    let alone = thread::Builder::new().name("rehearsal".into()).spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(run(load, Duration::ZERO, |_| Script::AtOnce)).map(drop)
    })?;
    alone.join().map_err(|_| io::Error::other("the rehearsal panicked"))?
}

/// Runs a load against an oracle, which begins after `ready`; what was measured, and what the
/// oracle saw.
async fn run(
    load: serde_json::Value,
    ready: Duration,
    script: impl FnOnce(Instant) -> Script,
) -> Result<(Numbers, Vec<Seen>, Instant), SelftestError> {
    // The script may name moments: those of a start a little later.
    let start = Instant::now() + ready;
    let oracle = Oracle::start(script(start))?;
    let spec: LoadTestSpec = serde_json::from_value(serde_json::json!({
        "target": {"http": format!("http://{}", oracle.address)},
        "load": load,
        "scenario": {"tasks": [{"name": "get", "http": {"path": "/"}}]},
    }))?;
    let plan = Plan {
        version: VERSION,
        run: "selftest".into(),
        name: "selftest".into(),
        runners: 1,
        workers: 1,
        token_sha256: String::new(),
        target: spec.target,
        load: spec.load,
        scenario: spec.scenario,
        thresholds: spec.thresholds,
        release_grace: loadtest_core::Duration::ZERO,
        metrics_linger: loadtest_core::Duration::ZERO,
    };
    let engine = Engine::new(Arc::clone(&Prepared::new(plan, |_| None)?), 0)?;
    engine.start(start);
    engine.finished().await;
    let numbers = engine.measured().await.numbers;
    Ok((numbers, oracle.finish()?, start))
}

fn check(name: impl Into<String>, wanted: String, found: String, good: bool) -> Check {
    Check { name: name.into(), wanted, found, good }
}

fn shown(time: Duration) -> String {
    loadtest_core::Duration::from(time).rounded()
}

/// The value at a share of sorted ones, nearest rank.
fn at(sorted: &[Duration], p: f64) -> Duration {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank is at most the count"
    )]
    let rank = (p * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or_default()
}

/// As fast as 64 users can: nothing is lost, nothing is counted twice.
async fn accounting() -> Result<Vec<Check>, SelftestError> {
    let load = serde_json::json!({"users": 64, "spawnRate": 10_000, "duration": "2s"});
    let (numbers, seen, _) = run(load, READY, |_| Script::AtOnce).await?;
    let total = numbers.total();
    let count = total.completed() + total.of(Outcome::Interrupted);
    Ok(vec![check(
        "requests counted, 64 users without pause",
        format!("{} at the target", seen.len()),
        format!("{count}, {} failed", total.failures()),
        count == seen.len() as u64 && total.completed() > 0 && total.failures() == 0,
    )])
}

/// When requests come to the target, against when the load model wanted them.
async fn schedule() -> Result<Vec<Check>, SelftestError> {
    let load = serde_json::json!({"arrivalRate": "1000/s", "maxUsers": 100, "duration": "3s"});
    let (_, seen, start) = run(load, READY, |_| Script::AtOnce).await?;
    let mut late: Vec<Duration> = (0_u32..)
        .zip(&seen)
        .map(|(k, one)| {
            let planned = start + Duration::from_millis(1) * k;
            one.arrived.saturating_duration_since(planned)
                + planned.saturating_duration_since(one.arrived)
        })
        .collect();
    late.sort_unstable();
    let all = is_all(late.len(), 3000);
    let row = |p: f64, name: &str, bound: Duration| {
        let found = at(&late, p);
        let name = format!("schedule error {name}, 1000/s, at the target's socket");
        let text = told(found, all, late.len() as u64);
        check(name, format!("< {}", shown(bound)), text, all && found < bound)
    };
    Ok(vec![row(0.5, "p50", LATE), row(0.99, "p99", LATE), row(1.0, "max", 20 * LATE)])
}

/// What is measured, against what the target knows of its own time. What lies between is the
/// way there and back, and the generator.
async fn latency(rate: u32) -> Result<Vec<Check>, SelftestError> {
    let load =
        serde_json::json!({"arrivalRate": format!("{rate}/s"), "maxUsers": 500, "duration": "2s"});
    let (numbers, seen, _) = run(load, READY, |_| Script::After(Duration::from_millis(20))).await?;
    let mut truth: Vec<Duration> =
        seen.iter().map(|one| one.answered.saturating_duration_since(one.arrived)).collect();
    truth.sort_unstable();
    let found = judged(&numbers.total().response_time);
    let (all, count) = (is_all(seen.len(), 2 * rate as usize), seen.len() as u64);
    let row = |p: f64, name: &str| {
        let (truth, found) = (at(&truth, p), quantile(&found, p));
        let bound = truth.mul_f64(0.002) + ADDED;
        let added = found.saturating_sub(truth);
        let good = added <= bound && truth.saturating_sub(found) <= truth.mul_f64(0.002);
        let name = format!("response time {name} at {rate}/s");
        let found = format!("{} (+{})", told(found, all, count), shown(added));
        check(name, format!("{} at the target", shown(truth)), found, all && good)
    };
    Ok(vec![row(0.5, "p50"), row(0.99, "p99")])
}

fn quantile(histogram: &LatencyHistogram, p: f64) -> Duration {
    histogram.quantile(p).map_or(Duration::ZERO, loadtest_core::Duration::std)
}

/// The target stands still for a second in ten. Of arrivals at an even rate, those of that
/// second wait for its end, so that for p above 0.9 the quantile is 1 s × (p − 0.9) / 0.1
/// (Gil Tene's test for coordinated omission). Whoever waits for an answer before asking again
/// sees one slow request for each user, and good percentiles.
async fn stall() -> Result<Vec<Check>, SelftestError> {
    let load = serde_json::json!({"arrivalRate": "200/s", "maxUsers": 300, "duration": "10s"});
    let frozen = |start: Instant| {
        let from = start + Duration::from_secs(5);
        Script::Frozen(from, from + Duration::from_secs(1))
    };
    let (numbers, ..) = run(load, READY, frozen).await?;
    let found = judged(&numbers.total().response_time);
    let (all, count) = (found.count() == 2000, found.count());
    let row = |p: f64, name: &str| {
        let wanted = Duration::from_secs_f64((p - 0.9) / 0.1);
        let found = quantile(&found, p);
        let name = format!("target frozen 1 s in 10, 200/s: {name}");
        let off = (found.as_secs_f64() / wanted.as_secs_f64() - 1.0).abs();
        let text = format!("{} ({:.2} % off)", told(found, all, count), off * 100.0);
        check(name, shown(wanted), text, all && is_near(found, wanted))
    };
    Ok(vec![row(0.95, "p95"), row(0.99, "p99"), row(0.999, "p99.9")])
}

/// All that were wanted, or nearly: those that the end overtakes are dropped.
const fn is_all(found: usize, wanted: usize) -> bool {
    found <= wanted && found >= wanted - wanted / 100
}

/// Within 1 %. Two hundred answers at once take a moment too: what is later may be by that.
fn is_near(found: Duration, wanted: Duration) -> bool {
    let off = found.abs_diff(wanted);
    off <= wanted.mul_f64(0.01) || (found > wanted && off <= ADDED)
}

/// A time, and of how many requests it is, where these are not all there should have been.
fn told(found: Duration, all: bool, count: u64) -> String {
    if all { shown(found) } else { format!("{} of {count} requests", shown(found)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generator_that_waits_for_a_frozen_target_before_it_asks_again_is_found() {
        let millis = Duration::from_millis;
        for (found, near) in [(500, true), (496, true), (504, true), (494, false), (0, false)] {
            assert_eq!(is_near(millis(found), millis(500)), near, "{found}");
        }
        assert!(is_near(millis(500) + ADDED, millis(500)));
        assert!(!is_near(millis(501) + ADDED, millis(500)));
    }

    #[tokio::test]
    async fn a_rehearsal_can_be_held_in_a_runtime_too() {
        rehearse().unwrap();
    }
}
