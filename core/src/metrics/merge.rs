//! Sums and differences of metrics: of runners, of tasks, and of two points in time.
//!
//! Latencies are merged bucket by bucket, which is exact: a percentile of the merged histogram is
//! the percentile of all samples, within the width of a bucket. Percentiles are never averaged.

use std::collections::BTreeMap;

use super::{
    catalog::{COUNTERS, LABELLED, LAGS, LatencyMetric, Merge, RUNNER, Since},
    histogram::{Bucket, LatencyHistogram},
    run_metrics::{CpuTimes, Metrics},
    task::TaskMetrics,
};

impl Metrics {
    /// Adds the metrics of another runner.
    pub fn merge(&mut self, other: &Self) {
        self.merge_samples(other);
        for info in &RUNNER {
            let (mine, theirs) = ((info.field.get)(self), (info.field.get)(other));
            let merged = match info.merge {
                Merge::Sum => mine + theirs,
                Merge::Max => mine.max(theirs),
            };
            (info.field.set)(self, merged);
        }
    }

    /// Adds the metrics of another runner, and keeps its measurements as a load generator apart: the sum
    /// would hide one slow runner among many.
    pub fn merge_runner(&mut self, name: &str, other: &Self) {
        self.merge(other);
        self.runners.insert(name.to_owned(), other.generator());
    }

    /// The metrics since `earlier`, an older snapshot of the same metrics. Users and memory keep
    /// their latest values. Without the measurements of single runners.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let none = TaskMetrics::default();
        let mut difference = Self {
            tasks: self
                .tasks
                .iter()
                .map(|(name, task)| {
                    (name.clone(), task.since(earlier.tasks.get(name).unwrap_or(&none)))
                })
                .collect(),
            ..Self::default()
        };
        for lag in &LAGS {
            *(lag.get_mut)(&mut difference) = (lag.get)(self).since((lag.get)(earlier));
        }
        for info in &RUNNER {
            let (now, before) = ((info.field.get)(self), (info.field.get)(earlier));
            let value = match info.since {
                Since::Difference => (now - before).max(0.0),
                Since::Latest => now,
            };
            (info.field.set)(&mut difference, value);
        }
        if let Some(most) = self.most_cpu_times_since(earlier) {
            difference.busy_seconds = most.busy_seconds;
            difference.throttled_seconds = most.throttled_seconds;
        }
        difference
    }

    /// The largest CPU times that any runner took since `earlier`, by the times of each runner. `None` if one of the
    /// snapshots does not have them. The difference of the largest sums would be too small: it misses a runner that is held
    /// up after another one was held up for longer.
    fn most_cpu_times_since(&self, earlier: &Self) -> Option<CpuTimes> {
        let is_known = !earlier.cpu_times.is_empty() || earlier.elapsed_seconds <= 0.0;
        let changes = self.cpu_times.iter().map(|(index, now)| {
            let before = earlier.cpu_times.get(index).copied().unwrap_or_default();
            CpuTimes {
                busy_seconds: now.busy_seconds - before.busy_seconds,
                throttled_seconds: now.throttled_seconds - before.throttled_seconds,
            }
        });
        let most = changes.fold(CpuTimes::default(), |a, b| CpuTimes {
            busy_seconds: a.busy_seconds.max(b.busy_seconds),
            throttled_seconds: a.throttled_seconds.max(b.throttled_seconds),
        });
        (is_known && !self.cpu_times.is_empty()).then_some(most)
    }

    /// What was added since `earlier`, an older snapshot of the same runner, and the present values of
    /// the numbers of the whole runner. The inverse of [`Self::add_changes`].
    #[must_use]
    pub fn changes_since(&self, earlier: &Self) -> Self {
        let mut changes = self.since(earlier);
        changes.tasks.retain(|_, task| *task != TaskMetrics::default());
        changes.copy_runner_numbers(self);
        changes
    }

    /// Brings an older snapshot up to date with [`Self::changes_since`].
    pub fn add_changes(&mut self, changes: &Self) {
        self.merge_samples(changes);
        self.copy_runner_numbers(changes);
    }

    /// Adds the counts and the samples of other metrics, without the numbers of the whole runner.
    pub fn merge_samples(&mut self, other: &Self) {
        for (name, task) in &other.tasks {
            self.tasks.entry(name.clone()).or_default().merge(task);
        }
        for lag in &LAGS {
            (lag.get_mut)(self).merge((lag.get)(other));
        }
    }

    /// Replaces the numbers of the whole runner, such as its users and its elapsed time.
    pub fn copy_runner_numbers(&mut self, other: &Self) {
        for info in &RUNNER {
            (info.field.set)(self, (info.field.get)(other));
        }
    }

    /// A copy without the latencies that `keep` refuses. Long tests hold many snapshots, and
    /// latencies are nearly all of their size.
    #[must_use]
    pub fn with_latencies(&self, keep: impl Fn(LatencyMetric) -> bool) -> Self {
        let reduced =
            |(name, task): (&String, &TaskMetrics)| (name.clone(), task.with_latencies(&keep));
        let mut copy = Self { tasks: self.tasks.iter().map(reduced).collect(), ..Self::default() };
        for lag in &LAGS {
            (lag.get_mut)(&mut copy).clone_from((lag.get)(self));
        }
        copy.copy_runner_numbers(self);
        copy.cpu_times.clone_from(&self.cpu_times);
        copy
    }
}

