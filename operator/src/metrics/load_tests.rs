//! Gauges of the LoadTests that the API server holds, for dashboards and alerts.

use std::{collections::BTreeMap, fmt};

use k8s_openapi::jiff::Timestamp;
use kube::{ResourceExt, core::DeserializeGuard, runtime::reflector::Store};
use loadtest_core::{
    plan::validate,
    resource::{Extensible, LoadTest, LoadTestStatus, Named, Phase},
    result::{EventKind, RunEvent, ThresholdResult, ValueUnit, run_events, threshold_results},
};
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, metrics::MetricType};

use crate::lease::Leadership;

const PHASES: [Phase; 7] = [
    Phase::Pending,
    Phase::Starting,
    Phase::Running,
    Phase::Stopping,
    Phase::Finished,
    Phase::Error,
    Phase::Cancelled,
];

/// Computes the gauges of all LoadTests at each scrape of the leader.
pub(super) struct LoadTestCollector {
    pub(super) stores: Vec<Store<DeserializeGuard<LoadTest>>>,
    pub(super) leadership: Leadership,
}

impl fmt::Debug for LoadTestCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadTestCollector").finish_non_exhaustive()
    }
}

impl Collector for LoadTestCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        // The gauges of a replica that no longer leads are old.
        if !self.leadership.is_leader() {
            return Ok(());
        }
        let objects: Vec<_> = self.stores.iter().flat_map(Store::state).collect();
        let tests: Vec<&LoadTest> = objects.iter().filter_map(|o| o.0.as_ref().ok()).collect();
        encode_phases(&mut encoder, &tests)?;
        for family in families(&tests) {
            let gauge = MetricType::Gauge;
            let mut gauges = encoder.encode_descriptor(family.name, family.help, None, gauge)?;
            for Sample { labels, value } in family.samples {
                let labels: Vec<_> = labels.iter().map(|(name, text)| (*name, &**text)).collect();
                gauges.encode_family(&labels.as_slice())?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }
}

/// `None` when a newer operator wrote a phase that this one doesn't know.
fn phase_of(test: &LoadTest) -> Option<Phase> {
    let phase = test.status.as_ref().and_then(|status| status.phase.as_ref());
    phase.map_or(Some(Phase::Pending), Extensible::known)
}

fn encode_phases(encoder: &mut DescriptorEncoder<'_>, tests: &[&LoadTest]) -> fmt::Result {
    let help = "Number of LoadTests by phase";
    let mut family =
        encoder.encode_descriptor("loadtest_operator_loadtests", help, None, MetricType::Gauge)?;
    for phase in PHASES {
        let count = tests.iter().filter(|test| phase_of(test) == Some(phase)).count();
        let labels = [("phase", phase.name())];
        family.encode_family(&labels)?.encode_gauge(&(count as f64))?;
    }
    let help = "Number of LoadTests in phase Starting, Running or Stopping";
    let running = tests
        .iter()
        .filter_map(|test| phase_of(test))
        .filter(|phase| matches!(phase, Phase::Starting | Phase::Running | Phase::Stopping))
        .count();
    encoder
        .encode_descriptor("loadtest_operator_running_tests", help, None, MetricType::Gauge)?
        .encode_gauge(&(running as f64))
}

/// A gauge of each LoadTest.
struct GaugeFamily {
    name: &'static str,
    help: &'static str,
    samples: Vec<Sample>,
}

