//! The data of a report: the result in a compact form, and an overview of a long run.

use std::io::Write;

use base64::{Engine, engine::general_purpose::STANDARD};
use flate2::{Compression, write::GzEncoder};
use loadtest_core::result::{HistogramData, RunResult, Series};
use serde_json::{Value, json};

use super::pack::{Streams, pack_series};
use crate::ReportError;

/// Maximum size of the data in a report, in bytes. A report with its code stays below 300 KiB.
const MAX_SIZE: usize = 200 * 1024;
/// Maximum size of an overview, in bytes. Only a run whose series is larger than [`MAX_SIZE`] has one.
const MAX_OVERVIEW_SIZE: usize = 80 * 1024;
/// Number of buckets that an overview puts together: 16 of 256 to a doubling are 4.4 % wide.
const OVERVIEW_WIDTH: i32 = 16;

/// The data of the page: three gzipped parts in base64, with spaces between them. The first is the JSON
/// `{result, series, overview}`, the others are the streams of gaps and of counts; see
/// [`pack_series`].
///
/// The series of a long run does not fit into a report. Then `series` has a longer step, from which
/// percentiles of a span are exact, and the charts are drawn from `overview`, a series with a shorter
/// step and wider buckets. A short run has no overview.
pub(super) fn embedded_data(result: &RunResult) -> Result<String, ReportError> {
    let mut series = result.series.clone();
    let head = head_of(result);
    let whole = encode(&head, &series, None)?;
    if whole.len() <= MAX_SIZE {
        return Ok(whole);
    }
    let mut overview = overview_of(&series)?;
    while encode(&Value::Null, &overview, None)?.len() > MAX_OVERVIEW_SIZE
        && overview.points.len() > 1
    {
        overview.halve()?;
    }
    // Halving a series saves less than half of its size.
    series.halve()?;
    loop {
        series.halve()?;
        let data = encode(&head, &series, Some(&overview))?;
        if data.len() <= MAX_SIZE || series.points.len() < 2 {
            return Ok(data);
        }
    }
}

fn encode(head: &Value, series: &Series, overview: Option<&Series>) -> Result<String, ReportError> {
    let mut streams = Streams::default();
    let series = pack_series(series, &mut streams)?;
    let overview = overview.map(|overview| pack_series(overview, &mut streams)).transpose()?;
    let json = json!({"result": head, "series": series, "overview": overview});
    let parts = [serde_json::to_vec(&json)?, streams.gaps, streams.counts];
    let parts: Result<Vec<String>, ReportError> = parts.iter().map(|part| compress(part)).collect();
    Ok(parts?.join(" "))
}

/// The parts of a result that the page reads, without the series. Nothing else is embedded: a spec may hold
/// secrets, and the histograms of the whole run are the sum of the series.
pub(super) fn head_of(result: &RunResult) -> Value {
    let names = result.tasks.iter().map(|task| json!({"name": task.name}));
    json!({
        "tasks": names.collect::<Vec<_>>(),
        "thresholds": result.thresholds,
        "events": result.events,
    })
}

/// The series with wider buckets.
fn overview_of(series: &Series) -> Result<Series, ReportError> {
    let mut overview = series.clone();
    for point in &mut overview.points {
        point.schedule_lag = HistogramData::default();
        for histogram in point.tasks.values_mut().flat_map(|task| task.latencies.values_mut()) {
            *histogram = histogram.with_wider_buckets(OVERVIEW_WIDTH)?;
        }
    }
    Ok(overview)
}

fn compress(data: &[u8]) -> Result<String, ReportError> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(data)?;
    Ok(STANDARD.encode(encoder.finish()?))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use loadtest_core::{
        metrics::{LatencyHistogram, LatencyMetric},
        result::{HistogramData, Point, Series, TaskPoint},
    };

    use super::*;
    use crate::testing::example;

    fn decode(data: &str) -> Value {
        let bytes = STANDARD.decode(data.split(' ').next().unwrap()).unwrap();
        let mut json = Vec::new();
        flate2::read::GzDecoder::new(bytes.as_slice()).read_to_end(&mut json).unwrap();
        serde_json::from_slice(&json).unwrap()
    }

    #[test]
    fn a_short_run_has_no_overview() {
        let result = example();
        let data = decode(&embedded_data(&result).unwrap());
        assert_eq!(data["overview"], Value::Null);
        assert_eq!(data["series"]["points"].as_array().unwrap().len(), 20);
        assert_eq!(data["result"]["tasks"][1]["name"], "health");
    }

    #[test]
    fn nothing_of_the_requests_is_embedded() {
        let mut result = example();
        result.spec.target.headers.insert("accept".into(), "secret".into());
        let tasks = &mut result.spec.scenario.tasks;
        tasks[0].chat.as_mut().unwrap().messages = vec!["secret".into()];
        tasks[1].http.as_mut().unwrap().body = Some("secret".into());
        tasks[1].http.as_mut().unwrap().path = "/health?key=secret".into();
        let json = decode(&embedded_data(&result).unwrap()).to_string();
        assert!(!json.contains("secret"), "{json}");
    }

    /// The run lasts an hour and has 10 tasks. The latencies of each task fill nearly 1,000 buckets.
    #[test]
    fn a_long_run_fits_into_a_report() {
        let name = LatencyMetric::ResponseTime.info().judged.unwrap().name;
        let mut result = example();
        let mut random = 7_u64;
        let mut histogram = || {
            let mut histogram = LatencyHistogram::default();
            for _ in 0..600 {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let uniform = (random >> 11) as f64 / (1_u64 << 53) as f64;
                histogram.record(0.1 * (-(1.0 - uniform).ln()).powf(0.7) + 0.02, 1);
            }
            HistogramData::of(&histogram)
        };
        let points = (0..113_u32).map(|index| {
            let task = |task: u32| {
                let latencies =
                    [(name.to_owned(), histogram()), ("serviceTime".into(), histogram())];
                let point = TaskPoint { latencies: latencies.into(), ..TaskPoint::default() };
                (format!("task-{task}"), point)
            };
            let tasks: Vec<_> = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9].map(task).into();
            Point {
                start: f64::from(index) * 32.0,
                end: f64::from(index + 1) * 32.0,
                tasks: tasks.into_iter().collect(),
                ..Point::default()
            }
        });
        result.series = Series { step_seconds: 32.0, points: points.collect() };
        let html = crate::html_report(&result).unwrap();
        assert!(html.len() <= 300 * 1024, "{}", html.len());
        let (_, data) = html.split_once("id=\"result\">").unwrap();
        let data = decode(data.split_once('<').unwrap().0);
        let count = |series: &str| data[series]["points"].as_array().unwrap().len();
        let left = (count("series"), count("overview"));
        assert!(left.0 >= 4 && left.1 >= 50, "{left:?} points are left");
    }
}
