//! A real Prometheus scrapes the runner pods; its quantiles must match the status.

use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use loadtest_core::{Duration, resource::LoadTestStatus};
use serde_json::{Value, json};

use crate::test_namespace::{TestNamespace, health_spec, pod_ip, wait_for};

/// A Prometheus process that ends with the test.
struct Prometheus {
    process: Child,
    _folder: tempfile::TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // Errors are ignored: the process may have ended before.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const LISTEN_ADDRESS: &str = "127.0.0.1:19090";

/// Starts the Prometheus of the Debian package `prometheus`.
fn start_prometheus(targets: &[String]) -> Result<Prometheus> {
    let folder = tempfile::tempdir()?;
    let config = json!({
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [{"job_name": "runners", "static_configs": [{"targets": targets}]}],
    });
    let file = folder.path().join("prometheus.yml");
    std::fs::write(&file, config.to_string())?;
    let log = std::fs::File::create(folder.path().join("log"))?;
    let process = Command::new("prometheus")
        .arg("--enable-feature=native-histograms")
        .arg(format!("--config.file={}", file.display()))
        .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
        .arg(format!("--web.listen-address={LISTEN_ADDRESS}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .context("prometheus can't be started; install the Debian package prometheus")?;
    Ok(Prometheus { process, _folder: folder })
}

/// Evaluates an expression. Returns `None` unless the value is a finite number.
async fn run_query(namespace: &TestNamespace, expression: &str) -> Result<Option<f64>> {
    let mut url = reqwest::Url::parse(&format!("http://{LISTEN_ADDRESS}/api/v1/query"))?;
    url.query_pairs_mut().append_pair("query", expression);
    let text = namespace.http.get(url).send().await?.error_for_status()?.text().await?;
    let response: Value = serde_json::from_str(&text)?;
    let value = response["data"]["result"][0]["value"][1].as_str();
    Ok(value.and_then(|value| value.parse::<f64>().ok()).filter(|value| value.is_finite()))
}

fn p95_seconds(status: &LoadTestStatus) -> Result<f64> {
    let text = status.tasks[0].summary.p95.as_ref().context("no p95")?;
    Ok(text.parse::<Duration>()?.as_secs_f64())
}

#[tokio::test]
async fn prometheus_p95_matches_the_status_within_1_percent() -> Result<()> {
    TestNamespace::run_alone("prometheus", async |namespace| {
        let latency = json!({"lognormal": {"median": "100ms", "sigma": 0.5, "max": "2s"}});
        namespace.deploy_simulator(json!({"health": {"latency": latency}})).await?;
        let mut spec = health_spec(20, "12s", &json!([]));
        spec["runners"] = json!({"usersPerRunner": 10});
        namespace.create_test("prom", spec).await?;
        namespace.wait_for_status("prom", 60, |s| s.start_time.is_some()).await?;
        let pods = namespace.list_runners("prom").await?;
        let targets: Vec<String> =
            pods.iter().filter_map(pod_ip).map(|ip| format!("{ip}:9464")).collect();
        ensure!(targets.len() == 2, "{targets:?}");
        let _prometheus = start_prometheus(&targets)?;
        let status = namespace.wait_until_finished("prom", 90).await?;
        let requests = status.summary.as_ref().context("no summary")?.requests;
        // Runners linger after their release, so Prometheus scrapes their final metrics too.
        wait_for(30, "the scrape of the final metrics", async || {
            let scraped = run_query(&namespace, "sum(loadtest_requests_total)").await?;
            Ok(scraped.filter(|count| (*count - requests as f64).abs() < 0.5))
        })
        .await?;
        let expression = "histogram_quantile(0.95, sum(loadtest_response_time_seconds{task=\"health\", outcome!=\"failure\"}))";
        let scraped = run_query(&namespace, expression).await?.context("no native histogram")?;
        let reported = p95_seconds(&status)?;
        let error = (scraped / reported - 1.0).abs();
        ensure!(error < 0.01, "Prometheus {scraped} s, status {reported} s");
        Ok(())
    })
    .await
}
