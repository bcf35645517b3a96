//! A LoadTest, from its text to the plan of its runners.

use loadtest::fuzzing::{change_manifest, plan_manifest};
use loadtest_core::{
    load::LoadProfile,
    plan::{Plan, RunIdentity, ValidTest, size_test, validate, warnings},
    resource::LoadTest,
};
use loadtest_runner::PreparedPlan;

/// Maximum number of users of a LoadTest, by its schema.
const MAX_USERS: u32 = 1_000_000;

/// Validates and plans a LoadTest as the command line and as the operator do.
pub fn spec(data: &[u8]) {
    let Ok(yaml) = std::str::from_utf8(data) else { return };
    if plan_manifest(yaml).is_ok() {
        let _ = change_manifest(yaml, "load.users=7");
        let _ = change_manifest(yaml, "scenario.tasks[0].name=other");
    }
    // The operator gets objects that the API server has checked. Another version may have checked less.
    let Ok(test) = serde_saphyr::from_str::<LoadTest>(yaml) else { return };
    let _ = warnings(&test.spec);
    if let Ok(valid) = validate(&test.spec) {
        check_plan(valid);
    }
}

/// The plan is the same for the operator, which writes it, and for a runner, which reads it.
fn check_plan(valid: ValidTest) {
    let sizing = size_test(&valid);
    let profile = LoadProfile::of(&valid.load);
    let end = valid.load.duration().as_secs_f64();
    let level = profile.mean_level(0.0, end);
    assert!(level.is_finite(), "the mean load is {level}");
    if valid.load.peak_users().get() <= MAX_USERS {
        let work = valid.load.planned_work();
        assert!(work.is_finite() && work >= 0.0, "the planned work is {work}");
    }
    let _ = valid.load.stages();
    let run = RunIdentity { uid: "uid".into(), name: "fuzz".into(), token_sha256: String::new() };
    let plan = Plan::new(valid, &sizing, run);
    let json = serde_json::to_string(&plan).expect("a plan has a JSON form");
    let read = Plan::parse(&json);
    assert!(read.as_ref().is_ok_and(|read| *read == plan), "{json} is read as {read:?}");
    let _ = PreparedPlan::new(plan, |_| Some("secret".to_owned()));
}
