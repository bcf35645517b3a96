//! A plan with parsed URLs, headers, certificates and checks.

use std::{sync::Arc, time::Duration};

use http::HeaderMap;
use loadtest_core::{
    load::TaskPicker,
    plan::{LatencyTargets, Plan, Task, TaskKind},
    resource::HttpVersion,
};

use crate::prepare::{
    chat_task::PreparedChat,
    endpoint::Endpoint,
    error::PrepareError,
    headers::{SecretValues, shared_headers},
    http_task::PreparedHttp,
    tls::tls_settings,
    websocket_task::PreparedWebSocket,
};

/// A plan, ready to run.
#[derive(Debug)]
pub struct PreparedPlan {
    pub(crate) plan: Plan,
    pub(crate) http: Option<Endpoint>,
    pub(crate) websocket: Option<Endpoint>,
    pub(crate) tasks: Vec<PreparedTask>,
    pub(crate) task_picker: TaskPicker,
    /// Values that no message may show.
    pub(crate) secrets: SecretValues,
}

/// A task, ready to run.
#[derive(Debug)]
pub(crate) struct PreparedTask {
    pub(crate) name: String,
    pub(crate) timeout: Duration,
    /// Latency targets of a good request.
    pub(crate) targets: LatencyTargets,
    pub(crate) kind: PreparedKind,
}

#[derive(Debug)]
pub(crate) enum PreparedKind {
    Http(PreparedHttp),
    Chat(PreparedChat),
    WebSocket(PreparedWebSocket),
}

impl PreparedPlan {
    /// Prepares a plan. `secret` returns the value of an environment variable.
    ///
    /// # Errors
    /// When a URL, header, check or certificate can't be used. The message names the field.
    pub fn new(
        plan: Plan,
        secret: impl Fn(&str) -> Option<String>,
    ) -> Result<Arc<Self>, PrepareError> {
        let shared = shared_headers(&plan, secret)?;
        let target = &plan.test.target;
        let version = target.http_version;
        let endpoint = |url: &Option<String>, version, field, example| {
            let Some(url) = url else { return Ok(None) };
            let settings = tls_settings(&plan, version)?;
            let server_name = target.tls.as_ref().and_then(|tls| tls.server_name.as_ref());
            Endpoint::parse(url, field, example, &settings, server_name).map(Some)
        };
        let http = endpoint(&target.http, version, "target.http", "http://cell0:18800")?;
        // A WebSocket connection begins as HTTP/1.1.
        let websocket = endpoint(
            &target.web_socket,
            HttpVersion::Http1,
            "target.webSocket",
            "ws://cell0:18801",
        )?;
        let prepare = |task: &Task| {
            let targets = LatencyTargets::of_task(&plan.test.thresholds, &task.name);
            PreparedTask::new(task, targets, &shared, version, http.as_ref(), websocket.as_ref())
        };
        let tasks = plan.test.scenario.tasks.iter().map(prepare).collect::<Result<_, _>>()?;
        let task_picker = TaskPicker::new(&plan.test.scenario);
        let secrets = SecretValues::of(&shared);
        Ok(Arc::new(Self { plan, http, websocket, tasks, task_picker, secrets }))
    }

    /// Returns the original plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }
}

impl PreparedTask {
    fn new(
        task: &Task,
        targets: LatencyTargets,
        shared: &HeaderMap,
        version: HttpVersion,
        http: Option<&Endpoint>,
        websocket: Option<&Endpoint>,
    ) -> Result<Self, PrepareError> {
        let missing = |field| PrepareError::MissingUrl { field, task: task.name.clone() };
        let (timeout, kind) = match &task.kind {
            TaskKind::Http(task) => {
                let endpoint = http.ok_or_else(|| missing("target.http"))?;
                let prepared = PreparedHttp::new(task, shared, version, endpoint)?;
                (task.timeout, PreparedKind::Http(prepared))
            }
            TaskKind::Chat(task) => {
                let endpoint = http.ok_or_else(|| missing("target.http"))?;
                let prepared = PreparedChat::new(task, shared, version, endpoint)?;
                (task.timeout, PreparedKind::Chat(prepared))
            }
            TaskKind::WebSocket(task) => {
                let endpoint = websocket.ok_or_else(|| missing("target.webSocket"))?;
                let prepared = PreparedWebSocket::new(task, shared, endpoint)?;
                (task.timeout, PreparedKind::WebSocket(prepared))
            }
        };
        Ok(Self { name: task.name.clone(), timeout: timeout.to_std(), targets, kind })
    }
}
