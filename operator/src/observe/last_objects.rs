//! The objects of a test with a Job, as a reconciliation has left them. Pure.

use k8s_openapi::{
    api::batch::v1::Job,
    jiff::{SignedDuration, Timestamp},
};
use kube::{Resource, ResourceExt, core::DeserializeGuard};
use loadtest_core::resource::{LoadTest, LoadTestStatus, Phase};

use super::runner::Runner;

/// Time after which the objects are read again even if no watch has reported a change.
const MAX_AGE: SignedDuration = SignedDuration::from_secs(60);

/// Minimum time between two readings of a test in the phase Starting, multiplied by its number of runners. The pods of a
/// large test change many times per second, and each reading lists all of them.
const MIN_AGE_PER_RUNNER: SignedDuration = SignedDuration::from_millis(2);

/// The objects of a test with a Job, as the last successful reconciliation has left them.
#[derive(Clone, Debug)]
pub(crate) struct LastObjects {
    pub(crate) test: LoadTest,
    pub(crate) job: Job,
    pub(crate) runners: Vec<Runner>,
    /// What shows whether they have changed since. `None` if the reconciliation has changed them itself.
    pub(crate) reading: Option<Reading>,
}

/// When objects were read, and how a change since then is noticed.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    /// Time of the reading.
    pub(crate) at: Timestamp,
    /// Number of events about Job and pods before the reading.
    pub(crate) changes: u64,
    /// Resource versions of the test: the one that was read, and those of later writes by this process.
    pub(crate) versions: Vec<String>,
}

impl Reading {
    /// Returns true if nobody else has changed the test since the reading.
    fn knows(&self, cached: &LoadTest) -> bool {
        cached.resource_version().is_some_and(|version| self.versions.contains(&version))
    }
}

impl LastObjects {
    /// Returns true if the objects are still those of the API server, as far as the watches have told:
    /// `cached` is the test as its watch delivered it, `changes` the number of events about Job and pods.
    pub(crate) fn is_current(&self, cached: &LoadTest, changes: u64, now: Timestamp) -> bool {
        let Some(reading) = &self.reading else { return false };
        let is_young = (SignedDuration::ZERO..MAX_AGE).contains(&now.duration_since(reading.at));
        reading.knows(cached) && is_young && changes == reading.changes
    }

    /// Returns how long the next reading should wait. Returns `None` unless the test is in the phase Starting and only its
    /// Job or pods have changed. The parameters are those of [`Self::is_current`].
    pub(crate) fn time_to_reading(
        &self,
        cached: &LoadTest,
        changes: u64,
        now: Timestamp,
    ) -> Option<SignedDuration> {
        let reading = self.reading.as_ref().filter(|reading| reading.changes != changes)?;
        let status = self.test.status.as_ref();
        let is_starting = status.and_then(LoadTestStatus::known_phase) == Some(Phase::Starting);
        let runners = i32::try_from(self.runners.len()).unwrap_or(i32::MAX);
        let min_age = MIN_AGE_PER_RUNNER.saturating_mul(runners);
        let age = now.duration_since(reading.at);
        let is_young = (SignedDuration::ZERO..min_age).contains(&age);
        (reading.knows(cached) && is_starting && is_young).then(|| min_age - age)
    }
}

/// Drops the managed fields of an object. They take more memory than the rest of the object.
pub(crate) fn forget_managed_fields(object: &mut impl Resource) {
    object.meta_mut().managed_fields = None;
}

