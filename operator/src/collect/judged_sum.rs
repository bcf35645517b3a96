//! The sum of what the runners have told, judged slot by slot. Pure.

use loadtest_core::{
    judge::{Coverage, Timeline},
    metrics::{Metrics, PackedMetrics, RunnerNumbers},
    plan::ValidTest,
    resource::{Aborted, LoadTestStatus},
    result::{PackedSeries, SeriesRecorder},
};

use super::{slots::Slots, targets::Targets};

/// What can be judged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct JudgeScope {
    /// The runners that the sum covers.
    pub(super) coverage: Coverage,
    /// All of them have told everything until this second of the load.
    pub(super) until: f64,
}

impl JudgeScope {
    /// Everything that was told, although some runners may be missing.
    pub(super) const EVERYTHING: Self = Self { coverage: Coverage::Partial, until: f64::INFINITY };
}

/// A sum of metrics. It is packed while it does not change: that takes a fifth of the memory, and clones share it.
#[derive(Clone, Debug, Default)]
struct Sum {
    /// The sum while it changes.
    open: Option<Metrics>,
    /// The sum while `open` is `None`.
    packed: PackedMetrics,
}

impl Sum {
    fn open(&mut self) -> &mut Metrics {
        self.open.get_or_insert_with(|| self.packed.unpack())
    }

    fn pack(&mut self) {
        if let Some(open) = self.open.take() {
            self.packed = PackedMetrics::of(&open);
        }
    }

    fn metrics(&self) -> Metrics {
        self.open.clone().unwrap_or_else(|| self.packed.unpack())
    }
}

/// The sum of what the runners have told, and what follows from it over time.
#[derive(Clone, Debug, Default)]
pub(super) struct JudgedSum {
    /// Sum over all runners, as far as it is judged. Without the numbers of whole runners.
    sum: Sum,
    /// True if the sum has an entry for each task.
    has_tasks: bool,
    /// The numbers of whole runners, as far as they are judged.
    numbers: RunnerNumbers,
    /// The changes that are not judged yet.
    pending: Slots,
    /// Before this second of the load, some runners told everything in one step, so no window is judged.
    cumulative_until: f64,
    /// Windows, stages and abort timers.
    timeline: Option<Timeline>,
    /// The sum at the start of a stage, as an earlier process has stored it for the timeline.
    stage_start: Option<PackedMetrics>,
}

impl JudgedSum {
    /// Goes on from the sum at the start of the current stage.
    pub(super) fn resumed(stage_start: Option<&Metrics>) -> Self {
        Self { stage_start: stage_start.map(PackedMetrics::of), ..Self::default() }
    }

    /// Returns windows, stages and abort timers; `None` before anything is judged.
    pub(super) const fn timeline(&self) -> Option<&Timeline> {
        self.timeline.as_ref()
    }

    /// Returns the sum at the start of the current stage, but for the first stage.
    pub(super) fn stage_start(&self) -> Option<Metrics> {
        match &self.timeline {
            Some(timeline) => timeline.stage_start(),
            None => self.stage_start.as_ref().map(PackedMetrics::unpack),
        }
    }

    /// Returns true if some changes are not judged yet.
    pub(super) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Returns the sum of everything.
    pub(super) fn total(&self) -> Metrics {
        let (mut total, mut numbers) = (self.sum.metrics(), self.numbers);
        self.pending.add_all_to(&mut total, &mut numbers);
        numbers.write_to(&mut total);
        total
    }

    /// Adds a step of a runner, to be judged later.
    pub(super) fn add_step(
        &mut self,
        valid: &ValidTest,
        index: u32,
        step: &Metrics,
        change: RunnerNumbers,
    ) {
        self.pending.add(valid, index, step, change);
    }

    /// Notes that a runner tells everything until this second of the load in one step.
    pub(super) fn note_cumulative_step(&mut self, elapsed: f64) {
        self.cumulative_until = self.cumulative_until.max(elapsed);
    }

