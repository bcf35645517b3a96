//! The headers of requests: those of the target, of the run and of a task.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use loadtest_core::{control::variable, plan::Plan, resource::ConnectionReuse};

use crate::prepare::{endpoint::Endpoint, error::PrepareError};

/// The header with the UID of the run. Every request carries it.
pub const RUN_HEADER: &str = "x-loadtest-run";

/// Sets a header.
pub(super) fn insert_header(
    headers: &mut HeaderMap,
    name: &str,
    value: &str,
) -> Result<(), PrepareError> {
    let invalid = || PrepareError::Header { name: name.to_owned() };
    let key = HeaderName::try_from(name).map_err(|_| invalid())?;
    let value = HeaderValue::try_from(value).map_err(|_| invalid())?;
    headers.insert(key, value);
    Ok(())
}

/// Sets all headers of a map.
pub(super) fn insert_headers(
    headers: &mut HeaderMap,
    from: &BTreeMap<String, String>,
) -> Result<(), PrepareError> {
    from.iter().try_for_each(|(name, value)| insert_header(headers, name, value))
}

/// Returns the headers that all requests of a plan share. `secret` returns the value of an
/// environment variable.
pub(super) fn shared_headers(
    plan: &Plan,
    secret: impl Fn(&str) -> Option<String>,
) -> Result<HeaderMap, PrepareError> {
    let target = &plan.test.target;
    let mut headers = HeaderMap::new();
    let user_agent = concat!("loadtest-runner/", env!("CARGO_PKG_VERSION"));
    insert_header(&mut headers, "user-agent", user_agent)?;
    insert_header(&mut headers, "accept", "*/*")?;
    if target.connections == ConnectionReuse::PerRequest {
        // The side that closes first keeps the port in `TIME_WAIT` for a minute. With this header
        // the target closes first.
        insert_header(&mut headers, "connection", "close")?;
    }
    if target.gzip {
        insert_header(&mut headers, "accept-encoding", "gzip")?;
    }
    insert_headers(&mut headers, &target.headers)?;
    for (index, from) in target.headers_from.iter().enumerate() {
        let variable = variable::header(index);
        let value = secret(&variable).ok_or_else(|| PrepareError::Secret {
            name: from.header.clone(),
            variable: variable.clone(),
        })?;
        // Values in Secrets often end with a line break, which a header can't carry.
        insert_header(&mut headers, &from.header, value.trim_end_matches(['\r', '\n']))?;
        if let Some(value) = headers.get_mut(from.header.as_str()) {
            value.set_sensitive(true);
        }
    }
    insert_header(&mut headers, RUN_HEADER, &plan.run_uid)?;
    Ok(headers)
}

/// Returns the headers of a task: the shared headers, the Host header and the task's `own` headers.
pub(super) fn task_headers(
    shared: &HeaderMap,
    endpoint: &Endpoint,
    own: &BTreeMap<String, String>,
) -> Result<HeaderMap, PrepareError> {
    let mut headers = shared.clone();
    if !headers.contains_key(header::HOST) {
        insert_header(&mut headers, "host", &endpoint.authority)?;
    }
    insert_headers(&mut headers, own)?;
    Ok(headers)
}
