//! The measurements of one task on one load thread. The thread owns them: recording takes no lock
//! and sends nothing.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use loadtest_core::{
    metrics::{LatencyMetric, Outcome, TaskMetrics, Tokens, catalog::LATENCIES},
    plan::LatencyTargets,
};

use crate::{
    failure::{ErrorKind, Failure},
    measure::duration_histogram::{DurationHistogram, nanos_of},
    net::connector::ConnectSteps,
    protocol::chat::{ChatResponse, FinishReason},
};

/// The weight of the latest request in the usual duration.
const USUAL_WEIGHT: f64 = 1.0 / 16.0;

/// Maximum number of addresses that are told apart.
const MAX_ADDRESSES: usize = 128;

/// The latencies that every request has, as far as it got.
const REQUEST_LATENCIES: [LatencyMetric; 6] = [
    LatencyMetric::ResponseTime,
    LatencyMetric::ServiceTime,
    LatencyMetric::TimeToFirstByte,
    LatencyMetric::TimeToFirstToken,
    LatencyMetric::TimeToFirstResponse,
    LatencyMetric::WebSocketConnect,
];

/// The times of one request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestTimes {
    /// When the load model planned it.
    pub(crate) planned: Instant,
    /// When it was sent. `None` when it was never sent.
    pub(crate) sent: Option<Instant>,
    /// When the first byte of the response was read.
    pub(crate) first_byte: Option<Instant>,
    /// When the first token of any kind was read; chat only.
    pub(crate) first_token: Option<Instant>,
    /// When the first token of content was read; chat only.
    pub(crate) first_content: Option<Instant>,
    /// When the last byte was read, or when the request was given up.
    pub(crate) last: Instant,
    /// When the connection of its WebSocket began, and when it was upgraded.
    pub(crate) connect: Option<(Instant, Option<Instant>)>,
    /// Which events the request has.
    pub(crate) events: RequestEvents,
    /// True when the load generator began the request late.
    pub(crate) is_late: bool,
}

/// Which events a request of a kind of task has, besides being sent and ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestEvents {
    /// The first byte of a response; not of a WebSocket.
    pub(crate) first_byte: bool,
    /// The first token, and the first token of content.
    pub(crate) tokens: bool,
}

/// The traffic of a transport since the last count. Each pair is (sent, received).
#[derive(Clone, Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) bytes: (u64, u64),
    /// WebSocket messages.
    pub(crate) messages: (u64, u64),
    /// The close codes of WebSocket sessions that the target ended.
    pub(crate) closes: Vec<u16>,
}

/// The measurements of one task.
#[derive(Clone, Debug, Default)]
pub(crate) struct TaskRecorder {
    /// Requests by outcome.
    requests: [u64; 4],
    /// By metric and, where the catalogue keeps it, by outcome. Each histogram is boxed and made on
    /// first use, because a task has few of them.
    latencies: [[Option<Box<DurationHistogram>>; 4]; LatencyMetric::COUNT],
    /// Samples of requests that were sent late, by metric.
    late: [Option<Box<DurationHistogram>>; LatencyMetric::COUNT],
    /// WebSocket messages: sent, received.
    messages: (u64, u64),
    connections: u64,
    reconnects: u64,
    tokens: Tokens,
    good_requests: u64,
    dropped_arrivals: u64,
    /// By kind: the count and the message of the first failure.
    errors: BTreeMap<ErrorKind, (u64, String)>,
    /// Moving average of the service times of successful requests, in seconds.
    usual_seconds: f64,
    successes_in_load: u64,
    tokens_in_load: u64,
    resent: u64,
    tls_resumed: u64,
    statuses: BTreeMap<u16, u64>,
    /// By reason; `None` for responses without one.
    finish_reasons: BTreeMap<Option<FinishReason>, u64>,
    addresses: BTreeMap<SocketAddr, u64>,
    /// By close code.
    websocket_closes: BTreeMap<u16, u64>,
    sent_bytes: u64,
    received_bytes: u64,
}

impl RequestTimes {
    /// A latency of the request; `None` when the request did not get so far.
    fn latency(&self, metric: LatencyMetric) -> Option<Duration> {
        let (began, ended) = self.span(metric)?;
        Some(ended?.saturating_duration_since(began))
    }

