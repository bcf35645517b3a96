//! Metrics of the operator itself, as served at `/metrics`. They contain no metrics of runners.

mod api_calls;
mod load_tests;

use std::{fmt, sync::Mutex};

use kube::{core::DeserializeGuard, runtime::reflector::Store};
use loadtest_core::resource::LoadTest;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, text},
    metrics::{MetricType, counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

pub use self::api_calls::ApiCalls;
use self::load_tests::LoadTestCollector;
use crate::lease::Leadership;

/// Bounds of the buckets of the durations of reconciliations, in seconds.
const RECONCILE_BUCKETS: [f64; 9] = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0];

/// Says whether this replica leads.
#[derive(Debug)]
struct LeaderCollector(Leadership);

impl Collector for LeaderCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let help = "1 for the replica of the operator that runs the tests, 0 for the others";
        encoder
            .encode_descriptor("loadtest_operator_leader", help, None, MetricType::Gauge)?
            .encode_gauge(&f64::from(u8::from(self.0.is_leader())))
    }
}

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
    leadership: Leadership,
}

impl fmt::Debug for OperatorMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OperatorMetrics").finish_non_exhaustive()
    }
}

impl OperatorMetrics {
    /// Creates the metrics of a process that has done nothing yet.
    pub(crate) fn new(leadership: Leadership) -> Self {
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
        registry.register_collector(Box::new(LeaderCollector(leadership.clone())));
        let registry = Mutex::new(registry);
        Self {
            registry,
            reconciles,
            reconcile_seconds,
            scrape_failures,
            crd_differences,
            leadership,
        }
    }

    /// Counts a reconciliation. Outcomes are a closed set of words.
    pub(crate) fn count_reconcile(&self, outcome: &'static str) {
        self.reconciles.get_or_create(&[("outcome", outcome)]).inc();
    }

    /// Adds the duration of a reconciliation, in seconds.
    pub(crate) fn observe_reconcile(&self, seconds: f64) {
        self.reconcile_seconds.observe(seconds);
    }

    /// Returns the counter of scrapes of runners that failed.
    pub(crate) fn scrape_failures(&self) -> Counter {
        self.scrape_failures.clone()
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
        let leadership = self.leadership.clone();
        registry.register_collector(Box::new(LoadTestCollector { stores, leadership }));
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
