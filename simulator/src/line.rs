//! One connection's line to the truth: what is in flight on it, stamped where bytes meet the socket.
//!
//! Services and bodies say what they are about to do ([`Line::answering`], [`Line::content`],
//! [`Line::done`]); the [`Tap`](crate::tap::Tap) around the socket says when it was really done. A line that goes
//! away with a request in flight records that the client left.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering},
};

use http::HeaderMap;

use crate::{
    server::Server,
    truth::{Endpoint, Outcome, Record, Run, lock},
};

/// The header with the run's UID.
const RUN_HEADER: &str = "x-loadtest-run";
/// The header that marks a request as a preflight.
const PREFLIGHT_HEADER: &str = "x-loadtest-preflight";
/// Longer UIDs are none: Kubernetes' have 36 bytes.
const MAX_UID: usize = 128;

/// What is known about the request in flight on one connection.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) server: Arc<Server>,
    /// The connection's number.
    pub(crate) number: u64,
    shard: usize,
    /// When what was last read had come; 0 before.
    came: AtomicU64,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// The last request's run: most connections serve one run only.
    run: Option<Arc<Run>>,
    flight: Option<Flight>,
    requests: u64,
}

#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "facts that become true one by one, in any order"
)]
struct Flight {
    run: Arc<Run>,
    record: Record,
    preflight: bool,
    /// It passed its endpoint's gate.
    admitted: bool,
    /// What is written from now on is the answer. (Before, it is a "100 Continue".)
    answering: bool,
    /// The next bytes written hold the first content.
    content: bool,
    /// The answer fails on purpose.
    injected: bool,
    /// All of the answer was handed over for writing.
    done: bool,
    last_write: u64,
}

impl Line {
    pub(crate) fn new(server: Arc<Server>, number: u64) -> Self {
        // Truncation is fine: only the low bits choose the shard.
        #[expect(clippy::cast_possible_truncation, reason = "any spread over the shards will do")]
        let shard = number as usize;
        Self { server, number, shard, came: AtomicU64::new(0), inner: Mutex::default() }
    }

    /// A request's head was parsed. Returns its arrival: when the last bytes read until now had
    /// come, whatever kept them from being read.
    pub(crate) fn begin(&self, endpoint: Endpoint, headers: &HeaderMap) -> u64 {
        let arrival = self.came.load(Ordering::Relaxed);
        let uid = headers.get(RUN_HEADER).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let uid = if uid.len() > MAX_UID { "" } else { uid };
        let preflight = headers.contains_key(PREFLIGHT_HEADER);
        let mut inner = lock(&self.inner);
        // A pipelined request can be parsed before the last answer's flush was seen.
        if let Some(flight) = inner.flight.take() {
            self.end(flight);
        }
        inner.requests += 1;
        let known = inner.run.take().filter(|run| run.uid() == uid);
        let mut run = known.unwrap_or_else(|| self.server.ledger.run(uid));
        while !run.begin(self.shard, endpoint, arrival, preflight) {
            run = self.server.ledger.run(uid);
        }
        inner.run = Some(run.clone());
        inner.flight = Some(Flight {
            run,
            record: Record::new(endpoint, arrival),
            preflight,
            admitted: false,
            answering: false,
            content: false,
            injected: false,
            done: false,
            last_write: 0,
        });
        arrival
    }

    /// Bytes were read that had come then.
    pub(crate) fn came(&self, at: u64) {
        self.came.store(at, Ordering::Relaxed);
    }

    /// A number that no other request of this simulator has.
    pub(crate) fn request_id(&self) -> u64 {
        (self.number << 24) ^ lock(&self.inner).requests
    }

    fn with(&self, change: impl FnOnce(&mut Flight)) {
        if let Some(flight) = &mut lock(&self.inner).flight {
            change(flight);
        }
    }

    /// The request passed its endpoint's gate, and leaves it when it ends.
    pub(crate) fn admitted(&self) {
        self.with(|flight| flight.admitted = true);
    }

    /// The answer follows, with this status.
    pub(crate) fn answering(&self, status: u16) {
        self.with(|flight| {
            flight.answering = true;
            flight.record.status = status;
        });
    }

    /// The next bytes hold the first content.
    pub(crate) fn content(&self) {
        self.with(|flight| flight.content = true);
    }

    /// From here on the answer fails on purpose.
    pub(crate) fn inject(&self) {
        self.with(|flight| flight.injected = true);
    }

    /// The answer's last bytes were handed over; it ends when they are flushed.
    pub(crate) fn done(&self) {
        self.with(|flight| flight.done = true);
    }

    /// A WebSocket message came in, or a reply is about to go out.
    pub(crate) fn message(&self, received: bool) {
        self.with(|flight| {
            let record = &mut flight.record;
            if received {
                record.messages_received += 1;
            } else {
                record.messages_sent += 1;
                flight.content = record.first_content == 0;
            }
            if !flight.preflight {
                flight.run.message(self.shard, received);
            }
        });
    }

    /// Ends the request in flight, now.
    pub(crate) fn finish(&self) {
        let flight = lock(&self.inner).flight.take();
        if let Some(flight) = flight {
            self.end(flight);
        }
    }

    /// Bytes were written.
    pub(crate) fn wrote(&self) {
        let now = self.server.clock.now();
        self.with(|flight| {
            if !flight.answering {
                return;
            }
            flight.last_write = now;
            if flight.record.first_byte == 0 {
                flight.record.first_byte = now;
            }
            if std::mem::take(&mut flight.content) {
                flight.record.first_content = now;
            }
        });
    }

    /// All bytes were written.
    pub(crate) fn flushed(&self) {
        let mut inner = lock(&self.inner);
        if let Some(flight) = inner.flight.take_if(|flight| flight.done && flight.last_write > 0) {
            self.end(flight);
        }
    }

    fn end(&self, flight: Flight) {
        let Flight { run, mut record, preflight, admitted, injected, done, last_write, .. } =
            flight;
        if admitted {
            self.server.gates.get(record.endpoint).leave();
        }
        if preflight {
            return;
        }
        let written = done && last_write > 0;
        record.end = if written { last_write } else { self.server.clock.now() };
        record.outcome = match (injected, written) {
            (true, _) => Outcome::Failed,
            (false, true) if record.status >= 400 => Outcome::Failed,
            (false, true) => Outcome::Completed,
            (false, false) => Outcome::Aborted,
        };
        run.end(self.shard, record);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.finish();
    }
}
