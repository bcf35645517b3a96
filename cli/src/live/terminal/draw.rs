//! Draws the state of a test into a terminal. Pure.

use loadtest_core::{
    Duration,
    metrics::LatencyMetric,
    resource::Verdict,
    result::TaskResult,
    values::{Percent, Rate},
};
use loadtest_report::RunResult;
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    symbols::Marker,
    text::{Line, Span},
    widgets::{Axis, Block, Chart, Dataset, Gauge, GraphType, Paragraph, Row, Table},
};

use super::figures::PointFigures;

/// The choices of the viewer.
#[derive(Clone, Debug)]
pub(super) struct View {
    /// 0 for all tasks, otherwise the number of a task.
    pub(super) task: usize,
    /// True if new numbers are not shown.
    pub(super) is_frozen: bool,
    /// True if the next key may stop the test.
    pub(super) is_asking: bool,
    has_color: bool,
}

impl View {
    pub(super) const fn new(has_color: bool) -> Self {
        Self { task: 0, is_frozen: false, is_asking: false, has_color }
    }

    /// The name of the chosen task; `None` for all.
    pub(super) fn task_name<'a>(&self, result: &'a RunResult) -> Option<&'a str> {
        let index = self.task.checked_sub(1)?;
        result.tasks.get(index).map(|task| task.name.as_str())
    }

    fn style(&self, color: Color) -> Style {
        if self.has_color { Style::new().fg(color) } else { Style::new() }
    }
}

/// Draws the whole view.
pub(super) fn draw(
    frame: &mut Frame<'_>,
    result: &RunResult,
    points: &[PointFigures],
    view: &View,
) {
    let rows = |count: usize| u16::try_from(count).unwrap_or(u16::MAX).saturating_add(3);
    let thresholds = if result.thresholds.is_empty() { 0 } else { rows(result.thresholds.len()) };
    let errors = if result.status.errors.is_empty() { 0 } else { rows(result.status.errors.len()) };
    let areas = Layout::vertical([
        Constraint::Length(2),
        Constraint::Min(8),
        Constraint::Length(rows(result.tasks.len() + 1)),
        Constraint::Length(thresholds.min(12)),
        Constraint::Length(errors.min(8)),
        Constraint::Length(2),
    ]);
    let [head, charts, tasks, limits, problems, foot] = areas.areas(frame.area());
    draw_head(frame, head, result, view);
    draw_charts(frame, charts, result, points, view);
    draw_tasks(frame, tasks, result, view);
    draw_thresholds(frame, limits, result, view);
    draw_errors(frame, problems, result, view);
    draw_foot(frame, foot, result, view);
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, result: &RunResult, view: &View) {
    let [title, bar] = Layout::vertical([Constraint::Length(1); 2]).areas(area);
    let name = result.name.as_deref().unwrap_or("loadtest");
    let phase = result.status.phase.as_ref().map_or("", |phase| phase.as_str());
    let targets = [&result.spec.target.http, &result.spec.target.web_socket];
    let targets: Vec<&str> = targets.into_iter().flatten().map(String::as_str).collect();
    let progress = result.status.progress.clone().unwrap_or_default();
    let users = format!("   {} users   {}", progress.users, targets.join(", "));
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let line = Line::from(vec![
        Span::styled(name.to_owned(), bold),
        Span::styled(format!("  {phase}"), view.style(Color::Blue)),
        Span::raw(users),
    ]);
    frame.render_widget(Paragraph::new(line), title);
    let gauge = Gauge::default()
        .ratio(progress.percent.min(100) as f64 / 100.0)
        .gauge_style(view.style(Color::Blue))
        .label(result.status.verdict_message().to_owned());
    frame.render_widget(gauge, bar);
}

/// A line of a chart: its name, its color and its dots.
struct Curve {
    name: &'static str,
    color: Color,
    dots: Vec<(f64, f64)>,
}

fn draw_charts(
    frame: &mut Frame<'_>,
    area: Rect,
    result: &RunResult,
    points: &[PointFigures],
    view: &View,
) {
    let [left, right] = Layout::horizontal([Constraint::Fill(1); 2]).areas(area);
    let of_task = view.task_name(result).map_or_else(String::new, |task| format!(" of {task}"));
    let rate = |pick: fn(&PointFigures) -> Option<f64>| -> Vec<(f64, f64)> {
        points.iter().filter_map(|point| Some((point.end, pick(point)?))).collect()
    };
    let mut rates = vec![
        Curve { name: "successes", color: Color::Green, dots: rate(|p| Some(p.successes)) },
        Curve { name: "failures", color: Color::Red, dots: rate(|p| Some(p.failures)) },
    ];
    let planned = rate(|point| point.planned);
    if !planned.is_empty() {
        rates.push(Curve { name: "planned", color: Color::Gray, dots: planned });
    }
    let per_second = |value: f64| Rate::per_second(value).rounded();
    draw_chart(frame, left, &format!("requests{of_task}"), &rates, per_second, view);
    let percentile = |index: usize| -> Vec<(f64, f64)> {
        points.iter().filter_map(|p| Some((p.end, *p.percentiles?.get(index)?))).collect()
    };
    let times = [
        Curve { name: "p99", color: Color::Red, dots: percentile(2) },
        Curve { name: "p95", color: Color::Yellow, dots: percentile(1) },
        Curve { name: "p50", color: Color::Green, dots: percentile(0) },
    ];
    draw_chart(frame, right, &format!("response time{of_task}"), &times, seconds, view);
}

