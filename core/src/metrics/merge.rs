//! Sums and differences of metrics: of runners, of tasks, and of two points in time.
//!
//! Latencies are merged bucket by bucket, which is exact: a percentile of the merged histogram is
//! the percentile of all samples, within the width of a bucket. Percentiles are never averaged.

use super::{
    catalog::{COUNTERS, LABELLED, LAGS, LatencyMetric, Merge, RUNNER, Since},
    histogram::LatencyHistogram,
    run_metrics::Metrics,
    task::TaskMetrics,
};

/// A histogram with fewer buckets than this share of another is added to it bucket by bucket, which is
/// then faster than a pass over both.
const FEW_BUCKETS: usize = 8;

impl Metrics {
    /// Adds the metrics of another runner.
    pub fn merge(&mut self, other: &Self) {
        self.merge_samples(other);
        self.merge_runner_numbers(other);
    }

    /// Merges the numbers of the whole runner alone, such as users and elapsed time.
    pub fn merge_runner_numbers(&mut self, other: &Self) {
        for info in &RUNNER {
            let (mine, theirs) = ((info.field.get)(self), (info.field.get)(other));
            let merged = match info.merge {
                Merge::Sum => mine + theirs,
                Merge::Max => mine.max(theirs),
            };
            (info.field.set)(self, merged);
        }
    }

    /// Adds the metrics of another runner, and keeps its measurements as a load generator apart: one
    /// sick runner among many is invisible in the sum.
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
        difference
    }

    /// What was added since `earlier`, an older snapshot of the same runner, and the present values of
    /// the numbers of the whole runner. The inverse of [`Self::add_changes`].
    #[must_use]
    pub fn changes_since(&self, earlier: &Self) -> Self {
        let mut changes = self.since(earlier);
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
        copy
    }
}

impl TaskMetrics {
    /// A copy without labelled counts and without the latencies that `keep` refuses.
    #[must_use]
    pub fn with_latencies(&self, keep: impl Fn(LatencyMetric) -> bool) -> Self {
        let mut copy = Self { latencies: self.latencies.filtered(keep), ..Self::default() };
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
                let sum = counts.entry(value.clone()).or_default();
                *sum = sum.saturating_add(*count);
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

impl LatencyHistogram {
    /// Adds another distribution to this one.
    pub fn merge(&mut self, other: &Self) {
        let Self { buckets, zero, count, sum_seconds } = other;
        if self.buckets.is_empty() {
            self.buckets.clone_from(buckets);
        } else if buckets.len() * FEW_BUCKETS < self.buckets.len() {
            buckets.iter().for_each(|(bucket, n)| self.add_to_bucket(*bucket, *n));
        } else {
            self.buckets = merge_buckets(&self.buckets, buckets);
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
        let mut buckets = self.buckets.clone();
        buckets.retain_mut(|(bucket, n)| {
            while before.next_if(|(index, _)| index < bucket).is_some() {}
            if let Some((_, earlier)) = before.next_if(|(index, _)| index == bucket) {
                *n = n.saturating_sub(*earlier);
            }
            *n > 0
        });
        Self {
            buckets,
            zero: self.zero.saturating_sub(earlier.zero),
            count: self.count.saturating_sub(earlier.count),
            sum_seconds: (self.sum_seconds - earlier.sum_seconds).max(0.0),
        }
    }
}

/// Adds two ascending lists of buckets.
fn merge_buckets(mine: &[(i32, u64)], theirs: &[(i32, u64)]) -> Vec<(i32, u64)> {
    let mut merged = Vec::with_capacity(mine.len().max(theirs.len()));
    let mut theirs = theirs.iter().copied().peekable();
    for (bucket, n) in mine.iter().copied() {
        merged.extend(std::iter::from_fn(|| theirs.next_if(|(index, _)| *index < bucket)));
        let added = theirs.next_if(|(index, _)| *index == bucket).map_or(0, |(_, added)| added);
        merged.push((bucket, n.saturating_add(added)));
    }
    merged.extend(theirs);
    merged
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::metrics::{
        catalog::LATENCIES,
        task::{Latencies, Outcome, Tokens},
    };

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
