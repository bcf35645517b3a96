//! Everything a request needs that can be made before load starts, shared by all workers.

pub(crate) mod check;
mod endpoint;
mod request;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use loadtest_core::{
    mix::Mix,
    plan::{Goals, Plan, header_variable},
    resource::{ChatTask, HttpTask, HttpVersion, Reuse, Session, Task, TaskKind, WebSocketTask},
};

use tokio_tungstenite::tungstenite::Utf8Bytes;

use self::endpoint::tls_config;
pub(crate) use self::{
    endpoint::Endpoint,
    request::{Form, Redirects, Request, Source},
};
use crate::prepare::check::PreparedCheck;

/// The header with the run's UID that every request carries.
pub const RUN_HEADER: &str = "x-loadtest-run";

/// A plan that a runner can't carry out, with the field to mend.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// A base URL that is none.
    #[error("{field}: {value:?} is not a URL such as {example}")]
    Url {
        /// The field of the spec.
        field: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        example: &'static str,
    },
    /// A task without the base URL it needs.
    #[error("{field} is missing: task {task:?} needs it")]
    MissingUrl {
        /// The field of the spec.
        field: &'static str,
        /// The task's name.
        task: String,
    },
    /// A header that can't be sent.
    #[error("header {name:?} is not a valid header, or its value is not")]
    Header {
        /// The header's name; its value may be a secret.
        name: String,
    },
    /// A header's value from a Secret that is not in the environment.
    #[error("environment variable {variable} is not set: it gives the value of header {name:?}")]
    Secret {
        /// The header's name.
        name: String,
        /// The variable.
        variable: String,
    },
    /// Certificates that can't be read.
    #[error("target.tls.caBundle: no certificate could be read from it")]
    CaBundle,
    /// A task with no kind or several.
    #[error("task {task:?} must have exactly one of http, chat and webSocket")]
    Kind {
        /// The task's name.
        task: String,
    },
    /// A check that can't be made.
    #[error("{check}: is no check; jsonPath wants an RFC 9535 path such as $.data[0].id")]
    Check {
        /// The check.
        check: String,
    },
    /// TLS can't be set up.
    #[error("TLS can't be set up")]
    Tls(#[source] rustls::Error),
}

/// One task, ready to run.
#[derive(Debug)]
pub(crate) struct PreparedTask {
    pub(crate) name: String,
    pub(crate) timeout: Duration,
    /// What makes a request of it a good one.
    pub(crate) goals: Goals,
    pub(crate) kind: PreparedKind,
}

#[derive(Debug)]
pub(crate) enum PreparedKind {
    Http(PreparedHttp),
    Chat(PreparedChat),
    WebSocket(PreparedWebSocket),
}

/// An HTTP request.
#[derive(Debug)]
pub(crate) struct PreparedHttp {
    pub(crate) request: Request,
    /// Method and path, for messages.
    pub(crate) name: String,
    /// Statuses that count as success; any below 400 when empty.
    pub(crate) expect: Vec<u16>,
    /// What an answer must hold.
    pub(crate) checks: Vec<PreparedCheck>,
    /// Redirects to be followed; `None` for an answer as any other.
    pub(crate) redirects: Option<Redirects>,
}

/// A chat completion: one request for each model and message.
#[derive(Debug)]
pub(crate) struct PreparedChat {
    pub(crate) http: PreparedHttp,
    pub(crate) requests: Vec<Request>,
    pub(crate) stream: bool,
}

/// A WebSocket session.
#[derive(Debug)]
pub(crate) struct PreparedWebSocket {
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    /// Texts to send, shared by all who send them.
    pub(crate) send: Vec<Utf8Bytes>,
    pub(crate) replies: u32,
    /// The session goes on from task to task.
    pub(crate) keep: bool,
    pub(crate) close: bool,
}

/// A plan, ready to run.
#[derive(Debug)]
pub struct Prepared {
    pub(crate) plan: Plan,
    pub(crate) http: Option<Endpoint>,
    pub(crate) web_socket: Option<Endpoint>,
    pub(crate) tasks: Vec<PreparedTask>,
    pub(crate) mix: Mix,
}

