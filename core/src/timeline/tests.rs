use super::*;
use crate::{metrics::Outcome, testing::spec};

/// Numbers after so many seconds in which each second brought ten answers of the given
/// latency in seconds.
fn course(answers: impl Fn(u32) -> f64, seconds: u32) -> Numbers {
    let elapsed = f64::from(seconds);
    let mut numbers =
        Numbers { elapsed_seconds: elapsed, user_seconds: elapsed, ..Numbers::default() };
    let task = numbers.tasks.entry("chat".into()).or_default();
    for second in 0..seconds {
        task.requests[Outcome::Success.index()] += 10;
        task.response_time[Outcome::Success.index()].record(answers(second), 10);
        task.service_time[Outcome::Success.index()].record(answers(second), 10);
    }
    numbers
}

fn judged_by(threshold: &str) -> LoadTestSpec {
    let mut spec = spec();
    spec.thresholds = vec![serde_yaml::from_str(threshold).unwrap()];
    spec
}

fn watch(
    spec: &LoadTestSpec,
    answers: impl Fn(u32) -> f64,
    until: u32,
) -> (Timeline, Option<Aborted>) {
    let mut timeline = Timeline::default();
    for second in 1..=until {
        let aborted = timeline.look(spec, &course(&answers, second));
        if aborted.is_some() {
            return (timeline, aborted);
        }
    }
    (timeline, None)
}

/// Slow from second 20 to 30.
fn stall(second: u32) -> f64 {
    if (20..30).contains(&second) { 3.0 } else { 0.1 }
}

const OVER_10_S: &str =
    r#"{metric: responseTime, statistic: p50, window: 10s, target: "< 1s", critical: "> 2s"}"#;

