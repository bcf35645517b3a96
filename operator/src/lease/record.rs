//! What a replica does next with the Lease, as the API server returned it. Pure.

use std::time::{Duration, Instant};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{ResourceExt, api::ObjectMeta};

use super::DURATION;

/// Larger than any number of transitions: see [`lease_number`].
const MAX_TRANSITIONS: u64 = 100_000;

/// Maximum time between two looks that counts as time without a renewal.
const MAX_UNSEEN: Duration = Duration::from_secs(4);

/// The next request for the Lease.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// Create the Lease, held by this replica.
    Create(Box<Lease>),
    /// Replace the Lease by one that this replica holds. The resource version makes the request fail if
    /// another replica was faster.
    Replace(Box<Lease>),
    /// Another replica holds the Lease.
    Wait,
    /// Another replica has taken the Lease of this one.
    Lost,
}

/// What a replica remembers of the Lease.
#[derive(Clone, Debug)]
pub(super) struct LeaseMemory {
    /// Name of this replica. A process that replaces another one in the same pod has the same name.
    identity: String,
    /// True while this process holds the Lease.
    holds: bool,
    /// The Lease of another replica.
    foreign: Option<ForeignLease>,
}

/// The Lease of another replica, as this one has seen it.
#[derive(Clone, Debug)]
struct ForeignLease {
    version: String,
    /// Time of the last look.
    seen_at: Instant,
    /// How long this version was seen.
    unchanged: Duration,
}

impl LeaseMemory {
    pub(super) const fn new(identity: String) -> Self {
        Self { identity, holds: false, foreign: None }
    }

    /// Returns true while this process holds the Lease.
    pub(super) const fn holds(&self) -> bool {
        self.holds
    }

    /// Notes that this process has written the Lease.
    pub(super) fn note_held(&mut self) {
        self.holds = true;
        self.foreign = None;
    }

    /// Returns the next request. `time` is only for people who read the Lease.
    pub(super) fn next_step(
        &mut self,
        name: &str,
        found: Option<&Lease>,
        now: Instant,
        time: Timestamp,
    ) -> Step {
        let Some(lease) = found else {
            let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
            let spec = Some(self.taken_spec(0, time));
            return Step::Create(Box::new(Lease { metadata, spec }));
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let transitions = spec.lease_transitions.unwrap_or_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if holder == self.identity && self.holds {
            let spec = LeaseSpec { renew_time: Some(MicroTime(time)), ..spec };
            return replace(lease, spec);
        }
        let is_own = holder == self.identity;
        if !is_own && self.holds && !holder.is_empty() {
            return Step::Lost;
        }
        if is_own || holder.is_empty() || self.is_free(lease, &spec, now) {
            return replace(lease, self.taken_spec(transitions.saturating_add(1), time));
        }
        Step::Wait
    }

    /// Returns true when the Lease of another replica was not renewed for its whole duration.
    fn is_free(&mut self, lease: &Lease, spec: &LeaseSpec, now: Instant) -> bool {
        let version = lease.resource_version().unwrap_or_default();
        let unchanged = match self.foreign.take() {
            Some(known) if known.version == version => {
                // While the API server was away, the holder could not renew the Lease either.
                known.unchanged + (now - known.seen_at).min(MAX_UNSEEN)
            }
            _ => Duration::ZERO,
        };
        self.foreign = Some(ForeignLease { version, seen_at: now, unchanged });
        let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        unchanged > seconds.map_or(DURATION, Duration::from_secs)
    }

    fn taken_spec(&self, transitions: i32, time: Timestamp) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            lease_transitions: Some(transitions),
            acquire_time: Some(MicroTime(time)),
            renew_time: Some(MicroTime(time)),
            ..LeaseSpec::default()
        }
    }
}

fn replace(lease: &Lease, spec: LeaseSpec) -> Step {
    Step::Replace(Box::new(Lease { metadata: lease.metadata.clone(), spec: Some(spec) }))
}

/// Returns the Lease without a holder, so that the next replica need not wait.
pub(super) fn released(lease: &Lease) -> Lease {
    let mut lease = lease.clone();
    if let Some(spec) = &mut lease.spec {
        spec.holder_identity = None;
    }
    lease
}

