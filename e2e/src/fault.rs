//! The table of faults: each row says what was done, what should happen, what happened, and how long it
//! took.

use std::{
    fs::OpenOptions,
    io::Write,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::{leftovers::check_ends, test_namespace::TestNamespace};

/// Environment variable with the path of a file that gets a line of JSON for each row.
const REPORT: &str = "FAULT_REPORT";

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// The fault that the test causes.
    pub fault: &'static str,
    /// The promise: how the test ends.
    pub expected: &'static str,
    /// Maximum seconds from the fault until everything is as it should be.
    pub seconds: u64,
}

/// The observed end of a fault.
#[derive(Debug, Default)]
pub struct Observation {
    began: Option<Instant>,
    settled: Option<(Duration, String)>,
}

impl Observation {
    /// Marks the moment of the fault.
    pub fn begin(&mut self) {
        self.began = Some(Instant::now());
    }

    /// Marks the moment at which everything is as it should be. `seen` says what that is.
    pub fn settle(&mut self, seen: impl Into<String>) {
        let took = self.began.map(|began| began.elapsed()).unwrap_or_default();
        self.settled = Some((took, seen.into()));
    }
}

impl Fault {
    /// Tests a fault beside other tests, in a namespace of its own.
    pub async fn check(
        self,
        name: &str,
        test: impl AsyncFnOnce(&TestNamespace, &mut Observation) -> Result<()>,
    ) -> Result<()> {
        TestNamespace::run(name, async |namespace| self.observe(&namespace, test).await).await
    }

    /// Tests a fault while no other test runs, because it changes what all tests share.
    pub async fn check_alone(
        self,
        name: &str,
        test: impl AsyncFnOnce(&TestNamespace, &mut Observation) -> Result<()>,
    ) -> Result<()> {
        TestNamespace::run_alone(name, async |namespace| self.observe(&namespace, test).await).await
    }

    async fn observe(
        self,
        namespace: &TestNamespace,
        test: impl AsyncFnOnce(&TestNamespace, &mut Observation) -> Result<()>,
    ) -> Result<()> {
        let mut observation = Observation::default();
        let mut result = Box::pin(test(namespace, &mut observation)).await;
        if result.is_ok() {
            result = check_ends(namespace).await;
        }
        self.report(result, observation)
    }

    /// Writes the row of a fault, and fails if it was not as expected, or not in time.
    pub fn report(self, result: Result<()>, observation: Observation) -> Result<()> {
        let result = result.and_then(|()| {
            let (took, seen) = observation.settled.context("the test has not seen an end")?;
            let limit = Duration::from_secs(self.seconds);
            ensure!(took <= limit, "{seen}, but only after {took:.1?}; the limit is {limit:?}");
            Ok((took, seen))
        });
        let (seen, took, passed) = match &result {
            Ok((took, seen)) => (seen.clone(), Some(took.as_secs_f64()), true),
            Err(error) => {
                (format!("{error:#}").lines().next().unwrap_or_default().to_owned(), None, false)
            }
        };
        // The test runner names its threads by their tests.
        let test = std::thread::current().name().unwrap_or_default().to_owned();
        let row = json!({
            "test": test, "fault": self.fault, "expected": self.expected, "seen": seen,
            "seconds": took, "limit": self.seconds, "passed": passed,
        });
        println!("{row}");
        if let Some(path) = std::env::var_os(REPORT) {
            let mut file = OpenOptions::new().create(true).append(true).open(path)?;
            writeln!(file, "{row}")?;
        }
        result.map(drop)
    }
}
