//! Tracks the request in flight on one connection and records its times.
//!
//! Services and response bodies announce what they are about to write
//! ([`RequestTracker::start_response`], [`RequestTracker::mark_content`],
//! [`RequestTracker::mark_response_complete`]). The
//! [`ObservedSocket`](super::ObservedSocket) reports when the bytes were written. A tracker that
//! is dropped with a request in flight records that the client aborted the request.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering},
};

use http::HeaderMap;

use crate::{
    lock::lock_mutex,
    server::Server,
    truth::{Direction, Endpoint, Outcome, Record, Run},
};

/// The header with the run's UID.
const RUN_HEADER: &str = "x-loadtest-run";
/// Maximum length of a run's UID in bytes; a longer one is ignored. Kubernetes' have 36 bytes.
const MAX_UID_LENGTH: usize = 128;

/// The requests of one connection.
#[derive(Debug)]
pub(crate) struct RequestTracker {
    pub(crate) server: Arc<Server>,
    connection_number: u64,
    shard: usize,
    /// Arrival time of the bytes that were read last; 0 before the first read.
    last_arrival: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The run of the last request. Most connections serve one run only.
    run: Option<Arc<Run>>,
    in_flight: Option<InFlightRequest>,
    requests: u64,
}

#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "facts that become true in any order")]
struct InFlightRequest {
    run: Arc<Run>,
    record: Record,
    /// The endpoint's limiter admitted the request.
    is_admitted: bool,
    /// The bytes written from now on belong to the response. Earlier bytes are a "100 Continue".
    is_responding: bool,
    /// The next bytes written contain the first content.
    has_content: bool,
    /// The response fails on purpose.
    is_injected_failure: bool,
    /// The whole response was handed over for writing.
    is_complete: bool,
    last_write: u64,
}

impl RequestTracker {
    pub(crate) fn new(server: Arc<Server>, connection_number: u64) -> Self {
        // Truncation is fine: only the low bits choose the shard.
        #[expect(clippy::cast_possible_truncation, reason = "any spread over the shards will do")]
        let shard = connection_number as usize;
        Self {
            server,
            connection_number,
            shard,
            last_arrival: AtomicU64::new(0),
            state: Mutex::default(),
        }
    }

    /// Starts tracking a request after its head was parsed. Returns its arrival time.
    ///
    /// The arrival time is the time at which the last bytes read so far reached the kernel. A
    /// busy simulator may have read them much later.
    pub(crate) fn start_request(&self, endpoint: Endpoint, headers: &HeaderMap) -> u64 {
        let arrival = self.last_arrival.load(Ordering::Relaxed);
        let uid = headers.get(RUN_HEADER).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let uid = if uid.len() > MAX_UID_LENGTH { "" } else { uid };
        let mut state = lock_mutex(&self.state);
        // A pipelined request can be parsed before the flush of the previous response was seen.
        if let Some(request) = state.in_flight.take() {
            self.record_end(request);
        }
        state.requests += 1;
        let known = state.run.take().filter(|run| run.uid() == uid);
        let mut run = known.unwrap_or_else(|| self.server.runs.get_or_create(uid));
        while !run.count_arrival(self.shard, endpoint, arrival) {
            run = self.server.runs.get_or_create(uid);
        }
        state.run = Some(run.clone());
        state.in_flight = Some(InFlightRequest {
            run,
            record: Record::new(endpoint, arrival),
            is_admitted: false,
            is_responding: false,
            has_content: false,
            is_injected_failure: false,
            is_complete: false,
            last_write: 0,
        });
        arrival
    }

    /// Stores the arrival time of the bytes that were just read.
    pub(crate) fn record_arrival(&self, arrival: u64) {
        self.last_arrival.store(arrival, Ordering::Relaxed);
    }

    /// Returns a number that no other request of this simulator has.
    pub(crate) fn request_id(&self) -> u64 {
        (self.connection_number << 24) ^ lock_mutex(&self.state).requests
    }

    fn update_request(&self, update: impl FnOnce(&mut InFlightRequest)) {
        if let Some(request) = &mut lock_mutex(&self.state).in_flight {
            update(request);
        }
    }

    /// Notes that the endpoint's limiter admitted the request. Its end releases the limiter.
    pub(crate) fn mark_admitted(&self) {
        self.update_request(|request| request.is_admitted = true);
    }

    /// Notes that a response with this status follows.
    pub(crate) fn start_response(&self, status: u16) {
        self.update_request(|request| {
            request.is_responding = true;
            request.record.status = status;
        });
    }

    /// Notes that the next bytes contain the first content.
    pub(crate) fn mark_content(&self) {
        self.update_request(|request| request.has_content = true);
    }

    /// Notes that the response fails on purpose from now on.
    pub(crate) fn mark_injected_failure(&self) {
        self.update_request(|request| request.is_injected_failure = true);
    }

    /// Notes that the last bytes of the response were handed over. Their flush ends the request.
    pub(crate) fn mark_response_complete(&self) {
        self.update_request(|request| request.is_complete = true);
    }

    /// Counts a WebSocket message that was received, or a reply that is about to be sent.
    pub(crate) fn count_message(&self, direction: Direction) {
        self.update_request(|request| {
            let record = &mut request.record;
            match direction {
                Direction::Received => record.messages_received += 1,
                Direction::Sent => {
                    record.messages_sent += 1;
                    request.has_content = record.first_content == 0;
                }
            }
            request.run.count_message(self.shard, direction);
        });
    }

    /// Ends the request in flight, if there is one.
    pub(crate) fn end_request(&self) {
        let request = lock_mutex(&self.state).in_flight.take();
        if let Some(request) = request {
            self.record_end(request);
        }
    }

    /// Records the time at which bytes were written.
    pub(crate) fn record_write(&self) {
        let now = self.server.clock.now();
        self.update_request(|request| {
            if !request.is_responding {
                return;
            }
            request.last_write = now;
            if request.record.first_byte == 0 {
                request.record.first_byte = now;
            }
            if std::mem::take(&mut request.has_content) {
                request.record.first_content = now;
            }
        });
    }

    /// Ends the request if its response is complete; called after all bytes were written.
    pub(crate) fn record_flush(&self) {
        let mut state = lock_mutex(&self.state);
        let is_over = |request: &mut InFlightRequest| request.is_complete && request.last_write > 0;
        if let Some(request) = state.in_flight.take_if(is_over) {
            self.record_end(request);
        }
    }

    fn record_end(&self, request: InFlightRequest) {
        let InFlightRequest {
            run,
            mut record,
            is_admitted,
            is_injected_failure,
            is_complete,
            last_write,
            ..
        } = request;
        if is_admitted {
            self.server.limiters.get(record.endpoint).release();
        }
        let is_written = is_complete && last_write > 0;
        record.end = if is_written { last_write } else { self.server.clock.now() };
        record.outcome = match (is_injected_failure, is_written) {
            (true, _) => Outcome::Failed,
            (false, true) if record.status >= 400 => Outcome::Failed,
            (false, true) => Outcome::Completed,
            (false, false) => Outcome::Aborted,
        };
        run.add_record(self.shard, record);
    }
}

impl Drop for RequestTracker {
    fn drop(&mut self) {
        self.end_request();
    }
}
