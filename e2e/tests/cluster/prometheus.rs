//! Debian's Prometheus scrapes runner pods, and agrees with the status.

use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use loadtest_core::{Duration, resource::LoadTestStatus};
use serde_json::{Value, json};

use crate::story::{Story, health, pod_ip, within};

/// A Prometheus of the test's own, ended with it.
struct Prometheus {
    process: Child,
    _folder: tempfile::TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is gone after this.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const LISTEN: &str = "127.0.0.1:19090";

fn prometheus(targets: &[String]) -> Result<Prometheus> {
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
        .arg(format!("--web.listen-address={LISTEN}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .context("Debian's package prometheus is missing")?;
    Ok(Prometheus { process, _folder: folder })
}

async fn query(story: &Story, expression: &str) -> Result<Option<f64>> {
    let mut url = reqwest::Url::parse(&format!("http://{LISTEN}/api/v1/query"))?;
    url.query_pairs_mut().append_pair("query", expression);
    let text = story.http.get(url).send().await?.error_for_status()?.text().await?;
    let answer: Value = serde_json::from_str(&text)?;
    let value = answer["data"]["result"][0]["value"][1].as_str();
    Ok(value.and_then(|value| value.parse::<f64>().ok()).filter(|value| value.is_finite()))
}

fn p95(status: &LoadTestStatus) -> Result<f64> {
    let text = status.tasks[0].summary.p95.as_ref().context("no p95")?;
    Ok(text.parse::<Duration>()?.as_secs_f64())
}

#[tokio::test]
async fn prometheus_with_native_histograms_agrees_with_the_status_within_one_percent() -> Result<()>
{
    Story::tell_alone("prometheus", async |story| {
        let latency = json!({"lognormal": {"median": "100ms", "sigma": 0.5, "max": "2s"}});
        story.simulator(json!({"health": {"latency": latency}})).await?;
        let mut spec = health(20, "12s", &json!([]));
        spec["runners"] = json!({"usersPerRunner": 10});
        story.start("prom", spec).await?;
        story.until("prom", 60, |s| s.start_time.is_some()).await?;
        let pods = story.runners("prom").await?;
        let targets: Vec<String> =
            pods.iter().filter_map(pod_ip).map(|ip| format!("{ip}:9464")).collect();
        ensure!(targets.len() == 2, "{targets:?}");
        let _running = prometheus(&targets)?;
        let status = story.finished("prom", 90).await?;
        let requests = status.summary.as_ref().context("no summary")?.requests;
        // Runners linger after their release, so that the last sample is scraped too.
        within(30, "the last sample", async || {
            let seen = query(&story, "sum(loadtest_requests_total)").await?;
            Ok(seen.filter(|seen| (*seen - requests as f64).abs() < 0.5))
        })
        .await?;
        let expression = "histogram_quantile(0.95, sum(loadtest_response_time_seconds{task=\"health\", outcome!=\"failure\"}))";
        let theirs = query(&story, expression).await?.context("no native histogram")?;
        let ours = p95(&status)?;
        ensure!((theirs / ours - 1.0).abs() < 0.01, "Prometheus {theirs} s, status {ours} s");
        Ok(())
    })
    .await
}