impl Prepared {
    /// Prepares a plan. `secret` gives the value of an environment variable.
    ///
    /// # Errors
    /// When a URL, header or certificate can't be used; the message names the field.
    pub fn new(
        plan: Plan,
        secret: impl Fn(&str) -> Option<String>,
    ) -> Result<Arc<Self>, PrepareError> {
        let shared = shared_headers(&plan, secret)?;
        let version = plan.target.http_version;
        let endpoint = |url: &Option<String>, version, field, example| {
            let Some(url) = url else { return Ok(None) };
            let tls = tls_config(&plan, version)?;
            Endpoint::parse(url, field, example, &tls).map(Some)
        };
        let http = endpoint(&plan.target.http, version, "target.http", "http://cell0:18800")?;
        // A WebSocket begins as HTTP/1.1.
        let web_socket = endpoint(
            &plan.target.web_socket,
            HttpVersion::Http1,
            "target.webSocket",
            "ws://cell0:18801",
        )?;
        let tasks = plan
            .scenario
            .tasks
            .iter()
            .map(|task| {
                let goals = Goals::of(&plan.thresholds, &task.name);
                prepare(task, goals, &shared, version, http.as_ref(), web_socket.as_ref())
            })
            .collect::<Result<_, _>>()?;
        let mix = Mix::new(&plan.scenario);
        Ok(Arc::new(Self { plan, http, web_socket, tasks, mix }))
    }

    /// The plan this was prepared from.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }
}

fn put(headers: &mut HeaderMap, name: &str, value: &str) -> Result<(), PrepareError> {
    let wrong = || PrepareError::Header { name: name.to_owned() };
    let key = HeaderName::try_from(name).map_err(|_| wrong())?;
    let value = HeaderValue::try_from(value).map_err(|_| wrong())?;
    headers.insert(key, value);
    Ok(())
}

fn put_all(headers: &mut HeaderMap, from: &BTreeMap<String, String>) -> Result<(), PrepareError> {
    from.iter().try_for_each(|(name, value)| put(headers, name, value))
}

fn shared_headers(
    plan: &Plan,
    secret: impl Fn(&str) -> Option<String>,
) -> Result<HeaderMap, PrepareError> {
    let mut headers = HeaderMap::new();
    put(&mut headers, "user-agent", concat!("loadtest-runner/", env!("CARGO_PKG_VERSION")))?;
    put(&mut headers, "accept", "*/*")?;
    if plan.target.connections == Reuse::PerRequest {
        // Whoever closes first keeps the port for a minute: that shall be the target.
        put(&mut headers, "connection", "close")?;
    }
    if plan.target.gzip {
        put(&mut headers, "accept-encoding", "gzip")?;
    }
    put_all(&mut headers, &plan.target.headers)?;
    for (index, from) in plan.target.headers_from.iter().enumerate() {
        let variable = header_variable(index);
        let value = secret(&variable).ok_or_else(|| PrepareError::Secret {
            name: from.header.clone(),
            variable: variable.clone(),
        })?;
        // Files in Secrets often end in a line break, which no header can carry.
        put(&mut headers, &from.header, value.trim_end_matches(['\r', '\n']))?;
        if let Some(value) = headers.get_mut(from.header.as_str()) {
            value.set_sensitive(true);
        }
    }
    put(&mut headers, RUN_HEADER, &plan.run)?;
    Ok(headers)
}

fn prepare(
    task: &Task,
    goals: Goals,
    shared: &HeaderMap,
    version: HttpVersion,
    http: Option<&Endpoint>,
    web_socket: Option<&Endpoint>,
) -> Result<PreparedTask, PrepareError> {
    let missing = |field| PrepareError::MissingUrl { field, task: task.name.clone() };
    let kind = task.kind().ok_or_else(|| PrepareError::Kind { task: task.name.clone() })?;
    let (timeout, kind) = match kind {
        TaskKind::Http(http_task) => {
            let endpoint = http.ok_or_else(|| missing("target.http"))?;
            (
                http_task.timeout,
                PreparedKind::Http(prepare_http(http_task, shared, version, endpoint)?),
            )
        }
        TaskKind::Chat(chat) => {
            let endpoint = http.ok_or_else(|| missing("target.http"))?;
            (chat.timeout, PreparedKind::Chat(prepare_chat(chat, shared, version, endpoint)?))
        }
        TaskKind::WebSocket(socket) => {
            let endpoint = web_socket.ok_or_else(|| missing("target.webSocket"))?;
            let prepared = prepare_web_socket(socket, shared, endpoint)?;
            (socket.timeout, PreparedKind::WebSocket(prepared))
        }
    };
    Ok(PreparedTask { name: task.name.clone(), timeout: timeout.std(), goals, kind })
}

