//! Metrics in little memory. Pure.

use std::sync::Arc;

use super::{
    catalog::{COUNTERS, LABELLED, LAGS, RUNNER},
    histogram::{Bucket, LatencyHistogram, MAX_BUCKET},
    run_metrics::{CpuTimes, Metrics},
    task::{Latencies, TaskMetrics},
};

/// Metrics as bytes: a bucket with samples takes about three of them, instead of eight in
/// [`LatencyHistogram`]. Clones share the bytes. Without the measurements of single runners.
#[derive(Clone, Debug)]
pub struct PackedMetrics {
    elapsed_seconds: f64,
    bytes: Arc<[u8]>,
}

impl Default for PackedMetrics {
    fn default() -> Self {
        Self::of(&Metrics::default())
    }
}

impl PackedMetrics {
    /// Packs metrics.
    pub fn of(metrics: &Metrics) -> Self {
        let mut writer = Writer(Vec::with_capacity(Self::expected_size(metrics)));
        writer.number(metrics.tasks.len() as u64);
        for (name, task) in &metrics.tasks {
            writer.text(name);
            writer.task(task);
        }
        for lag in &LAGS {
            writer.histogram((lag.get)(metrics));
        }
        for info in &RUNNER {
            writer.float((info.field.get)(metrics));
        }
        writer.number(metrics.cpu_times.len() as u64);
        for (index, times) in &metrics.cpu_times {
            writer.number(u64::from(*index));
            writer.float(times.busy_seconds);
            writer.float(times.throttled_seconds);
        }
        Self { elapsed_seconds: metrics.elapsed_seconds, bytes: writer.0.into() }
    }

    /// About as many bytes as the packed metrics take, or more.
    fn expected_size(metrics: &Metrics) -> usize {
        const BYTES_PER_BUCKET: usize = 4;
        const BYTES_PER_HISTOGRAM: usize = 32;
        const OTHER_BYTES: usize = 1024;

        let latencies = metrics.tasks.values().flat_map(|task| task.latencies.iter());
        let lags = LAGS.iter().map(|lag| (lag.get)(metrics));
        let histograms = latencies.map(|(_, samples)| samples).chain(lags);
        let sizes = histograms.map(|h| h.buckets.len() * BYTES_PER_BUCKET + BYTES_PER_HISTOGRAM);
        sizes.sum::<usize>() + OTHER_BYTES * (metrics.tasks.len() + 1)
    }

    /// The metrics.
    pub fn unpack(&self) -> Metrics {
        let mut reader = Reader(&self.bytes);
        let mut metrics = Metrics::default();
        for _ in 0..reader.number() {
            let name = reader.text();
            metrics.tasks.insert(name, reader.task());
        }
        for lag in &LAGS {
            *(lag.get_mut)(&mut metrics) = reader.histogram();
        }
        for info in &RUNNER {
            (info.field.set)(&mut metrics, reader.float());
        }
        for _ in 0..reader.number() {
            let index = u32::try_from(reader.number()).unwrap_or_default();
            let (busy_seconds, throttled_seconds) = (reader.float(), reader.float());
            metrics.cpu_times.insert(index, CpuTimes { busy_seconds, throttled_seconds });
        }
        metrics
    }

    /// Seconds of load; see [`Metrics::elapsed_seconds`].
    pub const fn elapsed_seconds(&self) -> f64 {
        self.elapsed_seconds
    }

    /// Number of bytes.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }
}

/// Packed metrics, and the changes since then; see [`Metrics::changes_since`].
#[derive(Clone, Debug, Default)]
pub struct PackedSteps {
    base: PackedMetrics,
    /// The changes after `base`, oldest first.
    changes: Vec<PackedMetrics>,
}

impl PackedSteps {
    /// Packs metrics.
    pub fn of(metrics: &Metrics) -> Self {
        Self { base: PackedMetrics::of(metrics), changes: Vec::new() }
    }

    /// Adds changes.
    pub fn push(&mut self, changes: &Metrics) {
        self.changes.push(PackedMetrics::of(changes));
    }

    /// The number of changes that are kept apart.
    pub const fn change_count(&self) -> usize {
        self.changes.len()
    }

    /// Merges all changes into the base, which takes time and saves memory.
    pub fn merge_changes(&mut self) {
        *self = Self::of(&self.unpack());
    }

    /// The metrics after all changes.
    pub fn unpack(&self) -> Metrics {
        let mut metrics = self.base.unpack();
        // Changes are small. They are added up first, so that the large base is merged only once.
        let changes = self.changes.iter().map(PackedMetrics::unpack);
        let all = changes.reduce(|mut all, changes| {
            all.add_changes(&changes);
            all
        });
        all.iter().for_each(|changes| metrics.add_changes(changes));
        metrics
    }

    /// Number of bytes.
    pub fn size(&self) -> usize {
        self.base.size() + self.changes.iter().map(PackedMetrics::size).sum::<usize>()
    }
}

/// Writes whole numbers in groups of seven bits, the lowest first. The highest bit of a byte says that another
/// one follows.
struct Writer(Vec<u8>);

impl Writer {
    fn number(&mut self, mut number: u64) {
        loop {
            let [lowest, ..] = number.to_le_bytes();
            number >>= 7;
            if number == 0 {
                self.0.push(lowest);
                return;
            }
            self.0.push(lowest | 0x80);
        }
    }

