//! HTTP tasks, prepared.

use bytes::Bytes;
use http::{HeaderMap, Method};
use loadtest_core::resource::{HttpTask, HttpVersion};

use crate::prepare::{
    check::PreparedCheck,
    endpoint::Endpoint,
    error::PrepareError,
    headers::task_headers,
    redirects::Redirects,
    request::{EncodedRequest, RequestTemplate},
};

/// An HTTP request, ready to be sent.
#[derive(Debug)]
pub(crate) struct PreparedHttp {
    pub(crate) request: EncodedRequest,
    /// Method and path, for messages.
    pub(crate) name: String,
    /// Statuses that count as success. If the list is empty, any status below 400 counts.
    pub(crate) expected_statuses: Vec<u16>,
    /// Checks that the response must pass.
    pub(crate) checks: Vec<PreparedCheck>,
    /// Redirects that may be followed. `None` treats a redirect like any other response.
    pub(crate) redirects: Option<Redirects>,
}

impl PreparedHttp {
    pub(super) fn new(
        task: &HttpTask,
        shared: &HeaderMap,
        version: HttpVersion,
        endpoint: &Endpoint,
    ) -> Result<Self, PrepareError> {
        let method = Method::from_bytes(task.method.as_str().as_bytes()).unwrap_or(Method::GET);
        let uri = endpoint.request_uri(&task.path)?;
        let headers = task_headers(shared, endpoint, &task.headers)?;
        let name = format!("{method} {}", uri.path());
        let body = Bytes::from(task.body.clone().unwrap_or_default());
        let origin = endpoint.origin(version)?;
        let template = RequestTemplate { origin, method, uri, headers, body };
        let remaining = task.max_redirects;
        Ok(Self {
            request: template.encode_request(),
            name,
            expected_statuses: task.expect_status.clone(),
            checks: prepare_checks(task)?,
            redirects: (remaining > 0).then_some(Redirects { remaining, template }),
        })
    }
}

fn prepare_checks(task: &HttpTask) -> Result<Vec<PreparedCheck>, PrepareError> {
    let prepare = |check| {
        PreparedCheck::new(check).ok_or_else(|| PrepareError::Check { check: check.to_string() })
    };
    task.checks.iter().map(prepare).collect()
}
