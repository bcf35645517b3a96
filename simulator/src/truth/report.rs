//! The truth as others read it: counts, and exact quantiles of all records.

use serde::{Deserialize, Serialize};

use super::{Endpoint, Outcome, Record};

/// What happened in one run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunTruth {
    /// The run's UID, from the header `x-loadtest-run`; empty for requests without it.
    pub run: String,
    /// When the simulator started, in nanoseconds since 1970.
    pub started_unix: u64,
    /// True when records were left out for want of room: counts are right, quantiles are not.
    pub truncated: bool,
    /// All endpoints together.
    pub totals: EndpointTruth,
    /// Each by itself.
    pub endpoints: Endpoints<EndpointTruth>,
}

/// One run in the list of runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunSummary {
    /// The run's UID; empty for requests without one.
    pub run: String,
    /// True when records were left out for want of room.
    pub truncated: bool,
    /// Counts of all endpoints together.
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

/// What happened at one endpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointTruth {
    /// How many of what.
    pub counts: Counts,
    /// Times of completed requests.
    pub successful: Times,
    /// Times of all requests that are over: completed, failed and aborted.
    pub all: Times,
    /// When the first request arrived.
    pub first_arrival: Option<Moment>,
    /// When the last request ended.
    pub last_end: Option<Moment>,
}

/// Counts of requests; `received = completed + failed + aborted + inFlight` always holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Requests that arrived, preflights not among them.
    pub received: u64,
    /// Requests with the header `x-loadtest-preflight`. They are in no other count and record.
    pub preflight: u64,
    /// Answered well, to the last byte.
    pub completed: u64,
    /// Answered with a status from 400 on, or with an injected failure.
    pub failed: u64,
    /// The client left before the answer was complete.
    pub aborted: u64,
    /// Not over yet.
    pub in_flight: u64,
    /// WebSocket messages that came in, control frames not among them.
    pub messages_received: u64,
    /// WebSocket replies that went out, control frames not among them.
    pub messages_sent: u64,
}

/// Quantiles of the times of a set of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Times {
    /// From when a request had come to its answer's last byte written.
    pub service_time: Quantiles,
    /// From when a chat request had come to its first content token written; for a WebSocket
    /// session, to its first reply.
    pub time_to_first_response: Quantiles,
    /// From when an upgrade request had come to its answer written. Only sessions that were let in.
    pub connect: Quantiles,
}

/// Exact quantiles by nearest rank, in nanoseconds; all zero when `count` is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Quantiles {
    /// Samples.
    pub count: u64,
    /// The least.
    pub min: u64,
    /// The mean, rounded down.
    pub mean: u64,
    /// 50 % are at most this.
    pub p50: u64,
    /// 90 % are at most this.
    pub p90: u64,
    /// 95 % are at most this.
    pub p95: u64,
    /// 99 % are at most this.
    pub p99: u64,
    /// 99.9 % are at most this.
    pub p999: u64,
    /// The greatest.
    pub max: u64,
}

/// A moment on two clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Moment {
    /// Nanoseconds since the simulator's start, on the monotonic clock.
    pub since_start: u64,
    /// The same moment in nanoseconds since 1970.
    pub unix: u64,
}

impl RunTruth {
    pub(super) fn none(run: &str, started_unix: u64) -> Self {
        Self { run: run.to_owned(), started_unix, ..Self::default() }
    }

    pub(super) fn build(
        run: &str,
        started_unix: u64,
        truncated: bool,
        mut endpoints: Endpoints<EndpointTruth>,
        records: &[Record],
    ) -> Self {
        let mut totals = EndpointTruth::default();
        for endpoint in Endpoint::ALL {
            let one = endpoints.get_mut(endpoint);
            totals.counts.add(&one.counts);
            totals.see_first(one.first_arrival);
            totals.see_last(one.last_end);
            let of_endpoint = |record: &&Record| record.endpoint == endpoint;
            one.time(records.iter().filter(of_endpoint));
        }
        totals.time(records.iter());
        Self { run: run.to_owned(), started_unix, truncated, totals, endpoints }
    }
}

