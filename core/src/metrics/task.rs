//! The measurements of one task.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    catalog::{LATENCIES, LatencyInfo, LatencyMetric},
    histogram::LatencyHistogram,
};

/// How a request ended.
///
/// Latency rows take every outcome but [`Outcome::Failure`]: a fast error is not a fast response,
/// while a timeout or an interruption lasted at least its age. A first token that came before that
/// is a success in its own latency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// The response was as expected.
    Success,
    /// The request failed before its timeout.
    Failure,
    /// The response was not complete within the timeout.
    Timeout,
    /// The request was still in flight when the graceful stop ended.
    Interrupted,
}

impl Outcome {
    /// Every outcome, in the order of [`Self::index`].
    pub const ALL: [Self; 4] = [Self::Success, Self::Failure, Self::Timeout, Self::Interrupted];

    /// The value of the label `outcome`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Timeout => "timeout",
            Self::Interrupted => "interrupted",
        }
    }

    /// The outcome with a label's value.
    pub fn from_label(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == label)
    }

    /// The outcomes with a distribution of their own: one for all in latencies that don't tell
    /// outcomes apart.
    const fn of_latency(info: &LatencyInfo) -> &'static [Self] {
        if info.by_outcome { &Self::ALL } else { &[Self::Success] }
    }

    /// The outcome's place in an array with one element for each outcome.
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// The kind of error of a response that is larger than the load generator reads.
pub(crate) const SIZE_LIMIT: &str = "size_limit";

/// Tokens of chat requests, as the target's `usage` counts them. Without `usage` from the target, each
/// event of a stream counts as one token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    /// Tokens of content.
    pub output: u64,
    /// Tokens of reasoning before the content.
    pub reasoning: u64,
    /// Tokens of tool calls.
    pub tool: u64,
    /// Tokens of prompts; zero where the target does not report them.
    pub prompt: u64,
}

impl Tokens {
    /// Tokens that the target generated: all but those of prompts.
    pub const fn generated(&self) -> u64 {
        self.output + self.reasoning + self.tool
    }

    /// Adds the tokens of another request or runner.
    pub const fn add(&mut self, other: &Self) {
        let Self { output, reasoning, tool, prompt } = *other;
        self.output += output;
        self.reasoning += reasoning;
        self.tool += tool;
        self.prompt += prompt;
    }
}

/// Latency distributions of a task: one for each [`LatencyMetric`] and [`Outcome`].
///
/// Metrics that the catalogue does not keep by outcome have one distribution for all outcomes. Only those with
/// samples take memory.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(
    into = "BTreeMap<String, LatencyHistogram>",
    try_from = "BTreeMap<String, LatencyHistogram>"
)]
pub struct Latencies(BTreeMap<u8, LatencyHistogram>);

/// The distribution of a metric without samples.
static NO_SAMPLES: LatencyHistogram = LatencyHistogram::EMPTY;

impl Latencies {
    /// Distributions of a metric: one for each outcome, and the late samples.
    const KINDS: u8 = 5;

    fn key_of(metric: LatencyMetric, outcome: Outcome) -> u8 {
        let outcome = if metric.info().by_outcome { outcome } else { Outcome::Success };
        metric as u8 * Self::KINDS + outcome as u8
    }

    const fn late_key_of(metric: LatencyMetric) -> u8 {
        metric as u8 * Self::KINDS + Self::KINDS - 1
    }

    /// The distribution of a metric for one outcome.
    pub fn get(&self, metric: LatencyMetric, outcome: Outcome) -> &LatencyHistogram {
        self.0.get(&Self::key_of(metric, outcome)).unwrap_or(&NO_SAMPLES)
    }

    /// Borrows the distribution of a metric for one outcome to write it.
    pub fn get_mut(&mut self, metric: LatencyMetric, outcome: Outcome) -> &mut LatencyHistogram {
        self.0.entry(Self::key_of(metric, outcome)).or_default()
    }

