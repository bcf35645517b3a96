//! Reads a runner's protobuf exposition back into numbers.

use std::collections::BTreeMap;

use prometheus_client::encoding::prometheus_protobuf::prometheus_data_model as wire;
use prost::{
    Message,
    encoding::{DecodeContext, decode_key, decode_varint, skip_field},
};

use super::{ConnectStep, LatencyHistogram, MergeError, Numbers, Outcome, TaskNumbers, names};
use crate::resource::MAX_ROWS;

/// Kinds of error of one task that are told apart. There are about thirty, and one for each HTTP
/// status and close code that a target sends; the rest is [`OTHER`].
const MAX_KINDS: usize = 256;
/// What errors are of whose kind is one too many.
const OTHER: &str = "other";
/// Metrics of one family that are read, and bytes of one metric: more than a runner of the most
/// tasks has. What they become here takes more memory than they do on their way.
const MAX_METRICS: usize = 1 << 15;
const MAX_METRIC: usize = 256 << 10;
/// Buckets of all histograms together that are read.
const MAX_BUCKETS: usize = 1_000_000;
/// A count of anything: what is more is none, and sums of these stay sums.
const MOST: u64 = 1 << 48;

/// Who an exposition is from. Others than expected are discarded: pod IPs are reused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// UID of the `LoadTest`.
    pub run: String,
    /// The runner's index in its Job.
    pub index: u32,
    /// UID of the pod.
    pub pod: String,
}

/// Where a runner is on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RunnerState {
    /// Not started.
    #[default]
    Waiting,
    /// Ordered to start, or making load.
    Running,
    /// Its numbers are final.
    Done,
    /// Told to go; its numbers are final.
    Released,
    /// It ended before its load did, killed or by a fault of its own: its numbers are final, and
    /// those of less load than there should have been.
    CutShort,
}

impl RunnerState {
    /// The gauge's value.
    pub const fn value(self) -> i64 {
        match self {
            Self::Waiting => 0,
            Self::Running => 1,
            Self::Done => 2,
            Self::Released => 3,
            Self::CutShort => 4,
        }
    }

    /// True when the numbers won't change any more.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Released | Self::CutShort)
    }

    /// True when its share of the load was made to the end.
    pub const fn is_complete(self) -> bool {
        matches!(self, Self::Done | Self::Released)
    }
}

/// What one exposition says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunnerNumbers {
    /// Who says it.
    pub identity: Identity,
    /// Where that runner is.
    pub state: RunnerState,
    /// What it measured.
    pub numbers: Numbers,
}