/// The numbers of whole runners, such as users and elapsed time: of one runner, of several, or the change
/// from one time to another.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RunnerNumbers([f64; RUNNER.len()]);

impl RunnerNumbers {
    /// The numbers of these metrics.
    pub fn of(metrics: &Metrics) -> Self {
        Self(RUNNER.each_ref().map(|info| (info.field.get)(metrics)))
    }

    /// What [`Self::add`] must add to the numbers of several runners when one of them goes from `earlier`
    /// to these numbers.
    #[must_use]
    pub fn change_since(self, earlier: Self) -> Self {
        let mut change = self;
        for ((value, before), info) in change.0.iter_mut().zip(earlier.0).zip(&RUNNER) {
            if info.merge == Merge::Sum {
                *value -= before;
            }
        }
        change
    }

    /// Adds the numbers of another runner, or a change.
    pub fn add(&mut self, other: Self) {
        for ((sum, value), info) in self.0.iter_mut().zip(other.0).zip(&RUNNER) {
            *sum = match info.merge {
                Merge::Sum => *sum + value,
                Merge::Max => sum.max(value),
            };
        }
    }

    /// Replaces the numbers of metrics by these.
    pub fn write_to(self, metrics: &mut Metrics) {
        for (value, info) in self.0.into_iter().zip(&RUNNER) {
            (info.field.set)(metrics, value);
        }
    }
}

impl TaskMetrics {
    /// A copy without the latencies that `keep` refuses. Of the labelled counts, it has only the errors.
    #[must_use]
    pub fn with_latencies(&self, keep: impl Fn(LatencyMetric) -> bool) -> Self {
        let mut copy = Self { latencies: self.latencies.filtered(keep), ..Self::default() };
        copy.errors.clone_from(&self.errors);
        for counter in &COUNTERS {
            (counter.field.set)(&mut copy, (counter.field.get)(self));
        }
        copy
    }

    /// Adds the metrics of the same task on another runner, or of another task.
    pub fn merge(&mut self, other: &Self) {
        for counter in &COUNTERS {
            let sum = (counter.field.get)(self).saturating_add((counter.field.get)(other));
            (counter.field.set)(self, sum);
        }
        self.latencies.merge(&other.latencies);
        for info in &LABELLED {
            let counts = (info.get_mut)(self);
            for (value, count) in (info.get)(other) {
                add_labelled(counts, value, *count);
            }
        }
    }

    /// The metrics since `earlier`, an older snapshot of the same metrics.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut difference =
            Self { latencies: self.latencies.since(&earlier.latencies), ..Self::default() };
        for counter in &COUNTERS {
            let count = (counter.field.get)(self).saturating_sub((counter.field.get)(earlier));
            (counter.field.set)(&mut difference, count);
        }
        for info in &LABELLED {
            let before = (info.get)(earlier);
            for (value, count) in (info.get)(self) {
                let added = count.saturating_sub(before.get(value).copied().unwrap_or(0));
                if added > 0 {
                    (info.get_mut)(&mut difference).insert(value.clone(), added);
                }
            }
        }
        difference
    }
}

