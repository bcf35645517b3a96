//! Compares the results of two runs, one against the other. Pure.
//!
//! Requests of one run depend on each other: a target that is slow for a moment is slow for all of them.
//! This module therefore cuts a run into blocks of 20 s and estimates the noise from random
//! samples of the blocks (block bootstrap; Künsch, The Jackknife and the Bootstrap for General Stationary
//! Observations, 1989). A run has few blocks, so the interval is widened to that of Student's t. Two runs of the same target can differ by more than this noise, so a change is a
//! hint and no proof.

use std::collections::BTreeMap;

use rand::{Rng, SeedableRng};
use rand_pcg::Pcg32;
use serde::Serialize;

use super::{
    document::{RunResult, TaskResult, ValueUnit},
    series::{Point, Series, TaskPoint},
};
use crate::{
    metrics::{HistogramError, LatencyMetric, Metric, rank_of},
    resource::{Phase, Verdict},
    values::Duration,
};

/// Length of a block in seconds, or a little less.
const BLOCK_SECONDS: f64 = 20.0;
/// How much a run may be shorter than a whole number of blocks, as a share of a block. The points of a
/// run of one minute seldom sum up to exactly 60 s.
const BLOCK_TOLERANCE: f64 = 0.02;
/// Minimum number of blocks of a run with an interval.
const MIN_BLOCKS: usize = 3;
/// Width of a bucket as a share of its value. A smaller change of a latency is not visible.
const RESOLUTION: f64 = 0.0028;
/// A smaller change of the throughput, as a share of it, is of no interest: two runs never have the same pauses.
const THROUGHPUT_RESOLUTION: f64 = 0.005;
/// A smaller difference of the error rates is of no interest.
const ERROR_RATE_RESOLUTION: f64 = 0.0005;
/// The 97.5th percentile of the normal distribution.
const NORMAL_QUANTILE: f64 = 1.959_964;
/// Number of random samples of the blocks.
const RESAMPLES: usize = 1000;
/// Share of the samples below the interval, and above it: the interval holds 95 %.
const TAIL: f64 = 0.025;
/// The percentiles of the response time, and those of other latencies.
const RESPONSE_TIME_PERCENTILES: [(&str, f64); 3] = [("p50", 0.5), ("p95", 0.95), ("p99", 0.99)];
const OTHER_PERCENTILES: [(&str, f64); 2] = [("p50", 0.5), ("p95", 0.95)];

/// The comparison of two runs.
#[derive(Serialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Comparison {
    /// Different parts of the two specs. If there are any, the numbers can't be compared.
    pub differences: Vec<String>,
    /// Why a run says nothing about its target. If there are any, the numbers can't be compared.
    pub doubts: Vec<String>,
    /// The compared numbers.
    pub rows: Vec<ComparedRow>,
}

/// One number of both runs.
#[derive(Serialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ComparedRow {
    /// Name of the task; absent for all tasks together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// The metric, by its name in thresholds.
    pub metric: String,
    /// The statistic of a latency.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statistic: Option<String>,
    /// The unit of the two values.
    pub unit: ValueUnit,
    /// The value of the first run.
    pub base: f64,
    /// The value of the second run.
    pub new: f64,
    /// The change as a share of the first value; for an error rate, the difference of the two.
    pub change: Option<f64>,
    /// The 95 % interval of the change, from the noise within the two runs; absent if a run is too short
    /// for three blocks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<(f64, f64)>,
    /// The meaning of the change.
    pub movement: Movement,
}

/// The meaning of a change.
#[derive(Serialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum Movement {
    /// Worse by more than the noise within the runs.
    Worse,
    /// Better by more than the noise within the runs.
    Better,
    /// The noise within the runs can explain the change.
    WithinNoise,
    /// The runs are too short to estimate their noise.
    Unknown,
}

/// The number that a row compares.
#[derive(Clone, Copy, Debug)]
enum Quantity {
    Throughput,
    ErrorRate,
    Latency(LatencyMetric, &'static str, f64),
}

impl Quantity {
    /// The value of a run as the result has it.
    fn of(self, task: &TaskResult) -> Option<f64> {
        match self {
            Self::Throughput => Some(task.throughput),
            Self::ErrorRate => Some(task.error_rate),
            Self::Latency(metric, _, p) => {
                let samples = task.latencies.get(metric)?.histogram.to_histogram().ok()?;
                samples.quantile(p).map(Duration::as_secs_f64)
            }
        }
    }

