//! One run of a load against a [`LoopbackTarget`].

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use loadtest_core::{
    load::LoadModel,
    metrics::Metrics,
    plan::{
        Pacing, Plan, RunIdentity, RunnerRequest, Scenario, Task, TaskKind, ValidTest, size_test,
    },
    resource::{Preflight, Target},
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
    /// The built-in load or task is not valid.
    #[error("load on loopback is not valid")]
    Load(#[from] serde_json::Error),
}

/// The measurements of the load generator beside the observations of the target.
pub(crate) struct LoopbackRun {
    pub(crate) metrics: Metrics,
    /// All requests that reached the target, in the order of their arrival.
    pub(crate) requests: Vec<ObservedRequest>,
    pub(crate) start: Instant,
}

/// Runs `load`, a [`LoadModel`] as JSON, against a target on loopback. The load starts after `lead_time`.
///
/// `timing` gets the start of the load, so that it can name moments.
pub(crate) async fn run_on_loopback(
    load: serde_json::Value,
    lead_time: Duration,
    timing: impl FnOnce(Instant) -> ResponseTiming,
) -> Result<LoopbackRun, LoopbackError> {
    let start = Instant::now() + lead_time;
    let target = LoopbackTarget::start(timing(start))?;
    let load: LoadModel = serde_json::from_value(load)?;
    let get = serde_json::from_value(serde_json::json!({"path": "/"}))?;
    let users = load.peak_users();
    let test = ValidTest {
        precision: loadtest_core::Duration::ZERO,
        target: Target { http: Some(format!("http://{}", target.address)), ..Target::default() },
        load,
        graceful_stop: loadtest_core::Duration::from_secs(30),
        scenario: Scenario {
            pacing: Pacing::None,
            seed: 0,
            tasks: vec![Task { name: "get".into(), weight: 1, kind: TaskKind::Http(get) }],
        },
        thresholds: Vec::new(),
        preflight: Preflight::Skip,
        runner_request: RunnerRequest { users: Some(users), ..RunnerRequest::default() },
    };
    let sizing = size_test(&test);
    let run = RunIdentity { uid: "selftest".into(), name: "selftest".into(), ..Default::default() };
    let plan = Plan { threads: 1, ..Plan::new(test, &sizing, run) };
    let engine = Engine::new(Arc::clone(&PreparedPlan::new(plan, |_| None)?), 0)?;
    engine.start(start);
    engine.wait_until_finished().await;
    let metrics = engine.snapshot().await.metrics;
    Ok(LoopbackRun { metrics, requests: target.finish()?, start })
}
