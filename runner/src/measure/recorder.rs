//! The measurements of one task on one load thread. The thread owns them: recording takes no lock
//! and sends nothing.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use loadtest_core::{
    metrics::{Connections, LatencyHistogram, Outcome, TaskNumbers, Tokens},
    plan::Goals,
};

use crate::{
    failure::{ErrorKind, Failure},
    measure::duration_histogram::{DurationHistogram, nanos_of},
};

/// Measurements of the requests with one outcome.
#[derive(Clone, Debug, Default)]
struct OutcomeSeries {
    requests: u64,
    response_time: DurationHistogram,
    service_time: DurationHistogram,
    first_response: Option<DurationHistogram>,
    websocket_connect: Option<DurationHistogram>,
}

/// The times of one request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestTimes {
    /// When the load model planned it.
    pub(crate) planned: Instant,
    /// When it was sent. `None` when it was never sent.
    pub(crate) sent: Option<Instant>,
    /// When the first byte of the response was read.
    pub(crate) first_byte: Option<Instant>,
    /// When the first content token was read; chat only.
    pub(crate) first_token: Option<Instant>,
    /// When the last byte was read, or when the request was given up.
    pub(crate) last: Instant,
    /// Time to connect and upgrade its WebSocket.
    pub(crate) connect: Option<Duration>,
}

/// The measurements of one task.
#[derive(Clone, Debug, Default)]
pub(crate) struct TaskRecorder {
    /// By outcome. Each series is boxed and made on first use, because most outcomes never happen.
    by_outcome: [Option<Box<OutcomeSeries>>; 4],
    first_byte: Option<DurationHistogram>,
    round_trip: Option<DurationHistogram>,
    /// WebSocket messages: sent, received.
    messages: (u64, u64),
    connections_opened: u64,
    reconnects: u64,
    /// Durations of the steps of opening a connection, in the order of `ConnectStep::ALL`.
    connect_steps: [Option<DurationHistogram>; 4],
    inter_token_latency: Option<DurationHistogram>,
    time_per_token: Option<DurationHistogram>,
    tokens: Tokens,
    good_requests: u64,
    dropped_arrivals: u64,
    /// By kind: the count and the message of the first failure.
    errors: BTreeMap<ErrorKind, (u64, String)>,
    sent_bytes: u64,
    received_bytes: u64,
}

impl RequestTimes {
    /// Returns true when a successful request met all goals of its task. `time_per_token` is the
    /// mean time between its tokens.
    pub(crate) fn meets_goals(&self, goals: &Goals, time_per_token: Option<Duration>) -> bool {
        let is_within =
            |goal: Option<loadtest_core::Duration>, from: Option<Instant>, to: Option<Instant>| {
                let took = from.zip(to).map(|(from, to)| to.saturating_duration_since(from));
                goal.is_none_or(|goal| took.is_none_or(|took| took <= goal.std()))
            };
        let Goals { response, service, first_byte, first, inter_token, connect } = *goals;
        is_within(response, Some(self.planned), Some(self.last))
            && is_within(service, self.sent, Some(self.last))
            && is_within(first_byte, self.sent, self.first_byte)
            && is_within(first, Some(self.planned), self.first_token)
            && inter_token.is_none_or(|goal| time_per_token.is_none_or(|each| each <= goal.std()))
            && connect.is_none_or(|goal| self.connect.is_none_or(|took| took <= goal.std()))
    }
}

/// A connection that was opened for a request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct OpenedConnection {
    /// True when it replaces a connection that had ended.
    pub(crate) is_reconnect: bool,
    /// Durations of its steps, in the order of `ConnectStep::ALL`. `None` for a step that was not
    /// needed.
    pub(crate) steps: [Option<Duration>; 4],
}

fn nanos_between(from: Instant, to: Instant) -> u64 {
    nanos_of(to.saturating_duration_since(from))
}

impl TaskRecorder {
    /// Records one request.
    pub(crate) fn record_request(&mut self, outcome: Outcome, times: &RequestTimes) {
        let RequestTimes { planned, sent, first_byte, first_token, last, connect } = *times;
        let series = self.by_outcome[outcome.index()].get_or_insert_default();
        series.requests += 1;
        series.response_time.record(nanos_between(planned, last));
        if let Some(sent) = sent {
            series.service_time.record(nanos_between(sent, last));
            // A fast error must not count as a fast first byte.
            if let Some(first_byte) = first_byte.filter(|_| outcome != Outcome::Failure) {
                self.first_byte.get_or_insert_default().record(nanos_between(sent, first_byte));
            }
        }
        if let Some(first_token) = first_token {
            let first_response = series.first_response.get_or_insert_default();
            first_response.record(nanos_between(planned, first_token));
        }
        if let Some(connect) = connect {
            series.websocket_connect.get_or_insert_default().record(nanos_of(connect));
        }
    }

