//! A real Prometheus that scrapes the operator and the runners, with the labels of the chart's monitors.

use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde_json::{Value, json};

use loadtest_e2e::test_namespace::pod_ip;

/// The file with the runners to scrape.
const RUNNERS_FILE: &str = "runners.json";

/// A Prometheus process that ends with the test.
pub(crate) struct Prometheus {
    process: Child,
    address: String,
    http: reqwest::Client,
    folder: tempfile::TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // Errors are ignored: the process may have ended before.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A pod to scrape: its name, its namespace and its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ScrapedPod {
    name: String,
    namespace: String,
    address: String,
}

impl ScrapedPod {
    /// `None` for a pod without an IP address.
    pub(crate) fn of(pod: &Pod, port: u16) -> Option<Self> {
        Some(Self {
            name: pod.name_any(),
            namespace: pod.namespace()?,
            address: format!("{}:{port}", pod_ip(pod)?),
        })
    }
}

/// Targets with the labels that the Prometheus Operator adds.
fn targets_of(pods: &[ScrapedPod]) -> Value {
    let target = |pod: &ScrapedPod| json!({"targets": [pod.address], "labels": {"namespace": pod.namespace, "pod": pod.name}});
    pods.iter().map(target).collect()
}

impl Prometheus {
    /// Starts the Prometheus of the Debian package `prometheus`, which has no discovery of pods.
    pub(crate) fn start(operator: &ScrapedPod, port: u16, native_histograms: bool) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let runners = folder.path().join(RUNNERS_FILE);
        std::fs::write(&runners, "[]")?;
        let config = json!({
            "global": {"scrape_interval": "1s"},
            "scrape_configs": [
                {"job_name": "runners", "file_sd_configs": [{"files": [runners]}]},
                {
                    "job_name": "operator", "honor_labels": true,
                    "static_configs": targets_of(std::slice::from_ref(operator)),
                },
            ],
        });
        let file = folder.path().join("prometheus.yml");
        std::fs::write(&file, config.to_string())?;
        let log = std::fs::File::create(folder.path().join("log"))?;
        let address = format!("127.0.0.1:{port}");
        let mut command = Command::new("prometheus");
        if native_histograms {
            command.arg("--enable-feature=native-histograms");
        }
        let process = command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("prometheus can't be started; install the Debian package prometheus")?;
        let http = reqwest::Client::builder().no_proxy().build()?;
        Ok(Self { process, address, http, folder })
    }

    /// Sets the runners to scrape. Prometheus reads them within 5 seconds.
    pub(crate) fn set_runners(&self, pods: &[ScrapedPod]) -> Result<()> {
        let new = self.folder.path().join("new");
        std::fs::write(&new, targets_of(pods).to_string())?;
        // A file that is written slowly would be read in part.
        std::fs::rename(new, self.folder.path().join(RUNNERS_FILE))?;
        Ok(())
    }

    async fn get(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Vec<Value>> {
        let mut url = reqwest::Url::parse(&format!("http://{}/api/v1/{path}", self.address))?;
        url.query_pairs_mut().extend_pairs(parameters);
        let text = self.http.get(url).send().await?.text().await?;
        let mut response: Value = serde_json::from_str(&text)?;
        ensure!(response["status"] == "success", "{text}: {parameters:?}");
        match response["data"]["result"].take() {
            Value::Array(series) => Ok(series),
            other => anyhow::bail!("no series: {other}"),
        }
    }

    /// Evaluates an expression at a Unix time. Returns the series with a finite number, as their labels
    /// and their number.
    pub(crate) async fn query(&self, expression: &str, time: f64) -> Result<Vec<(Value, f64)>> {
        let time = time.to_string();
        let series = self.get("query", &[("query", expression), ("time", &time)]).await?;
        let number = |mut series: Value| {
            let value = series["value"][1].as_str()?.parse::<f64>().ok()?;
            Some((series["metric"].take(), value)).filter(|_| value.is_finite())
        };
        Ok(series.into_iter().filter_map(number).collect())
    }

    /// Evaluates an expression every second between two Unix times. Returns true if it has a finite number
    /// or a histogram.
    pub(crate) async fn has_data(&self, expression: &str, start: f64, end: f64) -> Result<bool> {
        let (start, end) = (start.to_string(), end.to_string());
        let parameters = [("query", expression), ("start", &start), ("end", &end), ("step", "1")];
        let series = self.get("query_range", &parameters).await?;
        let is_finite = |value: &Value| {
            value[1].as_str().and_then(|text| text.parse::<f64>().ok()).is_some_and(f64::is_finite)
        };
        Ok(series.iter().any(|series| {
            let values = series["values"].as_array();
            series["histograms"].is_array()
                || values.is_some_and(|values| values.iter().any(is_finite))
        }))
    }
}
