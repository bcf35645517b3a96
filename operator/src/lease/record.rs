//! Decides what a replica does next with the Lease that the API server has returned. Pure.

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

/// Maximum time between two reads of the Lease. After a longer time, the time without a renewal counts from zero: the
/// API server was not available, and the holder could not renew the Lease either.
const MAX_READ_INTERVAL: Duration = Duration::from_secs(5);
/// Maximum duration of a Lease that somebody has edited.
const MAX_DURATION: Duration = Duration::from_mins(1);

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
    /// Number of the Lease that this process holds.
    held: Option<u64>,
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
        Self { identity, held: None, foreign: None }
    }

    /// Returns true while this process holds the Lease.
    pub(super) const fn holds(&self) -> bool {
        self.held.is_some()
    }

    /// Returns true if this is the Lease that this process holds.
    pub(super) fn is_held(&self, lease: &Lease) -> bool {
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref());
        holder == Some(&*self.identity) && self.held == Some(lease_number(lease))
    }

    /// Notes that this process has written the Lease.
    pub(super) fn note_held(&mut self, lease: &Lease) {
        self.held = Some(lease_number(lease));
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
            // A holder that finds no Lease makes a new one sooner than this replica.
            let had_holder = self.foreign.is_some();
            if had_holder && !self.is_unchanged_for("", DURATION, now) {
                return Step::Wait;
            }
            let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
            let spec = Some(self.taken_spec(0, time));
            return Step::Create(Box::new(Lease { metadata, spec }));
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let transitions = spec.lease_transitions.unwrap_or_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if self.held.is_some() {
            // Another replica may have taken the Lease and given it up again.
            if !self.is_held(lease) {
                return Step::Lost;
            }
            let spec = LeaseSpec {
                renew_time: Some(MicroTime(time)),
                lease_duration_seconds: duration_seconds(),
                ..spec
            };
            return replace(lease, spec);
        }
        let version = lease.resource_version().unwrap_or_default();
        let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let duration = Duration::from_secs(seconds.unwrap_or_default());
        let duration = duration.clamp(DURATION, MAX_DURATION);
        let is_own = holder == self.identity || holder.is_empty();
        if is_own || self.is_unchanged_for(&version, duration, now) {
            return replace(lease, self.taken_spec(transitions.saturating_add(1), time));
        }
        Step::Wait
    }

    /// Returns true when all reads have returned this version of another replica's Lease for longer than a
    /// duration. A Lease that is gone has the version "".
    fn is_unchanged_for(&mut self, version: &str, duration: Duration, now: Instant) -> bool {
        let unchanged = match self.foreign.take() {
            Some(known) if known.version == version && now - known.seen_at <= MAX_READ_INTERVAL => {
                known.unchanged + (now - known.seen_at)
            }
            _ => Duration::ZERO,
        };
        let version = version.to_owned();
        self.foreign = Some(ForeignLease { version, seen_at: now, unchanged });
        unchanged > duration
    }

    fn taken_spec(&self, transitions: i32, time: Timestamp) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: duration_seconds(),
            lease_transitions: Some(transitions),
            acquire_time: Some(MicroTime(time)),
            renew_time: Some(MicroTime(time)),
            ..LeaseSpec::default()
        }
    }
}

