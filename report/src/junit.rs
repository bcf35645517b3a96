//! A `JUnit` report: one test case for each threshold, and one for the verdict of the test where the
//! thresholds do not explain it.

use std::fmt::Write;

use loadtest_core::{
    resource::Verdict,
    result::{RunResult, ThresholdResult},
};

use crate::text::{escape, name_of, observed_of, target_of, verdict_of};

/// How a test case ended, in `JUnit`'s terms.
enum CaseEnd {
    Passed,
    Failed,
    /// The test case could not be judged. CI systems count it like a failure.
    Error,
}

fn end_of(verdict: Option<Verdict>) -> CaseEnd {
    match verdict {
        Some(Verdict::Pass | Verdict::Warning | Verdict::NotJudged) => CaseEnd::Passed,
        Some(Verdict::Fail | Verdict::Critical) => CaseEnd::Failed,
        Some(Verdict::Inconclusive) | None => CaseEnd::Error,
    }
}

/// Writes a result as a `JUnit` XML file. Warning is a passed test case whose output says so;
/// Inconclusive is an error.
pub fn junit_report(result: &RunResult) -> String {
    let mut cases = String::new();
    let (mut failures, mut errors) = (0, 0);
    let name = name_of(result);
    let seconds = format!("{:.3}", result.elapsed_seconds);
    let mut push_case = |case: &str, verdict: Option<Verdict>, label: &str, sentence: &str| {
        let (case, kind, text) = (escape(case), escape(label), escape(sentence));
        let content = match end_of(verdict) {
            CaseEnd::Passed => format!("<system-out>{kind}: {text}</system-out>"),
            CaseEnd::Failed => {
                failures += 1;
                format!("<failure message=\"{text}\" type=\"{kind}\">{text}</failure>")
            }
            CaseEnd::Error => {
                errors += 1;
                format!("<error message=\"{text}\" type=\"{kind}\">{text}</error>")
            }
        };
        let _ = writeln!(
            cases,
            "    <testcase classname=\"{}\" name=\"{case}\" time=\"{seconds}\">{content}</testcase>",
            escape(name)
        );
    };
    for row in &result.thresholds {
        push_case(&row.key.to_string(), row.verdict.known(), row.verdict.as_str(), &sentence(row));
    }
    // A test can be worse than its rows, as after the loss of a runner.
    let verdict = result.status.known_verdict();
    let severity = |verdict: Option<Verdict>| verdict.map(Verdict::severity);
    let worst = result.thresholds.iter().map(|row| severity(row.verdict.known())).max();
    let has_own_case = worst != Some(severity(verdict));
    if has_own_case {
        push_case("verdict", verdict, verdict_of(&result.status), result.status.verdict_message());
    }
    let tests = result.thresholds.len() + usize::from(has_own_case);
    let start = result.status.start_time.as_ref();
    let timestamp = start.map_or_else(String::new, |start| {
        let time = start.0.strftime("%Y-%m-%dT%H:%M:%S");
        format!(" timestamp=\"{time}\"")
    });
    let counts =
        format!("tests=\"{tests}\" failures=\"{failures}\" errors=\"{errors}\" time=\"{seconds}\"");
    let name = escape(name);
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"loadtest\" {counts}>\n  <testsuite name=\"{name}\" {counts} skipped=\"0\"{timestamp}>\n{cases}  </testsuite>\n</testsuites>\n"
    )
}

/// The result of a threshold in a sentence.
pub(crate) fn sentence(row: &ThresholdResult) -> String {
    let advice = row.advice.as_ref().map_or_else(String::new, |advice| format!(": {advice}"));
    format!(
        "{} was {}, target {}, {} samples{advice}",
        row.key,
        observed_of(row),
        target_of(row),
        row.samples
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::example;

    #[test]
    fn each_threshold_is_a_test_case() {
        let text = junit_report(&example());
        assert!(text.contains("tests=\"3\" failures=\"2\" errors=\"0\""), "{text}");
        assert!(text.contains("name=\"chat timeToFirstResponse p50\""), "{text}");
        assert!(text.contains("<failure message=\"errorRate was 4%, target &lt; 0.1%"), "{text}");
        assert!(text.contains("<system-out>Pass: throughput was"), "{text}");
    }

    #[test]
    fn a_test_that_was_not_judged_has_one_case() {
        let mut result = example();
        result.thresholds.clear();
        result.status.verdict = Some(Verdict::Inconclusive.into());
        let text = junit_report(&result);
        assert!(text.contains("tests=\"1\" failures=\"0\" errors=\"1\""), "{text}");
        assert!(text.contains("type=\"Inconclusive\""), "{text}");
    }
}
