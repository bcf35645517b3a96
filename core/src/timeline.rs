//! A test over its course: rolling windows, stages, and what ends it early. Pure.
//!
//! Numbers are cumulative, so what happened between two looks at them is the difference of
//! the two, exactly. Who looks hands in the merged numbers; times are theirs (seconds since
//! the runners' start).

use std::{cmp::Ordering, collections::VecDeque};

use crate::{
    metrics::{LatencyHistogram, Numbers, TaskNumbers},
    resource::{
        Aborted, BreakingPoint, LoadTestSpec, Metric, Stage, StageRow, Threshold, ThresholdRow,
        Verdict,
    },
    summary::summarise,
    values::{Duration, Quantity, compare},
    verdict::{self, badness, is_scarce, judge_part},
};

/// Looks that are kept of each window: it begins by this share of it too early at most, where
/// somebody looked so often.
const LOOKS: f64 = 50.0;
/// A stage that ended longer ago than this, in seconds and as a share of its length, is unknown.
const LATE: f64 = 2.5;
const LATE_SHARE: f64 = 0.05;
/// A window that would begin longer before it should, in seconds and as a share of its length, is
/// none: for a while nobody looked.
const EARLY: f64 = 5.0;
const EARLY_SHARE: f64 = 0.2;
/// A look this close before a boundary counts as being at it.
const AT_ONCE: f64 = 0.001;

/// What a test's course has shown so far.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    /// When it was last looked at, in seconds.
    last: f64,
    /// The looks that windows may yet begin at, oldest first.
    looks: VecDeque<Numbers>,
    /// One for each threshold.
    watched: Vec<Watched>,
    /// Stages that are over.
    stages: Vec<StageRow>,
    /// The numbers at the start of the current stage; absent when nobody looked then.
    stage_from: Option<Numbers>,
    /// The numbers at the start of the stage that ended last.
    last_from: Option<Numbers>,
}

#[derive(Clone, Debug, Default)]
struct Watched {
    worst: Option<(ThresholdRow, Option<Quantity>)>,
    /// Since when the critical bound has held without a break, in seconds.
    critical_since: Option<f64>,
}

impl Timeline {
    /// The course of a test that someone else has looked at before: the stages that were judged
    /// then, and what windows have shown.
    pub fn after(spec: &LoadTestSpec, stages: Vec<StageRow>, rows: &[ThresholdRow]) -> Self {
        let watched = spec.thresholds.iter().zip(rows).map(|(threshold, row)| {
            let value = row.observed.as_ref().and_then(|text| text.parse().ok());
            let told = threshold.window.is_some() && (value.is_some() || row.samples > 0);
            let worst = told.then(|| (row.clone(), value));
            Watched { worst, critical_since: None }
        });
        Self { watched: watched.collect(), stages, ..Self::default() }
    }

    /// Takes the merged numbers of now. The threshold that ends the test, when one does.
    pub fn look(&mut self, spec: &LoadTestSpec, numbers: &Numbers) -> Option<Aborted> {
        let now = numbers.elapsed_seconds;
        // At the end time stands still while the last numbers come in.
        if now <= 0.0 || now < self.last {
            return None;
        }
        let unseen = now - self.last;
        self.last = now;
        self.watched.resize_with(spec.thresholds.len(), Watched::default);
        let mut ended = None;
        for (index, threshold) in spec.thresholds.iter().enumerate() {
            let aborted = self.watch(index, threshold, numbers, unseen);
            ended = ended.or(aborted);
        }
        self.close_stages(spec, numbers);
        self.keep(spec, numbers);
        ended
    }