#[test]
fn a_window_finds_the_stall_that_the_whole_test_hides() {
    let spec = judged_by(OVER_10_S);
    let (timeline, _) = watch(&spec, stall, 100);
    let all = course(stall, 100);
    let row = &timeline.rows(&spec, &all, None)[0];
    assert_eq!((row.verdict, row.samples), (Verdict::Critical, 100));
    let whole = judged_by(r#"{metric: responseTime, statistic: p50, target: "< 1s"}"#);
    assert_eq!(timeline.rows(&whole, &all, None)[0].verdict, Verdict::Pass);
}

#[test]
fn a_test_shorter_than_its_window_is_inconclusive_and_says_why() {
    let spec = judged_by(OVER_10_S);
    let (timeline, _) = watch(&spec, stall, 9);
    let row = &timeline.rows(&spec, &course(stall, 9), None)[0];
    assert_eq!(row.verdict, Verdict::Inconclusive);
    assert!(row.advice.as_ref().unwrap().contains("no window of 10s was complete"));
}

#[test]
fn looks_are_kept_only_as_long_as_a_window_needs_them() {
    let (timeline, _) = watch(&judged_by(OVER_10_S), stall, 100);
    assert!(timeline.looks.len() <= 12, "{} looks", timeline.looks.len());
    let hour = judged_by(r#"{metric: errorRate, window: 1h, target: "< 1%"}"#);
    let (timeline, _) = watch(&hour, stall, 7200);
    assert!(timeline.looks.len() <= 52, "{} looks", timeline.looks.len());
    let (timeline, _) = watch(&spec(), stall, 100);
    assert!(timeline.looks.is_empty(), "{} looks", timeline.looks.len());
}

#[test]
fn a_critical_breach_that_lasts_ends_the_test_and_stays_critical() {
    let spec = judged_by(
        r#"{metric: responseTime, statistic: p50, window: 5s, target: "< 1s", critical: "> 2s", abort: {for: 3s}}"#,
    );
    let (timeline, aborted) = watch(&spec, stall, 100);
    let aborted = aborted.unwrap();
    // Slow from 20 s on: more than half of the window at 23 s, for 3 s at 26 s.
    assert_eq!((aborted.row, aborted.elapsed), (0, Duration::from_secs(26)));
    assert_eq!(aborted.threshold, "responseTime p50 over 5s");
    let rows = timeline.rows(&spec, &course(|_| 0.1, 30), Some(&aborted));
    assert_eq!(rows[0].verdict, Verdict::Critical);
}

#[test]
fn a_breach_too_early_or_too_short_ends_nothing() {
    let cases = ["abort: {after: 60s}", "abort: {for: 12s}"];
    for abort in cases {
        let spec = judged_by(&format!(
            r#"{{metric: responseTime, statistic: p50, window: 5s, target: "< 1s", critical: "> 2s", {abort}}}"#
        ));
        assert_eq!(watch(&spec, stall, 100).1, None, "{abort}");
    }
}

#[test]
fn without_a_window_the_whole_test_so_far_is_watched() {
    let spec = judged_by(
        r#"{metric: responseTime, statistic: p95, target: "< 1s", critical: "> 2s", abort: {}}"#,
    );
    // The 12th slow answer of 212 is past the p95: in the 22nd second.
    let (_, aborted) = watch(&spec, stall, 100);
    assert_eq!(aborted.unwrap().elapsed, Duration::from_secs(22));
}

fn staged() -> LoadTestSpec {
    let mut spec = judged_by(r#"{metric: responseTime, statistic: p50, target: "< 1s"}"#);
    spec.load = serde_yaml::from_str(
        "{stages: [{duration: 10s, users: 50}, {duration: 10s, users: 100}, {duration: 10s, users: 150}]}",
    )
    .unwrap();
    spec
}

#[test]
fn each_stage_is_judged_by_what_ended_in_it() {
    let spec = staged();
    let (timeline, _) = watch(&spec, stall, 30);
    let rows: Vec<_> =
        timeline.stages().iter().map(|r| (r.load.as_str(), r.requests, r.verdict)).collect();
    let wanted = [
        ("50 users", 100, Verdict::Pass),
        ("100 users", 100, Verdict::Pass),
        ("150 users", 100, Verdict::Fail),
    ];
    assert_eq!(rows, wanted);
    let found = breaking_point(&spec, timeline.stages(), None).unwrap();
    assert_eq!(
        (found.held.as_deref(), found.broke.as_deref()),
        (Some("100 users"), Some("150 users"))
    );
    assert_eq!(found.threshold.as_deref(), Some("responseTime p50"));
}

#[test]
fn a_target_that_takes_it_all_has_no_load_at_which_it_broke() {
    let spec = staged();
    let (timeline, _) = watch(&spec, |_| 0.1, 30);
    let found = breaking_point(&spec, timeline.stages(), None).unwrap();
    let nothing = (Some("150 users"), None, None);
    assert_eq!((found.held.as_deref(), found.unknown, found.broke), nothing);
}

#[test]
fn a_load_that_the_numbers_say_nothing_of_did_not_hold() {
    let spec = staged();
    // The generator is starved from the second stage on.
    let mut timeline = Timeline::default();
    let starved = |second: u32| {
        let mut numbers = course(|_| 0.1, second);
        numbers.throttled_seconds = f64::from(second.saturating_sub(10));
        numbers
    };
    for second in 1..=30 {
        timeline.look(&spec, &starved(second));
    }
    let point = |rows: &[StageRow]| {
        let found = breaking_point(&spec, rows, None).unwrap();
        let [held, unknown, broke] =
            [found.held, found.unknown, found.broke].map(Option::unwrap_or_default);
        format!("{held}, {unknown}, {broke}")
    };
    let mut rows = timeline.stages().to_vec();
    assert_eq!(point(&rows), "50 users, 100 users, ");
    // What was cancelled before its end did not hold either.
    assert_eq!(point(&rows[..1]), "50 users, 100 users, ");
    rows[0].verdict = Verdict::Inconclusive;
    assert_eq!(point(&rows), ", 50 users, ");
    let (seen, _) = watch(&spec, stall, 30);
    rows[0].verdict = Verdict::Pass;
    rows[2] = seen.stages()[2].clone();
    assert_eq!(point(&rows), "50 users, 100 users, 150 users");
}

#[test]
fn a_window_in_which_the_generator_was_unfit_is_not_hidden_by_a_good_one() {
    let spec = judged_by(OVER_10_S);
    let row = |spoil: fn(&mut Numbers)| {
        let mut timeline = Timeline::default();
        for second in 1..=60 {
            let mut numbers = course(|_| 0.1, second);
            if second > 40 {
                spoil(&mut numbers);
            }
            timeline.look(&spec, &numbers);
        }
        let row = timeline.rows(&spec, &course(|_| 0.1, 60), None)[0].clone();
        // So it is for who goes on from the status.
        let other = Timeline::after(&spec, vec![], std::slice::from_ref(&row));
        assert_eq!(other.rows(&spec, &course(|_| 0.1, 60), None)[0], row);
        row.verdict
    };
    assert_eq!(row(|_| {}), Verdict::Pass);
    assert_eq!(row(|numbers| numbers.throttled_seconds = 5.0), Verdict::Inconclusive);
    let dropping = |numbers: &mut Numbers| numbers.tasks.get_mut("chat").unwrap().dropped = 500;
    assert_eq!(row(dropping), Verdict::Inconclusive);
    // A window with too few samples, as at a test's beginning, says nothing.
    let spec = judged_by(
        r#"{metric: responseTime, statistic: p50, window: 10s, target: "< 1s", minSamples: 100}"#,
    );
    let mut timeline = Timeline::default();
    for second in 1..=30_u32 {
        let mut numbers = course(|_| 0.1, second.saturating_sub(5));
        numbers.elapsed_seconds = f64::from(second);
        timeline.look(&spec, &numbers);
    }
    let row = &timeline.rows(&spec, &course(|_| 0.1, 25), None)[0];
    assert_eq!(row.verdict, Verdict::Pass);
}

#[test]
fn a_stall_of_everything_ends_the_test_by_its_throughput() {
    let spec = judged_by(
        r#"{metric: throughput, window: 10s, target: "> 5/s", critical: "< 2/s", abort: {for: 5s}}"#,
    );
    let mut timeline = Timeline::default();
    let aborted = (1..=90).find_map(|second: u32| {
        let mut numbers = course(|_| 0.1, second.min(60));
        (numbers.elapsed_seconds, numbers.user_seconds) = (f64::from(second), f64::from(second));
        timeline.look(&spec, &numbers)
    });
    // Less than 20 in 10 s from second 69 on.
    let aborted = aborted.unwrap();
    assert_eq!((aborted.elapsed, aborted.observed.as_str()), (Duration::from_secs(74), "0/s"));
}

#[test]
fn a_short_window_beside_a_long_one_stays_short() {
    let mut spec = judged_by(r#"{metric: errorRate, window: 1h, target: "< 50%"}"#);
    spec.thresholds.push(serde_yaml::from_str(OVER_10_S).unwrap());
    let (timeline, _) = watch(&spec, stall, 7200);
    let row = &timeline.rows(&spec, &course(stall, 7200), None)[1];
    assert_eq!((row.verdict, row.samples), (Verdict::Critical, 100));
    assert!(timeline.looks.len() <= 65, "{} looks", timeline.looks.len());
    let gaps = timeline.looks.iter().zip(timeline.looks.iter().skip(1));
    assert!(gaps.into_iter().all(|(a, b)| b.elapsed_seconds - a.elapsed_seconds <= 72.0));
}

#[test]
fn a_breach_that_nobody_saw_go_on_does_not_last() {
    let spec = judged_by(
        r#"{metric: responseTime, statistic: p50, window: 5s, target: "< 1s", critical: "> 2s", abort: {for: 20s}}"#,
    );
    // Slow from 20 s on. Nobody looks from 25 s to 45 s.
    let slow = |second| if second >= 20 { 3.0 } else { 0.1 };
    let mut timeline = Timeline::default();
    let mut looks = (1..=25).chain(45..=90_u32);
    let aborted = looks.find_map(|second| timeline.look(&spec, &course(slow, second)));
    // Seen to be critical again at 45 s at the earliest, by a window that began in time.
    let elapsed = aborted.unwrap().elapsed;
    assert!(elapsed >= Duration::from_secs(65), "{elapsed}");
    // Three looks left out are no gap in what windows of 5 s show, though some of these have no
    // beginning then.
    let mut timeline = Timeline::default();
    let mut looks = (1..=30).chain(34..=90_u32);
    let aborted = looks.find_map(|second| timeline.look(&spec, &course(slow, second)));
    assert_eq!(aborted.unwrap().elapsed, Duration::from_secs(43));
}

#[test]
fn a_window_that_nobody_saw_begin_is_none() {
    let spec = judged_by(OVER_10_S);
    let mut timeline = Timeline::default();
    // Nobody looks from 15 s on to 45 s; the stall is over by then.
    for second in (1..=15).chain(45..=60) {
        timeline.look(&spec, &course(stall, second));
    }
    let row = &timeline.rows(&spec, &course(stall, 60), None)[0];
    assert_eq!((row.verdict, row.samples), (Verdict::Pass, 100));
}

#[test]
fn the_first_window_begins_at_the_start() {
    let spec = judged_by(OVER_10_S);
    let mut timeline = Timeline::default();
    // Slow for a second, before anybody looks.
    for second in [2.5_f64, 5.0, 7.5, 10.5] {
        let mut numbers = course(|second| if second < 1 { 3.0 } else { 0.1 }, 10);
        numbers.elapsed_seconds = second;
        timeline.look(&spec, &numbers);
    }
    let numbers = course(|_| 0.1, 10);
    assert_eq!(timeline.rows(&spec, &numbers, None)[0].samples, 100);
}

#[test]
fn a_load_that_does_not_grow_has_no_breaking_point() {
    let mut spec = staged();
    spec.load.stages[2].users = Some(100);
    let (timeline, _) = watch(&spec, stall, 30);
    assert_eq!(breaking_point(&spec, timeline.stages(), None), None);
}

#[test]
fn stages_that_nobody_looked_at_are_said_to_be_unknown() {
    let spec = staged();
    let (seen, _) = watch(&spec, stall, 10);
    // Another operator comes at 22 s: the second stage went by unseen.
    let mut timeline = Timeline::after(&spec, seen.stages().to_vec(), &[]);
    for second in 22..=30 {
        timeline.look(&spec, &course(stall, second));
    }
    let verdicts: Vec<_> = timeline.stages().iter().map(|row| row.verdict).collect();
    assert_eq!(verdicts, [Verdict::Pass, Verdict::Inconclusive, Verdict::Fail]);
}

#[test]
fn what_windows_have_shown_outlives_who_looked() {
    let spec = judged_by(OVER_10_S);
    let (seen, _) = watch(&spec, stall, 40);
    let rows = seen.rows(&spec, &course(stall, 40), None);
    assert_eq!(rows[0].verdict, Verdict::Critical);
    // Another operator sees quiet windows only.
    let mut timeline = Timeline::after(&spec, vec![], &rows);
    for second in 60..=100 {
        timeline.look(&spec, &course(stall, second));
    }
    assert_eq!(timeline.rows(&spec, &course(stall, 100), None)[0], rows[0]);
}

#[test]
fn an_abort_in_a_stage_is_where_it_broke() {
    let spec = staged();
    let (timeline, _) = watch(&spec, |_| 0.1, 15);
    let aborted = Aborted {
        row: 0,
        threshold: "responseTime p50".into(),
        observed: "3s".into(),
        bound: "> 2s".parse().unwrap(),
        elapsed: Duration::from_secs(15),
        samples: 100,
    };
    let found = breaking_point(&spec, timeline.stages(), Some(&aborted)).unwrap();
    let wanted = (Some("50 users"), Some("100 users"), Some("3s"));
    let found = (found.held.as_deref(), found.broke.as_deref(), found.observed.as_deref());
    assert_eq!(found, wanted);
}

#[test]
fn a_stage_is_not_charged_with_what_came_after_it() {
    let spec = staged();
    let mut timeline = Timeline::default();
    timeline.look(&spec, &course(stall, 5));
    // Nobody looks until the third stage, which is slow.
    for second in 25..=30 {
        timeline.look(&spec, &course(stall, second));
    }
    let verdicts: Vec<_> = timeline.stages().iter().map(|row| row.verdict).collect();
    assert_eq!(verdicts, [Verdict::Inconclusive, Verdict::Inconclusive, Verdict::Inconclusive]);
}

#[test]
fn what_was_open_at_the_end_belongs_to_the_last_stage() {
    let spec = staged();
    let (timeline, _) = watch(&spec, |_| 0.1, 30);
    let mut all = course(|_| 0.1, 30);
    let task = all.tasks.get_mut("chat").unwrap();
    task.requests[Outcome::Timeout.index()] += 200;
    task.response_time[Outcome::Timeout.index()].record(5.0, 200);
    let rows = timeline.stages_at_end(&spec, &all);
    assert_eq!((rows[2].requests, rows[2].verdict), (300, Verdict::Fail));
    assert_eq!(rows[1], timeline.stages()[1]);
}