    /// Returns when the part of the request that a latency measures began, and when it ended if it
    /// has.
    fn span(&self, metric: LatencyMetric) -> Option<(Instant, Option<Instant>)> {
        let RequestEvents { first_byte, tokens } = self.events;
        match metric {
            LatencyMetric::ResponseTime => Some((self.planned, Some(self.last))),
            LatencyMetric::ServiceTime => Some((self.sent?, Some(self.last))),
            LatencyMetric::TimeToFirstByte if first_byte => Some((self.sent?, self.first_byte)),
            LatencyMetric::TimeToFirstToken if tokens => Some((self.planned, self.first_token)),
            LatencyMetric::TimeToFirstResponse if tokens => {
                Some((self.planned, self.first_content))
            }
            LatencyMetric::WebSocketConnect => self.connect,
            _ => None,
        }
    }

    /// Returns true when a successful request met all latency targets of its task.
    /// `time_per_token` is the mean time between its tokens.
    pub(crate) fn meets_targets(
        &self,
        targets: &LatencyTargets,
        time_per_token: Option<Duration>,
    ) -> bool {
        LATENCIES.iter().all(|info| {
            let Some(target) = targets.get(info.metric) else { return true };
            let took = match info.metric {
                LatencyMetric::InterTokenLatency | LatencyMetric::TimePerOutputToken => {
                    time_per_token
                }
                metric => self.latency(metric),
            };
            match took {
                Some(took) => took <= target.to_std(),
                // A single token has no gap, and tool calls alone have no content. A response
                // without any token keeps its user waiting for one.
                None => match info.metric {
                    LatencyMetric::TimeToFirstToken | LatencyMetric::TimeToFirstResponse => {
                        self.first_token.is_some()
                    }
                    _ => true,
                },
            }
        })
    }
}

/// A connection that was opened for a request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct OpenedConnection {
    /// True when it replaces a connection that had ended.
    pub(crate) is_reconnect: bool,
    /// Durations of its steps.
    pub(crate) steps: ConnectSteps,
}

impl TaskRecorder {
    /// Adds a sample of a latency.
    fn record_latency(&mut self, metric: LatencyMetric, outcome: Outcome, time: Duration) {
        let slot = if metric.info().by_outcome { outcome.index() } else { 0 };
        self.latencies[metric as usize][slot].get_or_insert_default().record(nanos_of(time));
    }

    /// Records one request. `load_end` is the end of the load.
    pub(crate) fn record_request(
        &mut self,
        outcome: Outcome,
        times: &RequestTimes,
        load_end: Instant,
    ) {
        self.requests[outcome.index()] += 1;
        if outcome == Outcome::Success {
            self.successes_in_load += u64::from(times.last <= load_end);
            if let Some(took) = times.latency(LatencyMetric::ServiceTime) {
                let latest = took.as_secs_f64();
                let weight = if self.usual_seconds > 0.0 { USUAL_WEIGHT } else { 1.0 };
                self.usual_seconds += weight * (latest - self.usual_seconds);
            }
        }
        let is_given_up = matches!(outcome, Outcome::Timeout | Outcome::Interrupted);
        for metric in REQUEST_LATENCIES {
            let Some((began, ended)) = times.span(metric) else { continue };
            let is_whole =
                matches!(metric, LatencyMetric::ResponseTime | LatencyMetric::ServiceTime);
            let (outcome, ended) = match ended {
                // A part that ended before the request was given up has its exact time.
                Some(ended) if is_given_up && !is_whole => (Outcome::Success, ended),
                Some(ended) => (outcome, ended),
                None if is_given_up => (outcome, times.last),
                None => continue,
            };
            let time = ended.saturating_duration_since(began);
            self.record_latency(metric, outcome, time);
            if times.is_late && outcome != Outcome::Failure {
                let late = self.late[metric as usize].get_or_insert_default();
                late.record(nanos_of(time));
            }
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

    /// Returns how long a successful request usually takes; `None` before the first success.
    pub(crate) fn usual_duration(&self) -> Option<Duration> {
        (self.usual_seconds > 0.0).then(|| Duration::from_secs_f64(self.usual_seconds))
    }

    /// Counts a response by its status, and how often its request was sent again.
    pub(crate) fn count_response(&mut self, status: Option<u16>, resends: u32) {
        if let Some(status) = status {
            *self.statuses.entry(status).or_default() += 1;
        }
        self.resent += u64::from(resends);
    }

    /// Counts a request by the address that it was sent to.
    pub(crate) fn count_address(&mut self, address: SocketAddr) {
        if self.addresses.len() < MAX_ADDRESSES || self.addresses.contains_key(&address) {
            *self.addresses.entry(address).or_default() += 1;
        }
    }

    /// Records the time from a WebSocket message to its last reply, or how long the replies were
    /// awaited when `outcome` ended the wait.
    pub(crate) fn record_round_trip(&mut self, outcome: Outcome, time: Duration) {
        self.record_latency(LatencyMetric::WebSocketRoundTrip, outcome, time);
    }

    /// Counts bytes, messages and closes.
    pub(crate) fn count_traffic(&mut self, traffic: &Traffic) {
        let Traffic { bytes, messages, closes } = traffic;
        self.sent_bytes += bytes.0;
        self.received_bytes += bytes.1;
        self.messages = (self.messages.0 + messages.0, self.messages.1 + messages.1);
        for code in closes {
            *self.websocket_closes.entry(*code).or_default() += 1;
        }
    }

    /// Records a connection that was opened.
    pub(crate) fn record_connection(&mut self, opened: &OpenedConnection) {
        let OpenedConnection { is_reconnect, steps } = *opened;
        let ConnectSteps { dns, tcp, tls, upgrade, is_tls_resumed } = steps;
        self.connections += 1;
        self.tls_resumed += u64::from(is_tls_resumed);
        self.reconnects += u64::from(is_reconnect);
        for (metric, time) in [
            (LatencyMetric::ConnectDns, dns),
            (LatencyMetric::ConnectTcp, tcp),
            (LatencyMetric::ConnectTls, tls),
            (LatencyMetric::ConnectUpgrade, upgrade),
        ] {
            if let Some(time) = time {
                self.record_latency(metric, Outcome::Success, time);
            }
        }
    }

    /// Records the tokens of a successful chat that ended at `ended`, and the times between them.
    pub(crate) fn record_chat(
        &mut self,
        response: &ChatResponse,
        ended: Instant,
        load_end: Instant,
    ) {
        let share = response.token_times.share_until(load_end, ended);
        self.tokens.add(&response.tokens);
        *self.finish_reasons.entry(response.finish_reason).or_default() += 1;
        let generated = response.tokens.generated();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a count"
        )]
        let in_load = (generated as f64 * share).round() as u64;
        self.tokens_in_load += in_load;
        if let Some(time) = response.token_times.mean_gap() {
            self.record_latency(LatencyMetric::TimePerOutputToken, Outcome::Success, time);
        }
        if response.token_times.has_gaps() {
            let gaps = &mut self.latencies[LatencyMetric::InterTokenLatency as usize][0];
            let gaps = gaps.get_or_insert_default();
            response.token_times.token_gaps(|gap, tokens| {
                gaps.record_many(nanos_of(gap), tokens);
            });
        }
    }

