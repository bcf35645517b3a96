//! What really happened: one record for every request, and counts that outlive the records.
//!
//! Written by connections through [`Ledger::run`] and [`Run`], read as [`RunTruth`]. Runs are
//! sharded by connection, so that connections on different threads rarely meet at a lock, and
//! every shard's counts and records change together: `received = completed + failed + aborted +
//! inFlight` holds in any snapshot.

mod record;
mod report;

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

pub(crate) use self::record::Record;
pub use self::{
    record::{Endpoint, Outcome},
    report::{Counts, EndpointTruth, Endpoints, Moment, Quantiles, RunSummary, RunTruth, Times},
};
use crate::clock::Clock;

/// Shards of one run. More than cores people give a simulator; a power of two.
const SHARDS: usize = 16;

/// Records are kept in blocks, so that growing never moves what is there.
const BLOCK: usize = 4096;

/// Runs remembered; the oldest one goes when another comes.
const MAX_RUNS: usize = 1000;

/// Locks, whatever happened to other holders: counts stay right when a task was dropped.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All runs of one simulator.
#[derive(Debug)]
pub(crate) struct Ledger {
    clock: Clock,
    runs: Mutex<Runs>,
    /// Records that may still be kept.
    room: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
struct Runs {
    by_uid: HashMap<Arc<str>, Arc<Run>>,
    /// In order of their first request.
    order: VecDeque<Arc<str>>,
}

/// What happened in one run.
#[derive(Debug)]
pub(crate) struct Run {
    uid: Arc<str>,
    shards: Vec<Mutex<Shard>>,
    room: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
struct Shard {
    /// The run was forgotten: whoever still holds it must ask for a new one.
    forgotten: bool,
    truncated: bool,
    counts: Endpoints<Counts>,
    first_arrival: Endpoints<Option<u64>>,
    last_end: Endpoints<Option<u64>>,
    blocks: Vec<Vec<Record>>,
}

impl Ledger {
    pub(crate) fn new(clock: Clock, max_records: usize) -> Self {
        Self { clock, runs: Mutex::default(), room: Arc::new(AtomicUsize::new(max_records)) }
    }

    /// The run with this UID, new if need be.
    pub(crate) fn run(&self, uid: &str) -> Arc<Run> {
        let mut runs = lock(&self.runs);
        if let Some(run) = runs.by_uid.get(uid) {
            return run.clone();
        }
        if runs.order.len() >= MAX_RUNS
            && let Some(oldest) = runs.order.pop_front()
            && let Some(run) = runs.by_uid.remove(&oldest)
        {
            run.forget();
        }
        let uid: Arc<str> = uid.into();
        let run = Arc::new(Run {
            uid: uid.clone(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            room: self.room.clone(),
        });
        runs.order.push_back(uid.clone());
        runs.by_uid.insert(uid, run.clone());
        run
    }

    /// The run with this UID, if there is one.
    pub(crate) fn find(&self, uid: &str) -> Option<Arc<Run>> {
        lock(&self.runs).by_uid.get(uid).cloned()
    }

    /// Forgets all runs. Requests in flight leave no record.
    pub(crate) fn clear(&self) {
        let mut runs = lock(&self.runs);
        runs.order.clear();
        for (_, run) in runs.by_uid.drain() {
            run.forget();
        }
    }

    /// What happened in one run; all zero for one that is unknown.
    pub(crate) fn truth(&self, uid: &str) -> RunTruth {
        let Some(run) = self.find(uid) else {
            return RunTruth::none(uid, self.clock.origin_unix());
        };
        let mut seen = Endpoints::<EndpointTruth>::default();
        let mut truncated = false;
        let mut records = Vec::new();
        for (number, shard) in run.shards.iter().enumerate() {
            let shard = lock(shard);
            truncated |= shard.truncated;
            for endpoint in Endpoint::ALL {
                let into = seen.get_mut(endpoint);
                into.counts.add(shard.counts.get(endpoint));
                let moment = |nanos| Moment::at(nanos, self.clock.origin_unix());
                into.see_first(shard.first_arrival.get(endpoint).map(moment));
                into.see_last(shard.last_end.get(endpoint).map(moment));
            }
            let mut left = shard.blocks.iter().map(Vec::len).sum::<usize>();
            drop(shard);
            // Records are copied a block at a time, so that reading the truth never holds up the
            // requests it is about; those that end meanwhile are left out, as they are of counts.
            for block in (0..).map_while(|block| run.block(number, block)) {
                let taken = left.min(block.len());
                records.extend_from_slice(&block[..taken]);
                left -= taken;
                if left == 0 {
                    break;
                }
            }
        }
        RunTruth::build(uid, self.clock.origin_unix(), truncated, seen, &records)
    }

    /// The counts of every run, oldest first.
    pub(crate) fn summaries(&self) -> Vec<RunSummary> {
        let runs: Vec<_> = {
            let runs = lock(&self.runs);
            runs.order.iter().filter_map(|uid| runs.by_uid.get(uid).cloned()).collect()
        };
        runs.iter().map(|run| run.summary()).collect()
    }
}

impl Run {
    pub(crate) fn uid(&self) -> &str {
        &self.uid
    }

    /// Counts a request that arrived. False when the run was forgotten.
    pub(crate) fn begin(
        &self,
        shard: usize,
        endpoint: Endpoint,
        now: u64,
        preflight: bool,
    ) -> bool {
        let mut shard = lock(self.shard(shard));
        if shard.forgotten {
            return false;
        }
        let counts = shard.counts.get_mut(endpoint);
        if preflight {
            counts.preflight += 1;
            return true;
        }
        counts.received += 1;
        counts.in_flight += 1;
        let first = shard.first_arrival.get_mut(endpoint);
        *first = Some(first.map_or(now, |first| first.min(now)));
        true
    }

