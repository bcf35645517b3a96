//! `loadtest init`: writes a LoadTest file with comments, from options or from answers to questions.

use std::io::{BufRead, IsTerminal, Write};

use loadtest_core::Duration;
use serde_json::Value;

use super::request::build_test;
use crate::{
    arguments::{InitArguments, RequestArguments},
    exit::Exit,
    manifest::parse_manifest,
    output::eprint_line,
};

/// The target of a file that is written without options and without questions.
const EXAMPLE_URL: &str = "http://localhost:18800/health";
const DEFAULT_USERS: &str = "10";
const DEFAULT_DURATION: &str = "1m";

/// The values that a file is made from.
#[derive(Debug)]
struct Answers {
    url: String,
    chat: Option<String>,
    message: Vec<String>,
    name: String,
    users: String,
    duration: String,
}

/// Prints a LoadTest file.
pub(crate) fn print_file(arguments: &InitArguments, out: &mut impl Write) -> anyhow::Result<Exit> {
    let InitArguments { url, chat, message, name, users, duration } = arguments.clone();
    let is_asking =
        url.is_none() && std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    let mut answers = Answers {
        url: url.unwrap_or_else(|| EXAMPLE_URL.to_owned()),
        chat,
        message,
        name,
        users: users.map_or_else(|| DEFAULT_USERS.to_owned(), |users| users.to_string()),
        duration: duration.unwrap_or_else(|| DEFAULT_DURATION.to_owned()),
    };
    if is_asking {
        ask_questions(&mut answers, &mut std::io::stdin().lock())?;
    }
    match build_file(&answers).and_then(checked) {
        Ok(text) => {
            out.write_all(text.as_bytes())?;
            out.flush()?;
            Ok(Exit::Passed)
        }
        Err(message) => {
            eprint_line(&format!("loadtest: {message}"));
            Ok(Exit::BadInput)
        }
    }
}

/// Returns the text of a file if it is valid.
fn checked(text: String) -> Result<String, String> {
    match parse_manifest(&text, None, &[]) {
        Ok(_) => Ok(text),
        Err(problems) => {
            let messages = problems.into_iter().map(|problem| problem.message);
            Err(messages.collect::<Vec<_>>().join("; "))
        }
    }
}

/// Asks on the standard error. An empty answer takes the default.
fn ask_questions(answers: &mut Answers, input: &mut impl BufRead) -> std::io::Result<()> {
    let mut ask = |question: &str, default: &str| -> std::io::Result<String> {
        let shown = if default.is_empty() { "none" } else { default };
        let mut talk = std::io::stderr().lock();
        write!(talk, "{question} [{shown}]: ")?;
        talk.flush()?;
        let mut line = String::new();
        input.read_line(&mut line)?;
        let answer = line.trim();
        Ok(if answer.is_empty() { default.to_owned() } else { answer.to_owned() })
    };
    answers.url = ask("Address to test (http, https, ws or wss)", &answers.url)?;
    if answers.url.starts_with("http") {
        let model = ask("Model, if the address is that of a chat API", "")?;
        answers.chat = Some(model).filter(|model| !model.is_empty());
    }
    answers.users = ask("Number of users", &answers.users)?;
    answers.duration = ask("Length of the test", &answers.duration)?;
    Ok(())
}

