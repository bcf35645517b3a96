//! Turns a spec into a [`ValidTest`], or into a list of problems. Pure.
//!
//! An API server has checked the schema and the CEL rules before; the checks here are those that
//! neither can express. The conversion repeats what an object of another version of the CRD may
//! lack.

use std::collections::BTreeSet;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use k8s_openapi::api::core::v1::{EnvVar, PodTemplateSpec, Volume};
use regex::bytes::RegexBuilder;
use rustls_pki_types::{CertificateDer, pem::PemObject};

use super::{Pacing, RunnerRequest, Scenario, Task, TaskKind, ValidTest, size_test};
use crate::{
    load::{ArrivalLoad, ArrivalStages, LoadModel, Stage, UserLoad, UserStages},
    resource::{self, Load, LoadTestSpec, MAX_REGEX_BYTES, MessageFormat, Runners},
    text::truncate,
    values::{Bound, Comparison, Percent, PositiveRate, Quantity, Rate, Users},
};

/// A ConfigMap holds 1 MiB. The plan leaves room for the rest of the object.
pub const MAX_PLAN_BYTES: usize = 900 * 1024;

/// One thing that is wrong with a spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The path to the field, from the object's root.
    pub field: String,
    /// The mistake, and a valid value.
    pub message: String,
}

impl Problem {
    fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// Turns a spec into a valid test.
///
/// # Errors
/// Everything that is wrong with the spec.
pub fn validate(spec: &LoadTestSpec) -> Result<ValidTest, Vec<Problem>> {
    let mut problems = Vec::new();
    problems.extend(url_problems(spec));
    problems.extend(certificate_problem(spec));
    problems.extend(duplicate_names(&spec.scenario.tasks));
    problems.extend(duplicate_thresholds(spec));
    problems.extend(expression_problems(&spec.scenario.tasks));
    problems.extend(body_problems(&spec.scenario.tasks));
    problems.extend(pod_template_problem(&spec.runners));
    problems.extend(percent_problems(spec));
    problems.extend(header_problems(spec));
    let load = load_model(&spec.load).map_err(|problem| problems.push(problem)).ok();
    let scenario = scenario(&spec.scenario, &mut problems);
    match load.zip(scenario).filter(|_| problems.is_empty()) {
        Some((load, scenario)) => {
            let test = ValidTest {
                target: spec.target.clone(),
                load,
                precision: spec.load.precision.unwrap_or_default(),
                graceful_stop: spec.load.graceful_stop,
                scenario,
                thresholds: spec.thresholds.clone(),
                preflight: spec.preflight,
                runner_request: runner_request(&spec.runners),
            };
            let problem = size_problem(&test).or_else(|| min_runners_problem(spec, &test));
            problem.map_or(Ok(test), |problem| Err(vec![problem]))
        }
        None => Err(problems),
    }
}

fn load_model(load: &Load) -> Result<LoadModel, Problem> {
    let missing = |field: &str, example: &str| {
        Problem::new(
            format!("spec.load.{field}"),
            format!("is missing: add it, for example {example}"),
        )
    };
    let positive = |field: &str, rate: Option<Rate>| {
        rate.and_then(PositiveRate::new).ok_or_else(|| missing(field, "50"))
    };
    let duration = || load.duration.ok_or_else(|| missing("duration", "2m"));
    let max_users = || load.max_users.ok_or_else(|| missing("maxUsers", "100"));
    match (load.users, load.arrival_rate, load.stages.is_empty()) {
        (Some(users), None, true) => Ok(LoadModel::Users(UserLoad {
            users,
            spawn_rate: positive(
                "spawnRate",
                Some(load.spawn_rate.unwrap_or(Rate::per_second(f64::from(users.get())))),
            )?,
            duration: duration()?,
        })),
        (None, Some(rate), true) => Ok(LoadModel::Arrivals(ArrivalLoad {
            rate: positive("arrivalRate", Some(rate))?,
            max_users: max_users()?,
            duration: duration()?,
        })),
        (None, None, false) if load.stages.iter().all(|stage| stage.rate.is_some()) => {
            let level = |stage: &resource::Stage| stage.rate;
            ArrivalStages::new(stages(load, level)?, max_users()?)
                .map(LoadModel::ArrivalStages)
                .ok_or_else(no_load)
        }
        (None, None, false) => UserStages::new(stages(load, |stage| stage.users)?)
            .map(LoadModel::UserStages)
            .ok_or_else(no_load),
        _ => Err(Problem::new("spec.load", "give exactly one of users, arrivalRate and stages")),
    }
}

fn no_load() -> Problem {
    Problem::new(
        "spec.load",
        "every stage ends at 0: give at least one stage users or a rate above 0",
    )
}

fn stages<Level>(
    load: &Load,
    level: impl Fn(&resource::Stage) -> Option<Level>,
) -> Result<Vec<Stage<Level>>, Problem> {
    let stage = |(index, stage): (usize, &resource::Stage)| {
        let level = level(stage).ok_or_else(|| {
            let message = "must have the same unit as the other stages: all users, or all rate";
            Problem::new(format!("spec.load.stages[{index}]"), message)
        })?;
        Ok(Stage { duration: stage.duration, level, ramp: stage.ramp })
    };
    load.stages.iter().enumerate().map(stage).collect()
}

fn scenario(scenario: &resource::Scenario, problems: &mut Vec<Problem>) -> Option<Scenario> {
    let pacing = match (scenario.pause, scenario.pacing) {
        (None, None) => Pacing::None,
        (Some(pause), None) => Pacing::Pause(pause),
        (None, Some(interval)) => Pacing::Interval(interval),
        (Some(_), Some(_)) => {
            let message = "pause and pacing exclude each other: remove one";
            problems.push(Problem::new("spec.scenario", message));
            return None;
        }
    };
    if scenario.tasks.iter().all(|task| task.weight == 0) {
        let message = "every weight is 0: give at least one task a weight above 0";
        problems.push(Problem::new("spec.scenario.tasks", message));
        return None;
    }
    let mut tasks = Vec::with_capacity(scenario.tasks.len());
    for (index, task) in scenario.tasks.iter().enumerate() {
        let kind = match (&task.http, &task.chat, &task.web_socket) {
            (Some(http), None, None) => TaskKind::Http(http.clone()),
            (None, Some(chat), None) => TaskKind::Chat(chat.clone()),
            (None, None, Some(web_socket)) => TaskKind::WebSocket(web_socket.clone()),
            _ => {
                problems.push(Problem::new(
                    format!("spec.scenario.tasks[{index}]"),
                    format!("{:?} must have exactly one of http, chat and webSocket", task.name),
                ));
                continue;
            }
        };
        tasks.push(Task { name: task.name.clone(), weight: task.weight, kind });
    }
    Some(Scenario { pacing, seed: scenario.seed, tasks })
}

fn runner_request(runners: &Runners) -> RunnerRequest {
    let asked = |name: &str| {
        let resources = runners.resources.as_ref()?;
        let request = resources.requests.as_ref().and_then(|requests| requests.get(name));
        // A container with a limit and no request requests its limit.
        let limit = resources.limits.as_ref().and_then(|limits| limits.get(name));
        request.or(limit).map(|quantity| quantity.0.clone())
    };
    let count = runners.count.and_then(|count| Users::new(count.get()));
    let users = runners.users_per_runner;
    RunnerRequest { users, count, cpu: asked("cpu"), memory: asked("memory") }
}

/// Returns what to do about a bound that no share can meet.
fn remedy_of_percentage(bound: Bound) -> Option<&'static str> {
    let Quantity::Percent(percent) = bound.quantity else { return None };
    let (none, all) = (Percent::from_fraction(0.0), Percent::from_fraction(1.0));
    match bound.comparison {
        _ if percent > all => Some("give at most 100%"),
        Comparison::Above if percent == all => Some("write >= 100%"),
        Comparison::Below if percent == none => Some("write <= 0%"),
        _ => None,
    }
}

