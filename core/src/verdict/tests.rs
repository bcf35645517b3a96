use super::*;

fn row(yaml: &str) -> Threshold {
    serde_yaml::from_str(yaml).unwrap()
}

fn p95() -> Threshold {
    row(
        r#"{task: chat, metric: responseTime, statistic: p95, target: "< 1s", warning: "< 2s", critical: "> 5s"}"#,
    )
}

fn answers(seconds: f64, outcome: Outcome, n: u64) -> Numbers {
    let mut numbers = Numbers { elapsed_seconds: 10.0, user_seconds: 10.0, ..Numbers::default() };
    let task = numbers.tasks.entry("chat".into()).or_default();
    task.requests[outcome.index()] = n;
    task.response_time[outcome.index()].record(seconds, n);
    numbers
}

fn verdict(seconds: f64) -> Verdict {
    judge(&p95(), &answers(seconds, Outcome::Success, 1000)).verdict
}

#[test]
fn the_ladder_has_four_steps() {
    assert_eq!(verdict(0.5), Verdict::Pass);
    assert_eq!(verdict(1.5), Verdict::Warning);
    assert_eq!(verdict(3.0), Verdict::Fail);
    assert_eq!(verdict(6.0), Verdict::Critical);
}

#[test]
fn a_missed_target_without_warning_bound_fails() {
    let alone = row("{metric: responseTime, statistic: p50, target: \"< 1s\"}");
    assert_eq!(judge(&alone, &answers(1.5, Outcome::Success, 99)).verdict, Verdict::Fail);
}

#[test]
fn no_data_is_inconclusive_for_every_metric() {
    for threshold in crate::testing::spec().thresholds {
        let row = judge(&threshold, &Numbers::default());
        assert_eq!((row.verdict, row.observed), (Verdict::Inconclusive, None));
    }
}

#[test]
fn a_percentile_needs_five_samples_beyond_it() {
    let few = judge(&p95(), &answers(0.5, Outcome::Success, 99));
    assert_eq!(few.verdict, Verdict::Inconclusive);
    assert!(few.advice.unwrap().contains("needs 100"));
    assert_eq!(judge(&p95(), &answers(0.5, Outcome::Success, 100)).verdict, Verdict::Pass);
    let mut eager = p95();
    eager.min_samples = Some(3);
    assert_eq!(judge(&eager, &answers(0.5, Outcome::Success, 3)).verdict, Verdict::Pass);
}

#[test]
fn fast_errors_are_no_fast_answers() {
    let row = judge(&p95(), &answers(0.001, Outcome::Failure, 1000));
    assert_eq!((row.samples, row.verdict), (0, Verdict::Inconclusive));
}