    /// Judges one threshold now, if it is to be judged before the end. Nobody has looked for
    /// `unseen` seconds.
    fn watch(
        &mut self,
        index: usize,
        threshold: &Threshold,
        now: &Numbers,
        unseen: f64,
    ) -> Option<Aborted> {
        let at = now.elapsed_seconds;
        let begin = match threshold.window {
            Some(window) => self.begin(at, window),
            None => threshold.abort.map(|_| Numbers::default()),
        };
        let watched = self.watched.get_mut(index)?;
        if threshold.window.is_some_and(|window| unseen > window.as_secs_f64()) {
            // Nobody knows what was meanwhile.
            watched.critical_since = None;
        }
        let begin = begin?;
        let (row, value) = judge_part(threshold, &now.since(&begin), now);
        let critical = row.verdict == Verdict::Critical;
        let since = *watched.critical_since.get_or_insert(at);
        watched.critical_since = critical.then_some(since);
        let aborted = threshold.abort.filter(|abort| {
            critical && at >= abort.after.as_secs_f64() && at - since >= abort.lasting.as_secs_f64()
        });
        let aborted = aborted.map(|_| Aborted {
            row: i64::try_from(index).unwrap_or(i64::MAX),
            threshold: threshold.label(),
            observed: row.observed.clone().unwrap_or_default(),
            bound: row.bound,
            // A tenth of a second, as progress is told.
            elapsed: Duration::from_secs_f64((at * 10.0).floor() / 10.0),
            samples: row.samples,
        });
        if threshold.window.is_some() {
            let next = (row, value);
            let replace = watched.worst.as_ref().is_none_or(|worst| worse(threshold, &next, worst));
            if replace {
                watched.worst = Some(next);
            }
        }
        aborted
    }

    /// The numbers at the beginning of the window that ends now, if somebody looked then.
    fn begin(&self, now: f64, window: Duration) -> Option<Numbers> {
        let from = now - window.as_secs_f64() + AT_ONCE;
        let look = self.looks.iter().rev().find(|look| look.elapsed_seconds <= from);
        // At the start there was nothing, which is known without a look.
        let early = from - look.map_or(0.0, |look| look.elapsed_seconds);
        let known = (0.0..=EARLY.max(window.as_secs_f64() * EARLY_SHARE)).contains(&early);
        known.then(|| look.cloned().unwrap_or_default())
    }

    fn close_stages(&mut self, spec: &LoadTestSpec, numbers: &Numbers) {
        let now = numbers.elapsed_seconds;
        let ends: Vec<f64> = spec
            .load
            .stages
            .iter()
            .scan(0.0, |end, stage| {
                *end += stage.duration.as_secs_f64();
                Some(*end)
            })
            .take_while(|end| *end <= now + AT_ONCE)
            .collect();
        while let Some(end) = ends.get(self.stages.len()) {
            let Some(stage) = spec.load.stages.get(self.stages.len()) else { return };
            // A look too late would book the next stage's requests on this one.
            let in_time = now - end <= LATE.max(stage.duration.as_secs_f64() * LATE_SHARE);
            let first = self.stages.is_empty();
            let from = self.stage_from.take().or_else(|| first.then(Numbers::default));
            let from = from.filter(|_| in_time);
            let row = from.as_ref().map(|from| stage_row(spec, stage, from, numbers));
            self.stages.push(row.unwrap_or_else(|| unseen(stage)));
            self.last_from = from;
            // The next one began now, if it is not over too.
            let next = in_time && self.stages.len() == ends.len();
            self.stage_from = next.then(|| numbers.clone());
        }
    }

    /// Keeps this look, and lets go of those that no window needs any more.
    fn keep(&mut self, spec: &LoadTestSpec, numbers: &Numbers) {
        let windows = spec.thresholds.iter().filter_map(|threshold| threshold.window);
        let windows: Vec<f64> = windows.map(Duration::as_secs_f64).collect();
        // How far two looks of this age may be apart: none of longer windows alone are needed as
        // often as those of short ones.
        let apart = |age: f64| {
            let reach = windows.iter().copied().filter(|window| *window >= age);
            reach.reduce(f64::min).map(|shortest| shortest / LOOKS)
        };
        let now = numbers.elapsed_seconds;
        if windows.is_empty() {
            return;
        }
        let mut all = std::mem::take(&mut self.looks);
        all.push_back(needed_of(numbers, &spec.thresholds));
        let mut before: Option<f64> = None;
        while let Some(look) = all.pop_front() {
            let (at, next) = (look.elapsed_seconds, all.front().map(|next| next.elapsed_seconds));
            // The one before it, or the start, would do for every window that begins until `next`.
            let spare = next.is_some_and(|next| {
                apart(now - next).is_none_or(|apart| next - before.unwrap_or(0.0) <= apart)
            });
            if !spare {
                before = Some(at);
                self.looks.push_back(look);
            }
        }
    }

