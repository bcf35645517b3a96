//! The result of a running test so far, for the live page and the view in the terminal.

mod result;
mod status;
mod terminal;
mod web;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use loadtest_core::result::Series;
use loadtest_report::RunResult;
use tokio::sync::watch;

pub(crate) use self::{
    result::RunDescription,
    status::build_status,
    terminal::{TerminalView, has_terminal},
    web::{LivePage, StopAction, StopOrder, give_order, parse_address},
};

/// The latest state of a test. Its series is shared, because it may be large.
#[derive(Clone, Debug)]
pub(crate) struct LiveState {
    /// The result so far, without its series.
    pub(crate) result: Arc<RunResult>,
    series: Arc<Mutex<Series>>,
    /// True if no other state follows.
    pub(crate) is_over: bool,
}

impl LiveState {
    /// The series so far.
    pub(crate) fn series(&self) -> MutexGuard<'_, Series> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells viewers about new states of a test.
#[derive(Debug)]
pub(crate) struct LiveFeed {
    sender: watch::Sender<Option<LiveState>>,
    series: Arc<Mutex<Series>>,
}

impl LiveFeed {
    /// A feed without a state.
    pub(crate) fn new() -> Self {
        Self { sender: watch::Sender::new(None), series: Arc::default() }
    }

    /// A view of the feed.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Option<LiveState>> {
        self.sender.subscribe()
    }

    /// Publishes a state. `result` needs no series.
    pub(crate) fn publish(&self, result: RunResult, series: &Series, is_over: bool) {
        let mut copy = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        if is_over {
            // The last series may be another one: that of the operator, whose points lie elsewhere.
            copy.clone_from(series);
        } else {
            copy_new_points(&mut copy, series);
        }
        drop(copy);
        let state =
            LiveState { result: Arc::new(result), series: Arc::clone(&self.series), is_over };
        self.sender.send_replace(Some(state));
    }
}

/// Makes `copy` equal to `series`. `copy` is an earlier state of it: with the same step, only its last
/// point may have changed.
fn copy_new_points(copy: &mut Series, series: &Series) {
    let is_earlier = copy.step_seconds.total_cmp(&series.step_seconds).is_eq()
        && copy.points.len() <= series.points.len();
    if !is_earlier {
        copy.clone_from(series);
        return;
    }
    copy.points.pop();
    copy.points.extend_from_slice(&series.points[copy.points.len()..]);
}

#[cfg(test)]
mod tests {
    use loadtest_core::result::Point;

    use super::*;

    #[test]
    fn a_copy_follows_a_series() {
        let series = |step_seconds: f64, ends: &[f64]| Series {
            step_seconds,
            points: ends.iter().map(|end| Point { end: *end, ..Point::default() }).collect(),
        };
        let mut copy = Series::default();
        for next in [
            series(1.0, &[1.0]),
            series(1.0, &[1.0, 2.0, 3.0]),
            series(1.0, &[1.0, 2.0, 3.5]),
            series(2.0, &[2.0, 3.5]),
            series(1.0, &[]),
        ] {
            copy_new_points(&mut copy, &next);
            assert_eq!(copy, next);
        }
    }
}