#[test]
fn what_a_weak_generator_drops_is_not_the_targets_but_what_failed_is() {
    let rate = row(r#"{metric: errorRate, target: "< 1%", critical: "> 5%"}"#);
    let mut numbers = answers(0.1, Outcome::Success, 1000);
    numbers.throttled_seconds = 5.0;
    numbers.tasks.get_mut("chat").unwrap().dropped = 500;
    assert_eq!(judge(&rate, &numbers).verdict, Verdict::Inconclusive);
    numbers.tasks.get_mut("chat").unwrap().requests[Outcome::Failure.index()] = 600;
    assert_eq!(judge(&rate, &numbers).verdict, Verdict::Critical);
    // Judged, and told, is what was answered: 30 of 2,000.
    let ladder = row(r#"{metric: errorRate, target: "< 1%", warning: "< 3%", critical: "> 5%"}"#);
    numbers.tasks.get_mut("chat").unwrap().requests = [1470, 30, 0, 0];
    let judged = judge(&ladder, &numbers);
    assert_eq!((judged.verdict, judged.observed.as_deref()), (Verdict::Warning, Some("1.5%")));
    numbers.tasks.get_mut("chat").unwrap().requests = [1000, 0, 0, 0];
    // A fit one's drops are the target's: nobody was free to send them.
    numbers.throttled_seconds = 0.0;
    assert_eq!(judge(&rate, &numbers).verdict, Verdict::Critical);
}

#[test]
fn a_rate_that_a_weak_generator_misses_says_nothing_and_one_it_meets_holds() {
    let rate = row(r#"{metric: throughput, target: "> 50/s", critical: "< 20/s"}"#);
    let mut numbers = answers(0.1, Outcome::Success, 1000);
    numbers.busy_seconds = 9.9;
    assert_eq!(judge(&rate, &numbers).verdict, Verdict::Pass);
    (numbers.elapsed_seconds, numbers.busy_seconds) = (100.0, 99.0);
    assert_eq!(judge(&rate, &numbers).verdict, Verdict::Inconclusive);
    numbers.busy_seconds = 50.0;
    assert_eq!(judge(&rate, &numbers).verdict, Verdict::Critical);
}

#[test]
fn timeouts_and_interruptions_count_at_their_age() {
    for outcome in [Outcome::Timeout, Outcome::Interrupted] {
        assert_eq!(judge(&p95(), &answers(6.0, outcome, 1000)).verdict, Verdict::Critical);
    }
}

#[test]
fn dropped_arrivals_are_slower_than_any_answer() {
    // 1000 answers and 10 drops: the p95 is the 960th answer, the p99.9 is hidden.
    let mut numbers = answers(0.5, Outcome::Success, 950);
    let task = numbers.tasks.get_mut("chat").unwrap();
    task.requests[0] += 50;
    task.response_time[0].record(3.0, 50);
    assert_eq!(judge(&p95(), &numbers).verdict, Verdict::Pass);
    numbers.tasks.get_mut("chat").unwrap().dropped = 10;
    let row = judge(&p95(), &numbers);
    assert_eq!((row.verdict, row.samples), (Verdict::Fail, 1010));
    let mut tail = p95();
    (tail.statistic, tail.min_samples) = (Some(Statistic::Quantile(0.999)), Some(1));
    let row = judge(&tail, &numbers);
    assert_eq!(row.verdict, Verdict::Inconclusive);
    assert!(row.advice.unwrap().contains("10 arrivals were dropped"));
    // What is known of a hidden value may be critical already.
    tail.critical = Some("> 2.5s".parse().unwrap());
    tail.warning = None;
    assert_eq!(judge(&tail, &numbers).verdict, Verdict::Critical);
}

#[test]
fn one_drop_of_a_thousand_hides_no_value_of_the_999th() {
    let mut numbers = answers(0.5, Outcome::Success, 999);
    numbers.tasks.get_mut("chat").unwrap().dropped = 1;
    let tail = row(
        r#"{task: chat, metric: responseTime, statistic: p99.9, target: "< 1s", minSamples: 1}"#,
    );
    assert_eq!(judge(&tail, &numbers).verdict, Verdict::Pass);
    numbers.tasks.get_mut("chat").unwrap().dropped = 2;
    assert_eq!(judge(&tail, &numbers).verdict, Verdict::Inconclusive);
}

#[test]
fn tokens_and_goodput_are_judged() {
    let mut numbers = answers(0.5, Outcome::Success, 90);
    let task = numbers.tasks.get_mut("chat").unwrap();
    task.requests[Outcome::Interrupted.index()] = 10;
    task.good = 80;
    task.tokens.output = 500;
    task.inter_token.record(0.02, 400);
    let mut silent = numbers.clone();
    silent.tasks.get_mut("chat").unwrap().tokens.output = 0;
    let uncounted = row(r#"{metric: tokensPerSecond, target: "> 10/s", critical: "< 5/s"}"#);
    assert_eq!(judge(&uncounted, &silent).verdict, Verdict::Inconclusive);
    let observed = |yaml: &str| judge(&row(yaml), &numbers).observed.unwrap();
    assert_eq!(observed(r#"{metric: goodput, target: "> 99%"}"#), "80%");
    assert_eq!(observed(r#"{metric: tokensPerSecond, target: "> 10/s"}"#), "50/s");
    let gap = observed(r#"{metric: interTokenLatency, statistic: p95, target: "< 50ms"}"#);
    let gap: Duration = gap.parse().unwrap();
    assert!((gap.as_secs_f64() / 0.02 - 1.0).abs() < 0.002, "{gap}");
}

#[test]
fn dropped_arrivals_count_as_errors() {
    let mut numbers = answers(0.5, Outcome::Success, 90);
    numbers.tasks.get_mut("chat").unwrap().dropped = 10;
    let errors = row(r#"{metric: errorRate, target: "< 1%", critical: "> 5%"}"#);
    let judged = judge(&errors, &numbers);
    assert_eq!((judged.verdict, judged.observed.as_deref()), (Verdict::Critical, Some("10%")));
}

#[test]
fn a_target_that_only_fails_has_no_throughput_but_a_verdict() {
    let rate = row(r#"{metric: throughput, target: "> 10/s", critical: "< 2/s"}"#);
    let judged = judge(&rate, &answers(0.001, Outcome::Failure, 1000));
    assert_eq!((judged.verdict, judged.observed.as_deref()), (Verdict::Critical, Some("0/s")));
}

#[test]
fn nothing_that_came_is_a_rate_of_zero_where_much_would_have_come() {
    let rates = [
        r#"{metric: throughput, target: "> 10/s", critical: "< 2/s"}"#,
        r#"{metric: tokensPerSecond, task: chat, target: "> 10/s", critical: "< 2/s"}"#,
    ];
    // Ten users for ten seconds, with answers of so many seconds each; and ten more with nothing.
    let judged = |threshold: &str, took: f64, answers: u64, users: f64| {
        let mut whole =
            Numbers { elapsed_seconds: 20.0, user_seconds: 100.0 + users, ..Numbers::default() };
        let task = whole.tasks.entry("chat".into()).or_default();
        task.requests[Outcome::Success.index()] = answers;
        task.service_time[Outcome::Success.index()].record(took, answers);
        // Some had reasons of their own.
        task.service_time[Outcome::Success.index()].record(30.0, answers / 20);
        task.tokens.output = answers;
        let part = Numbers { elapsed_seconds: 10.0, user_seconds: users, ..Numbers::default() };
        let (row, _) = judge_part(&row(threshold), &part, &whole);
        let scarce = is_scarce(&self::row(threshold), &row);
        (row.verdict, row.observed.unwrap_or_default(), scarce)
    };
    let unknown = (Verdict::Inconclusive, String::new(), true);
    for rate in rates {
        assert_eq!(judged(rate, 0.1, 100, 100.0), (Verdict::Critical, "0/s".to_owned(), false));
        // Answers that take longer than that may all be under way; of few, none may be due.
        assert_eq!(judged(rate, 12.0, 100, 100.0), unknown);
        assert_eq!(judged(rate, 0.1, 5, 100.0), unknown);
        assert_eq!(judged(rate, 0.1, 0, 100.0), unknown);
        // Nobody asked, or hardly anybody.
        assert_eq!(judged(rate, 0.1, 100, 0.0), unknown);
        assert_eq!(judged(rate, 0.1, 100, 5.0), unknown);
    }
    // At the end it is known of what was open all the time.
    let mut hung = answers(9.0, Outcome::Interrupted, 20);
    for rate in rates.map(row) {
        assert_eq!(judge(&rate, &hung).observed.as_deref(), Some("0/s"));
    }
    // Not of a part: nobody knows how long it was open in that.
    let part = Numbers { elapsed_seconds: 5.0, ..hung.clone() };
    for rate in rates.map(row) {
        assert_eq!(judge_part(&rate, &part, &hung).0.observed, None);
    }
    hung.tasks.clear();
    for rate in rates.map(row) {
        let judged = judge(&rate, &hung);
        assert_eq!((judged.verdict, judged.observed), (Verdict::Inconclusive, None));
        assert!(judged.advice.unwrap().contains("0 samples, needs 1"));
    }
}

#[test]
fn a_late_generator_makes_latency_inconclusive_but_not_errors() {
    let mut numbers = answers(0.5, Outcome::Success, 1000);
    numbers.schedule_lag.record(0.2, 1000);
    assert_eq!(judge(&p95(), &numbers).verdict, Verdict::Inconclusive);
    let errors = row(r#"{metric: errorRate, target: "< 1%"}"#);
    assert_eq!(judge(&errors, &numbers).verdict, Verdict::Pass);
}

#[test]
fn a_generator_without_cpu_makes_latency_inconclusive_but_not_errors() {
    let spoilt: [fn(&mut Numbers); 2] =
        [|numbers| numbers.busy_seconds = 9.5, |numbers| numbers.throttled_seconds = 0.2];
    for spoil in spoilt {
        let mut numbers = answers(0.5, Outcome::Success, 1000);
        spoil(&mut numbers);
        let row = judge(&p95(), &numbers);
        assert_eq!(row.verdict, Verdict::Inconclusive);
        assert!(row.advice.unwrap().contains("load generator"));
        let errors = row_of_errors();
        assert_eq!(judge(&errors, &numbers).verdict, Verdict::Pass);
    }
    let mut numbers = answers(0.5, Outcome::Success, 1000);
    (numbers.busy_seconds, numbers.throttled_seconds) = (8.0, 0.05);
    assert_eq!(judge(&p95(), &numbers).verdict, Verdict::Pass);
}

fn row_of_errors() -> Threshold {
    row(r#"{metric: errorRate, target: "< 1%"}"#)
}

#[test]
fn lag_below_both_limits_spoils_nothing() {
    let mut numbers = answers(0.5, Outcome::Success, 1000);
    // Above 5 ms, below 5 % of the 1 s target.
    numbers.schedule_lag.record(0.04, 1000);
    assert_eq!(judge(&p95(), &numbers).verdict, Verdict::Pass);
}

#[test]
fn the_worst_row_decides_and_inconclusive_outweighs_warning() {
    let rows = |verdicts: &[Verdict]| -> Vec<ThresholdRow> {
        let row = judge(&p95(), &answers(0.5, Outcome::Success, 1000));
        verdicts.iter().map(|v| ThresholdRow { verdict: *v, ..row.clone() }).collect()
    };
    use Verdict::{Critical, Fail, Inconclusive, NotJudged, Pass, Warning};
    assert_eq!(worst(&rows(&[Pass, Warning, Inconclusive])), Inconclusive);
    assert_eq!(worst(&rows(&[Inconclusive, Fail])), Fail);
    assert_eq!(worst(&rows(&[Fail, Critical, Pass])), Critical);
    assert_eq!(worst(&rows(&[Pass, Warning])), Warning);
    assert_eq!(worst(&rows(&[])), NotJudged);
}