struct Sample {
    labels: Vec<(&'static str, String)>,
    value: f64,
}

/// All gauges with the labels `namespace` and `loadtest`.
fn families(tests: &[&LoadTest]) -> [GaugeFamily; 7] {
    let family = |name, help| GaugeFamily { name, help, samples: Vec::new() };
    let mut verdict =
        family("loadtest_operator_verdict", "1 for each LoadTest with a verdict, by verdict");
    let mut finish = family(
        "loadtest_operator_finish_timestamp_seconds",
        "Unix time at which each finished test ended",
    );
    let mut duration = family(
        "loadtest_operator_run_duration_seconds",
        "Time from the start of the load to the end of the test; of a running test, the time of load so far",
    );
    let mut expected_end = family(
        "loadtest_operator_expected_end_timestamp_seconds",
        "Unix time at which a running test should be over, graceful stop included",
    );
    let mut value = family(
        "loadtest_operator_threshold_value",
        "Observed value of each judged threshold, in the unit of the label",
    );
    let mut target = family(
        "loadtest_operator_threshold_target",
        "Bound with which each judged threshold passes, in the unit of the label",
    );
    let mut event =
        family("loadtest_operator_event_timestamp_seconds", "Unix time of each event of a run");
    for test in tests.iter().filter(|test| phase_of(test).is_some()) {
        let Some(status) = &test.status else { continue };
        let own =
            [("namespace", test.namespace().unwrap_or_default()), ("loadtest", test.name_any())];
        let push = |family: &mut GaugeFamily, more: &[(&'static str, &str)], value: f64| {
            let more = more.iter().map(|(name, text)| (*name, (*text).to_owned()));
            family
                .samples
                .push(Sample { labels: own.iter().cloned().chain(more).collect(), value });
        };
        if let Some(known) = LoadTestStatus::known_verdict(status) {
            push(&mut verdict, &[("verdict", known.name())], 1.0);
        }
        if let Some(end) = &status.finish_time {
            push(&mut finish, &[], unix_seconds(end.0));
        }
        let Some(run) = RunNumbers::of(test, status) else { continue };
        push(&mut duration, &[], run.duration);
        if let Some(end) = run.expected_end {
            push(&mut expected_end, &[], end);
        }
        for row in &run.thresholds {
            let key = row.key.to_string();
            let labels = [("threshold", &*key), ("unit", unit_name(row.unit))];
            if let Some(observed) = row.observed {
                push(&mut value, &labels, observed);
            }
            push(&mut target, &labels, row.target.value);
        }
        let mut numbers: BTreeMap<&str, u32> = BTreeMap::new();
        for RunEvent { seconds, kind, message } in &run.events {
            let name = event_name(*kind);
            let number = numbers.entry(name).or_default();
            *number += 1;
            let number = number.to_string();
            // The words of a loss change with each further one, and are those of other programs.
            let message = match kind {
                EventKind::RunnersLost => "runners were lost",
                _ => message.as_str(),
            };
            let labels = [("number", number.as_str()), ("event", name), ("message", message)];
            push(&mut event, &labels, run.start + seconds);
        }
    }
    [verdict, finish, duration, expected_end, value, target, event]
}

/// The numbers of a LoadTest whose load has started. All times are Unix times in seconds.
struct RunNumbers {
    start: f64,
    duration: f64,
    expected_end: Option<f64>,
    thresholds: Vec<ThresholdResult>,
    events: Vec<RunEvent>,
}

impl RunNumbers {
    /// `None` before the start, and for a spec that is invalid for this version.
    fn of(test: &LoadTest, status: &LoadTestStatus) -> Option<Self> {
        let start = unix_seconds(status.start_time.as_ref()?.0);
        let valid = validate(&test.spec).ok()?;
        let elapsed = status.progress.as_ref().map_or(0.0, |p| p.elapsed.as_secs_f64());
        let end = status.finish_time.as_ref().map(|end| unix_seconds(end.0));
        let planned = valid.load.duration().plus(valid.graceful_stop).as_secs_f64();
        Some(Self {
            start,
            // The end has whole seconds and may seem to be before the start.
            duration: end.map_or(elapsed, |end| (end - start).max(elapsed)),
            expected_end: end.is_none().then_some(start + planned),
            thresholds: threshold_results(&valid.thresholds, &status.thresholds),
            events: run_events(&valid.load, status, elapsed),
        })
    }
}

fn unix_seconds(time: Timestamp) -> f64 {
    time.as_microsecond() as f64 / 1e6
}

const fn unit_name(unit: ValueUnit) -> &'static str {
    match unit {
        ValueUnit::Seconds => "seconds",
        ValueUnit::PerSecond => "per_second",
        ValueUnit::Fraction => "fraction",
    }
}

const fn event_name(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Started => "started",
        EventKind::StageEnded => "stage_ended",
        EventKind::RunnersLost => "runners_lost",
        EventKind::Aborted => "aborted",
        EventKind::Cancelled => "cancelled",
        EventKind::LoadEnded => "load_ended",
    }
}

#[cfg(test)]
mod tests {
    use kube::runtime::{reflector, watcher};

    use super::*;
    use crate::{metrics::OperatorMetrics, observe::last_objects::forget_details};

    fn store_with_test(namespace: &str, status: &str) -> Store<DeserializeGuard<LoadTest>> {
        let mut test = serde_json::to_value(crate::testing::example_test()).unwrap();
        test["metadata"]["namespace"] = namespace.into();
        test["status"] = serde_json::from_str(status).unwrap();
        let (reader, mut writer) = reflector::store();
        let mut guard: DeserializeGuard<LoadTest> = serde_json::from_value(test).unwrap();
        forget_details(&mut guard);
        writer.apply_watcher_event(&watcher::Event::Apply(guard));
        reader
    }

    fn check_lines(text: &str, lines: &[&str]) {
        for line in lines {
            assert_eq!(text.matches(line).count(), 1, "{line} in {text}");
        }
    }

