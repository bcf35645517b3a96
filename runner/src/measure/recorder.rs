//! What one worker measured. Owned by its thread: no lock, no channel per request.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use loadtest_core::{
    metrics::{Connections, LatencyHistogram, Outcome, TaskNumbers, Tokens},
    plan::Goals,
};

use crate::failure::{ErrorKind, Failure};

/// Latencies in nanoseconds, three significant digits.
#[derive(Clone, Debug)]
pub(crate) struct Distribution {
    counts: Histogram<u32>,
    sum_nanos: u128,
}

impl Default for Distribution {
    fn default() -> Self {
        // Three digits are within what the crate takes; it grows with the largest value.
        #[expect(clippy::expect_used, reason = "a constant the crate documents as valid")]
        let counts = Histogram::new(3).expect("three digits are valid");
        Self { counts, sum_nanos: 0 }
    }
}

impl Distribution {
    pub(crate) fn record(&mut self, nanos: u64) {
        // Auto-resizing histograms refuse no value.
        if self.counts.record(nanos).is_ok() {
            self.sum_nanos += u128::from(nanos);
        }
    }

    /// The same samples in native buckets, by the middle of each of ours.
    ///
    /// Lets others on its core go first: a scheduler takes a thread off in the midst of its slice
    /// of some milliseconds for nobody, not even for a load thread.
    pub(crate) fn to_native(&self) -> LatencyHistogram {
        std::thread::yield_now();
        let mut native = LatencyHistogram::default();
        for step in self.counts.iter_recorded() {
            let middle = self.counts.median_equivalent(step.value_iterated_to());
            native.record(middle as f64 / 1e9, u64::from(step.count_at_value()));
        }
        native.set_sum(self.sum_nanos as f64 / 1e9);
        native
    }
}

/// Requests of one task that ended in one way.
#[derive(Clone, Debug, Default)]
struct Series {
    requests: u64,
    response: Distribution,
    service: Distribution,
    first: Option<Distribution>,
    connect: Option<Distribution>,
}

/// The moments of one request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// When the load model wanted it.
    pub(crate) planned: Instant,
    /// When it was sent; absent when it never was.
    pub(crate) sent: Option<Instant>,
    /// When the first byte of its answer was read.
    pub(crate) first_byte: Option<Instant>,
    /// When its first content token was read.
    pub(crate) first: Option<Instant>,
    /// When its last byte was read, or when it was given up.
    pub(crate) last: Instant,
    /// How long its WebSocket took to be upgraded.
    pub(crate) connect: Option<std::time::Duration>,
}

/// One task's numbers.
#[derive(Clone, Debug, Default)]
pub(crate) struct TaskRecorder {
    /// Boxed and made on first use: most outcomes never happen.
    series: [Option<Box<Series>>; 4],
    first_byte: Option<Distribution>,
    round_trip: Option<Distribution>,
    messages: (u64, u64),
    opened: u64,
    again: u64,
    /// What opening connections took, step by step.
    steps: [Option<Distribution>; 4],
    inter_token: Option<Distribution>,
    token_time: Option<Distribution>,
    tokens: Tokens,
    good: u64,
    dropped: u64,
    errors: BTreeMap<ErrorKind, (u64, String)>,
    sent_bytes: u64,
    received_bytes: u64,
}

impl Sample {
    /// True when a request that succeeded met all goals of its task. `each` is the mean time
    /// between its tokens.
    pub(crate) fn meets(&self, goals: &Goals, each: Option<Duration>) -> bool {
        let within =
            |goal: Option<loadtest_core::Duration>, from: Option<Instant>, to: Option<Instant>| {
                let took = from.zip(to).map(|(from, to)| to.saturating_duration_since(from));
                goal.is_none_or(|goal| took.is_none_or(|took| took <= goal.std()))
            };
        let Goals { response, service, first_byte, first, inter_token, connect } = *goals;
        within(response, Some(self.planned), Some(self.last))
            && within(service, self.sent, Some(self.last))
            && within(first_byte, self.sent, self.first_byte)
            && within(first, Some(self.planned), self.first)
            && inter_token.is_none_or(|goal| each.is_none_or(|each| each <= goal.std()))
            && connect.is_none_or(|goal| self.connect.is_none_or(|took| took <= goal.std()))
    }
}

/// A connection that was opened for a request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Opened {
    /// In place of one that had ended.
    pub(crate) again: bool,
    /// What its steps took, in the order of `ConnectStep::ALL`; absent what was not needed.
    pub(crate) steps: [Option<Duration>; 4],
}

fn nanos(from: Instant, to: Instant) -> u64 {
    nanos_of(to.saturating_duration_since(from))
}