    /// Adds everything that a runner has told. It is not judged.
    pub(super) fn add_unjudged(&mut self, index: u32, metrics: &Metrics) {
        self.sum.open().cpu_times.insert(index, metrics.own_cpu_times());
        self.add_gone(metrics);
    }

    /// Adds everything that the runners have told that will never answer again. It is not judged.
    pub(super) fn add_gone(&mut self, metrics: &Metrics) {
        self.sum.open().merge_samples(metrics);
        self.numbers.add(RunnerNumbers::of(metrics));
    }

    /// Takes everything that a runner has told out of the sum. It must be judged.
    pub(super) fn remove(&mut self, told: &Metrics, numbers: RunnerNumbers) {
        self.numbers.add(RunnerNumbers::default().change_since(numbers));
        let sum = self.sum.open();
        let cpu_times = std::mem::take(&mut sum.cpu_times);
        *sum = sum.since(told);
        sum.cpu_times = cpu_times;
    }

    /// Adds the slots up to the scope to the sum, in the order of time, and takes a snapshot for timeline
    /// and series after each slot. Returns the first threshold that ends the test.
    ///
    /// A runner without an answer seems to do nothing now and too much later, so the timeline is told
    /// whether some are missing.
    pub(super) fn judge_until(
        &mut self,
        run: &Targets,
        scope: JudgeScope,
        series: Option<&mut SeriesRecorder<PackedSeries>>,
    ) -> Option<Aborted> {
        if !self.has_tasks {
            let tasks = &mut self.sum.open().tasks;
            for task in &run.valid.scenario.tasks {
                tasks.entry(task.name.clone()).or_default();
            }
            self.has_tasks = true;
        }
        let has_slots = self.pending.starts_until(scope.until);
        let aborted = has_slots.then(|| self.judge_slots(run, scope, series)).flatten();
        self.sum.pack();
        aborted
    }

    fn judge_slots(
        &mut self,
        run: &Targets,
        scope: JudgeScope,
        mut series: Option<&mut SeriesRecorder<PackedSeries>>,
    ) -> Option<Aborted> {
        let sum = self.sum.open();
        let from = self.cumulative_until;
        let timeline = self.timeline.get_or_insert_with(|| {
            let mut timeline = timeline_of(&run.valid, &run.status);
            timeline.look_back_to(from);
            if let Some(start) = self.stage_start.take() {
                timeline.resume_stage(&run.valid, &start.unpack());
            }
            timeline
        });
        let mut first_abort = None;
        while self.pending.starts_until(scope.until)
            && let Some(elapsed) = self.pending.pop_first_to(sum, &mut self.numbers)
        {
            if elapsed < from {
                continue;
            }
            self.numbers.write_to(sum);
            // During a replay, runners that are gone are ahead.
            if !self.pending.is_empty() {
                sum.elapsed_seconds = elapsed;
            }
            if let Some(series) = &mut series {
                series.record(sum);
            }
            let aborted = timeline.record_snapshot_of(&run.valid, sum, scope.coverage);
            first_abort = first_abort.or(aborted);
        }
        first_abort
    }

    /// Notes that no more will be told.
    pub(super) fn end(&mut self, valid: &ValidTest) {
        if let Some(timeline) = &mut self.timeline {
            timeline.end(valid);
        }
    }
}

/// Returns the timeline that an earlier process has written to the status.
pub(crate) fn timeline_of(valid: &ValidTest, status: &LoadTestStatus) -> Timeline {
    let LoadTestStatus { stages, thresholds, progress, .. } = status;
    let judged = progress.as_ref().map(|progress| progress.judged.unwrap_or(progress.elapsed));
    let judged = judged.map_or(0.0, loadtest_core::Duration::as_secs_f64);
    Timeline::from_status(valid, stages.clone(), thresholds, judged)
}