    /// Each threshold judged at the end of a test: on the whole of it, or on the worst window.
    pub fn rows(
        &self,
        spec: &LoadTestSpec,
        numbers: &Numbers,
        aborted: Option<&Aborted>,
    ) -> Vec<ThresholdRow> {
        let row = |(index, threshold): (usize, &Threshold)| {
            let mut row = match threshold.window {
                None => verdict::judge(threshold, numbers),
                Some(window) => {
                    let worst = self.watched.get(index).and_then(|watched| watched.worst.as_ref());
                    worst.map_or_else(|| no_window(threshold, window), |(row, _)| row.clone())
                }
            };
            // What ended the test stands, whatever came of the requests still open then.
            if let Some(aborted) = aborted.filter(|a| usize::try_from(a.row) == Ok(index)) {
                row.verdict = Verdict::Critical;
                row.observed = Some(aborted.observed.clone());
                row.bound = aborted.bound;
                row.samples = aborted.samples;
                row.advice = Some(verdict::advice(threshold.metric));
            }
            row
        };
        spec.thresholds.iter().enumerate().map(row).collect()
    }

    /// Stages that are over.
    pub fn stages(&self) -> &[StageRow] {
        &self.stages
    }

    /// All stages at the end of a test: to the last one belongs what was still open then.
    pub fn stages_at_end(&self, spec: &LoadTestSpec, numbers: &Numbers) -> Vec<StageRow> {
        let mut rows = self.stages.clone();
        let last = rows.len().checked_sub(1).filter(|_| rows.len() == spec.load.stages.len());
        if let (Some(last), Some(from)) = (last, &self.last_from)
            && let (Some(row), Some(stage)) = (rows.get_mut(last), spec.load.stages.get(last))
        {
            *row = stage_row(spec, stage, from, numbers);
        }
        rows
    }
}

/// What windows of these thresholds take of a look: a look is kept for long.
fn needed_of(numbers: &Numbers, thresholds: &[Threshold]) -> Numbers {
    let windows = || thresholds.iter().filter(|threshold| threshold.window.is_some());
    let takes = |metric: Metric| windows().any(|threshold| threshold.metric == metric);
    let task = |task: &TaskNumbers| TaskNumbers {
        requests: task.requests,
        dropped: task.dropped,
        tokens: task.tokens,
        good: task.good,
        response_time: kept(takes(Metric::ResponseTime), &task.response_time),
        service_time: kept(takes(Metric::ServiceTime), &task.service_time),
        first_response: kept(takes(Metric::TimeToFirstResponse), &task.first_response),
        web_socket_connect: kept(takes(Metric::WebSocketConnect), &task.web_socket_connect),
        inter_token: one(takes(Metric::InterTokenLatency), &task.inter_token),
        first_byte: one(takes(Metric::TimeToFirstByte), &task.first_byte),
        round_trip: one(takes(Metric::WebSocketRoundTrip), &task.round_trip),
        ..TaskNumbers::default()
    };
    Numbers {
        tasks: numbers.tasks.iter().map(|(name, numbers)| (name.clone(), task(numbers))).collect(),
        schedule_lag: numbers.schedule_lag.clone(),
        loop_lag: numbers.loop_lag.clone(),
        elapsed_seconds: numbers.elapsed_seconds,
        busy_seconds: numbers.busy_seconds,
        user_seconds: numbers.user_seconds,
        throttled_seconds: numbers.throttled_seconds,
        ..Numbers::default()
    }
}

fn one(wanted: bool, all: &LatencyHistogram) -> LatencyHistogram {
    if wanted { all.clone() } else { LatencyHistogram::default() }
}

fn kept(wanted: bool, all: &[LatencyHistogram; 4]) -> [LatencyHistogram; 4] {
    if wanted { all.clone() } else { Default::default() }
}

/// True when a window is worse than the worst so far. Windows with too few samples say least; of
/// one that is Inconclusive for another reason nobody knows that it was no worse.
fn worse(
    threshold: &Threshold,
    (row, value): &(ThresholdRow, Option<Quantity>),
    (worst_row, worst_value): &(ThresholdRow, Option<Quantity>),
) -> bool {
    let rank = |row: &ThresholdRow| match row.verdict {
        Verdict::Inconclusive if is_scarce(threshold, row) => 0,
        verdict => badness(verdict),
    };
    match rank(row).cmp(&rank(worst_row)) {
        Ordering::Greater => true,
        Ordering::Less => false,
        Ordering::Equal => {
            let order = value.zip(*worst_value).and_then(|(a, b)| compare(a, b));
            let worse = if threshold.target.comparison.is_upper() {
                Ordering::Greater
            } else {
                Ordering::Less
            };
            order == Some(worse)
        }
    }
}