/// The file as text.
///
/// # Errors
/// When an answer is no valid value; the error names it.
fn build_file(answers: &Answers) -> Result<String, String> {
    let Answers { url, chat, message, name, users, duration } = answers;
    let users: u32 =
        users.parse().map_err(|_| format!("{users:?} is not a number of users, such as 10"))?;
    duration
        .parse::<Duration>()
        .map_err(|_| format!("{duration:?} is not a duration: write for example 30s, 5m or 1h"))?;
    let request = RequestArguments {
        url: Some(url.clone()),
        chat: chat.clone(),
        message: message.clone(),
        ..RequestArguments::default()
    };
    let test = build_test(&request, Some(users))?;
    let yaml = |value: &Value, indent: usize| -> Result<String, String> {
        let plain = serde_saphyr::to_string(value).map_err(|error| error.to_string())?;
        let indent = " ".repeat(indent);
        Ok(plain.lines().flat_map(|line| [indent.as_str(), line, "\n"]).collect())
    };
    let target = yaml(&test["spec"]["target"], 4)?;
    let tasks = yaml(&test["spec"]["scenario"]["tasks"], 6)?;
    let first_token = if chat.is_some() {
        "    # The time until the first token of an answer.\n    - {metric: timeToFirstToken, statistic: p95, target: \"< 1s\", warning: \"< 2s\"}\n"
    } else {
        ""
    };
    let name = serde_json::to_string(name).map_err(|error| error.to_string())?;
    Ok(format!(
        "\
# Check this file:         loadtest validate FILE
# Run it on this machine:  loadtest run FILE --html report.html
# Run it on a cluster:     loadtest apply FILE --wait
apiVersion: loadtest.cell0.io/v1alpha1
kind: LoadTest
metadata:
  name: {name}
spec:
  # The system under test. Each task adds its path.
  target:
{target}  load:
    # Users that work at the same time, and how many of them start per second.
    users: {users}
    spawnRate: {users}
    duration: {duration}
    # Another kind of load: requests that start at a rate, however long the responses take.
    # arrivalRate: 50/s
    # maxUsers: 200
  scenario:
    # The pause of a user between two tasks.
    pause: {{min: 500ms, max: 1500ms}}
    # With several tasks, `weight` says how often each is picked.
    tasks:
{tasks}  # A test passes if every target is met. With `warning`, a value between the two is a Warning.
  thresholds:
    - {{metric: responseTime, statistic: p95, target: \"< 500ms\", warning: \"< 1s\"}}
{first_token}    - {{metric: errorRate, target: \"< 1%\"}}
"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::read_manifest;

    fn answers(url: &str) -> Answers {
        Answers {
            url: url.to_owned(),
            chat: None,
            message: Vec::new(),
            name: "my-test".to_owned(),
            users: "25".to_owned(),
            duration: "2m".to_owned(),
        }
    }

    fn read(answers: &Answers) -> loadtest_core::resource::LoadTest {
        let text = build_file(answers).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &text).unwrap();
        match read_manifest(&file.path().display().to_string(), None, &[]) {
            Ok(manifest) => manifest.test,
            Err(error) => panic!("{error}\n{text}"),
        }
    }

    #[test]
    fn every_written_file_is_valid() {
        let test = read(&answers("http://localhost:18800/health?deep=1"));
        assert_eq!(test.metadata.name.as_deref(), Some("my-test"));
        assert_eq!(test.spec.target.http.as_deref(), Some("http://localhost:18800"));
        let chat = Answers { chat: Some("cell0-small".into()), ..answers("https://example.com") };
        assert_eq!(read(&chat).spec.thresholds.len(), 3);
        let web_socket = read(&answers("ws://localhost:18801/"));
        assert!(web_socket.spec.scenario.tasks[0].web_socket.is_some());
    }

    #[test]
    fn answers_replace_the_defaults() {
        let mut answers = answers(EXAMPLE_URL);
        let mut input = "ws://localhost:18801\n\n5m\n".as_bytes();
        ask_questions(&mut answers, &mut input).unwrap();
        assert_eq!(
            (answers.url.as_str(), answers.users.as_str(), answers.duration.as_str()),
            ("ws://localhost:18801", "25", "5m")
        );
    }

    #[test]
    fn wrong_answers_are_named() {
        let wrong = Answers { users: "many".into(), ..answers(EXAMPLE_URL) };
        assert!(build_file(&wrong).unwrap_err().contains("\"many\""));
        let wrong = Answers { duration: "long".into(), ..answers(EXAMPLE_URL) };
        assert!(build_file(&wrong).unwrap_err().contains("\"long\""));
        assert!(build_file(&answers("ftp://example.com")).unwrap_err().contains("ftp"));
    }
}
