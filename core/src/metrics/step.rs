//! A step of a runner's history. Pure.

use super::run_metrics::{Metrics, RunnerMetrics};

/// Maximum number of single steps in a history.
pub(super) const MAX_STEPS: usize = 250;

/// A part of a run of one runner.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HistoryStep {
    /// Number of the step. It grows by one from step to step.
    pub number: u64,
    /// True if the step is cumulative: it holds everything from the start of the runner to the end of the step. False if
    /// the step holds only what was added since the step before.
    pub is_cumulative: bool,
    /// The runner at the end of the step. Counts and samples are those of the step; the numbers of the
    /// whole runner, such as its elapsed time, are their values at the end.
    pub runner: RunnerMetrics,
}

impl HistoryStep {
    /// Extends this step by the next one.
    pub(super) fn extend(&mut self, next: Self) {
        let Self { number, is_cumulative: _, runner } = next;
        self.number = number;
        self.runner.identity = runner.identity;
        self.runner.state = runner.state;
        self.runner.metrics.add_changes(&runner.metrics);
    }
}

/// Puts steps together to the latest snapshot of a runner. `earlier` is the snapshot of a reader before
/// them; a whole step replaces it.
pub fn apply_steps(earlier: &mut Metrics, steps: &[HistoryStep]) {
    for step in steps {
        if step.is_cumulative {
            earlier.clone_from(&step.runner.metrics);
        } else {
            earlier.add_changes(&step.runner.metrics);
        }
    }
}