/// Bounds that no share can meet.
fn percent_problems(spec: &LoadTestSpec) -> Vec<Problem> {
    let of_threshold = |(index, threshold): (usize, &resource::Threshold)| {
        let bounds = [
            ("target", Some(threshold.target)),
            ("warning", threshold.warning),
            ("critical", threshold.critical),
        ];
        bounds.into_iter().filter_map(move |(name, bound)| {
            let bound = bound?;
            let message = format!("{bound} can never be met: {}", remedy_of_percentage(bound)?);
            Some(Problem::new(format!("spec.thresholds[{index}].{name}"), message))
        })
    };
    spec.thresholds.iter().enumerate().flat_map(of_threshold).collect()
}

/// Headers that have a value in `headers` and another one in `headersFrom`.
fn header_problems(spec: &LoadTestSpec) -> Vec<Problem> {
    let in_headers =
        |name: &str| spec.target.headers.keys().any(|key| key.eq_ignore_ascii_case(name));
    let repeated =
        spec.target.headers_from.iter().enumerate().filter(|(_, h)| in_headers(&h.header));
    repeated
        .map(|(index, header)| {
            let message =
                format!("{:?} has a value in target.headers too: remove one", header.header);
            Problem::new(format!("spec.target.headersFrom[{index}].header"), message)
        })
        .collect()
}

