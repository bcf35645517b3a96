//! Reads a LoadTest from a file as an API server would: the same schema, the same CEL rules,
//! the same defaults; and says where in the file what is wrong stands.

mod place;
mod schema;

use std::fmt;

use loadtest_core::{
    resource::{self, GROUP, LoadTest},
    validate,
};
use saphyr::{LoadableYamlNode, MarkedYamlOwned, ScalarOwned, YamlDataOwned};
use serde_json::{Map, Value};

use self::{
    place::{Step, dotted, parse, position},
    schema::{rules, structure, unknown},
};

/// One thing wrong with a file, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// Line and column, from 1; absent for what the command line set.
    pub(crate) at: Option<(usize, usize)>,
    /// The field and what is wrong with it.
    pub(crate) message: String,
}

/// A file that holds no LoadTest that could run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// It can't be read.
    #[error("{path} can't be read")]
    Read {
        path: String,
        #[source]
        source: std::io::Error,
    },
    /// What it holds is wrong.
    #[error("{}", Listing { path, problems })]
    Bad { path: String, problems: Vec<Problem> },
}

struct Listing<'a> {
    path: &'a str,
    problems: &'a [Problem],
}

impl fmt::Display for Listing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, Problem { at, message }) in self.problems.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            match at {
                Some((line, column)) => write!(f, "{}:{line}:{column}: {message}", self.path)?,
                None => write!(f, "{}: {message}", self.path)?,
            }
        }
        Ok(())
    }
}

/// A LoadTest that an API server would accept, and what it would warn about.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) test: LoadTest,
    pub(crate) warnings: Vec<Problem>,
}

/// Reads a file, sets fields from the command line, and checks the result.
pub(crate) fn read(path: &str, overrides: &[(&str, Value)]) -> Result<Accepted, FileError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| FileError::Read { path: path.to_owned(), source })?;
    check(&text, overrides).map_err(|problems| FileError::Bad { path: path.to_owned(), problems })
}

