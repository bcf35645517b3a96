//! What one runner has told so far, in little memory. Pure.

use bytes::Bytes;
use loadtest_core::metrics::{
    ExpositionError, GeneratorMetrics, HistoryStep, Identity, Metrics, RunnerMetrics,
    RunnerNumbers, RunnerState, apply_steps, decode_steps, encode_step,
};

/// Number of answers after which they are put together to one.
const MAX_ANSWERS: usize = 40;
/// Size of the answers after the first one at which they are put together, in bytes, unless the first one is
/// larger.
const MAX_LATER_BYTES: usize = 256 << 10;

/// What one runner has told so far.
///
/// The sum over all runners is what matters. The part of one runner is needed when the runner is lost,
/// or when it was silent for longer than its history reaches back. Until then, its answers stay encoded.
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
    /// The answers, oldest first. The first one begins with a whole step.
    answers: Vec<Bytes>,
    /// True for a part that is not from answers, but from a result or a log.
    is_stored: bool,
}

impl RunnerPart {
    /// Creates the part of a runner from a result or a log.
    pub(crate) fn stored(runner: RunnerMetrics) -> Option<Self> {
        let step = HistoryStep { number: 0, is_whole: true, runner };
        let bytes = encode_step(step.clone(), None).ok()?;
        let mut part = Self { is_stored: true, ..Self::default() };
        part.add(&step);
        part.answers.push(bytes.into());
        Some(part)
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

    /// Adds a step that continues the last one.
    pub(crate) fn add(&mut self, step: &HistoryStep) {
        let RunnerMetrics { identity, state, metrics } = &step.runner;
        self.identity.clone_from(identity);
        self.state = *state;
        self.last_step = step.number;
        self.requests = self.requests.saturating_add(metrics.generator().requests);
        self.generator.schedule_lag.merge(&metrics.schedule_lag);
        self.generator.event_loop_lag.merge(&metrics.event_loop_lag);
        self.generator.copy_runner_numbers(metrics);
    }

    /// Keeps an encoded answer. Its steps are added with [`Self::add`].
    pub(crate) fn keep(&mut self, answer: Bytes) {
        self.answers.push(answer);
    }

    /// Puts the answers together if there are many. Runners with different indices do it at different
    /// times.
    pub(crate) fn compact_in_turn(&mut self, index: u32) {
        let first = self.answers.first().map_or(0, Bytes::len);
        let size: usize = self.answers.iter().map(Bytes::len).sum();
        let turn = usize::try_from(index).unwrap_or_default() % MAX_ANSWERS;
        let is_large = size > first + first.max(MAX_LATER_BYTES);
        if self.answers.len() > MAX_ANSWERS + turn || is_large {
            self.compact();
        }
    }

    /// Puts the answers together, and returns their size in bytes.
    pub(crate) fn compact(&mut self) -> usize {
        if self.answers.len() > 1
            && let Ok(runner) = self.snapshot()
            && let Ok(bytes) =
                encode_step(HistoryStep { number: self.last_step, is_whole: true, runner }, None)
        {
            self.answers = vec![bytes.into()];
        }
        self.answers.iter().map(Bytes::len).sum()
    }

    /// Returns everything that the runner has told.
    ///
    /// # Errors
    /// When an answer can't be decoded. All of them were decoded before.
    pub(crate) fn snapshot(&self) -> Result<RunnerMetrics, ExpositionError> {
        let mut metrics = Metrics::default();
        for answer in &self.answers {
            apply_steps(&mut metrics, &decode_steps(answer)?);
        }
        Ok(RunnerMetrics { identity: self.identity.clone(), state: self.state, metrics })
    }
}
