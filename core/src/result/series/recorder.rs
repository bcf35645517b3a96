//! Records a series from cumulative metrics.

use super::{FIRST_STEP, Point, Series, TaskPoint, is_full};
use crate::{
    load::{LoadModel, LoadProfile},
    metrics::{HistogramData, Metrics, PackedMetrics, round_seconds},
};

/// A snapshot this much earlier than the end of its step still ends the step, as a share of the step.
const TOLERANCE: f64 = 0.1;

/// The points of a series that is being recorded.
pub trait PointList {
    /// An empty list with a step in seconds.
    fn with_step(step_seconds: f64) -> Self;
    /// The current step in seconds.
    fn step_seconds(&self) -> f64;
    /// The last point.
    fn last(&self) -> Option<&Point>;
    /// The last point, to be changed.
    fn last_mut(&mut self) -> Option<&mut Point>;
    /// Adds a point after the last one.
    fn push(&mut self, point: Point);
    /// Doubles the step as long as there are too many points.
    fn limit_size(&mut self);
}

impl PointList for Series {
    fn with_step(step_seconds: f64) -> Self {
        Self { step_seconds, points: Vec::new() }
    }

    fn step_seconds(&self) -> f64 {
        self.step_seconds
    }

    fn last(&self) -> Option<&Point> {
        self.points.last()
    }

    fn last_mut(&mut self) -> Option<&mut Point> {
        self.points.last_mut()
    }

    fn push(&mut self, point: Point) {
        self.points.push(point);
    }

    fn limit_size(&mut self) {
        let counts = |points: &[Point]| points.iter().map(Point::histogram_size).sum();
        while is_full(self.points.len(), counts(&self.points)) {
            // The recorder has made the points, so their histograms are well-formed.
            drop(self.halve());
        }
    }
}

/// Records a series from snapshots of the cumulative metrics of a run.
#[derive(Clone, Debug)]
pub struct SeriesRecorder<P = Series> {
    series: P,
    /// The snapshot at the end of the last point.
    last: PackedMetrics,
    /// Completed requests in it.
    last_requests: u64,
    profile: LoadProfile,
    is_open: bool,
    /// Planned length of the load, in seconds.
    duration: f64,
}

impl<P: PointList> SeriesRecorder<P> {
    /// A recorder for a run with this load.
    pub fn new(load: &LoadModel) -> Self {
        Self {
            series: P::with_step(FIRST_STEP),
            last: PackedMetrics::default(),
            last_requests: 0,
            profile: LoadProfile::of(load),
            is_open: load.is_open(),
            duration: load.duration().as_secs_f64(),
        }
    }

    /// Takes a snapshot of the merged metrics. A snapshot before the end of the current step changes
    /// nothing: the next one contains it.
    pub fn record(&mut self, metrics: &Metrics) {
        let step = self.series.step_seconds() * (1.0 - TOLERANCE);
        if self.is_ahead_of(metrics) {
            return;
        }
        if metrics.elapsed_seconds - self.last.elapsed_seconds() >= step {
            self.push_point(metrics);
        }
    }

    /// A recorder that goes on with a series of an earlier process. `recorded` are the merged metrics
    /// at the end of its last point.
    #[must_use]
    pub fn resume(load: &LoadModel, series: P, recorded: &Metrics) -> Self {
        let (last, last_requests) = (PackedMetrics::of(recorded), recorded.completed_requests());
        Self { series, last, last_requests, ..Self::new(load) }
    }

    /// Takes a snapshot as the end of a point, whatever the step: the sum of all points is then
    /// exactly these metrics. A short rest is added to the last point.
    pub fn record_all(&mut self, metrics: &Metrics) {
        if self.is_ahead_of(metrics) {
            return;
        }
        let mut rest = self.point_since_last(metrics);
        let is_short = rest.seconds() < self.series.step_seconds() / 2.0;
        match self.series.last_mut() {
            Some(last) if is_short => {
                // After the load, users end one after the other.
                if rest.seconds() <= 0.0 {
                    rest.users = last.users;
                }
                // The recorder has made both points, so their histograms are well-formed.
                drop(last.merge(&rest));
            }
            _ => self.series.push(rest),
        }
        self.keep(metrics);
    }

    /// Returns true if the metrics lack runners that earlier ones had, as after a restart. Their requests
    /// would be counted twice when the runners answer again.
    fn is_ahead_of(&self, metrics: &Metrics) -> bool {
        metrics.completed_requests() < self.last_requests
    }

    /// Ends the series with the final metrics.
    #[must_use]
    pub fn finish(mut self, metrics: &Metrics) -> P {
        let users = self.series.last().map(|last| last.users);
        self.record_all(metrics);
        // The users have ended by now.
        if let (Some(last), Some(users)) = (self.series.last_mut(), users) {
            last.users = users;
        }
        self.series
    }

    /// The series so far.
    pub const fn series(&self) -> &P {
        &self.series
    }

    /// The merged metrics at the end of the last point, without those of single runners.
    pub fn recorded(&self) -> Metrics {
        self.last.unpack()
    }

    fn push_point(&mut self, metrics: &Metrics) {
        let point = self.point_since_last(metrics);
        self.series.push(point);
        self.keep(metrics);
    }

    /// Keeps the metrics at the end of the last point.
    fn keep(&mut self, metrics: &Metrics) {
        self.last = PackedMetrics::of(metrics);
        self.last_requests = metrics.completed_requests();
        self.series.limit_size();
    }

    fn point_since_last(&self, metrics: &Metrics) -> Point {
        let last = self.last.unpack();
        let (start, end) = (last.elapsed_seconds, metrics.elapsed_seconds);
        let change = metrics.since(&last);
        let planned = round_seconds(self.profile.mean_level(start, end));
        let tasks = change.tasks.iter().map(|(name, task)| (name.clone(), TaskPoint::of(task)));
        // At the end of the load, users end one after the other.
        let is_over = end >= self.duration - FIRST_STEP * TOLERANCE;
        let users = match self.series.last() {
            Some(last) if is_over => last.users,
            None if is_over => metrics.users_peak,
            _ => metrics.users,
        };
        Point {
            start: round_seconds(start),
            end: round_seconds(end),
            users,
            planned_users: (!self.is_open).then_some(planned),
            planned_rate: self.is_open.then_some(planned),
            busy_seconds: round_seconds(change.busy_seconds),
            throttled_seconds: round_seconds(change.throttled_seconds),
            schedule_lag: HistogramData::of(&change.schedule_lag),
            tasks: tasks.filter(|(_, task)| *task != TaskPoint::default()).collect(),
        }
    }
}
