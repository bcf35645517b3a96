//! What runners told and is not judged yet, in slots of two seconds. Pure.

use std::{collections::BTreeMap, sync::Arc};

use loadtest_core::{
    metrics::{CpuTimes, Metrics, RunnerNumbers},
    plan::ValidTest,
};

/// Length of a slot in seconds.
const SLOT: f64 = 2.0;
/// A step that ends this soon after a slot belongs to it, in seconds.
const TOLERANCE: f64 = 0.25;

/// The slots, by their time in the load. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slots(BTreeMap<(u64, u64), Arc<Slot>>);

#[derive(Clone, Debug, Default)]
struct Slot {
    /// Counts and samples.
    added: Metrics,
    /// Change of the numbers of whole runners.
    change: RunnerNumbers,
    /// CPU times of the runners at their last steps in this slot, by index.
    cpu_times: BTreeMap<u32, CpuTimes>,
    /// Seconds of load at the end of the last step.
    elapsed: f64,
}

impl Slots {
    /// Returns true if nothing has come.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns true if there is a slot, and the first one ends by this second of the load.
    pub(crate) fn starts_until(&self, seconds: f64) -> bool {
        self.0.first_key_value().is_some_and(|(_, slot)| slot.elapsed <= seconds)
    }

    /// Adds a step of a runner.
    pub(crate) fn add(
        &mut self,
        valid: &ValidTest,
        index: u32,
        step: &Metrics,
        change: RunnerNumbers,
    ) {
        let elapsed = step.elapsed_seconds;
        let slot = Arc::make_mut(self.0.entry(key_of(valid, elapsed)).or_default());
        slot.added.merge_samples(step);
        slot.change.add(change);
        slot.cpu_times.insert(index, step.own_cpu_times());
        slot.elapsed = slot.elapsed.max(elapsed);
    }

    /// Moves the first slot to a sum. Returns the seconds of load at its end.
    pub(crate) fn pop_first_to(
        &mut self,
        sum: &mut Metrics,
        numbers: &mut RunnerNumbers,
    ) -> Option<f64> {
        let (_, slot) = self.0.pop_first()?;
        slot.add_to(sum, numbers);
        Some(slot.elapsed)
    }

    /// Adds all slots to a sum.
    pub(crate) fn add_all_to(&self, sum: &mut Metrics, numbers: &mut RunnerNumbers) {
        self.0.values().for_each(|slot| slot.add_to(sum, numbers));
    }
}

impl Slot {
    fn add_to(&self, sum: &mut Metrics, numbers: &mut RunnerNumbers) {
        sum.merge_samples(&self.added);
        sum.cpu_times.extend(&self.cpu_times);
        numbers.add(self.change);
    }
}

/// The key of the slot with a step that ends at this time: the number of stages that have ended, and the
/// number of the slot. No slot goes over the end of a stage.
fn key_of(valid: &ValidTest, elapsed: f64) -> (u64, u64) {
    let time = (elapsed - TOLERANCE).max(0.0);
    let ends = valid.load.stages().into_iter().map(|stage| stage.end.as_secs_f64());
    let ended = ends.filter(|end| time >= *end).count();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the time of a load is positive and at most a week"
    )]
    let number = (time / SLOT) as u64;
    (ended as u64, number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{example_test, validated};

    #[test]
    fn a_slot_ends_with_its_stage() {
        let mut test = example_test();
        let stage = |duration: &str| serde_json::json!({"users": 10, "duration": duration});
        test.spec.load =
            serde_json::from_value(serde_json::json!({"stages": [stage("5s"), stage("5s")]}))
                .unwrap();
        let valid = validated(&test);
        let slot = |elapsed| key_of(&valid, elapsed);
        assert_eq!([slot(0.0), slot(1.9), slot(2.1)], [(0, 0); 3]);
        assert_eq!([slot(4.3), slot(5.05)], [(0, 2); 2]);
        assert_eq!(slot(5.4), (1, 2));
    }
}
