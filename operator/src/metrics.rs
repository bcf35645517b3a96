//! The operator's own metrics.

use std::{fmt, sync::Mutex};

use kube::{ResourceExt, core::DeserializeGuard, runtime::reflector::Store};
use loadtest_core::resource::{LoadTest, Phase};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, text},
    metrics::{MetricType, counter::Counter, family::Family},
    registry::Registry,
};

/// The operator's own metrics. Counters live here; what tests are doing is read off the
/// controller's cache when a scrape asks, so nothing is left behind by a deleted test.
pub struct OperatorMetrics {
    registry: Mutex<Registry>,
    reconciles: Family<[(&'static str, &'static str); 1], Counter>,
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
            "Passes over a LoadTest, by what came of them",
            reconciles.clone(),
        );
        Self { registry: Mutex::new(registry), reconciles }
    }
}

impl OperatorMetrics {
    /// Counts a pass. Outcomes are a closed set of words.
    pub fn count_reconcile(&self, outcome: &'static str) {
        self.reconciles.get_or_create(&[("outcome", outcome)]).inc();
    }

    /// Shows the tests in the controllers' caches from now on. Called once.
    pub fn add_stores(&self, stores: Vec<Store<DeserializeGuard<LoadTest>>>) {
        let mut registry = self.lock_registry();
        registry.register_collector(Box::new(TestCollector(stores)));
    }

    /// The exposition, as OpenMetrics text.
    ///
    /// # Errors
    /// When the encoder refuses a value.
    pub fn encode_text(&self) -> Result<String, fmt::Error> {
        let mut out = String::new();
        text::encode(&mut out, &self.lock_registry())?;
        Ok(out)
    }

    fn lock_registry(&self) -> std::sync::MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Tests by phase, and the verdict of each.
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
        let phase_of = |test: &LoadTest| {
            test.status.as_ref().and_then(|status| status.phase).unwrap_or(Phase::Pending)
        };
        let help = "LoadTests there are, by phase";
        let mut family = encoder.encode_descriptor(
            "loadtest_operator_loadtests",
            help,
            None,
            MetricType::Gauge,
        )?;
        for phase in PHASES {
            let count = tests.iter().filter(|test| phase_of(test) == phase).count();
            let labels = [("phase", phase.as_str())];
            family.encode_family(&labels)?.encode_gauge(&(count as f64))?;
        }
        let help = "LoadTests whose load is on or about to be";
        let running = tests
            .iter()
            .filter(|t| matches!(phase_of(t), Phase::Starting | Phase::Running | Phase::Stopping))
            .count();
        encoder
            .encode_descriptor("loadtest_operator_running_tests", help, None, MetricType::Gauge)?
            .encode_gauge(&(running as f64))?;
        let help = "1 for the verdict of each LoadTest that has one";
        let mut family = encoder.encode_descriptor(
            "loadtest_operator_verdict",
            help,
            None,
            MetricType::Gauge,
        )?;
        for test in tests {
            let Some(verdict) = test.status.as_ref().and_then(|status| status.verdict) else {
                continue;
            };
            let (namespace, name) = (test.namespace().unwrap_or_default(), test.name_any());
            let labels = [
                ("loadtest", name.as_str()),
                ("namespace", namespace.as_str()),
                ("verdict", verdict.as_str()),
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

    fn store(namespace: &str, status: &str) -> Store<DeserializeGuard<LoadTest>> {
        let mut test = serde_json::to_value(crate::testing::example_test()).unwrap();
        test["metadata"]["namespace"] = namespace.into();
        test["status"] = serde_json::from_str(status).unwrap();
        let (reader, mut writer) = reflector::store();
        let guard: DeserializeGuard<LoadTest> = serde_json::from_value(test).unwrap();
        writer.apply_watcher_event(&watcher::Event::Apply(guard));
        reader
    }

    #[test]
    fn tests_of_all_namespaces_are_counted_in_one_series() {
        let metrics = OperatorMetrics::default();
        metrics.count_reconcile("settled");
        metrics.add_stores(vec![
            store("one", r#"{"phase": "Running"}"#),
            store("two", r#"{"phase": "Running"}"#),
            store("three", r#"{"phase": "Finished", "verdict": "Pass"}"#),
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