    #[test]
    fn tests_of_all_namespaces_share_one_series() {
        let metrics = OperatorMetrics::new(Leadership::without_lease());
        metrics.count_reconcile("settled");
        metrics.add_stores(vec![
            store_with_test("one", r#"{"phase": "Running"}"#),
            store_with_test("two", r#"{"phase": "Running"}"#),
            store_with_test("three", r#"{"phase": "Finished", "verdict": "Pass"}"#),
        ]);
        let text = metrics.encode_text().unwrap();
        check_lines(
            &text,
            &[
                "loadtest_operator_reconciles_total{outcome=\"settled\"} 1",
                "loadtest_operator_loadtests{phase=\"Running\"} 2",
                "loadtest_operator_running_tests 2",
                "loadtest_operator_verdict{namespace=\"three\",loadtest=\"burst\",verdict=\"Pass\"} 1",
                "\nloadtest_operator_running_tests ",
            ],
        );
    }

    #[test]
    fn a_finished_run_has_its_numbers() {
        let metrics = OperatorMetrics::new(Leadership::without_lease());
        let status = r#"{
            "phase": "Finished", "verdict": "Fail",
            "startTime": "2026-01-01T00:00:00.500000Z", "finishTime": "2026-01-01T00:02:01Z",
            "progress": {"elapsed": "2m", "percent": 100, "users": 200, "runners": 2},
            "thresholds": [{"metric": "errorRate", "observed": "2.5%", "bound": "< 1%", "samples": 9, "verdict": "Fail"}]
        }"#;
        metrics.add_stores(vec![store_with_test("shop", status)]);
        let text = metrics.encode_text().unwrap();
        let own = r#"{namespace="shop",loadtest="burst""#;
        let row = format!(r#"{own},threshold="errorRate",unit="fraction"}}"#);
        let start = 1_767_225_600.5;
        let started = r#"number="1",event="started",message="load started: 200 users"#;
        check_lines(
            &text,
            &[
                &format!("loadtest_operator_run_duration_seconds{own}}} 120.5"),
                &format!("loadtest_operator_finish_timestamp_seconds{own}}} {}", start + 120.5),
                &format!("loadtest_operator_threshold_value{row} 0.025"),
                &format!("loadtest_operator_threshold_target{row} 0.01"),
                &format!("loadtest_operator_event_timestamp_seconds{own},{started}"),
                &format!(r#"event="load_ended",message="load ended"}} {}"#, start + 120.0),
            ],
        );
        assert!(!text.contains("expected_end_timestamp_seconds{"), "{text}");
    }

    #[test]
    fn a_test_of_a_newer_operator_is_in_no_gauge() {
        let metrics = OperatorMetrics::new(Leadership::without_lease());
        let status = r#"{
            "phase": "Paused", "verdict": "Pass", "startTime": "2026-01-01T00:00:00.000000Z"
        }"#;
        metrics.add_stores(vec![store_with_test("shop", status)]);
        let text = metrics.encode_text().unwrap();
        assert!(!text.contains(r#"namespace="shop""#), "{text}");
    }

    #[test]
    fn events_keep_their_labels() {
        let metrics = |phase: &str| {
            let metrics = OperatorMetrics::new(Leadership::without_lease());
            let status = format!(
                r#"{{"phase": "{phase}", "startTime": "2026-01-01T00:00:00.000000Z",
                "progress": {{"elapsed": "30s", "percent": 25, "users": 200, "runners": 2}},
                "conditions": [{{"type": "RunnersLost", "status": "True", "reason": "Lost",
                    "message": "lost 1 runner: evicted", "lastTransitionTime": "2026-01-01T00:00:10Z"}}]}}"#
            );
            metrics.add_stores(vec![store_with_test("shop", &status)]);
            metrics.encode_text().unwrap()
        };
        for phase in ["Stopping", "Cancelled"] {
            let text = metrics(phase);
            check_lines(
                &text,
                &[
                    r#"number="1",event="load_ended",message="load ended""#,
                    r#"number="1",event="runners_lost",message="runners were lost""#,
                ],
            );
        }
    }

    #[test]
    fn a_running_test_has_an_expected_end() {
        let metrics = OperatorMetrics::new(Leadership::without_lease());
        let status = r#"{
            "phase": "Running", "startTime": "2026-01-01T00:00:00.000000Z",
            "progress": {"elapsed": "30s", "percent": 25, "users": 200, "runners": 2}
        }"#;
        metrics.add_stores(vec![store_with_test("shop", status)]);
        let text = metrics.encode_text().unwrap();
        let own = r#"{namespace="shop",loadtest="burst"}"#;
        let expected = format!("loadtest_operator_expected_end_timestamp_seconds{own} 1767225750");
        check_lines(
            &text,
            &[&expected, &format!("loadtest_operator_run_duration_seconds{own} 30")],
        );
        assert!(!text.contains(r#"event="load_ended""#), "{text}");
    }
}
