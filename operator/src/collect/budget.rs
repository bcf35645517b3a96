//! Memory for large answers of runners.
//!
//! Users choose the image of their runners, so an answer can be as large as the limit. Usual answers are
//! small and need no permission. Large ones share a budget: first that of their namespace, so that runners
//! of one namespace wait for each other, then that of the operator.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Size up to which an answer needs no permission, in bytes.
const FREE_BYTES: usize = 64 << 10;
/// Unit of the budgets in bytes.
const UNIT_BYTES: usize = 64 << 10;
/// Units for the large answers of all runners of a namespace: 32 MiB.
const NAMESPACE_UNITS: usize = 512;
/// Units for the large answers of all runners: 64 MiB.
const UNITS: usize = 1024;

/// The budgets of all namespaces.
#[derive(Debug)]
pub(crate) struct ReadBudget {
    all: Arc<Semaphore>,
    namespaces: Mutex<HashMap<String, Weak<Semaphore>>>,
}

impl Default for ReadBudget {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(UNITS)), namespaces: Mutex::default() }
    }
}

impl ReadBudget {
    /// Returns the budget of a namespace.
    pub(crate) fn of_namespace(&self, namespace: &str) -> NamespaceBudget {
        let mut namespaces = self.namespaces.lock().unwrap_or_else(PoisonError::into_inner);
        namespaces.retain(|_, budget| budget.strong_count() > 0);
        let found = namespaces.get(namespace).and_then(Weak::upgrade);
        let own = found.unwrap_or_else(|| Arc::new(Semaphore::new(NAMESPACE_UNITS)));
        namespaces.insert(namespace.to_owned(), Arc::downgrade(&own));
        NamespaceBudget { own, all: Arc::clone(&self.all) }
    }
}

/// The budget of one namespace.
#[derive(Clone, Debug)]
pub(crate) struct NamespaceBudget {
    own: Arc<Semaphore>,
    all: Arc<Semaphore>,
}

/// Memory that one answer may take. It is free again when this value is dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    _permits: Vec<OwnedSemaphorePermit>,
}

impl NamespaceBudget {
    /// Reserves memory for an answer of this many bytes. Waits until there is room.
    pub(crate) async fn reserve(&self, bytes: usize) -> Reservation {
        let units = bytes.saturating_sub(FREE_BYTES).div_ceil(UNIT_BYTES);
        let mut permits = Vec::new();
        if units > 0 {
            let units = u32::try_from(units).unwrap_or(u32::MAX);
            // All answers ask in this order, so that no two wait for each other.
            for budget in [&self.own, &self.all] {
                // Nobody closes these semaphores.
                permits.extend(Arc::clone(budget).acquire_many_owned(units).await.ok());
            }
        }
        Reservation { _permits: permits }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Reserves room for an answer of 16 MiB, if it is there at once.
    async fn reserve_large(budget: &NamespaceBudget) -> Option<Reservation> {
        tokio::time::timeout(Duration::from_millis(20), budget.reserve(16 << 20)).await.ok()
    }

    #[tokio::test]
    async fn hostile_runners_of_a_namespace_wait_for_each_other() {
        let budget = ReadBudget::default();
        let (hostile, honest) = (budget.of_namespace("a"), budget.of_namespace("b"));
        let held = [reserve_large(&hostile).await, reserve_large(&hostile).await];
        assert!(held.iter().all(Option::is_some));
        // Another test of the same namespace has the same budget.
        assert!(reserve_large(&budget.of_namespace("a")).await.is_none());
        assert!(reserve_large(&honest).await.is_some());
        drop(held);
        assert!(reserve_large(&hostile).await.is_some());
    }

    #[tokio::test]
    async fn a_usual_answer_needs_no_room() {
        let budget = ReadBudget::default();
        let mut held = Vec::new();
        for namespace in ["a", "a", "b", "b"] {
            held.push(reserve_large(&budget.of_namespace(namespace)).await.unwrap());
        }
        let other = budget.of_namespace("c");
        assert!(reserve_large(&other).await.is_none());
        let usual = tokio::time::timeout(Duration::from_millis(20), other.reserve(60 << 10)).await;
        assert!(usual.is_ok());
    }
}
