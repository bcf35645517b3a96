//! Example objects for unit tests.

pub(crate) use loadtest_children::testing::{
    example_settings, example_test, noon, sizing_of, validated,
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
        created_at: Some(noon()),
        scheduled_at: Some(noon()),
        node: Some("n1".into()),
        unschedulable: None,
        waiting: None,
        termination: None,
    }
}
