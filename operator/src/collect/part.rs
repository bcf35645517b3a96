//! What one runner has told so far, in little memory. Pure.

use loadtest_core::{
    metrics::{
        GeneratorMetrics, HistoryStep, Identity, Metrics, PackedSteps, RunnerMetrics,
        RunnerNumbers, RunnerState,
    },
    result::PackedRunner,
};

/// Number of steps after which they are added to what the runner told before them. Up to twice as many are kept.
const MAX_STEPS: usize = 4;

/// What one runner has told so far.
///
/// The sum over all runners is what matters. The part of one runner is needed when the runner is lost,
/// or when it was silent for longer than its history reaches back. Until then, it is packed.
#[derive(Clone, Debug, Default)]
pub(crate) struct RunnerPart {
    identity: Identity,
    state: RunnerState,
    /// Number of the last step.
    last_step: u64,
    /// Number of completed requests.
    requests: u64,
    /// The lags, and the numbers of the whole runner. Without tasks.
    generator: Metrics,
    /// Everything that the runner has told.
    steps: PackedSteps,
    /// True for a part that is not from answers, but from a result or a log.
    is_stored: bool,
}

impl RunnerPart {
    /// Creates the part of a runner from a result or a log.
    pub(crate) fn stored(runner: RunnerMetrics) -> Self {
        let mut part = Self { is_stored: true, ..Self::default() };
        part.add(&HistoryStep { number: 0, is_cumulative: true, runner });
        part
    }

    /// Returns the state of the runner.
    pub(crate) const fn state(&self) -> RunnerState {
        self.state
    }

    /// Returns the number of the last step; zero before the first one.
    pub(crate) const fn last_step(&self) -> u64 {
        self.last_step
    }

    /// Returns true for a part that is not from answers, but from a result or a log.
    pub(crate) const fn is_stored(&self) -> bool {
        self.is_stored
    }

    /// Returns the seconds of load at the last step.
    pub(crate) const fn elapsed(&self) -> f64 {
        self.generator.elapsed_seconds
    }

    /// Returns the numbers of the whole runner, such as its users and its elapsed time.
    pub(crate) fn numbers(&self) -> RunnerNumbers {
        RunnerNumbers::of(&self.generator)
    }

    /// Returns what the runner measured about itself as a load generator.
    pub(crate) fn generator(&self) -> GeneratorMetrics {
        GeneratorMetrics { requests: self.requests, ..self.generator.generator() }
    }

    /// Adds a step that continues the last one. Only the first one may be whole.
    pub(crate) fn add(&mut self, step: &HistoryStep) {
        let RunnerMetrics { identity, state, metrics } = &step.runner;
        self.identity.clone_from(identity);
        self.state = *state;
        self.last_step = step.number;
        self.requests = self.requests.saturating_add(metrics.completed_requests());
        self.generator.schedule_lag.merge(&metrics.schedule_lag);
        self.generator.event_loop_lag.merge(&metrics.event_loop_lag);
        self.generator.copy_runner_numbers(metrics);
        self.steps.push(metrics);
        // Runners with different indices do it at different times.
        let turn = usize::try_from(identity.index).unwrap_or_default() % MAX_STEPS;
        if step.is_cumulative || self.steps.change_count() > MAX_STEPS + turn {
            self.steps.merge_changes();
        }
    }

    /// Returns the number of bytes that the packed metrics take.
    pub(crate) fn size(&self) -> usize {
        self.steps.size()
    }

    /// Returns everything that the runner has told, packed.
    pub(crate) fn packed(&self) -> PackedRunner {
        let (identity, state) = (self.identity.clone(), self.state);
        PackedRunner { identity, state, metrics: self.steps.clone() }
    }

    /// Returns everything that the runner has told.
    pub(crate) fn snapshot(&self) -> RunnerMetrics {
        let (identity, state) = (self.identity.clone(), self.state);
        RunnerMetrics { identity, state, metrics: self.steps.unpack() }
    }
}