/// Warnings about a valid spec: credentials that every reader of the test can read.
pub fn warnings(spec: &LoadTestSpec) -> Vec<String> {
    let in_tasks = spec.scenario.tasks.iter().filter_map(resource::Task::headers);
    let names =
        std::iter::once(&spec.target.headers).chain(in_tasks).flat_map(|headers| headers.keys());
    let names = names.filter(|name| is_credential(name)).cloned();
    let names: BTreeSet<String> = names.collect();
    names
        .into_iter()
        .map(|name| {
            format!("the value of header {name} is readable in the spec: put it into a Secret and use target.headersFrom")
        })
        .collect()
}

/// True for a header that holds a credential.
fn is_credential(header: &str) -> bool {
    const CREDENTIALS: [&str; 4] = ["authorization", "proxy-authorization", "cookie", "x-api-key"];
    CREDENTIALS.iter().any(|credential| header.eq_ignore_ascii_case(credential))
}

fn duplicate_names(tasks: &[resource::Task]) -> Vec<Problem> {
    let mut names = BTreeSet::new();
    let repeated = tasks.iter().enumerate().filter(|(_, task)| !names.insert(task.name.as_str()));
    repeated
        .map(|(index, task)| {
            let message = format!("{:?} is the name of another task: rename one", task.name);
            Problem::new(format!("spec.scenario.tasks[{index}].name"), message)
        })
        .collect()
}

fn duplicate_thresholds(spec: &LoadTestSpec) -> Vec<Problem> {
    let keys: Vec<_> = spec.thresholds.iter().map(resource::Threshold::key).collect();
    let repeated = keys.iter().enumerate().filter(|(index, key)| keys[..*index].contains(key));
    repeated
        .map(|(index, key)| {
            let message = format!(
                "{key} is judged by another threshold already: remove one, or change task, metric, statistic or window"
            );
            Problem::new(format!("spec.thresholds[{index}]"), message)
        })
        .collect()
}

/// Finds keys of `chat.body` that YAML has changed: without quotes, `n` and `on` are booleans in the
/// YAML of Kubernetes, so `n: 2` arrives as `"false": 2`.
fn body_problems(tasks: &[resource::Task]) -> Vec<Problem> {
    let chats = tasks.iter().enumerate().filter_map(|(index, task)| {
        let body = &task.chat.as_ref()?.body;
        let key = body.keys().find(|key| matches!(key.as_str(), "true" | "false"))?;
        let unquoted = if key == "true" { "y, yes, on or true" } else { "n, no, off or false" };
        let message = format!("has a key {unquoted}, which YAML takes for {key}: quote the key");
        Some(Problem::new(format!("spec.scenario.tasks[{index}].chat.body"), message))
    });
    chats.collect()
}

/// Problems of the `JSONPath`s, regular expressions and base64 texts of tasks.
fn expression_problems(tasks: &[resource::Task]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (task_index, task) in tasks.iter().enumerate() {
        let field = |rest: String| format!("spec.scenario.tasks[{task_index}].{rest}");
        let checks = task.http.iter().flat_map(|http| http.checks.iter().enumerate());
        for (index, check) in checks {
            let Some(path) = &check.json_path else { continue };
            if let Err(error) = serde_json_path::JsonPath::parse(path) {
                let message = format!("{path:?} is not a JSONPath such as $.data[0].id: {error}");
                problems
                    .push(Problem::new(field(format!("http.checks[{index}].jsonPath")), message));
            }
        }
        let Some(web_socket) = &task.web_socket else { continue };
        if web_socket.format == MessageFormat::Base64 {
            for (index, message) in web_socket.send.iter().enumerate() {
                if STANDARD.decode(message).is_err() {
                    let text = truncate(message, 60);
                    let message =
                        format!("{text:?} is not base64: encode the message, or use format: Text");
                    problems.push(Problem::new(field(format!("webSocket.send[{index}]")), message));
                }
            }
        }
        let Some(reply) = &web_socket.reply else { continue };
        if let Some(path) = &reply.json_path
            && let Err(error) = serde_json_path::JsonPath::parse(path)
        {
            let message = format!("{path:?} is not a JSONPath such as $.id: {error}");
            problems.push(Problem::new(field("webSocket.reply.jsonPath".into()), message));
        }
        if let Some(regex) = &reply.regex
            && let Err(error) = RegexBuilder::new(regex).size_limit(MAX_REGEX_BYTES).build()
        {
            // The error has several lines: the last one tells the cause.
            let error = error.to_string();
            let cause = error.lines().last().unwrap_or_default();
            let cause = cause.trim_start_matches("error: ");
            let message = format!("{regex:?} is not a regular expression: {cause}");
            problems.push(Problem::new(field("webSocket.reply.regex".into()), message));
        }
    }
    problems
}

