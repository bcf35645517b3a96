//! One run of a load against a [`LoopbackTarget`].

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use loadtest_core::{
    metrics::Numbers,
    plan::{Plan, VERSION},
    resource::LoadTestSpec,
};

use crate::{
    load::engine::Engine,
    loopback::target::{LoopbackTarget, ObservedRequest, ResponseTiming},
    prepare::{error::PrepareError, plan::PreparedPlan},
};

/// A load on loopback could not run.
#[derive(Debug, thiserror::Error)]
pub enum LoopbackError {
    /// The system refused a thread, a socket or a timer.
    #[error("load on loopback could not run")]
    Io(#[from] io::Error),
    /// The built-in plan is not valid.
    #[error("load on loopback has an invalid plan")]
    Plan(#[from] PrepareError),
    /// The built-in spec is not valid.
    #[error("load on loopback has an invalid spec")]
    Spec(#[from] serde_json::Error),
}

/// The measurements of the load generator beside the observations of the target.
pub(crate) struct LoopbackRun {
    pub(crate) numbers: Numbers,
    /// All requests that reached the target, in the order of their arrival.
    pub(crate) requests: Vec<ObservedRequest>,
    pub(crate) start: Instant,
}

/// Runs `load` against a target on loopback. The load starts after `lead_time`.
///
/// `timing` gets the start of the load, so that it can name moments.
pub(crate) async fn run_on_loopback(
    load: serde_json::Value,
    lead_time: Duration,
    timing: impl FnOnce(Instant) -> ResponseTiming,
) -> Result<LoopbackRun, LoopbackError> {
    let start = Instant::now() + lead_time;
    let target = LoopbackTarget::start(timing(start))?;
    let spec: LoadTestSpec = serde_json::from_value(serde_json::json!({
        "target": {"http": format!("http://{}", target.address)},
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
    let engine = Engine::new(Arc::clone(&PreparedPlan::new(plan, |_| None)?), 0)?;
    engine.start(start);
    engine.wait_until_finished().await;
    let numbers = engine.snapshot().await.numbers;
    Ok(LoopbackRun { numbers, requests: target.finish()?, start })
}