    /// Counts a request that met all latency targets of its task.
    pub(crate) fn count_good_request(&mut self) {
        self.good_requests += 1;
    }

    /// Counts an arrival that is not sent.
    pub(crate) fn count_dropped_arrival(&mut self) {
        self.dropped_arrivals += 1;
    }

    /// Converts the measurements to the metrics of the task.
    pub(crate) fn to_metrics(&self) -> TaskMetrics {
        let mut metrics = TaskMetrics {
            requests: self.requests,
            messages_sent: self.messages.0,
            messages_received: self.messages.1,
            connections: self.connections,
            reconnects: self.reconnects,
            tokens: self.tokens,
            good: self.good_requests,
            dropped: self.dropped_arrivals,
            sent_bytes: self.sent_bytes,
            received_bytes: self.received_bytes,
            successes_in_load: self.successes_in_load,
            tokens_in_load: self.tokens_in_load,
            resent: self.resent,
            tls_resumed: self.tls_resumed,
            statuses: to_labels(&self.statuses),
            addresses: to_labels(&self.addresses),
            websocket_closes: to_labels(&self.websocket_closes),
            ..TaskMetrics::default()
        };
        for (info, by_outcome) in LATENCIES.iter().zip(&self.latencies) {
            for (outcome, histogram) in Outcome::ALL.into_iter().zip(by_outcome) {
                if let Some(histogram) = histogram {
                    let latency = metrics.latencies.get_mut(info.metric, outcome);
                    *latency = histogram.to_latency_histogram();
                }
            }
        }
        for (info, late) in LATENCIES.iter().zip(&self.late) {
            if let Some(late) = late {
                *metrics.latencies.late_mut(info.metric) = late.to_latency_histogram();
            }
        }
        for kind in ErrorKind::COMMON {
            metrics.errors.insert(kind.to_string(), 0);
        }
        for (reason, count) in &self.finish_reasons {
            let label = reason.as_ref().map_or("none", FinishReason::as_str);
            metrics.finish_reasons.insert(label.to_owned(), *count);
        }
        for (kind, (count, _)) in &self.errors {
            metrics.errors.insert(kind.to_string(), *count);
        }
        metrics
    }

    /// Returns one message per kind of error.
    pub(crate) fn error_examples(&self) -> impl Iterator<Item = (ErrorKind, &str)> {
        self.errors.iter().map(|(kind, (_, example))| (*kind, example.as_str()))
    }
}

