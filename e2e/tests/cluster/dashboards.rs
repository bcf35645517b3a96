//! Evaluates every query of the chart's dashboards in a real Prometheus, during a test and after it.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use loadtest_core::{
    metrics::{
        LatencyHistogram, LatencyMetric,
        catalog::{LATENCIES, LatencyInfo},
    },
    resource::LoadTest,
    result::RunResult,
};
use serde_json::{Value, json};

use loadtest_e2e::{
    operator_pods::wait_for_leader,
    test_namespace::{TestNamespace, wait_for},
};

use crate::prometheus::{Prometheus, ScrapedPod};

const DASHBOARDS: [&str; 2] = [
    include_str!("../../../charts/loadtest-operator/dashboards/loadtest-run.json"),
    include_str!("../../../charts/loadtest-operator/dashboards/loadtest-runs.json"),
];
/// Maximum error of a percentile of native histograms.
const MAX_ERROR: f64 = 0.01;
/// Maximum error of a percentile of classic buckets, which grow by the factor 1.2.
const MAX_CLASSIC_ERROR: f64 = 0.2;

/// A query of a dashboard.
#[derive(Clone, Debug)]
struct Query {
    title: String,
    kind: String,
    expression: String,
}

fn list_queries() -> Result<Vec<Query>> {
    let mut queries = Vec::new();
    for dashboard in DASHBOARDS {
        let dashboard: Value = serde_json::from_str(dashboard)?;
        let text = |value: &Value| value.as_str().map(ToOwned::to_owned).context("no text");
        for panel in dashboard["panels"].as_array().context("no panels")? {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let (title, kind) = (text(&panel["title"])?, text(&panel["type"])?);
                queries.push(Query { title, kind, expression: text(&target["expr"])? });
            }
        }
        for mark in dashboard["annotations"]["list"].as_array().context("no annotations")? {
            let (title, expression) = (text(&mark["name"])?, text(&mark["expr"])?);
            queries.push(Query { title, kind: "annotation".into(), expression });
        }
    }
    ensure!(queries.len() > 50, "only {} queries", queries.len());
    Ok(queries)
}

/// The run that the dashboards show. Times are Unix times.
struct Shown<'a> {
    namespace: &'a str,
    test: &'a str,
    start: f64,
    end: f64,
}

impl Shown<'_> {
    /// Puts values in place of the variables, as Grafana does.
    fn fill(&self, expression: &str, rate_interval: &str) -> String {
        let range = format!("{:.0}s", self.end - self.start + 20.0);
        expression
            .replace(
                "$__rate_interval",
                if rate_interval.is_empty() { &range } else { rate_interval },
            )
            .replace("$__range", &range)
            .replace("$namespace", self.namespace)
            .replace("$loadtest", self.test)
            .replace("$task", ".*")
    }
}

#[expect(clippy::disallowed_methods, reason = "Prometheus uses the same clock")]
fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Checks that each query returns data. `now` is the time at which the dashboard is looked at.
async fn check_data(prometheus: &Prometheus, shown: &Shown<'_>, now: f64) -> Result<()> {
    for query in list_queries()? {
        let expression = shown.fill(&query.expression, "10s");
        let has_data = match query.kind.as_str() {
            "timeseries" | "heatmap" => {
                prometheus.has_data(&expression, shown.start, shown.end).await?
            }
            "annotation" => {
                let marks = prometheus.query(&expression, now).await?;
                let is_in_run = |(_, millis): &(Value, f64)| {
                    (shown.start - 1.0..shown.end + 1.0).contains(&(millis / 1e3))
                };
                !marks.is_empty() && marks.iter().all(is_in_run)
            }
            _ => !prometheus.query(&expression, now).await?.is_empty(),
        };
        ensure!(has_data, "{} has no data: {expression}", query.title);
    }
    Ok(())
}

/// The latency of a percentile query and the percentile, for a latency in the result.
fn latency_of(expression: &str) -> Option<(&'static LatencyInfo, f64)> {
    let (share, rest) = expression.strip_prefix("histogram_quantile(")?.split_once(", ")?;
    let family = &rest[rest.find("loadtest_")?..rest.find('{')?];
    // Steps of a connection share one family and are not in the result.
    let info = LATENCIES.iter().find(|info| info.family == family && info.label.is_none())?;
    Some((info, share.parse().ok()?))
}

