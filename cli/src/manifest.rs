//! Reads a LoadTest from a YAML file and validates it as an API server would: same schema, same
//! CEL rules, same defaults. Each [`Problem`] has its line and column in the file.

mod change;
mod position;
mod problem;
mod schema;
mod yaml;

use loadtest_core::{
    plan::{self, ValidTest, validate},
    resource::{self, GROUP, LoadTest},
};
use std::io::Read;

use serde_json::Value;

pub(crate) use self::{change::Change, problem::Problem};
use self::{
    position::{Step, find_position, format_path, parse_path},
    problem::ProblemList,
    schema::{check_cel_rules, check_schema, drop_nulls, visit_unknown_fields},
    yaml::{Node, parse_documents, to_json},
};

/// Maximum length of the name of a LoadTest, as of every object of Kubernetes.
const MAX_NAME_BYTES: usize = 253;

/// Error of [`read_manifest`].
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManifestError {
    /// The file can't be read.
    #[error("{path} can't be read")]
    Read {
        path: String,
        #[source]
        source: std::io::Error,
    },
    /// The file contains no valid LoadTest.
    #[error("{}", ProblemList { path, problems })]
    Invalid { path: String, problems: Vec<Problem> },
}

impl ManifestError {
    /// The error with its cause, for people.
    pub(crate) fn message(&self) -> String {
        let source = std::error::Error::source(self).map(|source| format!(": {source}"));
        format!("{self}{}", source.unwrap_or_default())
    }
}

/// A LoadTest that an API server would accept.
#[derive(Debug)]
pub(crate) struct Manifest {
    /// The object as it was written, with the changes of the command line.
    pub(crate) object: Value,
    pub(crate) test: LoadTest,
    /// The validated spec of the test.
    pub(crate) valid: ValidTest,
}

/// Reads a file, or the standard input for `-`, makes the changes, and validates the result. `name`
/// chooses one of several LoadTests.
pub(crate) fn read_manifest(
    path: &str,
    name: Option<&str>,
    changes: &[Change],
) -> Result<Manifest, ManifestError> {
    let text = if path == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(path)
    };
    let text = text.map_err(|source| ManifestError::Read { path: path.to_owned(), source })?;
    parse_manifest(&text, name, changes)
        .map_err(|problems| ManifestError::Invalid { path: path.to_owned(), problems })
}

/// Reads a file as [`read_manifest`] does, with the changes of `--set`. Errors are messages for people.
pub(crate) fn read_with_settings(
    path: &str,
    name: Option<&str>,
    settings: &[String],
) -> Result<Manifest, String> {
    let changes: Result<Vec<Change>, String> =
        settings.iter().map(|text| Change::parse(text)).collect();
    let changes = changes.map_err(|error| format!("--set: {error}"))?;
    read_manifest(path, name, &changes).map_err(|error| error.message())
}

/// Makes the changes to a LoadTest that was built from options, and validates the result.
pub(crate) fn check_manifest(
    object: &Value,
    changes: &[Change],
) -> Result<Manifest, ManifestError> {
    // JSON is YAML.
    parse_manifest(&object.to_string(), None, changes).map_err(|mut problems| {
        // There is no file that the positions could be in.
        problems.iter_mut().for_each(|problem| problem.position = None);
        ManifestError::Invalid { path: "command line".to_owned(), problems }
    })
}

