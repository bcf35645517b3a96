use super::*;
use crate::testing::valid_test;

fn healthy() -> Metrics {
    let mut metrics = Metrics { elapsed_seconds: 120.0, ..Metrics::default() };
    for task in ["chat", "health", "models", "websocket"] {
        let task = metrics.tasks.entry(task.into()).or_default();
        task.requests[Outcome::Success.index()] = 1000;
        task.successes_in_load = 1000;
        for (metric, seconds) in
            [(LatencyMetric::ResponseTime, 0.1), (LatencyMetric::TimeToFirstResponse, 0.05)]
        {
            task.latencies.get_mut(metric, Outcome::Success).record(seconds, 1000);
        }
    }
    metrics.user_seconds = valid_test().load.planned_work();
    metrics
}

fn report_on(metrics: &Metrics, context: &RunContext) -> Report {
    report(&valid_test(), metrics, &Timeline::default(), context)
}

#[test]
fn healthy_runs_pass() {
    let report = report_on(&healthy(), &RunContext::default());
    assert_eq!((report.verdict, report.reason), (Verdict::Pass, "TargetsMet"));
    assert_eq!(report.summary.requests, 4000);
    assert_eq!(report.summary.throughput, "33.33/s");
    assert_eq!(report.measurement.coverage.as_deref(), Some("100%"));
}

#[test]
fn only_chat_tasks_show_a_time_to_first_response() {
    let report = report_on(&healthy(), &RunContext::default());
    let shown: Vec<bool> = report
        .tasks
        .iter()
        .map(|task| task.latencies.get(LatencyMetric::TimeToFirstResponse).is_some())
        .collect();
    assert_eq!(shown, [true, false, false, false]);
}

#[test]
fn lost_runner_never_passes_unless_the_test_tolerates_it() {
    let lost = RunContext { runners: 4, runners_lost: 1, ..RunContext::default() };
    let report = report_on(&healthy(), &lost);
    assert_eq!((report.verdict, report.reason), (Verdict::Inconclusive, "RunnersLost"));
    assert_eq!(report.message, "1 runner of 4 ended before the end of the test");
    let start_skew = Some(Duration::ZERO);
    let tolerated = RunContext { tolerated_losses: 1, start_skew, ..lost };
    assert_eq!(report_on(&healthy(), &tolerated).verdict, Verdict::Pass);
}

#[test]
fn rates_after_a_tolerated_loss_pass_only_if_high_enough() {
    let mut test = valid_test();
    let start_skew = Some(Duration::ZERO);
    let lost = RunContext {
        runners: 4,
        runners_lost: 1,
        tolerated_losses: 1,
        start_skew,
        ..RunContext::default()
    };
    let bounds = [
        ("> 10/s", Verdict::Pass),
        ("> 1000/s", Verdict::Inconclusive),
        ("< 1000/s", Verdict::Inconclusive),
    ];
    for (bound, expected) in bounds {
        let row = format!("{{metric: throughput, target: '{bound}'}}");
        test.thresholds = vec![crate::testing::yaml(&row)];
        let report = report(&test, &healthy(), &Timeline::default(), &lost);
        assert_eq!(report.verdict, expected, "{bound}");
        assert_eq!(report.thresholds[0].verdict.known(), Some(expected), "{bound}");
    }
}

#[test]
fn a_row_that_failed_fails_despite_a_lost_runner() {
    let mut metrics = healthy();
    let mut test = valid_test();
    test.thresholds = vec![
        crate::testing::yaml("{metric: errorRate, target: '< 1%', critical: '> 5%'}"),
        crate::testing::yaml("{metric: throughput, target: '> 1000/s'}"),
    ];
    let lost = RunContext { runners: 4, runners_lost: 1, ..RunContext::default() };
    let verdict = |metrics: &Metrics| report(&test, metrics, &Timeline::default(), &lost);
    // The rate is low because a runner is missing.
    assert_eq!(verdict(&metrics).reason, "RunnersLost");
    metrics.tasks.get_mut("chat").unwrap().requests[Outcome::Failure.index()] = 900;
    assert_eq!(verdict(&metrics).verdict, Verdict::Critical);
}

#[test]
fn failures_that_no_threshold_judges_never_pass() {
    let mut test = valid_test();
    let rows = |errors: bool| {
        let mut rows = vec![crate::testing::yaml("{metric: throughput, target: '> 1/s'}")];
        if errors {
            rows.push(crate::testing::yaml("{metric: errorRate, target: '< 90%'}"));
        }
        rows
    };
    let mut verdict = |errors, failures, successes| {
        test.thresholds = rows(errors);
        let mut metrics = healthy();
        let chat = metrics.tasks.get_mut("chat").unwrap();
        chat.requests = [successes, failures, 0, 0];
        let report = report(&test, &metrics, &Timeline::default(), &RunContext::default());
        (report.verdict, report.message)
    };
    assert_eq!(verdict(false, 900, 1000).0, Verdict::Pass);
    assert_eq!(verdict(true, 900, 100).0, Verdict::Pass);
    assert_eq!(verdict(false, 2, 1).0, Verdict::Pass);
    assert_eq!(verdict(false, 2, 0).0, Verdict::Inconclusive);
    let (verdict, message) = verdict(false, 900, 100);
    assert_eq!(verdict, Verdict::Inconclusive);
    assert!(message.starts_with("90% of the requests of task chat failed"), "{message}");
}

#[test]
fn an_unknown_start_of_several_runners_never_passes() {
    let context = RunContext { runners: 2, ..RunContext::default() };
    let report = report_on(&healthy(), &context);
    assert_eq!((report.verdict, report.reason), (Verdict::Inconclusive, "StartSkew"));
}