/// Maximum of values of one label that are told apart for one task. A runner has about thirty kinds
/// of errors, and one for each HTTP status and close code that a target sends. The rest is counted
/// as [`OTHER_VALUES`].
pub(super) const MAX_LABEL_VALUES: usize = 256;
/// The value that counts all values beyond [`MAX_LABEL_VALUES`].
pub(super) const OTHER_VALUES: &str = "other";

/// Adds a count with a label. Beyond [`MAX_LABEL_VALUES`], new values are counted together.
pub(super) fn add_labelled(counts: &mut BTreeMap<String, u64>, value: &str, count: u64) {
    if count == 0 {
        return;
    }
    let is_known = counts.len() < MAX_LABEL_VALUES || counts.contains_key(value);
    let value = if is_known { value } else { OTHER_VALUES };
    match counts.get_mut(value) {
        Some(sum) => *sum = sum.saturating_add(count),
        None => drop(counts.insert(value.to_owned(), count)),
    }
}

/// Returns the number of leading buckets with an index below the limit. It is small in most cases, so the first eight are
/// compared one by one.
fn count_below(buckets: &[Bucket], limit: i32) -> usize {
    const NEAR: usize = 8;
    let is_below = |bucket: &Bucket| bucket.index() < limit;
    let (near, far) = buckets.split_at(NEAR.min(buckets.len()));
    let count = near.iter().take_while(|bucket| is_below(bucket)).count();
    if count < near.len() { count } else { count + far.partition_point(is_below) }
}

impl LatencyHistogram {
    /// Adds ascending buckets. In a histogram of a long run, most of them exist.
    fn merge_buckets(&mut self, added: &[Bucket]) {
        let mut new = Vec::new();
        let mut rest = self.buckets.as_mut_slice();
        for bucket in added {
            let below = count_below(rest, bucket.index());
            rest = std::mem::take(&mut rest).split_at_mut(below).1;
            match rest.first_mut() {
                Some(first) if first.index() == bucket.index() => first.add(bucket.count()),
                _ => new.push(*bucket),
            }
        }
        self.insert_buckets(new);
    }

    /// Inserts ascending buckets that do not exist yet.
    fn insert_buckets(&mut self, new: Vec<Bucket>) {
        if new.is_empty() {
            return;
        }
        // Into new memory: to let the vector grow and then move its end would copy most buckets twice.
        let mut all = Vec::with_capacity(self.buckets.len() + new.len());
        let mut rest = self.buckets.as_slice();
        for bucket in new {
            let (before, after) = rest.split_at(count_below(rest, bucket.index()));
            all.extend_from_slice(before);
            all.push(bucket);
            rest = after;
        }
        all.extend_from_slice(rest);
        self.buckets = all;
    }

    /// Adds another distribution to this one.
    pub fn merge(&mut self, other: &Self) {
        let Self { buckets, zero, count, sum_seconds } = other;
        if self.buckets.is_empty() {
            self.buckets.clone_from(buckets);
        } else {
            self.merge_buckets(buckets);
        }
        // Counts come from runner pods, which are not trusted: saturate instead of overflowing.
        self.zero = self.zero.saturating_add(*zero);
        self.count = self.count.saturating_add(*count);
        self.sum_seconds += sum_seconds;
    }

