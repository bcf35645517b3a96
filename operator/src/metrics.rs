//! Metrics of the operator itself, as served at `/metrics`. They contain no metrics of runners.

mod api_calls;

use std::{fmt, sync::Mutex};

use kube::{ResourceExt, core::DeserializeGuard, runtime::reflector::Store};
use loadtest_core::resource::{Extensible, LoadTest, LoadTestStatus, Named, Phase};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, text},
    metrics::{MetricType, counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

pub use self::api_calls::ApiCalls;

/// Bounds of the buckets of the durations of reconciliations, in seconds.
const RECONCILE_BUCKETS: [f64; 9] = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0];

/// Metrics of the operator itself.
///
/// Counters are stored here. Gauges of tests are computed from the caches of the controllers at
/// each scrape, so a deleted test leaves no series behind.
pub(crate) struct OperatorMetrics {
    registry: Mutex<Registry>,
    reconciles: Family<[(&'static str, &'static str); 1], Counter>,
    reconcile_seconds: Histogram,
    scrape_failures: Counter,
    crd_differences: Gauge,
}

impl fmt::Debug for OperatorMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OperatorMetrics").finish_non_exhaustive()
    }
}

impl Default for OperatorMetrics {
    fn default() -> Self {
        let reconciles = Family::default();
        let mut registry = Registry::default();
        registry.register(
            "loadtest_operator_reconciles",
            "Reconciliations of LoadTests by outcome",
            reconciles.clone(),
        );
        let reconcile_seconds = Histogram::new(RECONCILE_BUCKETS);
        registry.register(
            "loadtest_operator_reconcile_seconds",
            "Durations of reconciliations of LoadTests",
            reconcile_seconds.clone(),
        );
        let scrape_failures = Counter::default();
        registry.register(
            "loadtest_operator_scrape_failures",
            "Scrapes of runners that failed",
            scrape_failures.clone(),
        );
        let crd_differences = Gauge::default();
        registry.register(
            "loadtest_operator_crd_differences",
            "Fields that only the installed CRD or only this operator has",
            crd_differences.clone(),
        );
        let registry = Mutex::new(registry);
        Self { registry, reconciles, reconcile_seconds, scrape_failures, crd_differences }
    }
}

impl OperatorMetrics {
    /// Counts a reconciliation. Outcomes are a closed set of words.
    pub(crate) fn count_reconcile(&self, outcome: &'static str) {
        self.reconciles.get_or_create(&[("outcome", outcome)]).inc();
    }

    /// Adds the duration of a reconciliation, in seconds.
    pub(crate) fn observe_reconcile(&self, seconds: f64) {
        self.reconcile_seconds.observe(seconds);
    }

    /// Counts a scrape of a runner that failed.
    pub(crate) fn count_scrape_failure(&self) {
        self.scrape_failures.inc();
    }

    /// Sets the number of fields that only the installed CRD or only this operator has.
    pub(crate) fn set_crd_differences(&self, fields: usize) {
        self.crd_differences.set(i64::try_from(fields).unwrap_or(i64::MAX));
    }

    /// Adds the counts of requests to the API server. Call this method only once.
    pub(crate) fn add_api_calls(&self, calls: &ApiCalls) {
        let mut registry = self.lock_registry();
        registry.register(
            "loadtest_operator_api_errors",
            "Requests to the API server that failed, by code; without those for objects that do not exist",
            calls.errors.clone(),
        );
        registry.register_collector(Box::new(calls.clone()));
    }

    /// Adds gauges of the tests in the controllers' caches. Call this method only once.
    pub(crate) fn add_stores(&self, stores: Vec<Store<DeserializeGuard<LoadTest>>>) {
        let mut registry = self.lock_registry();
        registry.register_collector(Box::new(TestCollector(stores)));
    }

    /// Encodes all metrics as OpenMetrics text.
    ///
    /// # Errors
    /// Fails if the encoder rejects a value.
    pub(crate) fn encode_text(&self) -> Result<String, fmt::Error> {
        let mut out = String::new();
        text::encode(&mut out, &self.lock_registry())?;
        Ok(out)
    }

