//! The counts and records of one run.
//!
//! A run is sharded by connection, so connections on different threads rarely wait for the same
//! lock. A shard's counts and records change under one lock, so `received = completed + failed +
//! aborted + inFlight` holds in every snapshot.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use super::{
    record::{Direction, Endpoint, Outcome, Record},
    report::{Counts, EndpointTruth, Endpoints, RunSummary, RunTruth, Timestamp},
};
use crate::lock::lock_mutex;

/// Shards of one run: a power of two, and more than the usual number of CPU cores.
pub(super) const SHARDS: usize = 16;

/// Records per block. Records are kept in blocks, so a growing run never moves old records.
pub(super) const BLOCK_LENGTH: usize = 4096;

/// One run.
#[derive(Debug)]
pub(crate) struct Run {
    uid: Arc<str>,
    shards: Vec<Mutex<Shard>>,
    /// The number of further records that may be kept, over all runs.
    free_records: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
struct Shard {
    /// The run was forgotten. Connections that still hold it must get a new one.
    is_forgotten: bool,
    truncated: bool,
    counts: Endpoints<Counts>,
    first_arrival: Endpoints<Option<u64>>,
    last_end: Endpoints<Option<u64>>,
    blocks: Vec<Vec<Record>>,
}

impl Run {
    pub(super) fn new(uid: Arc<str>, free_records: Arc<AtomicUsize>) -> Self {
        Self { uid, shards: (0..SHARDS).map(|_| Mutex::default()).collect(), free_records }
    }

    pub(crate) fn uid(&self) -> &str {
        &self.uid
    }

    /// Counts a request that arrived. Returns false if the run was forgotten.
    pub(crate) fn count_arrival(&self, shard: usize, endpoint: Endpoint, arrival: u64) -> bool {
        let mut shard = lock_mutex(self.shard(shard));
        if shard.is_forgotten {
            return false;
        }
        let counts = shard.counts.get_mut(endpoint);
        counts.received += 1;
        counts.in_flight += 1;
        let first = shard.first_arrival.get_mut(endpoint);
        *first = Some(first.map_or(arrival, |first| first.min(arrival)));
        true
    }

    /// Counts a message of a WebSocket session.
    pub(crate) fn count_message(&self, shard: usize, direction: Direction) {
        let mut shard = lock_mutex(self.shard(shard));
        let counts = &mut shard.counts.web_socket;
        match direction {
            Direction::Received => counts.messages_received += 1,
            Direction::Sent => counts.messages_sent += 1,
        }
    }

    /// Counts a request that has ended and keeps its record.
    pub(crate) fn add_record(&self, shard: usize, record: Record) {
        let mut shard = lock_mutex(self.shard(shard));
        if shard.is_forgotten {
            return;
        }
        let counts = shard.counts.get_mut(record.endpoint);
        counts.in_flight = counts.in_flight.saturating_sub(1);
        match record.outcome {
            Outcome::Completed => counts.completed += 1,
            Outcome::Failed => counts.failed += 1,
            Outcome::Aborted => counts.aborted += 1,
        }
        let last = shard.last_end.get_mut(record.endpoint);
        *last = (*last).max(Some(record.end));
        if !take_free_record(&self.free_records) {
            shard.truncated = true;
            return;
        }
        if let Some(block) = shard.blocks.last_mut().filter(|block| block.len() < BLOCK_LENGTH) {
            block.push(record);
            return;
        }
        // The first block starts small: most shards of most runs hold few records.
        let capacity = if shard.blocks.is_empty() { 1 } else { BLOCK_LENGTH };
        let mut block = Vec::with_capacity(capacity);
        block.push(record);
        shard.blocks.push(block);
    }

    /// Returns a copy of one block of records; `None` after the last block of the shard.
    pub(crate) fn read_block(&self, shard: usize, block: usize) -> Option<Vec<Record>> {
        lock_mutex(self.shards.get(shard)?).blocks.get(block).cloned()
    }

    /// Returns the number of shards that [`Run::read_block`] can read.
    pub(crate) fn shard_count(&self) -> usize {
        self.shards.len()
    }

    fn shard(&self, number: usize) -> &Mutex<Shard> {
        // `new` makes exactly `SHARDS` shards, so the index is always in range.
        &self.shards[number % SHARDS]
    }

    /// Frees the records. Requests that end later are not counted.
    pub(super) fn discard_records(&self) {
        for shard in &self.shards {
            let mut shard = lock_mutex(shard);
            shard.is_forgotten = true;
            let blocks = std::mem::take(&mut shard.blocks);
            self.free_records.fetch_add(blocks.iter().map(Vec::len).sum(), Ordering::Relaxed);
        }
    }

    /// Returns the counts of all endpoints together.
    pub(super) fn summarize(&self) -> RunSummary {
        let mut totals = Counts::default();
        let mut truncated = false;
        for shard in &self.shards {
            let shard = lock_mutex(shard);
            truncated |= shard.truncated;
            for endpoint in Endpoint::ALL {
                totals.add(shard.counts.get(endpoint));
            }
        }
        RunSummary { run_uid: self.uid.to_string(), truncated, totals }
    }

    /// Returns the counts and the exact quantiles of the records.
    pub(super) fn build_truth(&self, started_unix: u64) -> RunTruth {
        let mut endpoints = Endpoints::<EndpointTruth>::default();
        let mut truncated = false;
        let mut records = Vec::new();
        for (number, shard) in self.shards.iter().enumerate() {
            let shard = lock_mutex(shard);
            truncated |= shard.truncated;
            for endpoint in Endpoint::ALL {
                let truth = endpoints.get_mut(endpoint);
                truth.counts.add(shard.counts.get(endpoint));
                let timestamp = |nanos| Timestamp::new(nanos, started_unix);
                truth.merge_first_arrival(shard.first_arrival.get(endpoint).map(timestamp));
                truth.merge_last_end(shard.last_end.get(endpoint).map(timestamp));
            }
            let mut remaining = shard.blocks.iter().map(Vec::len).sum::<usize>();
            drop(shard);
            // The lock is taken for one block at a time, so reading the truth never delays the
            // requests of the run. Requests that end in the meantime are left out here, as they
            // are left out of the counts above.
            for block in (0..).map_while(|block| self.read_block(number, block)) {
                let taken = remaining.min(block.len());
                records.extend_from_slice(&block[..taken]);
                remaining -= taken;
                if remaining == 0 {
                    break;
                }
            }
        }
        RunTruth::from_records(&self.uid, started_unix, truncated, endpoints, &records)
    }
}

/// Reserves room for one record. Returns false if the limit is reached.
fn take_free_record(free_records: &AtomicUsize) -> bool {
    free_records
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| free.checked_sub(1))
        .is_ok()
}