    fn float(&mut self, number: f64) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.extend_from_slice(text.as_bytes());
    }

    fn task(&mut self, task: &TaskMetrics) {
        for counter in &COUNTERS {
            self.number((counter.field.get)(task));
        }
        for info in &LABELLED {
            let counts = (info.get)(task);
            self.number(counts.len() as u64);
            for (value, count) in counts {
                self.text(value);
                self.number(*count);
            }
        }
        self.number(task.latencies.iter().count() as u64);
        for (key, samples) in task.latencies.iter() {
            self.0.push(key);
            self.histogram(samples);
        }
    }

    fn histogram(&mut self, histogram: &LatencyHistogram) {
        let LatencyHistogram { buckets, zero, count, sum_seconds } = histogram;
        self.number(*zero);
        self.number(*count);
        self.float(*sum_seconds);
        self.number(buckets.len() as u64);
        let mut next = -MAX_BUCKET;
        for bucket in buckets {
            // Buckets ascend, so their distances are not negative.
            self.number(u64::from(bucket.index().wrapping_sub(next).cast_unsigned()));
            self.number(bucket.count());
            next = bucket.index().wrapping_add(1);
        }
    }
}

/// Reads what a [`Writer`] has written.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn number(&mut self) -> u64 {
        let (mut number, mut shift) = (0, 0);
        loop {
            let byte = self.byte();
            number |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 || shift > 63 {
                return number;
            }
        }
    }

    fn float(&mut self) -> f64 {
        f64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }

    fn text(&mut self) -> String {
        let length = usize::try_from(self.number()).unwrap_or(usize::MAX).min(self.0.len());
        let (text, rest) = self.0.split_at(length);
        self.0 = rest;
        String::from_utf8_lossy(text).into_owned()
    }

    fn task(&mut self) -> TaskMetrics {
        let mut task = TaskMetrics::default();
        for counter in &COUNTERS {
            (counter.field.set)(&mut task, self.number());
        }
        for info in &LABELLED {
            for _ in 0..self.number() {
                let value = self.text();
                (info.get_mut)(&mut task).insert(value, self.number());
            }
        }
        let latencies = (0..self.number()).map(|_| (self.byte(), self.histogram()));
        task.latencies = Latencies::of(latencies);
        task
    }

    fn histogram(&mut self) -> LatencyHistogram {
        let (zero, count, sum_seconds) = (self.number(), self.number(), self.float());
        let mut next = -MAX_BUCKET;
        let buckets = (0..self.number()).map(|_| {
            let index =
                next.wrapping_add_unsigned(u32::try_from(self.number()).unwrap_or_default());
            next = index.wrapping_add(1);
            Bucket::new(index, self.number())
        });
        LatencyHistogram { buckets: buckets.collect(), zero, count, sum_seconds }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{LatencyMetric, Outcome};

    #[test]
    fn metrics_are_unpacked_as_they_were_packed() {
        let mut metrics = Metrics { elapsed_seconds: 12.5, users: 3, ..Metrics::default() };
        metrics.schedule_lag.record(0.0, 2);
        for (name, latency) in [("chat", 1e-9), ("health", 4000.0)] {
            let task = metrics.tasks.entry(name.into()).or_default();
            task.requests = [u64::MAX, 128, 127, 0];
            task.statuses.insert("200".into(), 300);
            task.errors.insert("größe".into(), 1);
            let samples = task.latencies.get_mut(LatencyMetric::ResponseTime, Outcome::Timeout);
            samples.record(latency, u64::from(u32::MAX));
            samples.record(latency * 1.001, 1);
            samples.record(latency * 90.0, 200);
            task.latencies.late_mut(LatencyMetric::ConnectUpgrade).record(0.1, 7);
        }
        let packed = PackedMetrics::of(&metrics);
        assert_eq!(packed.unpack(), metrics);
        assert!((packed.elapsed_seconds() - 12.5).abs() < 1e-9);
        assert_eq!(PackedMetrics::default().unpack(), Metrics::default());
    }

    #[test]
    fn packed_steps_hold_every_change() {
        let mut latest = Metrics::default();
        let mut steps = PackedSteps::of(&latest);
        for step in 1..=5_u32 {
            let earlier = latest.clone();
            latest.elapsed_seconds = f64::from(step);
            latest.users = u64::from(step % 3);
            let task = latest.tasks.entry(format!("task {}", step % 2)).or_default();
            task.requests[0] += 10;
            task.errors.insert(format!("kind {step}"), 1);
            let samples = task.latencies.get_mut(LatencyMetric::ResponseTime, Outcome::Success);
            samples.record(f64::from(step % 3) * 0.5, 4);
            steps.push(&latest.changes_since(&earlier));
            assert_eq!(steps.unpack(), latest);
        }
        assert_eq!(steps.change_count(), 5);
        steps.merge_changes();
        assert_eq!((steps.change_count(), steps.unpack()), (0, latest));
    }

    #[test]
    fn a_bucket_takes_about_three_bytes() {
        let mut metrics = Metrics::default();
        for n in 0..1000 {
            metrics.schedule_lag.record(0.01 * 1.003_f64.powi(n), 300);
        }
        let size = PackedMetrics::of(&metrics).size();
        assert!((3000..3200).contains(&size), "{size}");
    }
}
