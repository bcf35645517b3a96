//! A log in `HdrHistogram`'s format: the response times of each interval and task, in nanoseconds.
//!
//! Tools of `HdrHistogram` read the tag of a line as the name of the task.

use std::time::{Duration, UNIX_EPOCH};

use hdrhistogram::{
    Histogram,
    serialization::{
        V2DeflateSerializer,
        interval_log::{IntervalLogWriterBuilder, Tag},
    },
};
use loadtest_core::{
    metrics::{LatencyHistogram, LatencyMetric},
    result::{HistogramData, RunResult},
};

use crate::ReportError;

/// Significant digits of the log, as the tools of `HdrHistogram` use by default.
const DIGITS: u8 = 3;

/// Writes the response times of a result as a log of `HdrHistogram`.
///
/// # Errors
/// When a histogram of the result is malformed.
pub fn hdr_log(result: &RunResult) -> Result<String, ReportError> {
    let fault = |error: &dyn std::fmt::Debug| ReportError::HdrHistogram(format!("{error:?}"));
    let start = result.status.start_time.as_ref();
    let start = start.and_then(|start| u64::try_from(start.0.as_microsecond()).ok()).unwrap_or(0);
    let start = UNIX_EPOCH + Duration::from_micros(start);
    let mut buffer = Vec::new();
    let mut serializer = V2DeflateSerializer::new();
    let mut writer = IntervalLogWriterBuilder::new()
        .with_start_time(start)
        .with_base_time(start)
        .with_max_value_divisor(1e6)
        .add_comment("[Histogram log format version 1.3]")
        .begin_log_with(&mut buffer, &mut serializer)
        .map_err(|error| fault(&error))?;
    for point in &result.series.points {
        for task in &result.tasks {
            let numbers = point.tasks.get(&task.name);
            let samples = numbers.and_then(|task| task.latency(LatencyMetric::ResponseTime));
            let Some(samples) = samples else { continue };
            let histogram = to_hdr(samples)?;
            let time = |seconds| Duration::try_from_secs_f64(seconds).map_err(|e| fault(&e));
            let (start, length) = (time(point.start)?, time(point.seconds())?);
            writer
                .write_histogram(&histogram, start, length, Tag::new(&task.name))
                .map_err(|error| fault(&error))?;
        }
    }
    drop(writer);
    String::from_utf8(buffer).map_err(|error| fault(&error))
}

fn to_hdr(samples: &HistogramData) -> Result<Histogram<u64>, ReportError> {
    let fault = |error: &dyn std::fmt::Debug| ReportError::HdrHistogram(format!("{error:?}"));
    let mut histogram = Histogram::<u64>::new(DIGITS).map_err(|error| fault(&error))?;
    let samples: LatencyHistogram = samples.to_histogram()?;
    for (value, count) in samples.values() {
        histogram.record_n(value.as_nanos(), count).map_err(|error| fault(&error))?;
    }
    Ok(histogram)
}

#[cfg(test)]
mod tests {
    use hdrhistogram::serialization::{
        Deserializer,
        interval_log::{IntervalLogIterator, LogEntry},
    };

    use super::*;
    use crate::testing::example;

    #[test]
    fn a_damaged_result_is_an_error() {
        let mut result = example();
        result.series.points[0].start = -1.0;
        assert!(hdr_log(&result).is_err());
    }

    #[test]
    fn the_log_can_be_read_again() {
        let result = example();
        let text = hdr_log(&result).unwrap();
        let mut samples = 0;
        for entry in IntervalLogIterator::new(text.as_bytes()) {
            if let LogEntry::Interval(interval) = entry.unwrap() {
                assert_eq!(interval.tag().map(|tag| tag.as_str()), Some("chat"));
                let bytes = base64::Engine::decode(
                    &base64::engine::general_purpose::STANDARD,
                    interval.encoded_histogram(),
                );
                let histogram: Histogram<u64> =
                    Deserializer::new().deserialize(&mut bytes.unwrap().as_slice()).unwrap();
                samples += histogram.len();
                let p50 = histogram.value_at_quantile(0.5) as f64 / 1e9;
                assert!((p50 / 0.75 - 1.0).abs() < 0.003, "{p50}");
            }
        }
        let latency = result.total.latencies.get(LatencyMetric::ResponseTime).unwrap();
        assert_eq!(samples, latency.count);
    }
}