    /// Counts a message of a WebSocket session.
    pub(crate) fn message(&self, shard: usize, received: bool) {
        let mut shard = lock(self.shard(shard));
        let counts = &mut shard.counts.web_socket;
        *(if received { &mut counts.messages_received } else { &mut counts.messages_sent }) += 1;
    }

    /// Counts and keeps a request that began and is now over.
    pub(crate) fn end(&self, shard: usize, record: Record) {
        let mut shard = lock(self.shard(shard));
        if shard.forgotten {
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
        if !take(&self.room) {
            shard.truncated = true;
            return;
        }
        if let Some(block) = shard.blocks.last_mut().filter(|block| block.len() < BLOCK) {
            block.push(record);
            return;
        }
        // The first block grows as it must: most shards of most runs hold few records.
        let size = if shard.blocks.is_empty() { 1 } else { BLOCK };
        let mut block = Vec::with_capacity(size);
        block.push(record);
        shard.blocks.push(block);
    }

    /// One block of records, by its place; `None` past the last one. A place is a shard and a
    /// block in it.
    pub(crate) fn block(&self, shard: usize, block: usize) -> Option<Vec<Record>> {
        lock(self.shards.get(shard)?).blocks.get(block).cloned()
    }

    /// How many shards [`Run::block`] has.
    pub(crate) fn shards(&self) -> usize {
        self.shards.len()
    }

    fn shard(&self, number: usize) -> &Mutex<Shard> {
        // There are always SHARDS of them.
        &self.shards[number % SHARDS]
    }

    fn forget(&self) {
        for shard in &self.shards {
            let mut shard = lock(shard);
            shard.forgotten = true;
            let blocks = std::mem::take(&mut shard.blocks);
            self.room.fetch_add(blocks.iter().map(Vec::len).sum(), Ordering::Relaxed);
        }
    }

    fn summary(&self) -> RunSummary {
        let mut totals = Counts::default();
        let mut truncated = false;
        for shard in &self.shards {
            let shard = lock(shard);
            truncated |= shard.truncated;
            for endpoint in Endpoint::ALL {
                totals.add(shard.counts.get(endpoint));
            }
        }
        RunSummary { run: self.uid.to_string(), truncated, totals }
    }
}

/// Takes one place for a record, if one is left.
fn take(room: &AtomicUsize) -> bool {
    // A run of tasks each seeing the same last place is settled by the compare in fetch_update.
    room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(endpoint: Endpoint, arrival: u64, end: u64) -> Record {
        Record { arrival, end, outcome: Outcome::Completed, ..Record::new(endpoint, arrival) }
    }

    fn filled(ledger: &Ledger, uid: &str, requests: u64) {
        let run = ledger.run(uid);
        for n in 0..requests {
            let shard = usize::try_from(n).unwrap();
            assert!(run.begin(shard, Endpoint::Health, n + 1, false));
            run.end(shard, record(Endpoint::Health, n + 1, 2 * n + 2));
        }
    }

    #[test]
    fn counts_go_on_when_the_room_for_records_is_used_up() {
        let ledger = Ledger::new(Clock::start(), 100);
        filled(&ledger, "a", 250);
        let truth = ledger.truth("a");
        assert!(truth.truncated);
        assert_eq!(truth.endpoints.health.counts.completed, 250);
        assert_eq!(truth.endpoints.health.all.service_time.count, 100);
        assert_eq!(truth.endpoints.health.last_end.map(|end| end.since_start), Some(500));
    }

    #[test]
    fn a_forgotten_run_gives_its_room_back() {
        let ledger = Ledger::new(Clock::start(), 100);
        filled(&ledger, "a", 100);
        let held = ledger.run("a");
        assert!(held.begin(0, Endpoint::Chat, 1, false));
        ledger.clear();
        held.end(0, record(Endpoint::Chat, 1, 2));
        assert!(!held.begin(0, Endpoint::Chat, 1, false));
        assert_eq!(ledger.truth("a").totals.counts, Counts::default());
        filled(&ledger, "b", 100);
        assert!(!ledger.truth("b").truncated);
    }

    #[test]
    fn the_oldest_run_makes_way_for_the_thousand_and_first() {
        let ledger = Ledger::new(Clock::start(), 100);
        for n in 0..=MAX_RUNS {
            ledger.run(&n.to_string());
        }
        assert!(ledger.find("0").is_none());
        assert!(ledger.find("1").is_some());
        assert_eq!(ledger.summaries().len(), MAX_RUNS);
    }

    #[test]
    fn preflights_are_counted_apart() {
        let ledger = Ledger::new(Clock::start(), 100);
        let run = ledger.run("a");
        assert!(run.begin(0, Endpoint::Chat, 1, true));
        let counts = ledger.truth("a").endpoints.chat.counts;
        assert_eq!(counts, Counts { preflight: 1, ..Counts::default() });
    }

    #[test]
    fn records_of_all_shards_and_blocks_count() {
        let ledger = Ledger::new(Clock::start(), 1_000_000);
        let many = u64::try_from(BLOCK * SHARDS * 2 + 5).unwrap();
        filled(&ledger, "a", many);
        let truth = ledger.truth("a");
        assert_eq!(truth.endpoints.health.successful.service_time.count, many);
        // Service times are 1, 2, …, many.
        assert_eq!(truth.endpoints.health.all.service_time.max, many);
        assert_eq!(truth.endpoints.health.all.service_time.p50, many.div_ceil(2));
    }
}