fn with_host(
    shared: &HeaderMap,
    endpoint: &Endpoint,
    own: &BTreeMap<String, String>,
) -> Result<HeaderMap, PrepareError> {
    let mut headers = shared.clone();
    if !headers.contains_key(header::HOST) {
        put(&mut headers, "host", &endpoint.authority)?;
    }
    put_all(&mut headers, own)?;
    Ok(headers)
}

fn prepare_http(
    task: &HttpTask,
    shared: &HeaderMap,
    version: HttpVersion,
    endpoint: &Endpoint,
) -> Result<PreparedHttp, PrepareError> {
    let method = Method::from_bytes(task.method.as_str().as_bytes()).unwrap_or(Method::GET);
    let uri = endpoint.uri(&task.path)?;
    let headers = with_host(shared, endpoint, &task.headers)?;
    let name = format!("{method} {}", uri.path());
    let body = Bytes::from(task.body.clone().unwrap_or_default());
    let source = Source { form: endpoint.form(version)?, method, uri, headers, body };
    let left = u32::try_from(task.max_redirects).unwrap_or(0);
    Ok(PreparedHttp {
        request: source.request(),
        name,
        expect: task.expect_status.iter().filter_map(|s| u16::try_from(*s).ok()).collect(),
        checks: checks(task)?,
        redirects: (left > 0).then_some(Redirects { left, source }),
    })
}

fn checks(task: &HttpTask) -> Result<Vec<PreparedCheck>, PrepareError> {
    let prepare = |check| {
        PreparedCheck::new(check).ok_or_else(|| PrepareError::Check { check: check.to_string() })
    };
    task.checks.iter().map(prepare).collect()
}

fn prepare_chat(
    task: &ChatTask,
    shared: &HeaderMap,
    version: HttpVersion,
    endpoint: &Endpoint,
) -> Result<PreparedChat, PrepareError> {
    let mut headers = with_host(shared, endpoint, &BTreeMap::new())?;
    put(&mut headers, "content-type", "application/json")?;
    put_all(&mut headers, &task.headers)?;
    let uri = endpoint.uri(&task.path)?;
    let form = endpoint.form(version)?;
    let name = format!("POST {}", uri.path());
    let source = |body: String| Source {
        form: form.clone(),
        method: Method::POST,
        uri: uri.clone(),
        headers: headers.clone(),
        body: body.into(),
    };
    let requests: Vec<Request> = task
        .models
        .iter()
        .flat_map(|model| task.messages.iter().map(move |message| (model, message)))
        .map(|(model, message)| {
            let mut body = serde_json::json!({
                "model": model,
                "messages": [{"role": "user", "content": message}],
                "stream": task.stream,
            });
            if task.stream && task.usage {
                // Else a stream does not say how many tokens it had.
                body["stream_options"] = serde_json::json!({"include_usage": true});
            }
            if let Some(max) = task.max_tokens {
                body["max_tokens"] = max.into();
            }
            source(body.to_string()).request()
        })
        .collect();
    let first = requests.first().cloned();
    Ok(PreparedChat {
        http: PreparedHttp {
            // The schema wants at least one model and one message.
            request: first.unwrap_or_else(|| source("{}".into()).request()),
            name,
            expect: vec![200],
            checks: Vec::new(),
            redirects: None,
        },
        requests,
        stream: task.stream,
    })
}

fn prepare_web_socket(
    task: &WebSocketTask,
    shared: &HeaderMap,
    endpoint: &Endpoint,
) -> Result<PreparedWebSocket, PrepareError> {
    let scheme = if endpoint.tls.is_some() { "wss" } else { "ws" };
    let full = format!("{scheme}://{}{}{}", endpoint.authority, endpoint.base, task.path);
    let uri = full.parse().map_err(|_| PrepareError::Url {
        field: "webSocket.path",
        value: full,
        example: "/",
    })?;
    Ok(PreparedWebSocket {
        uri,
        headers: with_host(shared, endpoint, &task.headers)?,
        send: task.send.iter().map(Utf8Bytes::from).collect(),
        replies: u32::try_from(task.replies).unwrap_or(0),
        keep: task.session == Session::PerUser,
        close: task.close,
    })
}