    /// All distributions with samples. Each key stands for a metric and an outcome.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u8, &LatencyHistogram)> {
        let all = self.0.iter().map(|(key, samples)| (*key, samples));
        all.filter(|(_, samples)| **samples != NO_SAMPLES)
    }

    /// Latencies from what [`Self::iter`] returns.
    pub(super) fn of(all: impl Iterator<Item = (u8, LatencyHistogram)>) -> Self {
        Self(all.collect())
    }

    /// The samples of a metric that thresholds and the status use: those of every outcome but
    /// [`Outcome::Failure`], merged.
    pub fn samples(&self, metric: LatencyMetric) -> LatencyHistogram {
        let mut samples = self.get(metric, Outcome::Success).clone();
        if metric.info().by_outcome {
            for outcome in [Outcome::Timeout, Outcome::Interrupted] {
                samples.merge(self.get(metric, outcome));
            }
        }
        samples
    }

    /// The samples of a metric of requests that the load generator sent late; a part of
    /// [`Self::samples`].
    pub fn late(&self, metric: LatencyMetric) -> &LatencyHistogram {
        self.0.get(&Self::late_key_of(metric)).unwrap_or(&NO_SAMPLES)
    }

    /// Borrows the late samples of a metric to write them.
    pub fn late_mut(&mut self, metric: LatencyMetric) -> &mut LatencyHistogram {
        self.0.entry(Self::late_key_of(metric)).or_default()
    }

    /// The samples of a metric of requests that were sent on time.
    pub fn samples_on_time(&self, metric: LatencyMetric) -> LatencyHistogram {
        self.samples(metric).since(self.late(metric))
    }

    /// True when a metric has a sample of any outcome.
    pub fn has_samples(&self, metric: LatencyMetric) -> bool {
        Outcome::ALL.iter().any(|outcome| self.get(metric, *outcome).count() > 0)
    }

    /// A copy that holds the given metrics only.
    #[must_use]
    pub fn filtered(&self, keep: impl Fn(LatencyMetric) -> bool) -> Self {
        let kept = LATENCIES.iter().filter(|info| keep(info.metric)).map(|info| info.metric as u8);
        let kept: Vec<u8> = kept.collect();
        let all = self.iter().filter(|(key, _)| kept.contains(&(key / Self::KINDS)));
        Self::of(all.map(|(key, samples)| (key, samples.clone())))
    }

    /// Adds the samples of another runner.
    pub(super) fn merge(&mut self, other: &Self) {
        for (key, theirs) in other.iter() {
            self.0.entry(key).or_default().merge(theirs);
        }
    }

    /// The samples since `earlier`, an older snapshot of the same latencies.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        Self::of(
            self.iter().map(|(key, samples)| {
                (key, samples.since(earlier.0.get(&key).unwrap_or(&NO_SAMPLES)))
            }),
        )
    }
}

impl PartialEq for Latencies {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

/// Names a distribution in [`Latencies`] as a document holds it. `kind` is an outcome, or [`LATE`].
fn name_of(info: &LatencyInfo, kind: &str) -> String {
    let label = info.label.map_or("", |(_, value)| value);
    format!("{}/{label}/{kind}", info.family)
}

/// The last part of the key of late samples.
const LATE: &str = "late";

impl From<Latencies> for BTreeMap<String, LatencyHistogram> {
    fn from(latencies: Latencies) -> Self {
        let mut all = Self::new();
        for info in &LATENCIES {
            for outcome in Outcome::of_latency(info) {
                let samples = latencies.get(info.metric, *outcome).clone();
                all.insert(name_of(info, outcome.as_str()), samples);
            }
            all.insert(name_of(info, LATE), latencies.late(info.metric).clone());
        }
        all.retain(|_, samples| samples.count() > 0);
        all
    }
}

impl TryFrom<BTreeMap<String, LatencyHistogram>> for Latencies {
    type Error = String;

