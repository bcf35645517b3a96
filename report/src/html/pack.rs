//! A compact form of a series for reports: the buckets of all histograms in two streams of bytes, one
//! of gaps and one of counts. Streams of one kind compress several times better than JSON.

use loadtest_core::{
    metrics::HistogramError,
    result::{HistogramData, Series},
};
use serde_json::{Value, json};

/// Significant digits of a histogram's sum, which only means are computed from.
const SUM_DIGITS: usize = 6;

/// The two streams. Numbers are LEB128: seven bits a byte, the lowest first, the highest bit set in all
/// bytes but the last.
#[derive(Default)]
pub(super) struct Streams {
    /// For each bucket, its distance from the bucket before. The first distance of a histogram is that
    /// from bucket 0, in zigzag form: 0, −1, 1, −2, …
    pub(super) gaps: Vec<u8>,
    /// For each bucket, its number of samples.
    pub(super) counts: Vec<u8>,
}

/// The series as JSON, with `{count, sum, zero, buckets}` for each histogram: `buckets` is the number of
/// its buckets. The streams hold the buckets in the order of the histograms in the JSON.
pub(super) fn pack_series(
    series: &Series,
    streams: &mut Streams,
) -> Result<Value, crate::ReportError> {
    let mut points = Vec::new();
    for point in &series.points {
        let mut packed = serde_json::to_value(point)?;
        // The page does not show the lag of an interval.
        packed["scheduleLag"] = Value::Null;
        for (name, task) in &point.tasks {
            for (metric, histogram) in &task.latencies {
                packed["tasks"][name]["latencies"][metric] = pack_histogram(histogram, streams)?;
            }
        }
        points.push(packed);
    }
    Ok(json!({"stepSeconds": series.step_seconds, "points": points}))
}

fn pack_histogram(data: &HistogramData, streams: &mut Streams) -> Result<Value, HistogramError> {
    let mut counts = data.counts.iter();
    let (mut index, mut previous, mut buckets) = (0_i64, None, 0_u64);
    for (gap, length) in &data.spans {
        index += i64::from(*gap);
        for _ in 0..*length {
            let count = counts.next().ok_or(HistogramError::Buckets)?;
            let distance = match previous {
                Some(previous) => index - previous,
                None => (index << 1) ^ (index >> 63),
            };
            let distance = u64::try_from(distance).map_err(|_| HistogramError::Buckets)?;
            push_number(&mut streams.gaps, distance);
            push_number(&mut streams.counts, *count);
            previous = Some(index);
            index += 1;
            buckets += 1;
        }
    }
    Ok(json!({
        "count": data.count,
        "sum": round_significant(data.sum),
        "zero": data.zero,
        "buckets": buckets,
    }))
}

fn push_number(stream: &mut Vec<u8>, mut number: u64) {
    loop {
        let low = (number & 0x7f) as u8;
        number >>= 7;
        stream.push(if number == 0 { low } else { low | 0x80 });
        if number == 0 {
            return;
        }
    }
}

fn round_significant(value: f64) -> f64 {
    format!("{value:.*e}", SUM_DIGITS - 1).parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_go_to_the_streams() {
        let data = HistogramData {
            count: 304,
            sum: 1.234_567_89,
            zero: 1,
            spans: vec![(-3, 2), (200, 1)],
            counts: vec![1, 2, 300],
        };
        let mut streams = Streams::default();
        let packed = pack_histogram(&data, &mut streams).unwrap();
        assert_eq!(packed, json!({"count": 304, "sum": 1.23457, "zero": 1, "buckets": 3}));
        // Bucket −3 is 5 in zigzag form; the last bucket is 199.
        assert_eq!(streams.gaps, [5, 1, 0xc9, 0x01]);
        assert_eq!(streams.counts, [1, 2, 0xac, 0x02]);
    }

    #[test]
    fn missing_counts_are_refused() {
        let data =
            HistogramData { spans: vec![(0, 2)], counts: vec![1], ..HistogramData::default() };
        let packed = pack_histogram(&data, &mut Streams::default());
        assert_eq!(packed, Err(HistogramError::Buckets));
    }
}