    /// The samples since `earlier`, an older snapshot of the same distribution.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut before = earlier.buckets.iter().peekable();
        let added = self.buckets.iter().filter_map(|bucket| {
            let index = bucket.index();
            while before.next_if(|other| other.index() < index).is_some() {}
            let earlier = before.next_if(|other| other.index() == index).map_or(0, |b| b.count());
            (bucket.count() > earlier).then(|| Bucket::new(index, bucket.count() - earlier))
        });
        let buckets = added.collect();
        Self {
            buckets,
            zero: self.zero.saturating_sub(earlier.zero),
            count: self.count.saturating_sub(earlier.count),
            sum_seconds: (self.sum_seconds - earlier.sum_seconds).max(0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::metrics::{
        PackedMetrics,
        catalog::LATENCIES,
        task::{Latencies, Outcome, Tokens},
    };

    #[test]
    fn an_interval_has_the_runner_that_was_held_up_the_most_in_it() {
        let snapshot = |elapsed_seconds: f64, throttled: [f64; 2]| {
            let times = |(index, throttled_seconds)| {
                (index, CpuTimes { busy_seconds: elapsed_seconds / 4.0, throttled_seconds })
            };
            Metrics {
                elapsed_seconds,
                busy_seconds: elapsed_seconds / 4.0,
                throttled_seconds: throttled[0].max(throttled[1]),
                cpu_times: (0..).zip(throttled).map(times).collect(),
                ..Metrics::default()
            }
        };
        let (early, late) = (snapshot(60.0, [3.0, 0.0]), snapshot(70.0, [3.0, 2.0]));
        let window = late.since(&early);
        assert_eq!((window.throttled_seconds, window.busy_seconds), (2.0, 2.5));
        let packed = PackedMetrics::of(&late).unpack().since(&early);
        let whole = late.since(&Metrics::default());
        // A process that was restarted does not know the times of each runner.
        let unknown = Metrics { cpu_times: BTreeMap::new(), ..early };
        let restarted = late.since(&unknown);
        assert_eq!(
            (packed.throttled_seconds, whole.throttled_seconds, restarted.throttled_seconds),
            (2.0, 3.0, 0.0)
        );
    }

    /// Metrics without a zero. Written without `..`, so that a new field shows here.
    fn filled() -> TaskMetrics {
        let mut latencies = Latencies::default();
        for info in &LATENCIES {
            for outcome in Outcome::ALL {
                latencies.get_mut(info.metric, outcome).record(0.1, 2);
            }
            latencies.late_mut(info.metric).record(0.1, 1);
        }
        TaskMetrics {
            requests: [1, 2, 3, 4],
            latencies,
            tokens: Tokens { output: 5, reasoning: 6, tool: 7, prompt: 8 },
            messages_sent: 9,
            messages_received: 10,
            connections: 11,
            reconnects: 12,
            good: 13,
            dropped: 14,
            errors: [("connect".to_owned(), 15)].into(),
            sent_bytes: 16,
            received_bytes: 17,
            successes_in_load: 18,
            tokens_in_load: 19,
            resent: 20,
            tls_resumed: 21,
            statuses: [("200".to_owned(), 22)].into(),
            finish_reasons: [("stop".to_owned(), 23)].into(),
            websocket_closes: [("1011".to_owned(), 24)].into(),
            addresses: [("10.0.0.1:80".to_owned(), 24)].into(),
        }
    }

    #[test]
    fn merging_and_differences_leave_out_no_field() {
        let mut doubled = filled();
        doubled.merge(&filled());
        assert_eq!(doubled.since(&filled()), filled());
        let mut restored = TaskMetrics::default();
        restored.merge(&filled());
        assert_eq!(restored, filled());
    }

    fn histogram_of(samples: &[f64]) -> LatencyHistogram {
        let mut histogram = LatencyHistogram::default();
        for sample in samples {
            histogram.record(*sample, 1);
        }
        histogram
    }

    proptest! {
        #[test]
        fn merging_any_split_equals_the_whole(
            samples in prop::collection::vec(1e-5_f64..60.0, 1..400),
            parts in 1_usize..9,
        ) {
            let whole = histogram_of(&samples);
            let mut merged = LatencyHistogram::default();
            for part in 0..parts {
                let share: Vec<f64> = samples.iter().skip(part).step_by(parts).copied().collect();
                merged.merge(&histogram_of(&share));
            }
            prop_assert_eq!(&merged.buckets, &whole.buckets);
            prop_assert_eq!(merged.count, whole.count);
            prop_assert!((merged.sum_seconds - whole.sum_seconds).abs() < 1e-6);
        }

        #[test]
        fn since_returns_the_added_samples(
            before in prop::collection::vec(1e-5_f64..60.0, 0..100),
            after in prop::collection::vec(1e-5_f64..60.0, 0..100),
        ) {
            let (earlier, added) = (histogram_of(&before), histogram_of(&after));
            let mut later = earlier.clone();
            later.merge(&added);
            let found = later.since(&earlier);
            prop_assert_eq!((&found.buckets, found.count), (&added.buckets, added.count));
            prop_assert!((found.sum_seconds - added.sum_seconds).abs() < 1e-6);
        }
    }
}