/// An exposition that can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ExpositionError {
    /// Not delimited protobuf.
    #[error("exposition is not delimited protobuf")]
    Wire(#[source] prost::DecodeError),
    /// A family without which the rest means nothing.
    #[error("exposition has no {0}: is this a load-test runner?")]
    Missing(&'static str),
    /// A histogram that is not ours.
    #[error("exposition has an unreadable {family}")]
    Histogram {
        /// The family's name.
        family: String,
        /// What is wrong.
        #[source]
        source: MergeError,
    },
    /// More than a test can have: its memory is ours.
    #[error("exposition has over {most} {what}: is this a load-test runner?")]
    TooMany {
        /// Tasks, metrics, bytes or buckets.
        what: &'static str,
        /// How many there may be.
        most: usize,
    },
}

/// Reads a delimited protobuf exposition.
///
/// Families that are not ours are passed over.
///
/// # Errors
/// When the bytes are no exposition, or not a runner's.
pub fn decode(mut bytes: &[u8]) -> Result<RunnerNumbers, ExpositionError> {
    let mut read = RunnerNumbers::default();
    let mut identity = None;
    let mut buckets = 0;
    while !bytes.is_empty() {
        let length = decode_varint(&mut bytes).map_err(ExpositionError::Wire)?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        // One that ends before it should is for the decoder to refuse.
        let (family, rest) = bytes.split_at(length.min(bytes.len()));
        bounded(family)?;
        let family = wire::MetricFamily::decode(family).map_err(ExpositionError::Wire)?;
        bytes = rest;
        for metric in &family.metric {
            let labels = Labels::of(metric);
            if family.name == names::RUNNER {
                identity = Some(Identity {
                    run: labels.get("run").to_owned(),
                    index: labels.get("index").parse().unwrap_or(u32::MAX),
                    pod: labels.get("pod_uid").to_owned(),
                });
                continue;
            }
            buckets += metric.histogram.as_ref().map_or(0, |h| h.positive_delta.len());
            at_most(buckets, MAX_BUCKETS, "buckets")?;
            take(&mut read, &family.name, metric, &labels).map_err(|source| {
                ExpositionError::Histogram { family: family.name.clone(), source }
            })?;
            at_most(read.numbers.tasks.len(), MAX_ROWS, "tasks")?;
        }
    }
    read.identity = identity.ok_or(ExpositionError::Missing(names::RUNNER))?;
    Ok(read)
}

fn at_most(found: usize, most: usize, what: &'static str) -> Result<(), ExpositionError> {
    if found > most { Err(ExpositionError::TooMany { what, most }) } else { Ok(()) }
}

/// Whether a family is no larger than one of a runner can be, before it is taken apart.
fn bounded(mut family: &[u8]) -> Result<(), ExpositionError> {
    /// The field that holds a family's metrics.
    const METRIC: u32 = 4;

    let mut metrics = 0;
    while !family.is_empty() {
        let (field, kind) = decode_key(&mut family).map_err(ExpositionError::Wire)?;
        let before = family.len();
        skip_field(kind, field, &mut family, DecodeContext::default())
            .map_err(ExpositionError::Wire)?;
        if field == METRIC {
            metrics += 1;
            at_most(metrics, MAX_METRICS, "metrics in a family")?;
            at_most(before - family.len(), MAX_METRIC, "bytes in a metric")?;
        }
    }
    Ok(())
}

struct Labels<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> Labels<'a> {
    fn of(metric: &'a wire::Metric) -> Self {
        Self(metric.label.iter().map(|l| (l.name.as_str(), l.value.as_str())).collect())
    }

    fn get(&self, name: &str) -> &'a str {
        self.0.get(name).copied().unwrap_or_default()
    }
}

fn take(
    read: &mut RunnerNumbers,
    family: &str,
    metric: &wire::Metric,
    labels: &Labels<'_>,
) -> Result<(), MergeError> {
    let numbers = &mut read.numbers;
    match family {
        names::STATE => {
            read.state = match whole(gauge(metric)) {
                0 => RunnerState::Waiting,
                1 => RunnerState::Running,
                2 => RunnerState::Done,
                3 => RunnerState::Released,
                _ => RunnerState::CutShort,
            };
        }
        names::ELAPSED => numbers.elapsed_seconds = gauge(metric),
        names::THREAD_BUSY => numbers.busy_seconds = counter(metric),
        names::MEMORY => numbers.memory_bytes = gauge(metric),
        names::MEMORY_RATIO => numbers.memory_ratio = gauge(metric),
        names::THROTTLED => numbers.throttled_seconds = counter(metric),
        names::USERS => numbers.users = whole(gauge(metric)),
        names::USERS_PEAK => numbers.users_peak = whole(gauge(metric)),
        names::USER_SECONDS => numbers.user_seconds = counter(metric),
        names::SCHEDULE_LAG => numbers.schedule_lag.merge(&histogram(metric)?),
        names::LOOP_LAG => numbers.loop_lag.merge(&histogram(metric)?),
        names::REQUESTS
        | names::CONNECTIONS
        | names::RECONNECTS
        | names::CONNECT
        | names::FIRST_BYTE
        | names::ROUND_TRIP
        | names::MESSAGES
        | names::DROPPED
        | names::GOOD
        | names::TOKENS
        | names::INTER_TOKEN
        | names::TOKEN_TIME
        | names::ERRORS
        | names::SENT_BYTES
        | names::RECEIVED_BYTES
        | names::RESPONSE_TIME
        | names::SERVICE_TIME
        | names::FIRST_RESPONSE
        | names::WEB_SOCKET_CONNECT => {
            let task = numbers.tasks.entry(labels.get("task").to_owned()).or_default();
            take_of_task(task, family, metric, labels)?;
        }
        _ => {}
    }
    Ok(())
}

