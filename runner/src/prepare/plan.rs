//! A plan with parsed URLs, headers, certificates and checks.

use std::{sync::Arc, time::Duration};

use http::HeaderMap;
use loadtest_core::{
    mix::Mix,
    plan::{Goals, Plan},
    resource::{HttpVersion, Task, TaskKind},
};

use crate::prepare::{
    chat_task::PreparedChat, endpoint::Endpoint, error::PrepareError, headers::shared_headers,
    http_task::PreparedHttp, tls::client_config, websocket_task::PreparedWebSocket,
};

/// A plan, ready to run.
#[derive(Debug)]
pub struct PreparedPlan {
    pub(crate) plan: Plan,
    pub(crate) http: Option<Endpoint>,
    pub(crate) websocket: Option<Endpoint>,
    pub(crate) tasks: Vec<PreparedTask>,
    pub(crate) mix: Mix,
}

/// A task, ready to run.
#[derive(Debug)]
pub(crate) struct PreparedTask {
    pub(crate) name: String,
    pub(crate) timeout: Duration,
    /// Latency targets of a good request.
    pub(crate) goals: Goals,
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
        let version = plan.target.http_version;
        let endpoint = |url: &Option<String>, version, field, example| {
            let Some(url) = url else { return Ok(None) };
            let tls = client_config(&plan, version)?;
            Endpoint::parse(url, field, example, &tls).map(Some)
        };
        let http = endpoint(&plan.target.http, version, "target.http", "http://cell0:18800")?;
        // A WebSocket connection begins as HTTP/1.1.
        let websocket = endpoint(
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
                PreparedTask::new(task, goals, &shared, version, http.as_ref(), websocket.as_ref())
            })
            .collect::<Result<_, _>>()?;
        let mix = Mix::new(&plan.scenario);
        Ok(Arc::new(Self { plan, http, websocket, tasks, mix }))
    }

    /// Returns the original plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }
}

impl PreparedTask {
    fn new(
        task: &Task,
        goals: Goals,
        shared: &HeaderMap,
        version: HttpVersion,
        http: Option<&Endpoint>,
        websocket: Option<&Endpoint>,
    ) -> Result<Self, PrepareError> {
        let missing = |field| PrepareError::MissingUrl { field, task: task.name.clone() };
        let kind = task.kind().ok_or_else(|| PrepareError::Kind { task: task.name.clone() })?;
        let (timeout, kind) = match kind {
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
        Ok(Self { name: task.name.clone(), timeout: timeout.std(), goals, kind })
    }
}