    fn lock_registry(&self) -> std::sync::MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Collects the number of tests by phase and the verdict of each test.
struct TestCollector(Vec<Store<DeserializeGuard<LoadTest>>>);

impl fmt::Debug for TestCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestCollector").finish_non_exhaustive()
    }
}

const PHASES: [Phase; 7] = [
    Phase::Pending,
    Phase::Starting,
    Phase::Running,
    Phase::Stopping,
    Phase::Finished,
    Phase::Error,
    Phase::Cancelled,
];

impl Collector for TestCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let objects: Vec<_> = self.0.iter().flat_map(Store::state).collect();
        let tests: Vec<&LoadTest> = objects.iter().filter_map(|o| o.0.as_ref().ok()).collect();
        // `None` when a newer operator wrote a phase that this one doesn't know.
        let phase_of = |test: &LoadTest| {
            let phase = test.status.as_ref().and_then(|status| status.phase.as_ref());
            phase.map_or(Some(Phase::Pending), Extensible::known)
        };
        let help = "Number of LoadTests by phase";
        let mut family = encoder.encode_descriptor(
            "loadtest_operator_loadtests",
            help,
            None,
            MetricType::Gauge,
        )?;
        for phase in PHASES {
            let count = tests.iter().filter(|test| phase_of(test) == Some(phase)).count();
            let labels = [("phase", phase.name())];
            family.encode_family(&labels)?.encode_gauge(&(count as f64))?;
        }
        let help = "Number of LoadTests in phase Starting, Running or Stopping";
        let running = tests
            .iter()
            .filter_map(|test| phase_of(test))
            .filter(|phase| matches!(phase, Phase::Starting | Phase::Running | Phase::Stopping))
            .count();
        encoder
            .encode_descriptor("loadtest_operator_running_tests", help, None, MetricType::Gauge)?
            .encode_gauge(&(running as f64))?;
        let help = "1 for each LoadTest with a verdict, by verdict";
        let mut family = encoder.encode_descriptor(
            "loadtest_operator_verdict",
            help,
            None,
            MetricType::Gauge,
        )?;
        for test in tests {
            let Some(verdict) = test.status.as_ref().and_then(LoadTestStatus::known_verdict) else {
                continue;
            };
            let (namespace, name) = (test.namespace().unwrap_or_default(), test.name_any());
            let labels = [
                ("loadtest", name.as_str()),
                ("namespace", namespace.as_str()),
                ("verdict", verdict.name()),
            ];
            family.encode_family(&labels)?.encode_gauge(&1_i64)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use kube::runtime::{reflector, watcher};

    use super::*;

    fn store_with_test(namespace: &str, status: &str) -> Store<DeserializeGuard<LoadTest>> {
        let mut test = serde_json::to_value(crate::testing::example_test()).unwrap();
        test["metadata"]["namespace"] = namespace.into();
        test["status"] = serde_json::from_str(status).unwrap();
        let (reader, mut writer) = reflector::store();
        let guard: DeserializeGuard<LoadTest> = serde_json::from_value(test).unwrap();
        writer.apply_watcher_event(&watcher::Event::Apply(guard));
        reader
    }

    #[test]
    fn tests_of_all_namespaces_share_one_series() {
        let metrics = OperatorMetrics::default();
        metrics.count_reconcile("settled");
        metrics.add_stores(vec![
            store_with_test("one", r#"{"phase": "Running"}"#),
            store_with_test("two", r#"{"phase": "Running"}"#),
            store_with_test("three", r#"{"phase": "Finished", "verdict": "Pass"}"#),
        ]);
        let text = metrics.encode_text().unwrap();
        for line in [
            "loadtest_operator_reconciles_total{outcome=\"settled\"} 1",
            "loadtest_operator_loadtests{phase=\"Running\"} 2",
            "loadtest_operator_running_tests 2",
            "loadtest_operator_verdict{loadtest=\"burst\",namespace=\"three\",verdict=\"Pass\"} 1",
        ] {
            assert_eq!(text.matches(line).count(), 1, "{line} in {text}");
        }
        assert_eq!(text.matches("\nloadtest_operator_running_tests ").count(), 1);
    }
}