/// The samples of a latency, of one task or of all.
fn samples_of(
    result: &RunResult,
    task: Option<&str>,
    metric: LatencyMetric,
) -> Result<LatencyHistogram> {
    let mut samples = LatencyHistogram::default();
    for (name, point) in result.series.points.iter().flat_map(|point| &point.tasks) {
        if task.is_none_or(|task| task == name)
            && let Some(data) = point.latency(metric)
        {
            samples.merge(&data.to_histogram()?);
        }
    }
    Ok(samples)
}

/// Largest difference of two shares, for percentiles that count as the same. Prometheus extrapolates the
/// counts of each runner to the range of the query, by up to a scrape interval: about a fortieth. So two
/// runners differ in their weights by that much, and a share moves by up to a quarter of it.
const MAX_SHARE_ERROR: f64 = 0.007;

/// Returns the lowest and the highest right value of a percentile in seconds.
fn right_values(samples: &LatencyHistogram, share: f64) -> Option<(f64, f64)> {
    let error = MAX_SHARE_ERROR.max(1.0 / samples.count() as f64);
    let value = |share: f64| Some(samples.quantile(share.clamp(0.0, 1.0))?.as_secs_f64());
    Some((value(share - error)?, value(share + error)?))
}

/// Compares the percentiles of panels with those of the result. In panels over time, the window of the
/// rate is the whole run. Returns the number of compared percentiles.
async fn compare_percentiles(
    prometheus: &Prometheus,
    shown: &Shown<'_>,
    result: &RunResult,
    max_error: f64,
) -> Result<usize> {
    let mut compared = 0;
    for query in list_queries()? {
        let Some((info, share)) = latency_of(&query.expression) else { continue };
        let expression = shown.fill(&query.expression, "");
        for (labels, found) in prometheus.query(&expression, unix_now()).await? {
            let samples = samples_of(result, labels["task"].as_str(), info.metric)?;
            let (low, high) = right_values(&samples, share).context("not in the result")?;
            ensure!(
                (low * (1.0 - max_error)..high * (1.0 + max_error)).contains(&found),
                "{} p{}: Prometheus {found} s, result {low} to {high} s: {labels}",
                query.title,
                share * 100.0
            );
            compared += 1;
        }
    }
    Ok(compared)
}

fn spec_of_shown() -> Value {
    let stage =
        |users: u32, duration: &str| json!({"users": users, "duration": duration, "ramp": "Step"});
    json!({
        "target": {"http": "http://cell0:18800", "webSocket": "ws://cell0:18801"},
        // Prometheus may find the runners a few seconds after their start, and `increase` of version 2.42 misses
        // what came before. So the first stage sends nothing.
        "load": {
            "stages": [stage(0, "8s"), stage(40, "16s"), stage(40, "3m")], "gracefulStop": "10s",
        },
        "scenario": {
            "pause": {"min": "100ms", "max": "200ms"},
            "tasks": [
                {"name": "health", "http": {"path": "/health"}},
                {"name": "chat", "chat": {"path": "/v1/chat/completions", "models": ["cell0-small"], "messages": ["Hello"], "stream": true}},
                {"name": "socket", "webSocket": {"path": "/", "send": ["ping"], "replies": 1}},
            ],
        },
        "thresholds": [
            {"task": "health", "metric": "responseTime", "statistic": "p95", "target": "< 1s"},
            {"metric": "errorRate", "window": "5s", "target": "< 1%", "critical": "> 5%", "abort": {"after": "24s"}},
        ],
        "runners": {"count": 2},
    })
}

/// Waits until both the last metrics of the runners and the verdict were scraped.
async fn wait_for_last_scrape(
    prometheus: &Prometheus,
    shown: &Shown<'_>,
    requests: u64,
) -> Result<()> {
    let completed = r#"sum(loadtest_requests_total{namespace="$namespace", loadtest="$loadtest", outcome!="interrupted"})"#;
    let judged = r#"loadtest_operator_verdict{namespace="$namespace", loadtest="$loadtest"}"#;
    wait_for(30, "the scrape of the last metrics", async || {
        let found = prometheus.query(&shown.fill(completed, ""), unix_now()).await?;
        let has_all = found.iter().any(|(_, count)| (count - requests as f64).abs() < 0.5);
        let judged = prometheus.query(&shown.fill(judged, ""), unix_now()).await?;
        Ok((has_all && !judged.is_empty()).then_some(()))
    })
    .await
}

