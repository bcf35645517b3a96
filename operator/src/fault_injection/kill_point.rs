//! Points of a pass at which a test of faults kills or freezes the operator.
//!
//! A pass waits at the point that an annotation of its test names, until the annotation is gone.

use loadtest_core::resource::LoadTest;

use crate::context::Context;

/// A point of a pass.
#[derive(Clone, Copy, Debug)]
pub(crate) enum KillPoint {
    /// The test is accepted, and nothing is created.
    BeforePlan,
    /// The plan is there, and the Job is not.
    AfterConfigMap,
    /// The Job is there, and the status does not know.
    AfterJob,
    /// The start is recorded, and no runner is told.
    BeforeStartOrders,
    /// The runners are told to start, and the status does not know.
    AfterStartOrders,
    /// The load has ended, and no runner is released.
    BeforeRelease,
    /// The last result is stored, and the status has no verdict.
    BeforeVerdict,
    /// The status has a verdict, and there is no Event about it.
    AfterVerdict,
}

/// Waits as long as the annotation of the test names this point.
#[cfg(feature = "fault-injection")]
pub(crate) async fn pause_at(context: &Context, test: &LoadTest, point: KillPoint) {
    use kube::{Api, ResourceExt};

    const ANNOTATION: &str = "loadtest.cell0.io/kill-point";
    const POLL_INTERVAL: std::time::Duration = std::time::Duration::from_millis(200);

    let names_this = |test: &LoadTest| {
        test.annotations().get(ANNOTATION).is_some_and(|name| *name == format!("{point:?}"))
    };
    if !names_this(test) {
        return;
    }
    let name = test.name_any();
    let tests: Api<LoadTest> =
        Api::namespaced(context.client.clone(), &test.namespace().unwrap_or_default());
    tracing::info!(name, ?point, "a pass waits at its kill point");
    while tests.get_opt(&name).await.is_ok_and(|found| found.as_ref().is_some_and(names_this)) {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Does nothing.
#[cfg(not(feature = "fault-injection"))]
pub(crate) async fn pause_at(_: &Context, _: &LoadTest, _: KillPoint) {}