fn draw_chart(
    frame: &mut Frame<'_>,
    area: Rect,
    title: &str,
    curves: &[Curve],
    format: impl Fn(f64) -> String,
    view: &View,
) {
    let dots = || curves.iter().flat_map(|curve| &curve.dots);
    let end = dots().map(|(x, _)| *x).fold(1.0, f64::max);
    let top = dots().map(|(_, y)| *y).fold(0.0, f64::max);
    let top = if top > 0.0 { top * 1.1 } else { 1.0 };
    let datasets = curves.iter().map(|curve| {
        Dataset::default()
            .marker(Marker::Braille)
            .graph_type(GraphType::Line)
            .style(view.style(curve.color))
            .data(&curve.dots)
    });
    let y_labels =
        [0.0, top / 2.0, top].map(|value| if value > 0.0 { format(value) } else { "0".into() });
    // The legend of the widget hides in small charts.
    let names = curves
        .iter()
        .map(|curve| Span::styled(format!("{} ", curve.name), view.style(curve.color)));
    let title = std::iter::once(Span::raw(format!(" {title}  "))).chain(names);
    let chart = Chart::new(datasets.collect())
        .legend_position(None)
        .block(Block::bordered().title(title.collect::<Line<'_>>()))
        .x_axis(Axis::default().bounds([0.0, end]).labels(["0s".to_owned(), seconds(end)]))
        .y_axis(Axis::default().bounds([0.0, top]).labels(y_labels));
    frame.render_widget(chart, area);
}

fn seconds(value: f64) -> String {
    Duration::from_secs_f64(value).rounded()
}

fn draw_tasks(frame: &mut Frame<'_>, area: Rect, result: &RunResult, view: &View) {
    let row = |name: &str, task: &TaskResult, is_chosen: bool| {
        let times = task.latencies.get(LatencyMetric::ResponseTime);
        let time = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), seconds);
        let cells = [
            name.to_owned(),
            task.requests.to_string(),
            task.failures.to_string(),
            Percent::from_fraction(task.error_rate).rounded(),
            Rate::per_second(task.throughput).rounded(),
            time(times.map(|times| times.p50)),
            time(times.map(|times| times.p95)),
            time(times.map(|times| times.p99)),
            time(times.map(|times| times.max)),
        ];
        let style = if is_chosen { Modifier::REVERSED } else { Modifier::empty() };
        Row::new(cells).style(Style::new().add_modifier(style))
    };
    let all = row("all tasks", &result.total, view.task == 0);
    let tasks = (1..).zip(&result.tasks);
    let rows = tasks.map(|(number, task)| row(&task.name, &task.result, view.task == number));
    let head = ["task", "requests", "failures", "errors", "rate", "p50", "p95", "p99", "max"];
    let widths = std::iter::once(Constraint::Fill(2)).chain([Constraint::Fill(1); 8]);
    let table = Table::new(std::iter::once(all).chain(rows), widths)
        .header(Row::new(head).style(Style::new().add_modifier(Modifier::BOLD)))
        .block(Block::bordered().title(" tasks "));
    frame.render_widget(table, area);
}

fn draw_thresholds(frame: &mut Frame<'_>, area: Rect, result: &RunResult, view: &View) {
    let rows = result.thresholds.iter().map(|row| {
        let color = match row.verdict.known() {
            Some(Verdict::Pass) => Color::Green,
            Some(Verdict::Fail | Verdict::Critical) => Color::Red,
            Some(Verdict::NotJudged) => Color::Reset,
            Some(Verdict::Warning | Verdict::Inconclusive) | None => Color::Yellow,
        };
        let observed = row.observed.map_or_else(|| "-".to_owned(), |value| row.unit.format(value));
        let target = format!("{} {}", row.target.comparison, row.unit.format(row.target.value));
        let cells = [row.key.to_string(), observed, target, row.verdict.as_str().to_owned()];
        Row::new(cells).style(view.style(color))
    });
    let widths =
        [Constraint::Fill(3), Constraint::Fill(1), Constraint::Fill(1), Constraint::Fill(1)];
    let table = Table::new(rows, widths)
        .header(
            Row::new(["threshold", "so far", "target", "would be"])
                .style(Style::new().add_modifier(Modifier::BOLD)),
        )
        .block(Block::bordered().title(" thresholds "));
    frame.render_widget(table, area);
}

fn draw_errors(frame: &mut Frame<'_>, area: Rect, result: &RunResult, view: &View) {
    let rows = result.status.errors.iter().map(|error| {
        let example = error.example.clone().unwrap_or_default();
        Row::new([error.task.clone(), error.kind.clone(), error.count.to_string(), example])
            .style(view.style(Color::Red))
    });
    let widths =
        [Constraint::Fill(1), Constraint::Fill(1), Constraint::Length(9), Constraint::Fill(4)];
    let table = Table::new(rows, widths)
        .header(
            Row::new(["task", "kind", "count", "example"])
                .style(Style::new().add_modifier(Modifier::BOLD)),
        )
        .block(Block::bordered().title(" errors "));
    frame.render_widget(table, area);
}

fn draw_foot(frame: &mut Frame<'_>, area: Rect, result: &RunResult, view: &View) {
    let lag = result.schedule_lag.as_ref().map_or_else(|| "-".to_owned(), |lag| seconds(lag.p99));
    let busiest = result.runners.iter().map(|runner| runner.busiest_thread).fold(0.0, f64::max);
    let health = format!(
        "load generator: schedule lag p99 {lag}, busiest thread {}",
        Percent::from_fraction(busiest).rounded()
    );
    let keys = if view.is_asking {
        "press s again to stop the test, or any other key to go on"
    } else if view.is_frozen {
        "FROZEN: f goes on   Tab: next task   s: stop the test"
    } else {
        "Tab: next task   f: freeze   s: stop the test   Ctrl-C: stop, twice at once"
    };
    frame.render_widget(Paragraph::new(vec![Line::raw(health), Line::raw(keys)]), area);
}

#[cfg(test)]
mod tests;
