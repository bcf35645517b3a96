//! Sums and differences of metrics, by the tables of the catalogue.

use super::{
    catalog::{COUNTERS, LAGS, LatencyMetric, Merge, RUNNER, Since},
    run::Metrics,
    task::TaskMetrics,
};

impl Metrics {
    /// Adds the metrics of another runner.
    pub fn merge(&mut self, other: &Self) {
        for (name, task) in &other.tasks {
            self.tasks.entry(name.clone()).or_default().merge(task);
        }
        for lag in &LAGS {
            (lag.get_mut)(self).merge((lag.get)(other));
        }
        for info in &RUNNER {
            let (mine, theirs) = ((info.field.get)(self), (info.field.get)(other));
            let merged = match info.merge {
                Merge::Sum => mine + theirs,
                Merge::Max => mine.max(theirs),
            };
            (info.field.set)(self, merged);
        }
    }

    /// The metrics since `earlier`, an older snapshot of the same metrics. Users and memory keep
    /// their latest values.
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
        for info in &RUNNER {
            (info.field.set)(&mut copy, (info.field.get)(self));
        }
        copy
    }
}

impl TaskMetrics {
    /// A copy without errors and without the latencies that `keep` refuses.
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
        for (kind, count) in &other.errors {
            let sum = self.errors.entry(kind.clone()).or_default();
            *sum = sum.saturating_add(*count);
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
        for (kind, count) in &self.errors {
            let before = earlier.errors.get(kind).copied().unwrap_or(0);
            difference.errors.insert(kind.clone(), count.saturating_sub(before));
        }
        difference
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{
        catalog::LATENCIES,
        task::{Latencies, Outcome, Tokens},
    };

    /// Metrics in which no number is zero. Written without `..`, so that a new field shows here.
    fn filled() -> TaskMetrics {
        let mut latencies = Latencies::default();
        for info in &LATENCIES {
            for outcome in Outcome::ALL {
                latencies.get_mut(info.metric, outcome).record(0.1, 2);
            }
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
}
