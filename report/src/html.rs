//! The HTML report: one file with its data and its code inside. Its main facts are plain HTML; the
//! charts need JavaScript.

mod bullet;
mod data;
mod live;
mod pack;
mod sections;

pub use live::{live_page, live_update};

use crate::{
    ReportError, RunResult,
    text::{escape, name_of, verdict_of},
};

const CSS: &str = concat!(
    include_str!("../assets/uplot/uPlot.min.css"),
    "\n",
    include_str!("../assets/report.css")
);
/// The code that a report and a live page share.
const JS: &str = concat!(
    "/*\n",
    include_str!("../assets/uplot/LICENSE"),
    "*/\n",
    include_str!("../assets/uplot/uPlot.iife.min.js"),
    "\n",
    include_str!("../assets/histogram.js"),
    "\n",
    include_str!("../assets/charts.js"),
    "\n",
    include_str!("../assets/page.js")
);
const START: &str = include_str!("../assets/start.js");

/// The page may load nothing: its styles and its code are in the file.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'";

/// Writes a result as one HTML file. A series that is too large for the file gets a longer step.
///
/// # Errors
/// When a histogram of the result is malformed.
pub fn html_report(result: &RunResult) -> Result<String, ReportError> {
    let data = data::embedded_data(result)?;
    let title = format!("{} · {}", name_of(result), verdict_of(&result.status));
    let body = [
        sections::verdict(result),
        sections::thresholds(result),
        sections::charts(),
        sections::tasks(result),
        sections::errors(result),
        sections::generator(result),
        sections::footer(result),
    ]
    .concat();
    let data = format!("<script type=\"text/plain\" id=\"result\">{data}</script>\n");
    Ok(document(&title, POLICY, &body, &data, START))
}

/// A page with this content. `code` runs at its end.
fn document(title: &str, policy: &str, body: &str, data: &str, code: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\n<link rel=\"icon\" href=\"data:,\">\n<title>{}</title>\n<style>\n{CSS}\n</style>\n</head>\n<body>\n<main>\n{body}</main>\n{data}<script>\n{JS}\n{code}\n</script>\n</body>\n</html>\n",
        escape(title)
    )
}

#[cfg(test)]
mod tests {
    use loadtest_core::resource::ErrorCount;

    use super::*;
    use crate::testing::example;

    #[test]
    fn the_main_facts_are_plain_html() {
        let html = html_report(&example()).unwrap();
        for part in [
            "<title>burst · Fail</title>",
            "chat timeToFirstResponse p50",
            "749.5ms",
            "&lt; 500ms",
            "http_503",
        ] {
            assert!(html.contains(part), "{part}");
        }
        assert!(html.len() < 150 * 1024, "{}", html.len());
    }

    #[test]
    fn texts_of_a_target_stay_texts() {
        const ADVICE: &str = "look <here> (https://example.com/page#part)";
        let mut result = example();
        result.name = Some("</title><script>alert(1)</script>".into());
        result.status.errors = vec![ErrorCount {
            task: "chat".into(),
            kind: "http_503".into(),
            count: 1,
            example: Some("</script><img src=x onerror=alert(1)>".into()),
            advice: Some(ADVICE.into()),
        }];
        let html = html_report(&result).unwrap();
        assert!(
            html.contains("look &lt;here&gt; (<a href=\"https://example.com/page#part\">more</a>)")
        );
        assert!(!html.contains("<img") && !html.contains("<script>alert"), "{html}");
    }

    #[test]
    fn nothing_is_loaded_from_elsewhere() {
        let html = html_report(&example()).unwrap();
        let without_links = html.replace("https://leeoniya.github.io", "");
        assert!(!without_links.contains("src=\"http") && !without_links.contains("url(http"));
    }
}
