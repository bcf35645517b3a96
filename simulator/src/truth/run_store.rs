//! All runs of one simulator, by UID.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, atomic::AtomicUsize},
};

use super::{
    report::{RunSummary, RunTruth},
    run::Run,
};
use crate::{clock::Clock, lock::lock_mutex};

/// Maximum number of runs kept. A new run replaces the oldest one.
const MAX_RUNS: usize = 1000;

/// Stores the runs of one simulator.
#[derive(Debug)]
pub(crate) struct RunStore {
    clock: Clock,
    runs: Mutex<Runs>,
    /// The number of further records that may be kept, over all runs.
    free_records: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
struct Runs {
    by_uid: HashMap<Arc<str>, Arc<Run>>,
    /// UIDs in the order of the runs' first requests.
    order: VecDeque<Arc<str>>,
}

impl RunStore {
    pub(crate) fn new(clock: Clock, max_records: usize) -> Self {
        let free_records = Arc::new(AtomicUsize::new(max_records));
        Self { clock, runs: Mutex::default(), free_records }
    }

    /// Returns the run with this UID; creates it if it does not exist.
    pub(crate) fn get_or_create(&self, uid: &str) -> Arc<Run> {
        let mut runs = lock_mutex(&self.runs);
        if let Some(run) = runs.by_uid.get(uid) {
            return run.clone();
        }
        if runs.order.len() >= MAX_RUNS
            && let Some(oldest) = runs.order.pop_front()
            && let Some(run) = runs.by_uid.remove(&oldest)
        {
            run.discard_records();
        }
        let uid: Arc<str> = uid.into();
        let run = Arc::new(Run::new(uid.clone(), self.free_records.clone()));
        runs.order.push_back(uid.clone());
        runs.by_uid.insert(uid, run.clone());
        run
    }

    /// Returns the run with this UID, if it exists.
    pub(crate) fn find_run(&self, uid: &str) -> Option<Arc<Run>> {
        lock_mutex(&self.runs).by_uid.get(uid).cloned()
    }

    /// Forgets all runs. Requests in flight leave no record.
    pub(crate) fn forget_runs(&self) {
        let mut runs = lock_mutex(&self.runs);
        runs.order.clear();
        for (_, run) in runs.by_uid.drain() {
            run.discard_records();
        }
    }

    /// Returns the truth of one run; all counts of an unknown run are zero.
    pub(crate) fn run_truth(&self, uid: &str) -> RunTruth {
        let started_unix = self.clock.start_unix();
        match self.find_run(uid) {
            Some(run) => run.build_truth(started_unix),
            None => RunTruth::unknown_run(uid, started_unix),
        }
    }

    /// Returns the counts of every run, oldest run first.
    pub(crate) fn run_summaries(&self) -> Vec<RunSummary> {
        let runs: Vec<_> = {
            let runs = lock_mutex(&self.runs);
            runs.order.iter().filter_map(|uid| runs.by_uid.get(uid).cloned()).collect()
        };
        runs.iter().map(|run| run.summarize()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::truth::{
        record::{Endpoint, Outcome, Record},
        report::Counts,
        run::{BLOCK_LENGTH, SHARDS},
    };

    fn completed_record(endpoint: Endpoint, arrival: u64, end: u64) -> Record {
        Record { arrival, end, outcome: Outcome::Completed, ..Record::new(endpoint, arrival) }
    }

    fn add_requests(store: &RunStore, uid: &str, requests: u64) {
        let run = store.get_or_create(uid);
        for n in 0..requests {
            let shard = usize::try_from(n).unwrap();
            assert!(run.count_arrival(shard, Endpoint::Health, n + 1));
            run.add_record(shard, completed_record(Endpoint::Health, n + 1, 2 * n + 2));
        }
    }

    #[test]
    fn requests_beyond_the_record_limit_are_still_counted() {
        let store = RunStore::new(Clock::start(), 100);
        add_requests(&store, "a", 250);
        let truth = store.run_truth("a");
        assert!(truth.truncated);
        assert_eq!(truth.endpoints.health.counts.completed, 250);
        assert_eq!(truth.endpoints.health.all.service_time.count, 100);
        assert_eq!(truth.endpoints.health.last_end.map(|end| end.since_start), Some(500));
    }

    #[test]
    fn forgotten_runs_free_their_records() {
        let store = RunStore::new(Clock::start(), 100);
        add_requests(&store, "a", 100);
        let held = store.get_or_create("a");
        assert!(held.count_arrival(0, Endpoint::Chat, 1));
        store.forget_runs();
        held.add_record(0, completed_record(Endpoint::Chat, 1, 2));
        assert!(!held.count_arrival(0, Endpoint::Chat, 1));
        assert_eq!(store.run_truth("a").totals.counts, Counts::default());
        add_requests(&store, "b", 100);
        assert!(!store.run_truth("b").truncated);
    }

    #[test]
    fn run_1001_replaces_the_oldest_run() {
        let store = RunStore::new(Clock::start(), 100);
        for n in 0..=MAX_RUNS {
            store.get_or_create(&n.to_string());
        }
        assert!(store.find_run("0").is_none());
        assert!(store.find_run("1").is_some());
        assert_eq!(store.run_summaries().len(), MAX_RUNS);
    }

    #[test]
    fn truth_covers_all_shards_and_blocks() {
        let store = RunStore::new(Clock::start(), 1_000_000);
        let many = u64::try_from(BLOCK_LENGTH * SHARDS * 2 + 5).unwrap();
        add_requests(&store, "a", many);
        let truth = store.run_truth("a");
        assert_eq!(truth.endpoints.health.successful.service_time.count, many);
        // Service times are 1, 2, …, many.
        assert_eq!(truth.endpoints.health.all.service_time.max, many);
        assert_eq!(truth.endpoints.health.all.service_time.p50, many.div_ceil(2));
    }
}