impl<T> Endpoints<T> {
    /// The value of one endpoint.
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
    pub(super) fn see_first(&mut self, moment: Option<Moment>) {
        self.first_arrival = match (self.first_arrival, moment) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }

    pub(super) fn see_last(&mut self, moment: Option<Moment>) {
        self.last_end = self.last_end.max(moment);
    }

    fn time<'a>(&mut self, records: impl Iterator<Item = &'a Record> + Clone) {
        let completed = |record: &&Record| record.outcome == Outcome::Completed;
        self.successful = Times::of(records.clone().filter(completed));
        self.all = Times::of(records);
    }
}

impl Counts {
    pub(super) fn add(&mut self, other: &Self) {
        // Taken apart without `..`: a new count can't be forgotten here.
        let Self {
            received,
            preflight,
            completed,
            failed,
            aborted,
            in_flight,
            messages_received,
            messages_sent,
        } = other;
        self.received += received;
        self.preflight += preflight;
        self.completed += completed;
        self.failed += failed;
        self.aborted += aborted;
        self.in_flight += in_flight;
        self.messages_received += messages_received;
        self.messages_sent += messages_sent;
    }
}

impl Times {
    fn of<'a>(records: impl Iterator<Item = &'a Record> + Clone) -> Self {
        Self {
            service_time: Quantiles::of(records.clone().map(Record::service_time).collect()),
            time_to_first_response: Quantiles::of(
                records.clone().filter_map(Record::time_to_first_response).collect(),
            ),
            connect: Quantiles::of(records.filter_map(Record::connect).collect()),
        }
    }
}

impl Quantiles {
    /// The quantiles of a set of samples.
    pub fn of(mut samples: Vec<u64>) -> Self {
        samples.sort_unstable();
        let (Some(&min), Some(&max)) = (samples.first(), samples.last()) else {
            return Self::default();
        };
        let count = samples.len();
        // Nearest rank: the smallest sample that at least this many in a thousand do not exceed.
        let at = |per_mille: usize| samples[((count * per_mille).div_ceil(1000)).max(1) - 1];
        let sum: u128 = samples.iter().map(|&sample| u128::from(sample)).sum();
        let mean = u64::try_from(sum / count as u128).unwrap_or(u64::MAX);
        Self {
            count: count as u64,
            min,
            mean,
            p50: at(500),
            p90: at(900),
            p95: at(950),
            p99: at(990),
            p999: at(999),
            max,
        }
    }
}

impl Moment {
    pub(super) fn at(since_start: u64, started_unix: u64) -> Self {
        Self { since_start, unix: started_unix + since_start }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_nearest_ranks() {
        let all = Quantiles::of((1..=1000).rev().collect());
        assert_eq!((all.min, all.max, all.mean, all.count), (1, 1000, 500, 1000));
        assert_eq!([all.p50, all.p90, all.p95, all.p99, all.p999], [500, 900, 950, 990, 999]);
    }

    #[test]
    fn few_samples_are_their_own_quantiles() {
        let one = Quantiles::of(vec![7]);
        assert_eq!([one.p50, one.p999, one.min, one.max, one.mean], [7; 5]);
        let two = Quantiles::of(vec![9, 3]);
        assert_eq!([two.p50, two.p90], [3, 9]);
        assert_eq!(Quantiles::of(Vec::new()), Quantiles::default());
    }

    #[test]
    fn truth_reads_back_as_it_prints() {
        let truth = RunTruth {
            run: "a".to_owned(),
            totals: EndpointTruth {
                first_arrival: Some(Moment::at(5, 1_800_000_000_000_000_000)),
                ..EndpointTruth::default()
            },
            ..RunTruth::default()
        };
        let text = serde_json::to_string(&truth).unwrap();
        assert!(text.contains(r#""webSocket":{"counts":{"received":0"#), "{text}");
        assert_eq!(serde_json::from_str::<RunTruth>(&text).unwrap(), truth);
    }
}
