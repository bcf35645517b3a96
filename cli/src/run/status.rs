//! The status of a finished local run, in the form that the operator writes on a cluster.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time},
    jiff::Timestamp,
};
use loadtest_core::{
    metrics::Numbers,
    report::{Circumstances, progress, report},
    resource::{LoadTest, LoadTestStatus, Phase},
    timeline::Timeline,
};

/// Judges a finished run and returns its status.
pub(super) fn build_status(
    test: &LoadTest,
    numbers: &Numbers,
    timeline: &Timeline,
    circumstances: &Circumstances,
    start_time: Timestamp,
) -> LoadTestStatus {
    let report = report(&test.spec, numbers, timeline, circumstances);
    let condition = Condition {
        type_: "Passed".into(),
        status: report.verdict.passed().into(),
        reason: report.reason.into(),
        message: report.message,
        last_transition_time: Time(Timestamp::now()),
        observed_generation: None,
    };
    LoadTestStatus {
        phase: Some(if circumstances.cancelled { Phase::Cancelled } else { Phase::Finished }),
        verdict: Some(report.verdict),
        conditions: vec![condition],
        start_time: Some(MicroTime(start_time)),
        finish_time: Some(Time(Timestamp::now())),
        progress: Some(progress(&test.spec, numbers, 1, numbers.users_peak)),
        summary: Some(report.summary),
        tasks: report.tasks,
        thresholds: report.thresholds,
        stages: report.stages,
        breaking_point: report.breaking_point,
        aborted: circumstances.aborted.clone(),
        errors: report.errors,
        measurement: Some(report.measurement),
        ..LoadTestStatus::default()
    }
}