/// Runs a test that two stages end and that a threshold aborts in the third.
async fn run_shown(
    namespace: &TestNamespace,
    prometheuses: &[&Prometheus],
) -> Result<(LoadTest, RunResult)> {
    let latency =
        |median: &str| json!({"lognormal": {"median": median, "sigma": 0.2, "max": "1s"}});
    let target = namespace
        .deploy_simulator(json!({
            "health": {"latency": latency("100ms")},
            "chat": {"latency": latency("100ms"), "tokens": 8, "tokenGap": latency("10ms")},
            "webSocket": {"connectLatency": latency("30ms"), "latency": latency("50ms")},
        }))
        .await?;
    let test = namespace.create_test("shown", spec_of_shown()).await?;
    let runners = wait_for(60, "two runners with addresses", async || {
        let pods = namespace.list_runners("shown").await?;
        let scraped: Vec<_> = pods.iter().filter_map(|pod| ScrapedPod::of(pod, 9464)).collect();
        Ok((scraped.len() == 2).then_some(scraped))
    })
    .await?;
    for prometheus in prometheuses {
        prometheus.set_runners(&runners)?;
    }
    namespace.wait_for_status("shown", 90, |status| status.stages.len() >= 2).await?;
    target.patch_settings(json!({"health": {"errors": {"rate": "100%"}}})).await?;
    let status = namespace.wait_until_finished("shown", 60).await?;
    ensure!(status.aborted.is_some(), "{status:#?}");
    let result = namespace.read_result(&test).await?.context("no result")?;
    Ok((test, result))
}

async fn find_operator(namespace: &TestNamespace) -> Result<ScrapedPod> {
    let leader = wait_for_leader(namespace).await?;
    ScrapedPod::of(&leader, 8080).context("the leader has no address")
}

#[tokio::test]
async fn dashboards_show_a_test_during_and_after_it() -> Result<()> {
    TestNamespace::run_alone("dashboards", async |namespace| {
        let operator = find_operator(&namespace).await?;
        let native = Prometheus::start(&operator, 19090, true)?;
        let classic = Prometheus::start(&operator, 19091, false)?;
        for prometheus in [&native, &classic] {
            wait_for(60, "a scrape of the operator", async || {
                let up = prometheus.query(r#"up{job="operator"}"#, unix_now()).await?;
                Ok(up.iter().any(|(_, value)| *value > 0.0).then_some(()))
            })
            .await?;
        }
        let (test, result) = run_shown(&namespace, &[&native, &classic]).await?;
        let start = result.status.start_time.as_ref().context("no start")?.0.as_millisecond() as f64 / 1e3;
        let mut shown = Shown { namespace: &namespace.name, test: "shown", start, end: unix_now() };
        for prometheus in [&native, &classic] {
            wait_for_last_scrape(prometheus, &shown, result.total.requests).await?;
        }
        shown.end = unix_now();
        check_data(&native, &shown, shown.end).await.context("with native histograms")?;
        check_data(&classic, &shown, shown.end).await.context("with classic buckets")?;
        let exact = compare_percentiles(&native, &shown, &result, MAX_ERROR).await?;
        ensure!(exact >= 15, "only {exact} percentiles");
        let coarse = compare_percentiles(&classic, &shown, &result, MAX_CLASSIC_ERROR).await?;
        ensure!(coarse == exact, "{coarse} of {exact} percentiles");
        // The query in docs/metrics.md.
        let documented = r#"histogram_quantile(0.95, sum(loadtest_response_time_seconds{namespace="$namespace", loadtest="$loadtest", task="health", outcome!="failure"}))"#;
        let found = native.query(&shown.fill(documented, ""), shown.end).await?;
        let health = result.tasks.iter().find(|task| task.name == "health").context("no task")?;
        let expected = health.result.latencies.get(LatencyMetric::ResponseTime);
        let expected = expected.context("no latency")?.p95;
        let error = (found.first().context("no data")?.1 / expected - 1.0).abs();
        ensure!(error < MAX_ERROR, "{found:?}, expected {expected}");

        namespace.delete_test(&test.name_any()).await?;
        let gone = shown.fill(r#"{namespace="$namespace", loadtest="$loadtest"}"#, "");
        for prometheus in [&native, &classic] {
            wait_for(30, "no current series", async || {
                Ok(prometheus.query(&gone, unix_now()).await?.is_empty().then_some(()))
            })
            .await?;
        }
        check_data(&native, &shown, unix_now()).await.context("after the deletion")?;
        check_data(&classic, &shown, unix_now()).await.context("after the deletion, classic")?;
        let after = compare_percentiles(&native, &shown, &result, MAX_ERROR).await?;
        ensure!(after == exact, "{after} of {exact} percentiles after the deletion");
        Ok(())
    })
    .await
}
