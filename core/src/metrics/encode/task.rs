//! The families of tasks.

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeLabelSet},
    metrics::MetricType,
};

use super::{Exposition, NoLabels, counter};
use crate::metrics::{ConnectStep, LatencyHistogram, Outcome, TaskNumbers, names};

/// Which tasks have a family at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    All,
    Chat,
    WebSocket,
    /// Tasks of requests with an answer: http and chat.
    Request,
}

/// A counter, with its help.
type Count = (&'static str, &'static str, Of, fn(&TaskNumbers) -> u64);
/// A distribution, with its help.
type Times = (&'static str, &'static str, Of, fn(&TaskNumbers) -> &LatencyHistogram);
/// Distributions by outcome, with their help.
type Latencies = (&'static str, &'static str, Of, fn(&TaskNumbers) -> &[LatencyHistogram; 4]);

const COUNTS: [Count; 6] = [
    (
        names::GOOD,
        "Successful requests that met every latency target of their task",
        Of::All,
        |t| t.good,
    ),
    (names::DROPPED, "Arrivals that found no user free", Of::All, |t| t.dropped),
    (names::SENT_BYTES, "Bytes written to sockets", Of::All, |t| t.sent_bytes),
    (names::RECEIVED_BYTES, "Bytes read from sockets", Of::All, |t| t.received_bytes),
    (names::CONNECTIONS, "Connections opened", Of::All, |t| t.connections.opened),
    (
        names::RECONNECTS,
        "Connections opened in place of one that the target, or a failure, had ended",
        Of::All,
        |t| t.connections.again,
    ),
];

const LATENCIES: [Latencies; 4] = [
    (names::RESPONSE_TIME, "From when a request was planned to its last byte", Of::All, |t| {
        &t.response_time
    }),
    (names::SERVICE_TIME, "From when a request was sent to its last byte", Of::All, |t| {
        &t.service_time
    }),
    (
        names::FIRST_RESPONSE,
        "From when a chat request was planned to its first content token",
        Of::Chat,
        |t| &t.first_response,
    ),
    (
        names::WEB_SOCKET_CONNECT,
        "From the start of a WebSocket's connection to its upgrade",
        Of::WebSocket,
        |t| &t.web_socket_connect,
    ),
];

const TIMES: [Times; 4] = [
    (
        names::FIRST_BYTE,
        "From when a request was sent to the first byte of its answer",
        Of::Request,
        |t| &t.first_byte,
    ),
    (names::INTER_TOKEN, "Between two tokens of a streamed chat", Of::Chat, |t| &t.inter_token),
    (
        names::TOKEN_TIME,
        "A streamed chat's time from its first to its last token, by token",
        Of::Chat,
        |t| &t.token_time,
    ),
    (
        names::ROUND_TRIP,
        "From a WebSocket message that was sent to the last reply it awaits",
        Of::WebSocket,
        |t| &t.round_trip,
    ),
];

impl Exposition {
    pub(super) fn of_tasks(&self, e: &mut DescriptorEncoder) -> Result<(), std::fmt::Error> {
        self.labelled(e, names::REQUESTS, "Requests by outcome", Of::All, "outcome", |t| {
            Outcome::ALL.map(|outcome| (outcome.as_str(), t.of(outcome))).to_vec()
        })?;
        self.labelled(e, names::ERRORS, "Errors by kind", Of::All, "kind", |t| {
            t.errors.iter().map(|(kind, count)| (kind.as_str(), *count)).collect()
        })?;
        self.labelled(e, names::TOKENS, "Tokens of chat answers", Of::Chat, "kind", |t| {
            t.tokens.by_kind().to_vec()
        })?;
        let help = "WebSocket messages, by direction";
        self.labelled(e, names::MESSAGES, help, Of::WebSocket, "direction", |t| {
            vec![("sent", t.messages_sent), ("received", t.messages_received)]
        })?;
        for (name, help, of, value) in COUNTS {
            let mut family = counter(e, name, help)?;
            for (task, numbers) in self.tasks(of) {
                family
                    .encode_family(&self.labels(task))?
                    .encode_counter::<NoLabels, _, u64>(&value(numbers), None)?;
            }
        }
        for (name, help, of, value) in LATENCIES {
            let mut family = e.encode_descriptor(name, help, None, MetricType::Histogram)?;
            for (task, numbers) in self.tasks(of) {
                for outcome in Outcome::ALL {
                    let labels = self.labels_with(task, "outcome", outcome.as_str());
                    let one = family.encode_family(&labels)?;
                    self.histogram(one, &value(numbers)[outcome.index()])?;
                }
            }
        }
        for (name, help, of, value) in TIMES {
            let mut family = e.encode_descriptor(name, help, None, MetricType::Histogram)?;
            for (task, numbers) in self.tasks(of) {
                self.histogram(family.encode_family(&self.labels(task))?, value(numbers))?;
            }
        }
        let help = "The steps of opening a connection";
        let mut family = e.encode_descriptor(names::CONNECT, help, None, MetricType::Histogram)?;
        for (task, numbers) in self.tasks(Of::All) {
            for step in ConnectStep::ALL {
                // Without TLS there is no such step, and without a WebSocket no upgrade.
                let steps = &numbers.connections.steps[step.index()];
                if matches!(step, ConnectStep::Dns | ConnectStep::Tcp) || steps.count() > 0 {
                    let labels = self.labels_with(task, "step", step.as_str());
                    self.histogram(family.encode_family(&labels)?, steps)?;
                }
            }
        }
        Ok(())
    }

    /// A counter with one label more.
    fn labelled(
        &self,
        e: &mut DescriptorEncoder,
        name: &str,
        help: &str,
        of: Of,
        label: &'static str,
        values: impl Fn(&TaskNumbers) -> Vec<(&str, u64)>,
    ) -> Result<(), std::fmt::Error> {
        let mut family = counter(e, name, help)?;
        for (task, numbers) in self.tasks(of) {
            for (value, count) in values(numbers) {
                family
                    .encode_family(&self.labels_with(task, label, value))?
                    .encode_counter::<NoLabels, _, u64>(&count, None)?;
            }
        }
        Ok(())
    }

    fn labels<'a>(&'a self, task: &'a str) -> impl EncodeLabelSet + 'a {
        [("loadtest", self.shown.loadtest.as_str()), ("task", task)]
    }

    fn labels_with<'a>(
        &'a self,
        task: &'a str,
        label: &'static str,
        value: &'a str,
    ) -> impl EncodeLabelSet + 'a {
        [("loadtest", self.shown.loadtest.as_str()), (label, value), ("task", task)]
    }

    fn tasks(&self, of: Of) -> impl Iterator<Item = (&String, &TaskNumbers)> {
        let tasks = self.runner.numbers.tasks.iter();
        tasks.filter(move |(task, _)| match of {
            Of::All => true,
            Of::Chat => self.shown.chat.contains(task),
            Of::WebSocket => self.shown.web_socket.contains(task),
            Of::Request => !self.shown.web_socket.contains(task),
        })
    }
}
