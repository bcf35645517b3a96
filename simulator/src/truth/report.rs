//! The truth as clients of the control port read it: counts, and exact quantiles of all records.

use serde::{Deserialize, Serialize};

use super::record::{Endpoint, Outcome, Record};

/// The truth about one run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunTruth {
    /// The run's UID, from the header `x-loadtest-run`; empty for requests without it.
    #[serde(rename = "run")]
    pub run_uid: String,
    /// When the simulator started, in nanoseconds since 1970.
    pub started_unix: u64,
    /// True if the record limit was reached: counts are right, but quantiles are not.
    pub truncated: bool,
    /// All endpoints together.
    pub totals: EndpointTruth,
    /// Each endpoint separately.
    pub endpoints: Endpoints<EndpointTruth>,
}

/// The counts of one run, as listed by `/truth`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunSummary {
    /// The run's UID; empty for requests without one.
    #[serde(rename = "run")]
    pub run_uid: String,
    /// True if the record limit was reached.
    pub truncated: bool,
    /// The counts of all endpoints together.
    pub totals: Counts,
}

/// One value for each endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoints<T> {
    /// `/v1/chat/completions`
    pub chat: T,
    /// `/health`
    pub health: T,
    /// `/v1/models`
    pub models: T,
    /// Sessions on the WebSocket port.
    pub web_socket: T,
    /// Any other path of the HTTP port.
    pub other: T,
}

/// The truth about one endpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointTruth {
    /// Counts of requests and messages.
    pub counts: Counts,
    /// Times of completed requests.
    pub successful: Times,
    /// Times of all requests that have ended: completed, failed and aborted.
    pub all: Times,
    /// Arrival of the first request.
    pub first_arrival: Option<Timestamp>,
    /// End of the last request.
    pub last_end: Option<Timestamp>,
}

/// Counts of requests; `received = completed + failed + aborted + inFlight` always holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Requests that arrived.
    pub received: u64,
    /// Requests with a complete response that was no error.
    pub completed: u64,
    /// Requests with a status of at least 400 or an injected failure.
    pub failed: u64,
    /// Requests that ended because the client closed the connection before the response was
    /// complete.
    pub aborted: u64,
    /// Requests that have not ended.
    pub in_flight: u64,
    /// WebSocket messages received, without control frames.
    pub messages_received: u64,
    /// WebSocket replies sent, without control frames.
    pub messages_sent: u64,
}

/// Quantiles of the times of a set of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Times {
    /// Time from a request's arrival to the write of its response's last byte.
    pub service_time: Quantiles,
    /// Time from a chat request's arrival to the write of its first content token. For a WebSocket
    /// session: to the write of its first reply.
    pub time_to_first_response: Quantiles,
    /// Time from an upgrade request's arrival to the write of its response, for accepted sessions.
    pub connect: Quantiles,
}

/// Exact quantiles by nearest rank, in nanoseconds. All are zero if `count` is zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Quantiles {
    /// Number of samples.
    pub count: u64,
    /// The smallest sample.
    pub min: u64,
    /// The mean, rounded down.
    pub mean: u64,
    /// 50 % of the samples are at most this.
    pub p50: u64,
    /// 90 % of the samples are at most this.
    pub p90: u64,
    /// 95 % of the samples are at most this.
    pub p95: u64,
    /// 99 % of the samples are at most this.
    pub p99: u64,
    /// 99.9 % of the samples are at most this.
    pub p999: u64,
    /// The largest sample.
    pub max: u64,
}

/// A point in time on two clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Timestamp {
    /// Nanoseconds since the simulator's start, on the monotonic clock.
    pub since_start: u64,
    /// The same time in nanoseconds since 1970.
    pub unix: u64,
}

impl RunTruth {
    pub(super) fn unknown_run(run_uid: &str, started_unix: u64) -> Self {
        Self { run_uid: run_uid.to_owned(), started_unix, ..Self::default() }
    }

    pub(super) fn from_records(
        run_uid: &str,
        started_unix: u64,
        truncated: bool,
        mut endpoints: Endpoints<EndpointTruth>,
        records: &[Record],
    ) -> Self {
        let mut totals = EndpointTruth::default();
        for endpoint in Endpoint::ALL {
            let truth = endpoints.get_mut(endpoint);
            totals.counts.add(&truth.counts);
            totals.merge_first_arrival(truth.first_arrival);
            totals.merge_last_end(truth.last_end);
            let at_endpoint = |record: &&Record| record.endpoint == endpoint;
            truth.compute_times(records.iter().filter(at_endpoint));
        }
        totals.compute_times(records.iter());
        Self { run_uid: run_uid.to_owned(), started_unix, truncated, totals, endpoints }
    }
}

