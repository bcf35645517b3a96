//! What one runner has told so far, in little memory. Pure.

use loadtest_core::metrics::{
    ExpositionError, GeneratorMetrics, HistoryStep, Identity, Metrics, RunnerMetrics, RunnerState,
    apply_steps, decode_steps, encode_steps,
};

/// Number of answers after which they are put together to one.
const MAX_ANSWERS: usize = 40;

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
    answers: Vec<bytes::Bytes>,
}

impl RunnerPart {
    /// Returns the state of the runner.
    pub(crate) const fn state(&self) -> RunnerState {
        self.state
    }

    /// Returns the number of the last step; zero before the first one.
    pub(crate) const fn last_step(&self) -> u64 {
        self.last_step
    }

    /// Returns the numbers of the whole runner, such as its users and its elapsed time.
    pub(crate) const fn numbers(&self) -> &Metrics {
        &self.generator
    }

    /// Returns what the runner measured about itself as a load generator.
    pub(crate) fn generator(&self) -> GeneratorMetrics {
        GeneratorMetrics { requests: self.requests, ..self.generator.generator() }
    }

    /// Returns the size of the encoded answers in bytes.
    pub(crate) fn size(&self) -> usize {
        self.answers.iter().map(bytes::Bytes::len).sum()
    }

    /// Adds a step that continues the last one.
    pub(crate) fn add(&mut self, step: &HistoryStep) {
        let RunnerMetrics { identity, state, metrics } = &step.runner;
        self.identity.clone_from(identity);
        self.state = *state;
        self.last_step = step.number;
        let requests = metrics.generator().requests;
        self.requests = self.requests.saturating_add(requests);
        self.generator.schedule_lag.merge(&metrics.schedule_lag);
        self.generator.event_loop_lag.merge(&metrics.event_loop_lag);
        self.generator.copy_runner_numbers(metrics);
    }

    /// Keeps an encoded answer. Its steps are added with [`Self::add`].
    pub(crate) fn keep(&mut self, answer: bytes::Bytes, is_whole: bool) {
        if is_whole {
            self.answers.clear();
        }
        self.answers.push(answer);
    }

    /// Puts the answers together if there are many.
    pub(crate) fn compact(&mut self) {
        if self.answers.len() <= MAX_ANSWERS {
            return;
        }
        let Ok(runner) = self.snapshot() else { return };
        let step = HistoryStep { number: self.last_step, is_whole: true, runner };
        if let Ok(bytes) = encode_steps(vec![step], None) {
            self.answers = vec![bytes.into()];
        }
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
