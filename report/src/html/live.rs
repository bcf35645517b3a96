//! The live page: the report of a test that still runs. It gets an update each second.

use base64::{Engine, engine::general_purpose::STANDARD};
use loadtest_core::result::{RunResult, Series};
use serde_json::json;

use super::{
    data::head_of,
    document,
    pack::{Streams, pack_series},
    sections,
};
use crate::{
    ReportError,
    text::{escape, name_of},
};

/// Only the server of the page itself may be asked for more.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'";

const LIVE: &str = include_str!("../../assets/live.js");

/// The parts of the page that each update replaces, by the end of the ids of their elements.
fn parts_of(result: &RunResult) -> [(&'static str, String); 5] {
    [
        ("verdict", sections::verdict(result)),
        ("thresholds", sections::thresholds(result)),
        ("tasks", sections::tasks(result)),
        ("errors", sections::errors(result)),
        ("trust", sections::generator(result)),
    ]
}

/// The page of a test. `stop_token` goes with an order to stop; without one, the page has no button for
/// it. The page reads its updates from `events`, beside its own address.
pub fn live_page(name: &str, stop_token: Option<&str>) -> String {
    let part = |part: &str| format!("<div id=\"part-{part}\"></div>\n");
    let stop = stop_token.map_or_else(String::new, |token| {
        format!(
            "<button class=\"act\" type=\"button\" id=\"stop\" data-token=\"{}\">Stop the test</button>",
            escape(token)
        )
    });
    let controls = format!(
        "<div class=\"controls\" id=\"live\"><span role=\"status\" id=\"state\">Waiting for the first numbers.</span><label><input type=\"checkbox\" id=\"freeze\">Freeze the charts</label>{stop}</div>\n"
    );
    let body = [
        controls,
        part("verdict"),
        part("thresholds"),
        sections::charts(),
        part("tasks"),
        part("errors"),
        part("trust"),
    ]
    .concat();
    document(&format!("{name} · live"), POLICY, &body, "", LIVE)
}

/// An update of the page as JSON. `first` is the number of points that the page has and keeps; the update
/// has all later ones.
///
/// # Errors
/// When a histogram of the series is malformed.
pub fn live_update(
    result: &RunResult,
    series: &Series,
    first: usize,
    is_over: bool,
) -> Result<String, ReportError> {
    let points = series.points.get(first..).unwrap_or_default().to_vec();
    let new = Series { step_seconds: series.step_seconds, points };
    let mut streams = Streams::default();
    let packed = pack_series(&new, &mut streams)?;
    let parts = parts_of(result).into_iter();
    let parts: serde_json::Map<String, serde_json::Value> =
        parts.map(|(name, html)| (name.to_owned(), html.into())).collect();
    let update = json!({
        "title": format!("{} · live", name_of(result)),
        "parts": parts,
        "result": head_of(result),
        "first": first,
        "series": packed,
        "gaps": STANDARD.encode(streams.gaps),
        "counts": STANDARD.encode(streams.counts),
        "isOver": is_over,
    });
    Ok(update.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::example;

    #[test]
    fn an_update_has_only_the_new_points() {
        let result = example();
        let points = |first: usize| {
            let text = live_update(&result, &result.series, first, false).unwrap();
            let update: serde_json::Value = serde_json::from_str(&text).unwrap();
            let points = update["series"]["points"].as_array().unwrap().len();
            assert!(update["parts"]["verdict"].as_str().unwrap().contains("burst"));
            points
        };
        assert_eq!((points(0), points(18), points(99)), (20, 2, 0));
    }

    #[test]
    fn a_page_without_a_token_has_no_button_to_stop() {
        assert!(live_page("burst", Some("t0ken")).contains("data-token=\"t0ken\""));
        assert!(!live_page("burst", None).contains("id=\"stop\""));
        assert!(!live_page("<script>x", None).contains("<script>x"));
    }
}