fn no_window(threshold: &Threshold, window: Duration) -> ThresholdRow {
    let mut row = verdict::judge(threshold, &Numbers::default());
    row.advice = Some(format!("no window of {window} was complete: run longer, or shorten it"));
    row
}

fn load_of(stage: &Stage) -> String {
    match (stage.users, stage.rate) {
        (Some(users), _) => format!("{users} users"),
        (None, Some(rate)) => rate.to_string(),
        (None, None) => String::new(),
    }
}

/// A stage that ended while nobody looked.
fn unseen(stage: &Stage) -> StageRow {
    let nothing = summarise(&TaskNumbers::default(), 0.0);
    StageRow {
        load: load_of(stage),
        requests: 0,
        error_rate: nothing.error_rate,
        throughput: nothing.throughput,
        p95: None,
        verdict: Verdict::Inconclusive,
        missed: None,
        observed: None,
    }
}

fn stage_row(spec: &LoadTestSpec, stage: &Stage, from: &Numbers, now: &Numbers) -> StageRow {
    let numbers = now.since(from);
    let rows: Vec<(&Threshold, ThresholdRow)> =
        spec.thresholds.iter().map(|t| (t, judge_part(t, &numbers, now).0)).collect();
    let missed = rows.iter().find(|(_, row)| {
        matches!(row.verdict, Verdict::Warning | Verdict::Fail | Verdict::Critical)
    });
    let summary = summarise(&numbers.total(), numbers.elapsed_seconds);
    StageRow {
        load: load_of(stage),
        requests: summary.requests,
        error_rate: summary.error_rate,
        throughput: summary.throughput,
        p95: summary.p95,
        verdict: verdict::worst(rows.iter().map(|(_, row)| row)),
        missed: missed.map(|(threshold, _)| threshold.label()),
        observed: missed.and_then(|(_, row)| row.observed.clone()),
    }
}

/// Where a growing load went beyond what the target takes; `None` when the load does not grow
/// from stage to stage, or nothing was judged.
pub fn breaking_point(
    spec: &LoadTestSpec,
    rows: &[StageRow],
    aborted: Option<&Aborted>,
) -> Option<BreakingPoint> {
    let level = |stage: &Stage| match (stage.users, stage.rate) {
        (Some(users), _) => users as f64,
        (None, rate) => rate.map_or(0.0, crate::values::Rate::value),
    };
    let levels: Vec<f64> = spec.load.stages.iter().map(level).collect();
    let grows = levels.len() > 1 && levels.windows(2).all(|pair| pair[0] < pair[1]);
    if !grows || spec.thresholds.is_empty() {
        return None;
    }
    let broke = rows.iter().position(|row| row.missed.is_some());
    let before = &rows[..broke.unwrap_or(rows.len())];
    let held = before.iter().rposition(|row| row.verdict == Verdict::Pass);
    // The next one, unless that is where it broke.
    let next = held.map_or(0, |held| held + 1);
    let load = |index: usize| spec.load.stages.get(index).map(load_of);
    let mut found = BreakingPoint { held: held.and_then(load), ..BreakingPoint::default() };
    if let Some((index, row)) = broke.and_then(|index| Some((index, rows.get(index)?))) {
        found.broke = Some(row.load.clone());
        found.threshold.clone_from(&row.missed);
        found.observed.clone_from(&row.observed);
        found.unknown = load(next).filter(|_| next < index);
    } else if let (Some(aborted), Some(broke)) = (aborted, load(rows.len())) {
        // What ended the test broke in the stage that was on, which is not among the rows.
        found.broke = Some(broke);
        found.threshold = Some(aborted.threshold.clone());
        found.observed = Some(aborted.observed.clone());
        found.unknown = load(next).filter(|_| next < rows.len());
    } else {
        found.unknown = load(next);
    }
    Some(found)
}

#[cfg(test)]
mod tests;