/// `kubectl apply` keeps a copy of the whole object in this annotation.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Drops the details of a watched test. Only the gauges use its status, and they need no details: reconciliations read the
/// test themselves. Thousands of tests may be watched.
pub(crate) fn forget_details(watched: &mut DeserializeGuard<LoadTest>) {
    forget_managed_fields(watched);
    if let Some(annotations) = &mut watched.meta_mut().annotations {
        annotations.remove(LAST_APPLIED);
    }
    let Some(status) = watched.0.as_mut().ok().and_then(|test| test.status.as_mut()) else {
        return;
    };
    status.tasks = Vec::new();
    status.errors = Vec::new();
    status.thresholds.iter_mut().for_each(|row| row.advice = None);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{example_test, noon, ready_runner};

    /// Objects that were read at noon, after two changes of Job and pods.
    fn last_objects(phase: Phase, runners: u32) -> LastObjects {
        let reading = Reading { at: noon(), changes: 2, versions: vec!["5".into(), "7".into()] };
        let mut test = example_test();
        test.status = Some(LoadTestStatus { phase: Some(phase.into()), ..Default::default() });
        let runners = (0..runners).map(ready_runner).collect();
        LastObjects { test, job: Job::default(), runners, reading: Some(reading) }
    }

    fn cached(version: &str) -> LoadTest {
        let mut cached = example_test();
        cached.metadata.resource_version = Some(version.into());
        cached
    }

    fn is_current(version: &str, changes: u64, age: i64) -> bool {
        let now = noon() + SignedDuration::from_secs(age);
        last_objects(Phase::Starting, 0).is_current(&cached(version), changes, now)
    }

    #[test]
    fn a_watched_test_keeps_only_what_is_used() {
        let mut watched = serde_json::to_value(example_test()).unwrap();
        watched["metadata"]["annotations"] = serde_json::json!({LAST_APPLIED: "{}", "a": "b"});
        watched["status"] = serde_json::json!({
            "phase": "Finished",
            "errors": [{"task": "chat", "kind": "timeout", "count": 1}],
            "thresholds": [{"metric": "errorRate", "observed": "2%", "bound": "< 1%", "samples": 9, "verdict": "Fail", "advice": "a"}],
            "tasks": [{"name": "chat", "requests": 1, "failures": 0, "errorRate": "0%", "throughput": "1/s"}],
        });
        let mut watched: DeserializeGuard<LoadTest> = serde_json::from_value(watched).unwrap();
        let details = |watched: &DeserializeGuard<LoadTest>| {
            let status = watched.0.as_ref().unwrap().status.clone().unwrap();
            (status.tasks.len(), status.errors.len(), status.thresholds[0].advice.is_some())
        };
        assert_eq!(details(&watched), (1, 1, true));
        forget_details(&mut watched);
        assert_eq!(details(&watched), (0, 0, false));
        let test = watched.0.unwrap();
        assert_eq!((test.annotations().len(), &test.spec), (1, &example_test().spec));
        assert!(test.status.unwrap().phase.is_some());
    }

    #[test]
    fn pods_of_a_large_test_that_starts_are_read_less_often() {
        let millis = SignedDuration::from_millis;
        let time_to_reading = |phase, runners, version: &str, changes, age| {
            let last = last_objects(phase, runners);
            last.time_to_reading(&cached(version), changes, noon() + millis(age))
        };
        assert_eq!(time_to_reading(Phase::Starting, 500, "7", 3, 400), Some(millis(600)));
        assert_eq!(time_to_reading(Phase::Starting, 500, "7", 3, 1000), None, "long enough ago");
        assert_eq!(time_to_reading(Phase::Starting, 1, "7", 3, 10), None, "a small test");
        assert_eq!(time_to_reading(Phase::Starting, 500, "7", 2, 400), None, "no pod has changed");
        assert_eq!(
            time_to_reading(Phase::Starting, 500, "8", 3, 400),
            None,
            "the test has changed"
        );
        assert_eq!(time_to_reading(Phase::Running, 500, "7", 3, 400), None, "under load");
    }

    #[test]
    fn objects_are_current_until_something_changes() {
        assert!(is_current("5", 2, 10) && is_current("7", 2, 59));
        assert!(!is_current("6", 2, 10), "another writer has changed the test");
        assert!(!is_current("7", 3, 10), "the Job or a pod has changed");
        assert!(!is_current("7", 2, 60) && !is_current("7", 2, -1), "read long ago");
    }
}