#[test]
fn one_sick_runner_among_many_is_named() {
    let mut test = valid_test();
    test.thresholds = vec![crate::testing::yaml(
        "{metric: responseTime, statistic: p99.9, target: '< 500ms', critical: '> 900ms'}",
    )];
    let mut all = Metrics::default();
    for index in 0..150 {
        let seconds = if index == 7 { 1.05 } else { 0.05 };
        let mut runner = Metrics { elapsed_seconds: 300.0, ..Metrics::default() };
        let task = runner.tasks.entry("chat".into()).or_default();
        task.requests[0] = 10_000;
        let responses = task.latencies.get_mut(LatencyMetric::ResponseTime, Outcome::Success);
        responses.record(seconds, 10_000);
        runner.schedule_lag.record(seconds - 0.0499, 10_000);
        all.merge_runner(&format!("runner {index}"), &runner);
    }
    let found = report(&test, &all, &Timeline::default(), &RunContext::default());
    assert_eq!(found.verdict, Verdict::Inconclusive);
    assert!(
        found.message.contains("runner 7: the load generator was itself late"),
        "{}",
        found.message
    );
}

#[test]
fn cancelled_run_never_passes() {
    let cancelled = RunContext { cancelled: true, ..RunContext::default() };
    assert_eq!(report_on(&healthy(), &cancelled).verdict, Verdict::Inconclusive);
}

#[test]
fn lost_runner_is_inconclusive_without_thresholds() {
    let mut test = valid_test();
    test.thresholds.clear();
    let lost = RunContext { runners_lost: 1, ..RunContext::default() };
    let verdict = |context| report(&test, &healthy(), &Timeline::default(), &context).verdict;
    assert_eq!(verdict(lost), Verdict::Inconclusive);
    assert_eq!(verdict(RunContext::default()), Verdict::NotJudged);
}

#[test]
fn runners_that_start_far_apart_never_pass() {
    let skewed = |millis| {
        let start_skew = Some(Duration::from_millis(millis));
        report_on(&healthy(), &RunContext { start_skew, ..RunContext::default() })
    };
    assert_eq!(skewed(900).verdict, Verdict::Pass);
    assert_eq!(skewed(1300).reason, "StartSkew");
}

#[test]
fn limits_of_the_generator_are_inconclusive() {
    let mut metrics = healthy();
    metrics.tasks.get_mut("chat").unwrap().errors.insert("file_limit".into(), 3);
    let report = report_on(&metrics, &RunContext::default());
    assert_eq!((report.verdict, report.reason), (Verdict::Inconclusive, "GeneratorLimit"));
}

#[test]
fn responses_that_are_too_large_are_no_errors_of_the_target() {
    let mut test = valid_test();
    test.thresholds = vec![crate::testing::yaml("{metric: errorRate, target: '< 0.1%'}")];
    let verdict = |too_large: u64| {
        let mut metrics = healthy();
        let chat = metrics.tasks.get_mut("chat").unwrap();
        chat.requests[Outcome::Failure.index()] = too_large;
        chat.errors.insert("size_limit".into(), too_large);
        let report = report(&test, &metrics, &Timeline::default(), &RunContext::default());
        (report.verdict, report.reason)
    };
    assert_eq!(verdict(10), (Verdict::Pass, "TargetsMet"));
    assert_eq!(verdict(900), (Verdict::Inconclusive, "GeneratorLimit"));
}

#[test]
fn no_success_is_inconclusive_unless_a_row_fails() {
    let mut metrics = healthy();
    for task in metrics.tasks.values_mut() {
        task.requests = [0, 1000, 0, 0];
    }
    let mut test = valid_test();
    test.thresholds.clear();
    let context = RunContext::default();
    let found = report(&test, &metrics, &Timeline::default(), &context);
    assert_eq!((found.verdict, found.reason), (Verdict::Inconclusive, "NoSuccess"));
    test.thresholds.push(crate::testing::yaml("{metric: errorRate, target: '< 1%'}"));
    let found = report(&test, &metrics, &Timeline::default(), &context);
    assert_eq!(found.verdict, Verdict::Fail);
}

#[test]
fn no_traffic_is_inconclusive() {
    let report = report_on(&Metrics::default(), &RunContext::default());
    assert_eq!((report.verdict, report.reason), (Verdict::Inconclusive, "NoTraffic"));
}

#[test]
fn most_frequent_errors_come_first() {
    let mut metrics = healthy();
    let chat = metrics.tasks.get_mut("chat").unwrap();
    for n in 0..40 {
        chat.errors.insert(format!("http_{}", 400 + n), n);
    }
    let rows = error_counts(&metrics, &BTreeMap::new());
    assert_eq!((rows.len(), rows[0].count), (MAX_ERRORS, 39));
}

#[test]
fn imbalance_is_among_the_addresses_of_one_url() {
    let mut metrics = healthy();
    let imbalance =
        |metrics: &Metrics| report_on(metrics, &RunContext::default()).measurement.imbalance;
    let mut count = |task: &str, address: &str, count| {
        let task = metrics.tasks.entry(task.into()).or_default();
        task.addresses.insert(address.into(), count);
    };
    count("chat", "10.0.0.1:18800", 900);
    count("health", "10.0.0.1:18800", 90);
    count("websocket", "10.0.0.1:18801", 10);
    assert_eq!(imbalance(&metrics), None);
    metrics.tasks.get_mut("websocket").unwrap().addresses.insert("10.0.0.2:18801".into(), 100);
    let found = imbalance(&metrics).unwrap();
    assert!(found.starts_with("10.0.0.2:18801 got 1.8 times the mean of 2 addresses"), "{found}");
}