/// Returns a number that grows each time a replica takes the Lease, also when the Lease was deleted and
/// created again: its creation time in seconds, followed by five digits for the transitions.
pub(super) fn lease_number(lease: &Lease) -> u64 {
    let created = lease.creation_timestamp().map_or(0, |time| time.0.as_second());
    let transitions = lease.spec.as_ref().and_then(|spec| spec.lease_transitions);
    let transitions = u64::try_from(transitions.unwrap_or_default()).unwrap_or_default();
    u64::try_from(created).unwrap_or_default() * MAX_TRANSITIONS
        + transitions.min(MAX_TRANSITIONS - 1)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    const TIME: Timestamp = Timestamp::UNIX_EPOCH;

    fn lease_of(holder: &str, version: &str, transitions: i32) -> Lease {
        let metadata = ObjectMeta {
            name: Some("operator".into()),
            resource_version: Some(version.into()),
            creation_timestamp: Some(Time(TIME)),
            ..ObjectMeta::default()
        };
        let spec = LeaseMemory::new(holder.into()).taken_spec(transitions, TIME);
        Lease { metadata, spec: Some(spec) }
    }

    fn next(memory: &mut LeaseMemory, lease: Option<&Lease>, now: Instant) -> Step {
        memory.next_step("operator", lease, now, TIME)
    }

    /// Returns holder, transitions and resource version of a replacement.
    fn replaced(step: Step) -> (String, i32, String) {
        let Step::Replace(lease) = step else { panic!("{step:?}") };
        let version = lease.resource_version().unwrap();
        let spec = lease.spec.unwrap();
        (spec.holder_identity.unwrap(), spec.lease_transitions.unwrap(), version)
    }

    #[test]
    fn a_missing_lease_is_created() {
        let step = next(&mut LeaseMemory::new("a".into()), None, Instant::now());
        let Step::Create(lease) = step else { panic!("{step:?}") };
        assert_eq!(lease.metadata.name.as_deref(), Some("operator"));
        assert_eq!(lease.spec.unwrap().lease_transitions, Some(0));
    }

    #[test]
    fn a_lease_is_taken_only_after_its_duration_without_change() {
        let mut memory = LeaseMemory::new("b".into());
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        // The holder renews it after 9 s.
        for second in 0..=17 {
            let version = if second < 9 { "1" } else { "2" };
            let step = next(&mut memory, Some(&lease_of("a", version, 4)), at(second));
            assert_eq!(step, Step::Wait, "{second} s");
        }
        let step = next(&mut memory, Some(&lease_of("a", "2", 4)), at(18));
        assert_eq!(replaced(step), ("b".into(), 5, "2".into()));
    }

    #[test]
    fn an_api_server_that_was_away_costs_no_leader_its_lease() {
        let mut memory = LeaseMemory::new("b".into());
        let start = Instant::now();
        for second in [0, 1, 2, 62, 63] {
            let now = start + Duration::from_secs(second);
            let step = next(&mut memory, Some(&lease_of("a", "1", 4)), now);
            assert_eq!(step, Step::Wait, "{second} s");
        }
    }

    #[test]
    fn a_released_lease_and_that_of_an_earlier_process_are_taken_at_once() {
        let now = Instant::now();
        let mut memory = LeaseMemory::new("b".into());
        let step = next(&mut memory, Some(&released(&lease_of("a", "1", 4))), now);
        assert_eq!(replaced(step), ("b".into(), 5, "1".into()));
        let step = next(&mut memory, Some(&lease_of("b", "1", 4)), now);
        assert_eq!(replaced(step), ("b".into(), 5, "1".into()));
        memory.note_held();
        // A renewal keeps the number.
        let step = next(&mut memory, Some(&lease_of("b", "1", 5)), now);
        assert_eq!(replaced(step), ("b".into(), 5, "1".into()));
    }

    #[test]
    fn a_lease_that_another_replica_took_is_lost() {
        let mut memory = LeaseMemory::new("a".into());
        memory.note_held();
        assert_eq!(next(&mut memory, Some(&lease_of("b", "9", 2)), Instant::now()), Step::Lost);
    }

    #[test]
    fn numbers_grow_also_when_the_lease_was_deleted() {
        let mut later = lease_of("a", "1", 0);
        later.metadata.creation_timestamp = Some(Time(Timestamp::from_second(1).unwrap()));
        let numbers = [lease_of("a", "1", 0), lease_of("b", "2", 1), lease_of("b", "2", 200_000)]
            .map(|lease| lease_number(&lease));
        assert_eq!(numbers, [0, 1, 99_999]);
        assert_eq!(lease_number(&later), 100_000);
    }
}
