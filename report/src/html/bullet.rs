//! A threshold as a bullet chart: the bands of its bounds, and a mark at the observed value.

use std::fmt::Write;

use loadtest_core::result::ThresholdResult;

use crate::text::{escape, observed_of, target_of};

const WIDTH: f64 = 240.0;
const HEIGHT: f64 = 26.0;

/// Draws a threshold as an SVG image on a logarithmic axis.
pub(super) fn bullet(row: &ThresholdResult) -> String {
    let bounds = [Some(&row.target), row.warning.as_ref(), row.critical.as_ref()];
    let values = bounds.iter().flatten().map(|bound| bound.value).chain(row.observed);
    let positive: Vec<f64> = values.filter(|value| *value > 0.0 && value.is_finite()).collect();
    let low = positive.iter().copied().fold(f64::INFINITY, f64::min) / 2.0;
    let high = positive.iter().copied().fold(0.0, f64::max) * 2.0;
    if positive.is_empty() {
        return String::new();
    }
    let place = |value: f64| {
        let share = (value.max(low).ln() - low.ln()) / (high.ln() - low.ln());
        share.clamp(0.0, 1.0) * WIDTH
    };
    // The good side of an upper bound is on the left.
    let is_upper = row.target.comparison.starts_with('<');
    let edge = |bound: Option<&loadtest_core::result::BoundValue>, default: f64| {
        bound.map_or(default, |bound| place(bound.value))
    };
    let end = if is_upper { WIDTH } else { 0.0 };
    let target = place(row.target.value);
    let warning = edge(row.warning.as_ref(), target);
    let critical = edge(row.critical.as_ref(), end);
    let bands = [
        (if is_upper { 0.0 } else { WIDTH }, target, "--green", 0.35),
        (target, warning, "--amber", 0.35),
        (warning, critical, "--red", 0.25),
        (critical, end, "--red", 0.55),
    ];
    let label = escape(&format!("observed {}, target {}", observed_of(row), target_of(row)));
    let mut svg = format!(
        "<svg class=\"bullet\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{label}\"><title>{label}</title>"
    );
    for (from, to, color, opacity) in bands {
        let (left, width) = (from.min(to), (from - to).abs());
        let _ = write!(
            svg,
            "<rect x=\"{left:.1}\" y=\"7\" width=\"{width:.1}\" height=\"12\" fill=\"var({color})\" opacity=\"{opacity}\"/>"
        );
    }
    if let Some(observed) = row.observed {
        let x = place(observed).clamp(2.0, WIDTH - 2.0);
        let _ = write!(svg, "<path d=\"M{x:.1} 2V24\" stroke=\"var(--text)\" stroke-width=\"3\"/>");
    }
    svg.push_str("</svg>");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::example;

    #[test]
    fn the_mark_is_beyond_a_missed_target() {
        let row = &example().thresholds[0];
        let svg = bullet(row);
        // Target 500 ms and 749.5 ms on an axis from 250 ms to 1,499 ms.
        assert!(svg.contains("<rect x=\"0.0\" y=\"7\" width=\"92.9\""), "{svg}");
        assert!(svg.contains("<path d=\"M147.1 2V24\""), "{svg}");
        assert!(svg.contains("aria-label=\"observed 749.5ms, target &lt; 500ms\""), "{svg}");
    }

    #[test]
    fn a_row_without_samples_has_bands_only() {
        let row = ThresholdResult { observed: None, ..example().thresholds[2].clone() };
        let svg = bullet(&row);
        assert!(svg.contains("<rect") && !svg.contains("<path"), "{svg}");
    }
}
