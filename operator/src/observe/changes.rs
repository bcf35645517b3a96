//! Which runs have changed on the API server since they were read.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Numbers of events that the watches have delivered about the Jobs and pods of runs, by their UIDs.
#[derive(Debug, Default)]
pub(crate) struct Changes(Mutex<HashMap<String, u64>>);

impl Changes {
    /// Notes an event about a Job or a pod of a run.
    pub(crate) fn note(&self, run_uid: &str) {
        *self.lock().entry(run_uid.to_owned()).or_default() += 1;
    }

    /// Returns the number of events so far.
    pub(crate) fn count(&self, run_uid: &str) -> u64 {
        self.lock().get(run_uid).copied().unwrap_or_default()
    }

    /// Forgets all runs but these.
    pub(crate) fn retain(&self, run_uids: &HashSet<String>) {
        self.lock().retain(|run_uid, _| run_uids.contains(run_uid));
    }

    /// No panic can leave the map half updated.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
