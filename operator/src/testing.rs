//! Example objects for unit tests.

pub(crate) use loadtest_children::testing::{
    example_settings, example_test, noon, sizing_of, validated,
};

use k8s_openapi::{
    api::batch::v1::{Job, JobSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use crate::observe::runner::Runner;

/// A runner that is ready.
pub(crate) fn ready_runner(index: u32) -> Runner {
    Runner {
        index,
        name: format!("burst-{index}"),
        uid: format!("pod-{index}"),
        ip: Some(format!("10.0.0.{index}")),
        ready: true,
        disrupted: false,
        eviction: None,
        created_at: Some(noon()),
        scheduled_at: Some(noon()),
        node: Some("n1".into()),
        unschedulable: None,
        waiting: None,
        termination: None,
    }
}

/// A Job that a queue holds back.
pub(crate) fn suspended_job() -> Job {
    Job {
        metadata: ObjectMeta { name: Some("burst".into()), ..ObjectMeta::default() },
        spec: Some(JobSpec { suspend: Some(true), ..JobSpec::default() }),
        ..Job::default()
    }
}