    /// The change from one value to another; `None` without a base.
    fn change(self, base: f64, new: f64) -> Option<f64> {
        match self {
            Self::ErrorRate => Some(new - base),
            Self::Throughput | Self::Latency(..) => (base > 0.0).then(|| new / base - 1.0),
        }
    }

    const fn is_higher_better(self) -> bool {
        matches!(self, Self::Throughput)
    }
}

/// Compares two results. Rows without a value in one of them are left out.
///
/// # Errors
/// When a histogram is malformed, as in a file that was changed.
pub fn compare(base: &RunResult, new: &RunResult) -> Result<Comparison, HistogramError> {
    let mut rows = compare_task(None, (&base.total, base), (&new.total, new))?;
    for task in &base.tasks {
        let Some(other) = new.tasks.iter().find(|other| other.name == task.name) else { continue };
        rows.extend(compare_task(Some(&task.name), (&task.result, base), (&other.result, new))?);
    }
    let doubts = [("base", base), ("new", new)].into_iter().filter_map(|(side, result)| {
        let doubt = doubt_about(result)?;
        Some(format!("{side}: {doubt}"))
    });
    Ok(Comparison { differences: find_differences(base, new), doubts: doubts.collect(), rows })
}

/// Returns why a run says nothing about its target.
fn doubt_about(result: &RunResult) -> Option<&str> {
    let status = &result.status;
    let is_conclusive = status.known_verdict() != Some(Verdict::Inconclusive);
    match status.known_phase() {
        Some(Phase::Finished) if is_conclusive => None,
        Some(Phase::Finished | Phase::Cancelled | Phase::Error) => Some(status.verdict_message()),
        _ => Some("the test is not over"),
    }
}

fn find_differences(base: &RunResult, new: &RunResult) -> Vec<String> {
    let (a, b) = (&base.spec, &new.spec);
    let parts = [
        ("spec.load", a.load == b.load),
        ("spec.scenario", a.scenario == b.scenario),
        ("spec.target.httpVersion", a.target.http_version == b.target.http_version),
        ("spec.target.connections", a.target.connections == b.target.connections),
        ("spec.target.connectionLimits", a.target.connection_limits == b.target.connection_limits),
        ("spec.target.gzip", a.target.gzip == b.target.gzip),
        ("the number of runners", base.runners.len() == new.runners.len()),
    ];
    let different = parts.into_iter().filter(|(_, is_equal)| !is_equal);
    different.map(|(name, _)| name.to_owned()).collect()
}

fn compare_task(
    task: Option<&str>,
    (base, base_run): (&TaskResult, &RunResult),
    (new, new_run): (&TaskResult, &RunResult),
) -> Result<Vec<ComparedRow>, HistogramError> {
    // A task that neither run picked has nothing to compare.
    if [base, new].iter().all(|side| side.requests == 0 && side.dropped == 0) {
        return Ok(Vec::new());
    }
    let mut quantities = vec![Quantity::Throughput, Quantity::ErrorRate];
    for (metric, _) in LatencyMetric::all_judged() {
        let percentiles = match metric {
            LatencyMetric::ResponseTime => &RESPONSE_TIME_PERCENTILES[..],
            LatencyMetric::ServiceTime | LatencyMetric::TimeToFirstByte => &[],
            // The other latencies belong to one kind of task.
            _ if task.is_none() => &[],
            _ => &OTHER_PERCENTILES,
        };
        quantities.extend(percentiles.iter().map(|(name, p)| Quantity::Latency(metric, name, *p)));
    }
    let sides = [blocks_of(&base_run.series, task)?, blocks_of(&new_run.series, task)?];
    let mut rows = Vec::new();
    for quantity in quantities {
        let Some((from, to)) = quantity.of(base).zip(quantity.of(new)) else { continue };
        let interval = if sides.iter().all(|blocks| blocks.len() >= MIN_BLOCKS) {
            interval_of(quantity, &sides)?
        } else {
            None
        };
        let (metric, statistic, unit) = match quantity {
            Quantity::Throughput => (Metric::Throughput, None, ValueUnit::PerSecond),
            Quantity::ErrorRate => (Metric::ErrorRate, None, ValueUnit::Fraction),
            Quantity::Latency(metric, name, _) => {
                (Metric::Latency(metric), Some(name), ValueUnit::Seconds)
            }
        };
        rows.push(ComparedRow {
            task: task.map(str::to_owned),
            metric: metric.as_str().to_owned(),
            statistic: statistic.map(str::to_owned),
            unit,
            base: from,
            new: to,
            change: quantity.change(from, to),
            interval,
            movement: movement_of(quantity, interval),
        });
    }
    Ok(rows)
}

fn movement_of(quantity: Quantity, interval: Option<(f64, f64)>) -> Movement {
    match interval {
        None => Movement::Unknown,
        Some((low, high)) if low <= 0.0 && high >= 0.0 => Movement::WithinNoise,
        Some((low, _)) if (low > 0.0) == quantity.is_higher_better() => Movement::Better,
        Some(_) => Movement::Worse,
    }
}

/// A part of a run: its length in seconds, and its numbers.
type Block = (f64, TaskPoint);

/// The run in blocks of the same length, about [`BLOCK_SECONDS`] or more. A point belongs to the block
/// of its middle.
fn blocks_of(series: &Series, task: Option<&str>) -> Result<Vec<Block>, HistogramError> {
    let run: f64 = series.points.iter().map(Point::seconds).sum();
    let count = (run / BLOCK_SECONDS + BLOCK_TOLERANCE).floor().max(1.0);
    let length = run / count;
    let mut blocks: Vec<Block> = Vec::new();
    let mut elapsed = 0.0;
    let mut next = 0.0;
    for point in &series.points {
        let middle = elapsed + point.seconds() / 2.0;
        elapsed += point.seconds();
        if blocks.is_empty() || middle >= next {
            blocks.push((0.0, TaskPoint::default()));
            next = length * ((middle / length).floor() + 1.0);
        }
        let Some((seconds, numbers)) = blocks.last_mut() else { continue };
        *seconds += point.seconds();
        for (name, of_task) in &point.tasks {
            if task.is_none_or(|task| task == name) {
                numbers.merge(of_task)?;
            }
        }
    }
    Ok(blocks)
}

/// The numbers of the blocks of one run, ready for random samples.
enum Blocks {
    /// A numerator and a denominator for each block.
    Shares(Vec<(f64, f64)>),
    /// For each value that occurs, its number of samples in each block.
    Samples(BTreeMap<Duration, Vec<u64>>, usize),
}

impl Blocks {
    fn new(quantity: Quantity, blocks: &[Block]) -> Result<Self, HistogramError> {
        Ok(match quantity {
            Quantity::Throughput => Self::Shares(
                blocks.iter().map(|(s, block)| (block.successes_in_load as f64, *s)).collect(),
            ),
            Quantity::ErrorRate => {
                Self::Shares(blocks.iter().map(|(_, block)| block.errors_and_judged()).collect())
            }
            Quantity::Latency(metric, ..) => {
                let mut samples = BTreeMap::<Duration, Vec<u64>>::new();
                for (index, (_, block)) in blocks.iter().enumerate() {
                    let Some(data) = block.latency(metric) else { continue };
                    for (value, count) in data.to_histogram()?.values() {
                        let counts = samples.entry(value).or_insert_with(|| vec![0; blocks.len()]);
                        if let Some(sum) = counts.get_mut(index) {
                            *sum = sum.saturating_add(count);
                        }
                    }
                }
                Self::Samples(samples, blocks.len())
            }
        })
    }

