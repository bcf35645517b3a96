//! When a threshold aborts the test: its critical bound has been met for long enough. Pure.

use super::{advice::advice_for, observation::judged_task};
use crate::{
    metrics::Metrics,
    resource::{Aborted, Threshold, ThresholdRow, Verdict},
    values::Duration,
};

/// Measures how long the critical bound of one threshold has been met without a break.
#[derive(Clone, Debug, Default)]
pub(super) struct AbortTimer {
    /// Since when, in seconds of the test.
    critical_since: Option<f64>,
}

impl AbortTimer {
    /// Starts again after a time without measurements.
    pub(super) fn reset(&mut self) {
        self.critical_since = None;
    }

    /// Takes the threshold's row at a time, in seconds of the test. Returns the abort when it is
    /// due.
    pub(super) fn observe(
        &mut self,
        threshold: &Threshold,
        row: &ThresholdRow,
        now: f64,
    ) -> Option<Aborted> {
        let is_critical = row.verdict == Verdict::Critical;
        let since = *self.critical_since.get_or_insert(now);
        self.critical_since = is_critical.then_some(since);
        let abort = threshold.abort.filter(|_| is_critical)?;
        let is_due = now >= abort.after.as_secs_f64() && now - since >= abort.lasting.as_secs_f64();
        is_due.then(|| Aborted {
            key: threshold.key(),
            observed: row.observed.clone().unwrap_or_default(),
            bound: row.bound,
            // Tenths of a second, as in the progress.
            elapsed: Duration::from_secs_f64((now * 10.0).floor() / 10.0),
            samples: row.samples,
        })
    }
}

/// Makes the row of the threshold that aborted the test Critical, whatever the last requests showed.
pub(super) fn apply_abort(
    row: &mut ThresholdRow,
    aborted: &Aborted,
    threshold: &Threshold,
    metrics: &Metrics,
) {
    row.verdict = Verdict::Critical.into();
    row.observed = Some(aborted.observed.clone());
    row.bound = aborted.bound;
    row.samples = aborted.samples;
    row.advice = Some(advice_for(threshold.metric, &judged_task(threshold, metrics)));
}