/// Reads the text of a file, makes the changes, and validates the result, as [`read_manifest`] does.
pub(crate) fn parse_manifest(
    yaml: &str,
    name: Option<&str>,
    changes: &[Change],
) -> Result<Manifest, Vec<Problem>> {
    let document = find_load_test(yaml, name).map_err(|problem| vec![problem])?;
    let mut object = to_json(&document);
    for change in changes {
        change.apply(&mut object).map_err(|message| vec![Problem { position: None, message }])?;
    }
    let schema = resource::schema();
    drop_nulls(&schema, &mut object);
    // `kubectl apply` refuses unknown fields too.
    let mut problems = Vec::new();
    visit_unknown_fields(&schema, &object, &mut Vec::new(), &mut |steps, known| {
        let known = known.join(", ");
        let message = format!("{}: unknown field; the fields here are {known}", format_path(steps));
        problems.push(Problem { position: Some(find_position(&document, steps)), message });
    });
    problems.extend(name_problem(&object, &document));
    let written = object;
    let object = kube_cel::apply_defaults(&schema, &written);
    problems.extend(check_schema(&schema, &object, &document));
    if problems.is_empty() {
        problems = check_cel_rules(&schema, &object, &document);
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let test: LoadTest = serde_path_to_error::deserialize(&object).map_err(|error| {
        let steps = parse_path(&error.path().to_string());
        let message = format!("{}: {}", error.path(), error.inner());
        vec![Problem { position: Some(find_position(&document, &steps)), message }]
    })?;
    let with_position = |problem: plan::Problem| Problem {
        position: Some(find_position(&document, &parse_path(&problem.field))),
        message: problem.to_string(),
    };
    match validate(&test.spec) {
        Ok(valid) => Ok(Manifest { object: written, test, valid }),
        Err(problems) => Err(problems.into_iter().map(with_position).collect()),
    }
}

/// Returns what is wrong with the name of an object. The API server checks it like this.
fn name_problem(object: &Value, document: &Node) -> Option<Problem> {
    let name = object.pointer("/metadata/name")?.as_str()?;
    let is_letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_label = |label: &str| {
        label.starts_with(is_letter)
            && label.ends_with(is_letter)
            && label.chars().all(|c| is_letter(c) || c == '-')
    };
    let is_valid = name.len() <= MAX_NAME_BYTES && name.split('.').all(is_label);
    let steps = [Step::Key("metadata".into()), Step::Key("name".into())];
    (!is_valid).then(|| Problem {
        position: Some(find_position(document, &steps)),
        message: format!(
            "metadata.name: {name:?} is not a name: use at most {MAX_NAME_BYTES} lower-case letters, digits, - and ., with a letter or digit at both ends"
        ),
    })
}

/// Returns the only LoadTest among the documents of a file, or the one with a name.
fn find_load_test(text: &str, name: Option<&str>) -> Result<Node, Problem> {
    let without_position = |message: String| Problem { position: None, message };
    let documents = parse_documents(text)?;
    let supported_version = format!("{GROUP}/v1alpha1");
    let mut other_kinds = Vec::new();
    let mut found = Vec::new();
    for document in documents {
        let object = to_json(&document);
        let text_of = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
        match (text_of("kind").as_str(), text_of("apiVersion")) {
            ("LoadTest", version) if version == supported_version => found.push(document),
            ("LoadTest", version) => {
                let steps = [Step::Key("apiVersion".into())];
                return Err(Problem {
                    position: Some(find_position(&document, &steps)),
                    message: format!("apiVersion: {version:?} is not {supported_version}"),
                });
            }
            (kind, _) => other_kinds.push(kind.to_owned()),
        }
    }
    let name_of = |document: &Node| {
        to_json(document)["metadata"]["name"].as_str().unwrap_or_default().to_owned()
    };
    let names: Vec<String> = found.iter().map(name_of).collect();
    if let Some(name) = name {
        found.retain(|document| name_of(document) == name);
        if found.is_empty() && !names.is_empty() {
            return Err(without_position(format!(
                "no LoadTest is named {name}, only: {}",
                names.join(", ")
            )));
        }
    }
    let count = found.len();
    match found.pop() {
        Some(document) if count == 1 => Ok(document),
        Some(_) => Err(without_position(format!(
            "{count} LoadTests in one file: choose one with --name ({})",
            names.join(", ")
        ))),
        None if other_kinds.iter().all(String::is_empty) => Err(without_position(format!(
            "no LoadTest found: start the file with apiVersion: {supported_version} and kind: LoadTest"
        ))),
        None => {
            Err(without_position(format!("no LoadTest found, only: {}", other_kinds.join(", "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = r#"apiVersion: loadtest.cell0.io/v1alpha1
kind: LoadTest
metadata: {name: valid}
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

    fn first_problem(text: &str) -> Problem {
        parse_manifest(text, None, &[]).unwrap_err().remove(0)
    }

    #[test]
    fn valid_file_is_read_with_defaults() {
        let manifest = parse_manifest(VALID, None, &[]).unwrap();
        assert_eq!(manifest.test.spec.runners.users_per_runner, None);
        assert_eq!(manifest.test.spec.load.graceful_stop, loadtest_core::Duration::from_secs(30));
        assert_eq!(manifest.test.spec.scenario.tasks[1].weight, 1);
    }

    #[test]
    fn every_unit_of_time_is_accepted() {
        let load = "load: {arrivalRate: 5, maxUsers: 9, duration: 2m, precision: VALUE}";
        let valid = VALID
            .replace("load: {users: 20, spawnRate: 5, duration: 2m}", load)
            .replace("    pause: {min: 1s, max: 3s}\n", "");
        for precision in ["100us", "1500µs", "1500μs", "0.5ms", "1ms", "100000000ns", "0.1s"] {
            let problems = parse_manifest(&valid.replace("VALUE", precision), None, &[]).err();
            assert_eq!(problems, None, "{precision}");
        }
        let problem = first_problem(&valid.replace("VALUE", "99µs"));
        assert!(problem.message.contains("out of range: at least 100µs"), "{}", problem.message);
        let bound = VALID.replace("< 500ms", "< 500µs").replace("min: 1s", "min: 1.5µs");
        assert_eq!(parse_manifest(&bound, None, &[]).err(), None);
    }

    #[test]
    fn problems_have_line_and_column() {
        let problem = first_problem(&VALID.replace("duration: 2m", "duration: soon"));
        assert_eq!(problem.position, Some((6, 35)));
        assert!(problem.message.contains("spec.load.duration"), "{}", problem.message);
        assert!(problem.message.contains("\"soon\" is not a duration"), "{}", problem.message);
    }

    #[test]
    fn broken_yaml_has_a_position() {
        let problem = first_problem("apiVersion: [\nkind: LoadTest\n");
        assert!(problem.position.is_some(), "{problem:?}");
    }

    #[test]
    fn unknown_fields_are_refused() {
        let problem = first_problem(&VALID.replace("weight: 70", "weigth: 70"));
        assert_eq!(
            problem.message,
            "spec.scenario.tasks[0].weigth: unknown field; the fields here are chat, http, name, webSocket, weight"
        );
        assert_eq!(problem.position, Some((11, 9)));
    }

    #[test]
    fn overrides_are_applied_and_validated() {
        let users = |users: u32| {
            let change = Change::Set("spec.load.users".into(), users.into());
            parse_manifest(VALID, None, &[change])
        };
        assert_eq!(users(7).unwrap().valid.load.peak_users().get(), 7);
        assert!(users(0).is_err());
    }

    #[test]
    fn one_of_several_tests_is_chosen_by_name() {
        let other = VALID.replace("name: valid", "name: other");
        let both = format!("{VALID}---\n{other}");
        let manifest = parse_manifest(&both, Some("other"), &[]).unwrap();
        assert_eq!(manifest.test.metadata.name.as_deref(), Some("other"));
        let problem = |name| parse_manifest(&both, name, &[]).unwrap_err().remove(0).message;
        assert!(problem(None).contains("choose one with --name (valid, other)"));
        assert!(problem(Some("x")).contains("no LoadTest is named x, only: valid, other"));
    }

    #[test]
    fn file_must_contain_exactly_one_load_test() {
        let two = format!("apiVersion: v1\nkind: Service\n---\n{VALID}");
        assert!(parse_manifest(&two, None, &[]).is_ok());
        assert!(first_problem("apiVersion: v1\nkind: Service\n").message.contains("only: Service"));
        assert!(first_problem("").message.contains("no LoadTest found"));
        assert!(first_problem(&format!("{VALID}---\n{VALID}")).message.contains("2 LoadTests"));
    }
}