    fn len(&self) -> usize {
        match self {
            Self::Shares(blocks) => blocks.len(),
            Self::Samples(_, len) => *len,
        }
    }

    /// The value of a random sample of the blocks, with replacement. `weights` is memory for reuse.
    fn draw(&self, quantity: Quantity, random: &mut Pcg32, weights: &mut Vec<u64>) -> Option<f64> {
        let len = self.len();
        weights.clear();
        weights.resize(len, 0);
        for _ in 0..len {
            if let Some(weight) = weights.get_mut(random.random_range(0..len)) {
                *weight += 1;
            }
        }
        match self {
            Self::Shares(blocks) => {
                let sum = |pick: fn(&(f64, f64)) -> f64| -> f64 {
                    blocks.iter().zip(&*weights).map(|(b, weight)| pick(b) * *weight as f64).sum()
                };
                let whole = sum(|block| block.1);
                (whole > 0.0).then(|| sum(|block| block.0) / whole)
            }
            Self::Samples(samples, _) => {
                let Quantity::Latency(_, _, p) = quantity else { return None };
                // A file that was changed may hold any number.
                let count = |counts: &[u64]| {
                    let weighted = counts.iter().zip(&*weights);
                    weighted.fold(0_u64, |sum, (count, weight)| {
                        sum.saturating_add(count.saturating_mul(*weight))
                    })
                };
                let total =
                    samples.values().fold(0_u64, |sum, counts| sum.saturating_add(count(counts)));
                let rank = rank_of(p, total);
                let mut seen = 0;
                let value = samples.iter().find(|(_, counts)| {
                    seen = count(counts).saturating_add(seen);
                    seen >= rank
                });
                value.map(|(value, _)| value.as_secs_f64())
            }
        }
    }
}

fn interval_of(
    quantity: Quantity,
    sides: &[Vec<Block>; 2],
) -> Result<Option<(f64, f64)>, HistogramError> {
    let [base, new] = sides;
    let (base, new) = (Blocks::new(quantity, base)?, Blocks::new(quantity, new)?);
    // A fixed seed: the same two results always give the same interval.
    let mut random = Pcg32::seed_from_u64(1);
    let mut weights = Vec::new();
    let mut changes = Vec::with_capacity(RESAMPLES);
    for _ in 0..RESAMPLES {
        let from = base.draw(quantity, &mut random, &mut weights);
        let to = new.draw(quantity, &mut random, &mut weights);
        changes.extend(from.zip(to).and_then(|(from, to)| quantity.change(from, to)));
    }
    changes.sort_by(f64::total_cmp);
    let last = changes.len().saturating_sub(1) as f64;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of the number of samples"
    )]
    let at = |share: f64| changes.get((last * share).round() as usize).copied();
    let resolution = match quantity {
        Quantity::Latency(..) => RESOLUTION,
        Quantity::Throughput => THROUGHPUT_RESOLUTION,
        Quantity::ErrorRate => ERROR_RATE_RESOLUTION,
    };
    let (Some(low), Some(median), Some(high)) = (at(TAIL), at(0.5), at(1.0 - TAIL)) else {
        return Ok(None);
    };
    let wider = small_sample_factor(base.len(), new.len());
    let widened = |bound: f64| median + (bound - median) * wider;
    Ok(Some((widened(low) - resolution, widened(high) + resolution)))
}

/// How much wider than the random samples the interval of two runs with these numbers of blocks is.
///
/// Random samples of n blocks vary like √((n−1)/n) of what they should, and the normal distribution takes the place of
/// Student's t. Its quantile is approximated with formula 26.7.5 of Abramowitz and Stegun, Handbook of Mathematical
/// Functions, 1964.
fn small_sample_factor(base: usize, new: usize) -> f64 {
    let fewest = base.min(new).max(2) as f64;
    let freedom = (base + new).saturating_sub(2).max(1) as f64;
    let z = NORMAL_QUANTILE;
    let (z3, z5, z7) = (z.powi(3), z.powi(5), z.powi(7));
    let quantile = z
        + (z3 + z) / (4.0 * freedom)
        + (5.0 * z5 + 16.0 * z3 + 3.0 * z) / (96.0 * freedom.powi(2))
        + (3.0 * z7 + 19.0 * z5 + 17.0 * z3 - 15.0 * z) / (384.0 * freedom.powi(3));
    quantile / z * (fewest / (fewest - 1.0)).sqrt()
}

#[cfg(test)]
mod tests;