    /// Records one failure. The first message of each kind is kept as an example.
    pub(crate) fn record_failure(&mut self, failure: Failure) {
        let entry = self.errors.entry(failure.kind).or_insert((0, String::new()));
        entry.0 += 1;
        if entry.1.is_empty() {
            entry.1 = failure.message;
        }
    }

    /// Records the time between two tokens.
    pub(crate) fn record_token_gap(&mut self, gap: Duration) {
        self.inter_token_latency.get_or_insert_default().record(nanos_of(gap));
    }

    /// Records the time from a WebSocket message to its last reply.
    pub(crate) fn record_round_trip(&mut self, time: Duration) {
        self.round_trip.get_or_insert_default().record(nanos_of(time));
    }

    /// Counts WebSocket messages.
    pub(crate) fn count_messages(&mut self, sent: u64, received: u64) {
        self.messages = (self.messages.0 + sent, self.messages.1 + received);
    }

    /// Records a connection that was opened.
    pub(crate) fn record_connection(&mut self, opened: &OpenedConnection) {
        let OpenedConnection { is_reconnect, steps } = opened;
        self.connections_opened += 1;
        self.reconnects += u64::from(*is_reconnect);
        for (histogram, took) in self.connect_steps.iter_mut().zip(steps) {
            if let Some(took) = took {
                histogram.get_or_insert_default().record(nanos_of(*took));
            }
        }
    }

    /// Records the tokens of a chat and, for a stream, the mean time of each token after the first.
    pub(crate) fn record_tokens(&mut self, tokens: &Tokens, time_per_token: Option<Duration>) {
        self.tokens.add(tokens);
        if let Some(time) = time_per_token {
            self.time_per_token.get_or_insert_default().record(nanos_of(time));
        }
    }

    /// Counts a request that met all goals of its task.
    pub(crate) fn count_good_request(&mut self) {
        self.good_requests += 1;
    }

    /// Counts an arrival that found no idle user.
    pub(crate) fn count_dropped_arrival(&mut self) {
        self.dropped_arrivals += 1;
    }

    /// Counts bytes.
    pub(crate) fn count_bytes(&mut self, sent: u64, received: u64) {
        self.sent_bytes += sent;
        self.received_bytes += received;
    }

    /// Converts the measurements to the metrics of the task.
    pub(crate) fn to_metrics(&self) -> TaskNumbers {
        let native = |histogram: &Option<DurationHistogram>| {
            histogram
                .as_ref()
                .map_or_else(LatencyHistogram::default, DurationHistogram::to_latency_histogram)
        };
        let mut metrics = TaskNumbers {
            first_byte: native(&self.first_byte),
            round_trip: native(&self.round_trip),
            messages_sent: self.messages.0,
            messages_received: self.messages.1,
            connections: Connections {
                opened: self.connections_opened,
                again: self.reconnects,
                steps: std::array::from_fn(|i| native(&self.connect_steps[i])),
            },
            inter_token: native(&self.inter_token_latency),
            token_time: native(&self.time_per_token),
            tokens: self.tokens,
            good: self.good_requests,
            dropped: self.dropped_arrivals,
            sent_bytes: self.sent_bytes,
            received_bytes: self.received_bytes,
            ..TaskNumbers::default()
        };
        for kind in ErrorKind::COMMON {
            metrics.errors.insert(kind.to_string(), 0);
        }
        for (kind, (count, _)) in &self.errors {
            metrics.errors.insert(kind.to_string(), *count);
        }
        for (i, series) in self.by_outcome.iter().enumerate() {
            let Some(series) = series else { continue };
            metrics.requests[i] = series.requests;
            metrics.response_time[i] = series.response_time.to_latency_histogram();
            metrics.service_time[i] = series.service_time.to_latency_histogram();
            metrics.first_response[i] = native(&series.first_response);
            metrics.web_socket_connect[i] = native(&series.websocket_connect);
        }
        metrics
    }

    /// Returns one message per kind of error.
    pub(crate) fn error_examples(&self) -> impl Iterator<Item = (ErrorKind, &str)> {
        self.errors.iter().map(|(kind, (_, example))| (*kind, example.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_is_counted_once_with_its_times() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut recorder = TaskRecorder::default();
        recorder.record_request(
            Outcome::Success,
            &RequestTimes {
                planned: start,
                sent: Some(at(10)),
                first_byte: Some(at(40)),
                first_token: Some(at(50)),
                last: at(110),
                connect: None,
            },
        );
        let metrics = recorder.to_metrics();
        assert_eq!(metrics.requests, [1, 0, 0, 0]);
        let secs = |h: &LatencyHistogram| h.sum_seconds();
        assert!((secs(&metrics.response_time[0]) - 0.110).abs() < 1e-9);
        assert!((secs(&metrics.service_time[0]) - 0.100).abs() < 1e-9);
        assert!((secs(&metrics.first_response[0]) - 0.050).abs() < 1e-9);
        assert_eq!(metrics.web_socket_connect[0].count(), 0);
    }
}