fn duration_seconds() -> Option<i32> {
    i32::try_from(DURATION.as_secs()).ok()
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

    /// Returns the steps of a replica that looks at a Lease of another one at these seconds.
    fn steps(memory: &mut LeaseMemory, looks: &[(u64, Option<&str>)]) -> Vec<bool> {
        let start = Instant::now();
        let mut takes = Vec::new();
        for (second, version) in looks {
            let lease = version.map(|version| lease_of("a", version, 4));
            let now = start + Duration::from_secs(*second);
            takes.push(next(memory, lease.as_ref(), now) != Step::Wait);
        }
        takes
    }

    #[test]
    fn a_lease_is_taken_only_after_its_duration_without_change() {
        // The holder renews it after 9 s.
        let looks: Vec<_> = (0..=20).map(|s| (s, Some(if s < 9 { "1" } else { "2" }))).collect();
        let takes = steps(&mut LeaseMemory::new("b".into()), &looks);
        assert_eq!(takes.iter().position(|takes| *takes), Some(20));
        let mut memory = LeaseMemory::new("b".into());
        steps(&mut memory, &[(0, Some("1")), (4, Some("1")), (8, Some("1"))]);
        let later = Instant::now() + Duration::from_secs(11);
        let step = next(&mut memory, Some(&lease_of("a", "1", 4)), later);
        assert_eq!(replaced(step), ("b".into(), 5, "1".into()));
    }

    #[test]
    fn an_api_server_that_was_away_costs_no_leader_its_lease() {
        let mut looks = vec![(0, Some("1")), (1, Some("1")), (2, Some("1"))];
        looks.extend((62..=72).map(|second| (second, Some("1"))));
        let takes = steps(&mut LeaseMemory::new("b".into()), &looks);
        assert!(takes.iter().all(|takes| !takes), "{takes:?}");
    }

    #[test]
    fn the_holder_of_a_deleted_lease_makes_the_new_one() {
        let mut looks = vec![(0, Some("1"))];
        looks.extend((1..=12).map(|second| (second, None)));
        let takes = steps(&mut LeaseMemory::new("b".into()), &looks);
        assert_eq!(takes.iter().position(|takes| *takes), Some(12));
        let mut holder = LeaseMemory::new("a".into());
        holder.note_held(&lease_of("a", "1", 4));
        assert!(matches!(next(&mut holder, None, Instant::now()), Step::Create(_)));
    }

    #[test]
    fn an_edited_duration_does_not_last() {
        let mut lease = lease_of("a", "1", 4);
        lease.spec.as_mut().unwrap().lease_duration_seconds = Some(3600);
        let mut holder = LeaseMemory::new("a".into());
        holder.note_held(&lease);
        let Step::Replace(renewed) = next(&mut holder, Some(&lease), Instant::now()) else {
            panic!("not renewed")
        };
        assert_eq!(renewed.spec.unwrap().lease_duration_seconds, Some(10));
        // Nobody renews it any more.
        let (mut memory, start) = (LeaseMemory::new("b".into()), Instant::now());
        let takes = (0..=61).map(|second| {
            let now = start + Duration::from_secs(second);
            next(&mut memory, Some(&lease), now) != Step::Wait
        });
        assert_eq!(takes.collect::<Vec<_>>().iter().position(|takes| *takes), Some(61));
    }

    #[test]
    fn a_lease_without_a_living_holder_is_taken_at_once() {
        let now = Instant::now();
        let mut memory = LeaseMemory::new("b".into());
        let step = next(&mut memory, Some(&released(&lease_of("a", "1", 4))), now);
        assert_eq!(replaced(step), ("b".into(), 5, "1".into()));
        let step = next(&mut memory, Some(&lease_of("b", "1", 4)), now);
        assert_eq!(replaced(step), ("b".into(), 5, "1".into()));
        memory.note_held(&lease_of("b", "1", 5));
        // A renewal keeps the number.
        let step = next(&mut memory, Some(&lease_of("b", "1", 5)), now);
        assert_eq!(replaced(step), ("b".into(), 5, "1".into()));
    }

    #[test]
    fn a_lease_that_another_replica_took_is_lost() {
        let mut memory = LeaseMemory::new("a".into());
        memory.note_held(&lease_of("a", "1", 1));
        let taken = lease_of("b", "9", 2);
        assert_eq!(next(&mut memory, Some(&taken), Instant::now()), Step::Lost);
        // The other replica has given it up already.
        assert_eq!(next(&mut memory, Some(&released(&taken)), Instant::now()), Step::Lost);
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