fn nanos_of(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl TaskRecorder {
    /// Counts one request.
    pub(crate) fn record(&mut self, outcome: Outcome, sample: &Sample) {
        let Sample { planned, sent, first_byte, first, last, connect } = *sample;
        let series = self.series[outcome.index()].get_or_insert_default();
        series.requests += 1;
        series.response.record(nanos(planned, last));
        if let Some(sent) = sent {
            series.service.record(nanos(sent, last));
            // A fast error is no fast answer.
            if let Some(first_byte) = first_byte.filter(|_| outcome != Outcome::Failure) {
                self.first_byte.get_or_insert_default().record(nanos(sent, first_byte));
            }
        }
        if let Some(first) = first {
            series.first.get_or_insert_default().record(nanos(planned, first));
        }
        if let Some(connect) = connect {
            series.connect.get_or_insert_default().record(nanos_of(connect));
        }
    }

    /// Counts one error; the first message of a kind is kept as its example.
    pub(crate) fn fail(&mut self, failure: Failure) {
        let entry = self.errors.entry(failure.kind).or_insert((0, String::new()));
        entry.0 += 1;
        if entry.1.is_empty() {
            entry.1 = failure.message;
        }
    }

    /// Records the time between two tokens.
    pub(crate) fn token_gap(&mut self, gap: Duration) {
        self.inter_token.get_or_insert_default().record(nanos_of(gap));
    }

    /// Records the time from a WebSocket message to the last reply it awaits.
    pub(crate) fn round_trip(&mut self, time: Duration) {
        self.round_trip.get_or_insert_default().record(nanos_of(time));
    }

    /// Counts WebSocket messages.
    pub(crate) fn messages(&mut self, sent: u64, received: u64) {
        self.messages = (self.messages.0 + sent, self.messages.1 + received);
    }

    /// Counts a connection that was opened.
    pub(crate) fn opened(&mut self, opened: &Opened) {
        let Opened { again, steps } = opened;
        self.opened += 1;
        self.again += u64::from(*again);
        for (all, took) in self.steps.iter_mut().zip(steps) {
            if let Some(took) = took {
                all.get_or_insert_default().record(nanos_of(*took));
            }
        }
    }

    /// Counts a chat's tokens and, of a stream, the time of each after the first.
    pub(crate) fn tokens(&mut self, tokens: &Tokens, each: Option<Duration>) {
        self.tokens.add(tokens);
        if let Some(each) = each {
            self.token_time.get_or_insert_default().record(nanos_of(each));
        }
    }

    /// Counts a request that met all goals of its task.
    pub(crate) fn good(&mut self) {
        self.good += 1;
    }

    /// Counts an arrival that found no user free.
    pub(crate) fn drop_arrival(&mut self) {
        self.dropped += 1;
    }

    /// Counts bytes.
    pub(crate) fn bytes(&mut self, sent: u64, received: u64) {
        self.sent_bytes += sent;
        self.received_bytes += received;
    }

    /// The numbers in the form they are exposed in.
    pub(crate) fn numbers(&self) -> TaskNumbers {
        let native = |d: &Option<Distribution>| {
            d.as_ref().map_or_else(LatencyHistogram::default, Distribution::to_native)
        };
        let mut numbers = TaskNumbers {
            first_byte: native(&self.first_byte),
            round_trip: native(&self.round_trip),
            messages_sent: self.messages.0,
            messages_received: self.messages.1,
            connections: Connections {
                opened: self.opened,
                again: self.again,
                steps: std::array::from_fn(|i| native(&self.steps[i])),
            },
            inter_token: native(&self.inter_token),
            token_time: native(&self.token_time),
            tokens: self.tokens,
            good: self.good,
            dropped: self.dropped,
            sent_bytes: self.sent_bytes,
            received_bytes: self.received_bytes,
            ..TaskNumbers::default()
        };
        for kind in ErrorKind::COMMON {
            numbers.errors.insert(kind.to_string(), 0);
        }
        for (kind, (count, _)) in &self.errors {
            numbers.errors.insert(kind.to_string(), *count);
        }
        for (i, series) in self.series.iter().enumerate() {
            let Some(series) = series else { continue };
            numbers.requests[i] = series.requests;
            numbers.response_time[i] = series.response.to_native();
            numbers.service_time[i] = series.service.to_native();
            numbers.first_response[i] = native(&series.first);
            numbers.web_socket_connect[i] = native(&series.connect);
        }
        numbers
    }

    /// One message per kind of error.
    pub(crate) fn examples(&self) -> impl Iterator<Item = (ErrorKind, &str)> {
        self.errors.iter().map(|(kind, (_, example))| (*kind, example.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The promise of the status: within 0.2 % of the exact quantile, both roundings included.
        #[test]
        fn quantiles_survive_both_roundings(
            samples in prop::collection::vec(10_000_u64..60_000_000_000, 1..300),
            p in 0.0_f64..=1.0,
        ) {
            let mut distribution = Distribution::default();
            samples.iter().for_each(|nanos| distribution.record(*nanos));
            let mut sorted = samples.clone();
            sorted.sort_unstable();
            // The smallest sample with a share of at least p at or below it.
            let at_or_below = |i: usize| (i + 1) as f64 >= p * sorted.len() as f64;
            let exact = sorted[(0..sorted.len()).find(|i| at_or_below(*i)).unwrap()] as f64 / 1e9;
            let found = distribution.to_native().quantile(p).unwrap().as_secs_f64();
            prop_assert!((found / exact - 1.0).abs() <= 0.002, "{found} for {exact}");
        }
    }

    #[test]
    fn each_request_is_counted_once_with_its_moments() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut recorder = TaskRecorder::default();
        recorder.record(
            Outcome::Success,
            &Sample {
                planned: start,
                sent: Some(at(10)),
                first_byte: Some(at(40)),
                first: Some(at(50)),
                last: at(110),
                connect: None,
            },
        );
        let numbers = recorder.numbers();
        assert_eq!(numbers.requests, [1, 0, 0, 0]);
        let secs = |h: &LatencyHistogram| h.sum_seconds();
        assert!((secs(&numbers.response_time[0]) - 0.110).abs() < 1e-9);
        assert!((secs(&numbers.service_time[0]) - 0.100).abs() < 1e-9);
        assert!((secs(&numbers.first_response[0]) - 0.050).abs() < 1e-9);
        assert_eq!(numbers.web_socket_connect[0].count(), 0);
    }
}