fn url_problems(spec: &LoadTestSpec) -> Vec<Problem> {
    let urls = [("http", &spec.target.http), ("webSocket", &spec.target.web_socket)];
    let given = urls.into_iter().filter_map(|(name, url)| Some((name, url.as_ref()?)));
    given
        .filter_map(|(name, url)| {
            let port = port_of(url).filter(|port| !(1..=65535).contains(port))?;
            let message = format!("{url:?} has port {port}: ports are 1 to 65535");
            Some(Problem::new(format!("spec.target.{name}"), message))
        })
        .collect()
}

/// The port that a URL names.
fn port_of(url: &str) -> Option<u64> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split('/').next()?;
    let (_, port) = authority.rsplit_once(':')?;
    // The last colon of an IPv6 address without a port is inside the brackets.
    port.bytes().all(|b| b.is_ascii_digit()).then(|| port.parse().unwrap_or(u64::MAX))
}

fn certificate_problem(spec: &LoadTestSpec) -> Option<Problem> {
    let bundle = spec.target.tls.as_ref()?.ca_bundle.as_ref()?;
    let mut certificates = CertificateDer::pem_slice_iter(bundle.as_bytes()).peekable();
    let valid = certificates.peek().is_some() && certificates.all(|c| c.is_ok());
    let message =
        "contains no readable certificate: give certificates in PEM, as openssl x509 prints them";
    (!valid).then(|| Problem::new("spec.target.tls.caBundle", message))
}

fn pod_template_problem(runners: &Runners) -> Option<Problem> {
    const FIELD: &str = "spec.runners.podTemplate";
    match runners.pod_template.as_ref()?.parse() {
        Err((path, message)) => Some(Problem::new(format!("{FIELD}.{path}"), message)),
        Ok(template) => {
            let (path, message) = reserved_field(&template)?;
            Some(Problem::new(format!("{FIELD}.{path}"), message))
        }
    }
}

/// A field of a pod template that the operator must set itself.
fn reserved_field(template: &PodTemplateSpec) -> Option<(&'static str, &'static str)> {
    let reserved_label = |name: &String| {
        ["loadtest.cell0.io/", "app.kubernetes.io/", "batch.kubernetes.io/"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
    };
    let labels = template.metadata.iter().flat_map(|metadata| &metadata.labels).flatten();
    if labels.map(|(name, _)| name).any(reserved_label) {
        return Some((
            "metadata.labels",
            "the operator sets labels of loadtest.cell0.io/, app.kubernetes.io/ and batch.kubernetes.io/: choose others",
        ));
    }
    let spec = template.spec.as_ref()?;
    if spec.restart_policy.as_ref().is_some_and(|policy| policy != "Never") {
        return Some((
            "spec.restartPolicy",
            "must be Never, because load must not run twice: remove it",
        ));
    }
    if spec.automount_service_account_token == Some(true) {
        return Some((
            "spec.automountServiceAccountToken",
            "runners have no access to the API: remove it",
        ));
    }
    let has_token = |volume: &Volume| {
        let sources =
            volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        sources.into_iter().any(|source| source.service_account_token.is_some())
    };
    if spec.volumes.iter().flatten().any(has_token) {
        return Some((
            "spec.volumes",
            "runners have no access to the API: remove the source serviceAccountToken",
        ));
    }
    let reserved_variable = |variable: &EnvVar| {
        variable.name.starts_with("LOADTEST_") || variable.name == "JOB_COMPLETION_INDEX"
    };
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mut variables = containers.flat_map(|container| container.env.iter().flatten());
    variables.any(reserved_variable).then_some((
        "spec.containers",
        "the operator sets variables that start with LOADTEST_, and JOB_COMPLETION_INDEX: choose other names",
    ))
}

/// More runners than the test has can't be left after a loss.
fn min_runners_problem(spec: &LoadTestSpec, test: &ValidTest) -> Option<Problem> {
    let (fewest, runners) = (spec.min_runners?.get(), size_test(test).runners);
    (fewest > runners).then(|| {
        let message = format!("is {fewest}, and the test has {runners}: give at most {runners}");
        Problem::new("spec.minRunners", message)
    })
}

fn size_problem(test: &ValidTest) -> Option<Problem> {
    // A valid test is plain data: it always has a JSON form.
    let bytes = serde_json::to_vec(test).map_or(usize::MAX, |json| json.len());
    (bytes > MAX_PLAN_BYTES).then(|| {
        let (size, limit) = (bytes / 1024, MAX_PLAN_BYTES / 1024);
        let message = format!(
            "the plan has {size} KiB, more than the {limit} KiB that fit into a ConfigMap: use fewer or shorter bodies and messages"
        );
        Problem::new("spec.scenario", message)
    })
}

#[cfg(test)]
mod tests;