impl<T> Endpoints<T> {
    /// Returns the value of one endpoint.
    pub const fn get(&self, endpoint: Endpoint) -> &T {
        match endpoint {
            Endpoint::Chat => &self.chat,
            Endpoint::Health => &self.health,
            Endpoint::Models => &self.models,
            Endpoint::WebSocket => &self.web_socket,
            Endpoint::Other => &self.other,
        }
    }

    pub(crate) const fn get_mut(&mut self, endpoint: Endpoint) -> &mut T {
        match endpoint {
            Endpoint::Chat => &mut self.chat,
            Endpoint::Health => &mut self.health,
            Endpoint::Models => &mut self.models,
            Endpoint::WebSocket => &mut self.web_socket,
            Endpoint::Other => &mut self.other,
        }
    }
}

impl EndpointTruth {
    pub(super) fn merge_first_arrival(&mut self, arrival: Option<Timestamp>) {
        self.first_arrival = match (self.first_arrival, arrival) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }

    pub(super) fn merge_last_end(&mut self, end: Option<Timestamp>) {
        self.last_end = self.last_end.max(end);
    }

    fn compute_times<'a>(&mut self, records: impl Iterator<Item = &'a Record> + Clone) {
        let completed = |record: &&Record| record.outcome == Outcome::Completed;
        self.successful = Times::from_records(records.clone().filter(completed));
        self.all = Times::from_records(records);
    }
}

impl Counts {
    pub(super) fn add(&mut self, other: &Self) {
        // Without `..`, the compiler reports a new count that is missing here.
        let Self {
            received,
            completed,
            failed,
            aborted,
            in_flight,
            messages_received,
            messages_sent,
        } = other;
        self.received += received;
        self.completed += completed;
        self.failed += failed;
        self.aborted += aborted;
        self.in_flight += in_flight;
        self.messages_received += messages_received;
        self.messages_sent += messages_sent;
    }
}

impl Times {
    fn from_records<'a>(records: impl Iterator<Item = &'a Record> + Clone) -> Self {
        Self {
            service_time: Quantiles::from_samples(
                records.clone().map(Record::service_time).collect(),
            ),
            time_to_first_response: Quantiles::from_samples(
                records.clone().filter_map(Record::time_to_first_response).collect(),
            ),
            connect: Quantiles::from_samples(records.filter_map(Record::connect_time).collect()),
        }
    }
}

impl Quantiles {
    /// Returns the quantiles of a set of samples.
    pub fn from_samples(mut samples: Vec<u64>) -> Self {
        samples.sort_unstable();
        let (Some(&min), Some(&max)) = (samples.first(), samples.last()) else {
            return Self::default();
        };
        let count = samples.len();
        // Nearest rank: the smallest sample that is not below `per_mille` ‰ of the samples.
        let quantile = |per_mille: usize| samples[((count * per_mille).div_ceil(1000)).max(1) - 1];
        let sum: u128 = samples.iter().map(|&sample| u128::from(sample)).sum();
        let mean = u64::try_from(sum / count as u128).unwrap_or(u64::MAX);
        Self {
            count: count as u64,
            min,
            mean,
            p50: quantile(500),
            p90: quantile(900),
            p95: quantile(950),
            p99: quantile(990),
            p999: quantile(999),
            max,
        }
    }
}

impl Timestamp {
    pub(super) fn new(since_start: u64, started_unix: u64) -> Self {
        Self { since_start, unix: started_unix + since_start }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_use_the_nearest_rank() {
        let all = Quantiles::from_samples((1..=1000).rev().collect());
        assert_eq!((all.min, all.max, all.mean, all.count), (1, 1000, 500, 1000));
        assert_eq!([all.p50, all.p90, all.p95, all.p99, all.p999], [500, 900, 950, 990, 999]);
    }

    #[test]
    fn quantiles_of_few_samples_are_samples() {
        let one = Quantiles::from_samples(vec![7]);
        assert_eq!([one.p50, one.p999, one.min, one.max, one.mean], [7; 5]);
        let two = Quantiles::from_samples(vec![9, 3]);
        assert_eq!([two.p50, two.p90], [3, 9]);
        assert_eq!(Quantiles::from_samples(Vec::new()), Quantiles::default());
    }

    #[test]
    fn truth_survives_a_json_round_trip() {
        let truth = RunTruth {
            run_uid: "a".to_owned(),
            totals: EndpointTruth {
                first_arrival: Some(Timestamp::new(5, 1_800_000_000_000_000_000)),
                ..EndpointTruth::default()
            },
            ..RunTruth::default()
        };
        let text = serde_json::to_string(&truth).unwrap();
        assert!(text.contains(r#""webSocket":{"counts":{"received":0"#), "{text}");
        assert_eq!(serde_json::from_str::<RunTruth>(&text).unwrap(), truth);
    }
}
