//! Tests of the validation of specs.

use super::*;
use crate::testing::spec;

fn problems(spec: &LoadTestSpec) -> Vec<Problem> {
    validate(spec).err().unwrap_or_default()
}

#[test]
fn the_example_of_the_design_is_valid() {
    let test = validate(&spec()).unwrap();
    assert_eq!(test.load.to_string(), "200 users at 50/s for 2m");
    // The plan carries the test as JSON.
    let json = serde_json::to_string(&test).unwrap();
    assert_eq!(serde_json::from_str::<ValidTest>(&json).unwrap(), test);
}

#[test]
fn specs_that_no_api_server_would_take_are_refused_too() {
    type Edit = fn(&mut LoadTestSpec);
    let edits: [(Edit, &str); 4] = [
        (|spec| spec.load.users = None, "spec.load: give exactly one of"),
        (|spec| spec.load.duration = None, "spec.load.duration: is missing"),
        (|spec| spec.scenario.tasks[0].chat = None, "must have exactly one of http"),
        (|spec| spec.scenario.tasks.iter_mut().for_each(|t| t.weight = 0), "every weight is 0"),
    ];
    for (edit, message) in edits {
        let mut spec = spec();
        edit(&mut spec);
        let found = problems(&spec)[0].to_string();
        assert!(found.contains(message), "{found}");
    }
}

#[test]
fn without_a_spawn_rate_all_users_start_in_the_first_second() {
    let mut spec = spec();
    spec.load.spawn_rate = None;
    let valid = validate(&spec).unwrap();
    assert_eq!(valid.load.to_string(), "200 users at 200/s for 2m");
}

#[test]
fn two_thresholds_of_one_key_are_refused() {
    let mut spec = spec();
    spec.thresholds.push(spec.thresholds[0].clone());
    let found = problems(&spec)[0].to_string();
    assert!(found.starts_with("spec.thresholds[3]: chat timeToFirstResponse p50"), "{found}");
}

#[test]
fn keys_that_yaml_takes_for_booleans_are_refused() {
    let problem_of = |body: &str| {
        let mut spec = spec();
        let chat = spec.scenario.tasks[0].chat.as_mut().unwrap();
        chat.body = crate::testing::yaml(body);
        problems(&spec).first().map(ToString::to_string)
    };
    assert_eq!(problem_of("{'n': 2, seed: 1, stop: ['no'], metadata: {'true': 1}}"), None);
    for body in ["{'false': 2}", "{seed: 1, 'true': 1}"] {
        let problem = problem_of(body).unwrap();
        assert!(problem.contains("chat.body: has a key") && problem.contains("quote"), "{problem}");
    }
}

#[test]
fn pod_templates_are_checked() {
    let mut spec = spec();
    for (template, field) in [
        (r#"{"spec": {"dnsPolicie": "None"}}"#, "spec.dnsPolicie"),
        (r#"{"spec": {"restartPolicy": "Always"}}"#, "spec.restartPolicy"),
        (
            r#"{"spec": {"volumes": [{"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]}}"#,
            "spec.volumes",
        ),
        (
            r#"{"spec": {"automountServiceAccountToken": true}}"#,
            "spec.automountServiceAccountToken",
        ),
        (r#"{"metadata": {"labels": {"app.kubernetes.io/name": "x"}}}"#, "metadata.labels"),
    ] {
        spec.runners.pod_template = serde_json::from_str(template).ok();
        assert_eq!(problems(&spec)[0].field, format!("spec.runners.podTemplate.{field}"));
    }
    spec.runners.pod_template = serde_json::from_str(r#"{"spec": {"dnsPolicy": "None"}}"#).ok();
    assert_eq!(problems(&spec), []);
}

#[test]
fn invalid_ports_are_refused() {
    let mut spec = spec();
    for (url, good) in [
        ("http://cell0:188000", false),
        ("http://cell0:0", false),
        ("http://cell0:18800/base:99999", true),
        ("http://[fd00::1]:80", true),
        ("http://cell0", true),
    ] {
        spec.target.http = Some(url.into());
        assert_eq!(problems(&spec).is_empty(), good, "{url}");
    }
}

#[test]
fn invalid_json_paths_are_refused() {
    let mut spec = spec();
    let check = |path: &str| crate::resource::Check {
        json_path: Some(path.into()),
        ..crate::resource::Check::default()
    };
    let http = spec.scenario.tasks[1].http.as_mut().unwrap();
    http.checks = vec![check("$.data[0].id"), check("$.data[")];
    let found = problems(&spec);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].field, "spec.scenario.tasks[1].http.checks[1].jsonPath");
}

#[test]
fn messages_that_are_not_base64_are_refused() {
    let mut spec = spec();
    let task =
        r#"{"name": "socket", "webSocket": {"send": ["aGk=", "hello!"], "format": "Base64"}}"#;
    spec.scenario.tasks.push(serde_json::from_str(task).unwrap());
    let found = problems(&spec);
    let index = spec.scenario.tasks.len() - 1;
    assert_eq!(found[0].field, format!("spec.scenario.tasks[{index}].webSocket.send[1]"));
    assert!(found[0].message.contains("\"hello!\" is not base64"), "{}", found[0].message);
}

#[test]
fn invalid_conditions_of_replies_are_refused() {
    for (field, value, message) in [
        ("jsonPath", "$.id[", "is not a JSONPath such as $.id"),
        ("regex", "(unclosed", "is not a regular expression: unclosed group"),
    ] {
        let mut spec = spec();
        let task = format!(
            r#"{{"name": "socket", "webSocket": {{"send": ["x"], "replies": 1, "reply": {{"{field}": "{value}"}}}}}}"#
        );
        spec.scenario.tasks.push(serde_json::from_str(&task).unwrap());
        let found = problems(&spec);
        let index = spec.scenario.tasks.len() - 1;
        let expected = format!("spec.scenario.tasks[{index}].webSocket.reply.{field}");
        assert_eq!(found.iter().map(|p| p.field.as_str()).collect::<Vec<_>>(), [expected]);
        assert!(found[0].message.contains(message), "{}", found[0].message);
    }
}

#[test]
fn bundles_without_certificates_are_refused() {
    let mut spec = spec();
    let pem = "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n";
    spec.target.tls = Some(crate::resource::Tls {
        ca_bundle: Some(pem.into()),
        ..crate::resource::Tls::default()
    });
    assert_eq!(problems(&spec)[0].field, "spec.target.tls.caBundle");
}

#[test]
fn two_tasks_of_one_name_are_refused() {
    let mut spec = spec();
    spec.scenario.tasks[2].name = "chat".into();
    assert_eq!(problems(&spec)[0].field, "spec.scenario.tasks[2].name");
}

#[test]
fn specs_larger_than_a_config_map_are_refused() {
    let mut spec = spec();
    let mut task = spec.scenario.tasks[1].clone();
    task.http.as_mut().unwrap().body = Some("x".repeat(60_000));
    spec.scenario.tasks = (0..20)
        .map(|i| {
            task.name = format!("task-{i}");
            task.clone()
        })
        .collect();
    assert_eq!(problems(&spec)[0].field, "spec.scenario");
}