fn take_of_task(
    task: &mut TaskNumbers,
    family: &str,
    metric: &wire::Metric,
    labels: &Labels<'_>,
) -> Result<(), MergeError> {
    match family {
        names::ERRORS => {
            let count = whole(counter(metric));
            if count > 0 {
                let kind = labels.get("kind");
                let known = task.errors.len() < MAX_KINDS || task.errors.contains_key(kind);
                let kind = if known { kind } else { OTHER };
                let sum = task.errors.entry(kind.to_owned()).or_default();
                *sum = (*sum + count).min(MOST);
            }
        }
        names::TOKENS => {
            if let Some(count) = task.tokens.of_kind(labels.get("kind")) {
                *count = whole(counter(metric));
            }
        }
        names::CONNECTIONS => task.connections.opened = whole(counter(metric)),
        names::RECONNECTS => task.connections.again = whole(counter(metric)),
        names::CONNECT => {
            if let Some(step) = ConnectStep::from_label(labels.get("step")) {
                task.connections.steps[step.index()] = histogram(metric)?;
            }
        }
        names::FIRST_BYTE => task.first_byte = histogram(metric)?,
        names::ROUND_TRIP => task.round_trip = histogram(metric)?,
        names::MESSAGES => match labels.get("direction") {
            "sent" => task.messages_sent = whole(counter(metric)),
            _ => task.messages_received = whole(counter(metric)),
        },
        names::INTER_TOKEN => task.inter_token = histogram(metric)?,
        names::TOKEN_TIME => task.token_time = histogram(metric)?,
        names::GOOD => task.good = whole(counter(metric)),
        names::DROPPED => task.dropped = whole(counter(metric)),
        names::SENT_BYTES => task.sent_bytes = whole(counter(metric)),
        names::RECEIVED_BYTES => task.received_bytes = whole(counter(metric)),
        _ => {
            let Some(outcome) = Outcome::from_label(labels.get("outcome")) else { return Ok(()) };
            let i = outcome.index();
            match family {
                names::REQUESTS => task.requests[i] = whole(counter(metric)),
                names::RESPONSE_TIME => task.response_time[i] = histogram(metric)?,
                names::SERVICE_TIME => task.service_time[i] = histogram(metric)?,
                names::FIRST_RESPONSE => task.first_response[i] = histogram(metric)?,
                _ => task.web_socket_connect[i] = histogram(metric)?,
            }
        }
    }
    Ok(())
}

fn gauge(metric: &wire::Metric) -> f64 {
    metric.gauge.as_ref().map_or(0.0, |gauge| gauge.value)
}

fn counter(metric: &wire::Metric) -> f64 {
    metric.counter.as_ref().map_or(0.0, |counter| counter.value)
}

/// The exposition carries counts as floats, exact up to 2^53.
fn whole(value: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "float casts saturate; a count is neither negative nor that large"
    )]
    {
        value.clamp(0.0, MOST as f64).round() as u64
    }
}

fn histogram(metric: &wire::Metric) -> Result<LatencyHistogram, MergeError> {
    let Some(read) = &metric.histogram else { return Err(MergeError::Buckets) };
    let spans = read.positive_span.iter().map(|span| (span.offset, span.length));
    LatencyHistogram::from_parts(
        read.schema,
        read.zero_count,
        read.sample_sum,
        spans,
        &read.positive_delta,
    )
}
