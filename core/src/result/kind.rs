//! The kind `LoadTestResult`: the result of a LoadTest as an object of the cluster.

use std::borrow::Cow;

use k8s_openapi::{
    ByteString, NamespaceResourceScope,
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Resource, core::TypeMeta};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::document::RunResult;
use crate::{
    metrics::LatencyMetric,
    resource::{Extensible, GROUP, LoadTestStatus, Phase, Verdict, add_limits},
};

/// Maximum size of [`LoadTestResult::data`] in bytes. Kubernetes stores it in base64, a third longer:
/// 512 KiB. A larger result is in several objects.
pub const MAX_DATA_BYTES: usize = 384 << 10;
/// Maximum number of objects of one result.
pub const MAX_PARTS: u32 = 16;
/// Length of the base64 text of [`MAX_DATA_BYTES`].
const MAX_DATA_TEXT: usize = MAX_DATA_BYTES / 3 * 4;

/// The result of a load test: its main numbers to read, and everything else in `data`.
/// `loadtest report NAME` makes reports of it. Deleted with its LoadTest, unless spec.keepResult of
/// the LoadTest is true.
#[derive(Serialize, Deserialize, Clone, Debug, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoadTestResult {
    /// API version and kind.
    #[serde(flatten)]
    #[schemars(skip)]
    pub types: TypeMeta,
    /// Name, labels and owner.
    #[schemars(skip)]
    pub metadata: ObjectMeta,
    /// The LoadTest that ran.
    pub test: TestReference,
    /// Phase of the LoadTest when the result was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub phase: Option<Extensible<Phase>>,
    /// The verdict. Absent while the test runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub verdict: Option<Extensible<Verdict>>,
    /// Start of the load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<MicroTime>")]
    pub start_time: Option<MicroTime>,
    /// The main numbers of all tasks together.
    pub summary: ResultSummary,
    /// How many times the result was written. The objects of one result carry the same number.
    pub revision: u64,
    /// Number of this object, from 0 to parts − 1. All fields but data are complete
    /// in each of them.
    pub part: u32,
    /// Number of objects of the result. The data of all of them, joined, is one document.
    pub parts: u32,
    /// The document as JSON, compressed with gzip: `{"result": …}` with the result that
    /// `loadtest run --json` writes, and `resume`, which only the operator reads.
    #[schemars(with = "String", length(max = MAX_DATA_TEXT), extend("format" = "byte"))]
    pub data: ByteString,
}

/// The LoadTest of a result.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
pub struct TestReference {
    /// Name of the LoadTest.
    pub name: String,
    /// UID of the LoadTest.
    pub uid: String,
}

/// The main numbers of a run. Times are in seconds, shares are fractions from 0 to 1.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResultSummary {
    /// Length of the load so far.
    pub elapsed_seconds: f64,
    /// Maximum of users that ran at once.
    pub users_peak: u64,
    /// Number of runners.
    pub runners: u64,
    /// Completed requests, failed ones included.
    pub requests: u64,
    /// Failed requests, timeouts included.
    pub failures: u64,
    /// Failed requests and dropped arrivals as a share of completed requests and dropped arrivals.
    pub error_rate: f64,
    /// Successful requests that ended while load was on, per second of load.
    pub throughput: f64,
    /// Median of the response time in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p50: Option<f64>,
    /// 95th percentile of the response time in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p95: Option<f64>,
    /// 99th percentile of the response time in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99: Option<f64>,
    /// Generated tokens per second of load; absent without chat tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<f64>,
}

/// Rounds to six decimals, which people can read in a table.
fn rounded(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

impl ResultSummary {
    /// The main numbers of a result.
    pub fn of(result: &RunResult) -> Self {
        let total = &result.total;
        let response_time = total.latencies.get(LatencyMetric::ResponseTime);
        Self {
            elapsed_seconds: rounded(result.elapsed_seconds),
            users_peak: result.users_peak,
            runners: result.runners.len() as u64,
            requests: total.requests,
            failures: total.failures,
            error_rate: rounded(total.error_rate),
            throughput: rounded(total.throughput),
            p50: response_time.map(|times| rounded(times.p50)),
            p95: response_time.map(|times| rounded(times.p95)),
            p99: response_time.map(|times| rounded(times.p99)),
            tokens_per_second: (total.tokens_per_second > 0.0)
                .then_some(rounded(total.tokens_per_second)),
        }
    }
}

impl LoadTestResult {
    /// One object of a result, with the main numbers of the result. Its metadata has only the name.
    pub fn new(name: &str, test: TestReference, result: &RunResult) -> Self {
        let LoadTestStatus { phase, verdict, start_time, .. } = result.status.clone();
        Self {
            types: TypeMeta::resource::<Self>(),
            metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
            test,
            phase,
            verdict,
            start_time,
            summary: ResultSummary::of(result),
            revision: 0,
            part: 0,
            parts: 1,
            data: ByteString::default(),
        }
    }
}

impl Resource for LoadTestResult {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "LoadTestResult".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        GROUP.into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1alpha1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "loadtestresults".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// The CustomResourceDefinition of [`LoadTestResult`] as JSON.
fn result_crd() -> Value {
    let settings = schemars::generate::SchemaSettings::openapi3().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<LoadTestResult>().to_value();
    add_limits(&mut schema);
    if let Some(schema) = schema.as_object_mut() {
        schema.remove("title");
        schema.remove("$schema");
    }
    let column =
        |name: &str, kind: &str, path: &str| json!({"name": name, "type": kind, "jsonPath": path});
    let plural = LoadTestResult::plural(&());
    let kind = LoadTestResult::kind(&());
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{GROUP}")},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": kind, "plural": plural, "singular": "loadtestresult",
                "shortNames": ["ldtr"], "categories": [],
            },
            "scope": "Namespaced",
            "versions": [{
                "name": LoadTestResult::version(&()),
                "served": true,
                "storage": true,
                "additionalPrinterColumns": [
                    column("LoadTest", "string", ".test.name"),
                    column("Verdict", "string", ".verdict"),
                    column("Requests", "integer", ".summary.requests"),
                    column("Failures", "integer", ".summary.failures"),
                    column("RPS", "number", ".summary.throughput"),
                    column("P50 (s)", "number", ".summary.p50"),
                    column("P95 (s)", "number", ".summary.p95"),
                    column("P99 (s)", "number", ".summary.p99"),
                    column("Age", "date", ".metadata.creationTimestamp"),
                ],
                "schema": {"openAPIV3Schema": schema},
            }],
        },
    })
}

/// The CustomResourceDefinition as YAML: `crds/loadtestresults.yaml`.
///
/// # Errors
/// Never in practice: the value is plain JSON.
pub fn result_crd_yaml() -> Result<String, serde_saphyr::ser::Error> {
    let yaml = serde_saphyr::to_string(&result_crd())?;
    Ok(format!("# Generated from core/src/result by `make generate`. Don't edit.\n{yaml}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_crd_is_fresh() {
        let committed = include_str!("../../../crds/loadtestresults.yaml");
        assert!(committed == result_crd_yaml().unwrap(), "run make generate");
    }
}
