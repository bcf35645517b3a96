//! What an order to a runner needs: the token of its run, and the number of the Lease.

use std::{fmt, sync::OnceLock};

use super::Leadership;

/// The right of this process to give orders.
pub(crate) struct Authority {
    /// Key from which the token of each run is derived.
    token_key: OnceLock<Vec<u8>>,
    /// Tells whether this process may act.
    pub(crate) leadership: Leadership,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The output must never contain the token key.
        f.debug_struct("Authority").field("leadership", &self.leadership).finish_non_exhaustive()
    }
}

impl Authority {
    /// Creates the authority of a process that has not read the token key yet.
    pub(crate) const fn new(leadership: Leadership) -> Self {
        Self { token_key: OnceLock::new(), leadership }
    }

    /// Sets the token key. Only the first call counts.
    pub(crate) fn set_token_key(&self, key: Vec<u8>) {
        self.token_key.get_or_init(|| key);
    }

    /// Returns the bearer token for requests to the runners of a run.
    pub(crate) fn run_token(&self, run_uid: &str) -> String {
        let key = self.token_key.get().map_or(&[][..], Vec::as_slice);
        loadtest_core::token::token_of_run(key, run_uid)
    }

    /// Returns the SHA-256 of the token of a run.
    pub(crate) fn token_fingerprint(&self, run_uid: &str) -> String {
        loadtest_core::token::fingerprint_of(&self.run_token(run_uid))
    }
}
