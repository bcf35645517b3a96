//! The figures of each interval that the charts of the terminal show. Computed once for each interval.

use loadtest_core::{
    metrics::{LatencyHistogram, LatencyMetric},
    result::{Point, Series},
};

/// The figures of one interval.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct PointFigures {
    /// End of the interval in seconds.
    pub(super) end: f64,
    /// Successful requests per second.
    pub(super) successes: f64,
    /// Failed requests per second.
    pub(super) failures: f64,
    /// Planned arrivals per second, in an open model.
    pub(super) planned: Option<f64>,
    /// 50th, 95th and 99th percentile of the response time in seconds.
    pub(super) percentiles: Option<[f64; 3]>,
}

/// The figures of a series for one task, or for all.
#[derive(Debug, Default)]
pub(super) struct Figures {
    points: Vec<PointFigures>,
    task: Option<String>,
    step_seconds: f64,
}

impl Figures {
    /// Takes over the new intervals of a series, up to a time in seconds.
    pub(super) fn update(&mut self, series: &Series, task: Option<&str>, until: f64) {
        let is_same = self.task.as_deref() == task
            && self.step_seconds.total_cmp(&series.step_seconds).is_eq();
        if !is_same || self.points.len() > series.points.len() {
            self.points.clear();
        }
        self.task = task.map(str::to_owned);
        self.step_seconds = series.step_seconds;
        // The last interval may have grown.
        self.points.pop();
        let new = series.points.get(self.points.len()..).unwrap_or_default().iter();
        let new = new.take_while(|point| point.end <= until);
        self.points.extend(new.map(|point| figures_of(point, task)));
    }

    /// The figures, in order of time.
    pub(super) fn points(&self) -> &[PointFigures] {
        &self.points
    }
}

fn figures_of(point: &Point, task: Option<&str>) -> PointFigures {
    let (mut successes, mut failures) = (0, 0);
    let mut times = LatencyHistogram::default();
    for (name, numbers) in &point.tasks {
        if task.is_some_and(|task| task != name) {
            continue;
        }
        successes += numbers.successes_in_load;
        failures += numbers.failures;
        let samples = numbers.latency(LatencyMetric::ResponseTime);
        // This process has written the histogram, so it is well-formed.
        if let Some(samples) = samples.and_then(|samples| samples.to_histogram().ok()) {
            times.merge(&samples);
        }
    }
    let seconds = point.seconds().max(1e-9);
    let quantile = |p| times.quantile(p).map(loadtest_core::Duration::as_secs_f64);
    PointFigures {
        end: point.end,
        successes: successes as f64 / seconds,
        failures: failures as f64 / seconds,
        planned: point.planned_rate.filter(|_| task.is_none()),
        percentiles: quantile(0.5)
            .zip(quantile(0.95))
            .zip(quantile(0.99))
            .map(|((p50, p95), p99)| [p50, p95, p99]),
    }
}