    fn try_from(mut all: BTreeMap<String, LatencyHistogram>) -> Result<Self, String> {
        let mut latencies = Self::default();
        for info in &LATENCIES {
            for outcome in Outcome::of_latency(info) {
                if let Some(samples) = all.remove(&name_of(info, outcome.as_str())) {
                    *latencies.get_mut(info.metric, *outcome) = samples;
                }
            }
            if let Some(samples) = all.remove(&name_of(info, LATE)) {
                *latencies.late_mut(info.metric) = samples;
            }
        }
        match all.first_key_value() {
            Some((unknown, _)) => Err(format!("unknown latency {unknown}")),
            None => Ok(latencies),
        }
    }
}

/// The metrics of one task. All numbers are cumulative.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskMetrics {
    /// Requests by outcome, in the order of [`Outcome::ALL`].
    pub requests: [u64; 4],
    /// Latency distributions.
    pub latencies: Latencies,
    /// Tokens of chat requests.
    pub tokens: Tokens,
    /// WebSocket messages sent.
    pub messages_sent: u64,
    /// WebSocket messages received, awaited or not.
    pub messages_received: u64,
    /// Connections opened.
    pub connections: u64,
    /// Connections opened to replace one that the target or a failure had ended.
    pub reconnects: u64,
    /// Successful requests that met every latency target of their task.
    pub good: u64,
    /// Arrivals that were not sent: no idle user, or too late. No other number here
    /// includes them.
    pub dropped: u64,
    /// Successful requests that ended while load was on: the base of throughput.
    pub successes_in_load: u64,
    /// Generated tokens that came while load was on, of successful requests: the base of token
    /// rates.
    pub tokens_in_load: u64,
    /// Requests that were sent again, because a kept connection had ended or the target had refused the HTTP/2 stream.
    pub resent: u64,
    /// TLS connections that resumed an earlier session, which makes the handshake shorter.
    pub tls_resumed: u64,
    /// Errors by kind.
    pub errors: BTreeMap<String, u64>,
    /// Responses by status.
    pub statuses: BTreeMap<String, u64>,
    /// Successful chat responses by finish reason.
    pub finish_reasons: BTreeMap<String, u64>,
    /// WebSocket sessions that the target ended, by close code.
    pub websocket_closes: BTreeMap<String, u64>,
    /// Requests by the address that they were sent to.
    pub addresses: BTreeMap<String, u64>,
    /// Bytes written to sockets.
    pub sent_bytes: u64,
    /// Bytes read from sockets.
    pub received_bytes: u64,
}

impl TaskMetrics {
    /// Requests with one outcome.
    pub fn requests_with(&self, outcome: Outcome) -> u64 {
        self.requests[outcome.index()]
    }

    /// Requests that failed or timed out.
    pub fn failed_requests(&self) -> u64 {
        self.requests_with(Outcome::Failure) + self.requests_with(Outcome::Timeout)
    }

    /// Requests that ended by themselves: successes, failures and timeouts.
    pub fn completed_requests(&self) -> u64 {
        self.requests_with(Outcome::Success) + self.failed_requests()
    }

    /// Requests that the load model offered: completed requests and dropped arrivals.
    pub fn offered_requests(&self) -> u64 {
        self.completed_requests() + self.dropped
    }

    /// Requests that failed because their response is larger than the load generator reads.
    pub fn too_large(&self) -> u64 {
        self.errors.get(SIZE_LIMIT).copied().unwrap_or(0)
    }

    /// Errors of the target, and dropped arrivals: a response that is too large for the load generator
    /// is neither an error nor a success.
    pub fn errors_and_dropped(&self) -> u64 {
        self.failed_or_dropped().saturating_sub(self.too_large())
    }

    /// Offered requests, without responses that are too large for the load generator.
    pub fn judged_requests(&self) -> u64 {
        self.offered_requests().saturating_sub(self.too_large())
    }

    /// Failed requests and dropped arrivals.
    pub fn failed_or_dropped(&self) -> u64 {
        self.failed_requests() + self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_survive_a_document() {
        let mut latencies = Latencies::default();
        for (n, info) in (1..).zip(&LATENCIES) {
            for outcome in Outcome::of_latency(info) {
                latencies.get_mut(info.metric, *outcome).record(0.5, n + *outcome as u64);
            }
            latencies.late_mut(info.metric).record(0.5, n);
        }
        let text = serde_json::to_string(&latencies).unwrap();
        assert_eq!(serde_json::from_str::<Latencies>(&text).unwrap(), latencies);
        let unknown = text.replacen("/success", "/succes", 1);
        let error = serde_json::from_str::<Latencies>(&unknown).unwrap_err().to_string();
        assert!(error.contains("unknown latency"), "{error}");
    }

    #[test]
    fn failures_are_not_latency_samples() {
        let mut latencies = Latencies::default();
        for metric in [LatencyMetric::ResponseTime, LatencyMetric::InterTokenLatency] {
            for outcome in Outcome::ALL {
                latencies.get_mut(metric, outcome).record(0.1, 2);
            }
        }
        // Four outcomes of two samples each, without those of failures.
        assert_eq!(latencies.samples(LatencyMetric::ResponseTime).count(), 6);
        // One distribution for all outcomes.
        assert_eq!(latencies.samples(LatencyMetric::InterTokenLatency).count(), 8);
    }
}
