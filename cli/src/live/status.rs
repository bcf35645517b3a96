//! The status of a local run, in the form that the operator writes on a cluster.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time},
    jiff::Timestamp,
};
use loadtest_core::{
    judge::{RunContext, Timeline, progress_of, report},
    metrics::Metrics,
    plan::ValidTest,
    resource::{LoadTestStatus, Phase},
};

/// Judges a finished run and returns its status.
pub(crate) fn build_status(
    test: &ValidTest,
    metrics: &Metrics,
    timeline: &Timeline,
    context: &RunContext,
    start_time: Timestamp,
) -> LoadTestStatus {
    let report = report(test, metrics, timeline, context);
    let condition = Condition {
        type_: "Passed".into(),
        status: report.verdict.passed_condition().into(),
        reason: report.reason.into(),
        message: report.message,
        last_transition_time: Time(Timestamp::now()),
        observed_generation: None,
    };
    LoadTestStatus {
        phase: Some(if context.cancelled { Phase::Cancelled } else { Phase::Finished }.into()),
        verdict: Some(report.verdict.into()),
        conditions: vec![condition],
        start_time: Some(MicroTime(start_time)),
        finish_time: Some(Time(Timestamp::now())),
        progress: Some(progress_of(test, metrics, 1, metrics.users_peak)),
        summary: Some(report.summary),
        tasks: report.tasks,
        thresholds: report.thresholds,
        stages: report.stages,
        breaking_point: report.breaking_point,
        aborted: context.aborted.clone(),
        errors: report.errors,
        measurement: Some(report.measurement),
        ..LoadTestStatus::default()
    }
}