/// Converts counts by a value to counts by a label.
fn to_labels<T: ToString>(counts: &BTreeMap<T, u64>) -> BTreeMap<String, u64> {
    counts.iter().map(|(value, count)| (value.to_string(), *count)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the times of a chat that was planned at `start`, had its first token after 50 ms and
    /// ended after 110 ms.
    fn chat_times(start: Instant, first_content: Option<Instant>) -> RequestTimes {
        let at = |millis| start + Duration::from_millis(millis);
        RequestTimes {
            planned: start,
            sent: Some(at(10)),
            first_byte: Some(at(40)),
            first_token: Some(at(50)),
            first_content,
            last: at(110),
            connect: None,
            events: RequestEvents { first_byte: true, tokens: true },
            is_late: false,
        }
    }

    #[test]
    fn only_events_that_never_came_have_the_age_of_a_timeout() {
        let start = Instant::now();
        let mut recorder = TaskRecorder::default();
        recorder.record_request(Outcome::Timeout, &chat_times(start, None), start);
        let metrics = recorder.to_metrics();
        let millis = |metric, outcome| {
            let latency = metrics.latencies.get(metric, outcome);
            latency.quantile(1.0).map(|time| (time.as_secs_f64() * 1e3).round().to_string())
        };
        use LatencyMetric::{ResponseTime, TimeToFirstByte, TimeToFirstResponse, TimeToFirstToken};
        for (metric, success, timeout) in [
            (ResponseTime, None, Some("110")),
            (TimeToFirstByte, Some("30"), None),
            (TimeToFirstToken, Some("50"), None),
            (TimeToFirstResponse, None, Some("110")),
        ] {
            assert_eq!(millis(metric, Outcome::Success).as_deref(), success, "{metric:?}");
            assert_eq!(millis(metric, Outcome::Timeout).as_deref(), timeout, "{metric:?}");
        }
    }

    #[test]
    fn tokens_of_a_response_without_events_come_when_it_ends() {
        let start = Instant::now();
        let load_end = start + Duration::from_mins(1);
        let tokens = Tokens { output: 500, ..Tokens::default() };
        let response = ChatResponse { tokens, ..ChatResponse::default() };
        let mut recorder = TaskRecorder::default();
        for seconds in [25, 50, 75] {
            recorder.record_chat(&response, start + Duration::from_secs(seconds), load_end);
        }
        let metrics = recorder.to_metrics();
        assert_eq!((metrics.tokens.output, metrics.tokens_in_load), (1500, 1000));
    }

    #[test]
    fn only_a_success_tells_how_long_requests_usually_take() {
        let start = Instant::now();
        let mut recorder = TaskRecorder::default();
        recorder.record_request(Outcome::Failure, &chat_times(start, None), start);
        assert_eq!(recorder.usual_duration(), None);
        recorder.record_request(Outcome::Success, &chat_times(start, None), start);
        assert_eq!(recorder.usual_duration(), Some(Duration::from_millis(100)));
    }

    #[test]
    fn a_response_without_a_token_misses_the_targets_of_tokens() {
        let start = Instant::now();
        let text = r#"{metric: timeToFirstResponse, statistic: p95, target: "< 1s"}"#;
        let thresholds: Vec<loadtest_core::resource::Threshold> =
            vec![serde_saphyr::from_str(text).unwrap()];
        let targets = LatencyTargets::of_task(&thresholds, "chat");
        let tools_only = chat_times(start, None);
        let empty = RequestTimes { first_token: None, ..tools_only };
        assert!(tools_only.meets_targets(&targets, None) && !empty.meets_targets(&targets, None));
    }

    #[test]
    fn each_request_is_counted_once_with_its_times() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut recorder = TaskRecorder::default();
        recorder.record_request(Outcome::Success, &chat_times(start, Some(at(60))), at(100));
        let metrics = recorder.to_metrics();
        assert_eq!(metrics.requests, [1, 0, 0, 0]);
        // It ended after the load.
        assert_eq!(metrics.successes_in_load, 0);
        let seconds = |metric| metrics.latencies.get(metric, Outcome::Success).sum_seconds();
        assert!((seconds(LatencyMetric::ResponseTime) - 0.110).abs() < 1e-9);
        assert!((seconds(LatencyMetric::ServiceTime) - 0.100).abs() < 1e-9);
        assert!((seconds(LatencyMetric::TimeToFirstToken) - 0.050).abs() < 1e-9);
        assert!((seconds(LatencyMetric::TimeToFirstResponse) - 0.060).abs() < 1e-9);
        assert!(!metrics.latencies.has_samples(LatencyMetric::WebSocketConnect));
    }
}