fn check(text: &str, overrides: &[(&str, Value)]) -> Result<Accepted, Vec<Problem>> {
    let marked = load_test_in(text).map_err(|problem| vec![problem])?;
    let mut object = json(&marked);
    for (field, value) in overrides {
        set(&mut object, field, value.clone());
    }
    let schema = resource::schema();
    let mut warnings = Vec::new();
    unknown(&schema, &object, &mut Vec::new(), &mut |steps| {
        let message = format!("unknown field {}: it is ignored", dotted(steps));
        warnings.push(Problem { at: Some(position(&marked, steps)), message });
    });
    let object = kube_cel::apply_defaults(&schema, &object);
    let mut problems = structure(&schema, &object, &marked);
    if problems.is_empty() {
        problems = rules(&schema, &object, &marked);
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let accepted: LoadTest = serde_path_to_error::deserialize(&object).map_err(|error| {
        let steps = parse(&error.path().to_string());
        let message = format!("{}: {}", error.path(), error.inner());
        vec![Problem { at: Some(position(&marked, &steps)), message }]
    })?;
    let problems = validate::problems(&accepted.spec);
    if problems.is_empty() {
        return Ok(Accepted { test: accepted, warnings });
    }
    let placed = |problem: validate::Problem| Problem {
        at: Some(position(&marked, &parse(&problem.field))),
        message: problem.to_string(),
    };
    Err(problems.into_iter().map(placed).collect())
}

/// The one LoadTest among a file's documents.
fn load_test_in(text: &str) -> Result<MarkedYamlOwned, Problem> {
    let nowhere = |message: String| Problem { at: None, message };
    let documents = MarkedYamlOwned::load_from_str(text).map_err(|error| {
        let marker = error.marker();
        Problem { at: Some((marker.line(), marker.col() + 1)), message: error.info().to_owned() }
    })?;
    let wanted = format!("{GROUP}/v1alpha1");
    let mut others = Vec::new();
    let mut found = Vec::new();
    for document in documents {
        let object = json(&document);
        let of = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
        match (of("kind").as_str(), of("apiVersion")) {
            ("LoadTest", version) if version == wanted => found.push(document),
            ("LoadTest", version) => {
                return Err(Problem {
                    at: Some(position(&document, &[Step::Key("apiVersion".into())])),
                    message: format!("apiVersion: {version:?} is not {wanted}"),
                });
            }
            (kind, _) => others.push(kind.to_owned()),
        }
    }
    let count = found.len();
    match found.pop() {
        Some(document) if count == 1 => Ok(document),
        Some(_) => Err(nowhere(format!("{count} LoadTests in one file: keep one"))),
        None if others.iter().all(String::is_empty) => Err(nowhere(format!(
            "no LoadTest found: start the file with apiVersion: {wanted} and kind: LoadTest"
        ))),
        None => Err(nowhere(format!("no LoadTest found, only: {}", others.join(", ")))),
    }
}

/// The plain value of a document. Null fields are dropped, as an API server does.
fn json(node: &MarkedYamlOwned) -> Value {
    match &node.data {
        YamlDataOwned::Value(scalar) => scalar_json(scalar),
        YamlDataOwned::Sequence(items) => items.iter().map(json).collect(),
        YamlDataOwned::Mapping(map) => {
            let fields = map.iter().map(|(key, value)| (key_text(key), json(value)));
            Value::Object(fields.filter(|(_, value)| !value.is_null()).collect())
        }
        YamlDataOwned::Tagged(_, inner) => json(inner),
        YamlDataOwned::Representation(text, ..) => Value::String(text.clone()),
        YamlDataOwned::Alias(_) | YamlDataOwned::BadValue => Value::Null,
    }
}

fn scalar_json(scalar: &ScalarOwned) -> Value {
    match scalar {
        ScalarOwned::Null => Value::Null,
        ScalarOwned::Boolean(value) => (*value).into(),
        ScalarOwned::Integer(value) => (*value).into(),
        ScalarOwned::FloatingPoint(value) => value.into_inner().into(),
        ScalarOwned::String(value) => value.clone().into(),
    }
}

fn key_text(node: &MarkedYamlOwned) -> String {
    match json(node) {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

fn set(object: &mut Value, field: &str, value: Value) {
    let mut place = object;
    for key in field.split('.') {
        if !place.is_object() {
            *place = Value::Object(Map::new());
        }
        place = &mut place[key];
    }
    *place = value;
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"apiVersion: loadtest.cell0.io/v1alpha1
kind: LoadTest
metadata: {name: good}
spec:
  target: {http: "http://cell0:18800", webSocket: "ws://cell0:18801"}
  load: {users: 20, spawnRate: 5, duration: 2m}
  scenario:
    pause: {min: 1s, max: 3s}
    tasks:
      - name: chat
        weight: 70
        chat: {models: [cell0-small], messages: ["Hello"], stream: true}
      - {name: health, http: {path: /health}}
      - {name: ws, webSocket: {send: ['{"type":"ping"}'], replies: 1}}
  thresholds:
    - {task: chat, metric: timeToFirstResponse, statistic: p50, target: "< 500ms", warning: "< 1s", critical: "> 2s"}
    - {metric: errorRate, target: "< 0.1%", warning: "< 1%", critical: "> 5%"}
    - {metric: throughput, target: "> 10/s", warning: "> 5/s", critical: "< 2/s"}
"#;

    fn first(text: &str) -> Problem {
        check(text, &[]).unwrap_err().remove(0)
    }

    #[test]
    fn a_good_file_is_read_with_its_defaults() {
        let accepted = check(GOOD, &[]).unwrap();
        assert_eq!(accepted.warnings, []);
        assert_eq!(accepted.test.spec.runners.users_per_runner, None);
        assert_eq!(accepted.test.spec.load.graceful_stop, loadtest_core::Duration::from_secs(30));
        assert_eq!(accepted.test.spec.scenario.tasks[1].weight, 1);
    }

    #[test]
    fn problems_come_with_line_and_column() {
        let problem = first(&GOOD.replace("duration: 2m", "duration: soon"));
        assert_eq!(problem.at, Some((6, 35)));
        assert!(problem.message.contains("spec.load.duration"), "{}", problem.message);
        assert!(problem.message.contains("\"soon\" is not a duration"), "{}", problem.message);
    }

    #[test]
    fn broken_yaml_says_where() {
        let problem = first("apiVersion: [\nkind: LoadTest\n");
        assert!(problem.at.is_some(), "{problem:?}");
    }

    #[test]
    fn unknown_fields_are_warned_about() {
        let accepted = check(&GOOD.replace("weight: 70", "weigth: 70"), &[]).unwrap();
        assert_eq!(accepted.warnings.len(), 1);
        assert!(accepted.warnings[0].message.contains("spec.scenario.tasks[0].weigth"));
        assert_eq!(accepted.warnings[0].at, Some((11, 9)));
    }

    #[test]
    fn the_command_line_sets_fields_and_is_checked_too() {
        let accepted = check(GOOD, &[("spec.load.users", 7.into())]).unwrap();
        assert_eq!(accepted.test.spec.load.users, Some(7));
        assert!(check(GOOD, &[("spec.load.users", 0.into())]).is_err());
    }

    #[test]
    fn other_kinds_are_passed_over_and_none_is_an_error() {
        let two = format!("apiVersion: v1\nkind: Service\n---\n{GOOD}");
        assert!(check(&two, &[]).is_ok());
        assert!(first("apiVersion: v1\nkind: Service\n").message.contains("only: Service"));
        assert!(first("").message.contains("no LoadTest found"));
        assert!(first(&format!("{GOOD}---\n{GOOD}")).message.contains("2 LoadTests"));
    }
}
