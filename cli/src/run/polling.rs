//! Follows a running load: prints progress, evaluates windows and stages, and stops the load when
//! the user or a threshold asks for it.

use std::time::Duration;

use loadtest_core::{
    judge::{Timeline, progress_of, summarize},
    plan::ValidTest,
    resource::Aborted,
    result::SeriesRecorder,
};
use loadtest_runner::{Engine, Snapshot};
use tokio::signal::unix::{SignalKind, signal};

use crate::{live::StopOrder, output::eprint_line, render::ProgressLines};

/// Time between two snapshots for the series and for threshold windows.
const SNAPSHOT_INTERVAL: Duration = Duration::from_secs(1);
/// Time that in-flight requests get to end after the user or a threshold stops the test.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// Reason for a load that stopped before its planned end.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum StopReason {
    /// The user pressed Ctrl-C, or the process got SIGTERM.
    ByUser,
    /// A threshold with `abort` was critical.
    ByThreshold(Aborted),
}

/// Those who follow the run.
#[derive(Debug)]
pub(super) struct Viewers<'a> {
    /// An order to stop from the live page.
    pub(super) stop_order: &'a StopOrder,
    /// False where the view in the terminal shows the progress.
    pub(super) prints_progress: bool,
}

impl Viewers<'_> {
    /// Prints a line, unless it would be printed over the view in the terminal.
    fn tell(&self, line: &str) {
        if self.prints_progress {
            eprint_line(line);
        }
    }
}

/// How a load ended.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum LoadEnd {
    /// The last request ended. The reason is that of a load that stopped early.
    Finished(Option<StopReason>),
    /// A second signal came, so there is no result.
    Interrupted,
}

/// Prints progress to standard error until the load is over. Calls `publish` with each snapshot.
pub(super) async fn poll_until_finished(
    engine: &Engine,
    test: &ValidTest,
    timeline: &mut Timeline,
    series: &mut SeriesRecorder,
    viewers: &Viewers<'_>,
    publish: &mut impl FnMut(Snapshot, &Timeline, &SeriesRecorder),
) -> anyhow::Result<LoadEnd> {
    let duration = test.load.duration();
    let interval = Duration::from_secs_f64((duration.as_secs_f64() / 60.0).clamp(1.0, 10.0));
    let mut progress_ticks =
        tokio::time::interval_at(tokio::time::Instant::now() + interval, interval);
    let mut snapshot_times = SnapshotTimes::new(test);
    let mut lines = ProgressLines::default();
    let (mut stop_reason, mut signal_received) = (None, false);
    // CI systems, `docker stop` and `timeout` end a process by SIGTERM.
    let (mut interrupts, mut terminations) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    loop {
        tokio::select! {
            () = engine.wait_until_finished() => return Ok(LoadEnd::Finished(stop_reason)),
            Some(()) = async {
                tokio::select! {
                    received = interrupts.recv() => received,
                    received = terminations.recv() => received,
                }
            } => {
                if signal_received {
                    return Ok(LoadEnd::Interrupted);
                }
                signal_received = true;
                viewers.tell("stopping the test; press Ctrl-C again to stop at once");
                // If a threshold stopped the test first, that stays the reason.
                stop_reason.get_or_insert(StopReason::ByUser);
                engine.stop(STOP_GRACE);
            }
            () = viewers.stop_order.cancelled(), if stop_reason.is_none() => {
                stop_reason = Some(StopReason::ByUser);
                viewers.tell("stopping the test, as ordered on the live page");
                engine.stop(STOP_GRACE);
            }
            () = snapshot_times.wait_for_next() => {
                let snapshot = engine.snapshot().await;
                let metrics = &snapshot.metrics;
                series.record(metrics);
                // Load that has ended can't be aborted.
                let is_under_load = metrics.elapsed_seconds < duration.as_secs_f64();
                let aborted = timeline.record_snapshot(test, metrics).filter(|_| is_under_load);
                publish(snapshot, timeline, series);
                if let (Some(aborted), None) = (aborted, &stop_reason) {
                    viewers.tell(&format!(
                        "stopping the test: {} is {}",
                        aborted.key, aborted.observed
                    ));
                    engine.stop(STOP_GRACE.min(test.graceful_stop.to_std()));
                    stop_reason = Some(StopReason::ByThreshold(aborted));
                }
            }
            _ = progress_ticks.tick(), if viewers.prints_progress => {
                let metrics = engine.snapshot().await.metrics;
                let summary = summarize(&metrics.all_tasks(), metrics.elapsed_seconds);
                let progress = progress_of(test, &metrics, 1, metrics.users);
                eprint_line(&lines.next_line(&progress, &summary, duration));
            }
        }
    }
}

/// The times at which the [`Timeline`] needs a snapshot.
struct SnapshotTimes {
    /// Regular snapshots.
    ticks: tokio::time::Interval,
    /// Ends of the stages, latest first.
    stage_ends: Vec<tokio::time::Instant>,
}

impl SnapshotTimes {
    /// Computes the times for a load that starts now.
    fn new(test: &ValidTest) -> Self {
        let start = tokio::time::Instant::now();
        let stages = test.load.stages().into_iter();
        let mut stage_ends: Vec<_> = stages.map(|stage| start + stage.end.to_std()).collect();
        stage_ends.reverse();
        let ticks = tokio::time::interval_at(start + SNAPSHOT_INTERVAL, SNAPSHOT_INTERVAL);
        Self { ticks, stage_ends }
    }

    /// Waits for the next time. Never returns if no time is left.
    async fn wait_for_next(&mut self) {
        let next_stage_end = self.stage_ends.last().copied();
        let stage_end = async {
            match next_stage_end {
                Some(end) => tokio::time::sleep_until(end).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.ticks.tick() => {}
            () = stage_end => {
                self.stage_ends.pop();
            }
        }
    }
}
