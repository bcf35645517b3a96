//! The headers of requests: those of the target, of the run and of a task.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use loadtest_core::{control::variable, plan::Plan, resource::ConnectionReuse};

use crate::{
    prepare::{endpoint::Endpoint, error::PrepareError},
    protocol::target_words::hide_secrets,
};

/// The header with the UID of the run. Every request carries it.
pub const RUN_HEADER: &str = "x-loadtest-run";

/// Minimum length of a secret value that is hidden. A shorter one would hide parts of ordinary words.
const MIN_SECRET_LENGTH: usize = 4;

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

/// The values of headers that come from Secrets. A target may repeat them in an error, and no message may show
/// them.
pub(crate) struct SecretValues(Vec<String>);

impl SecretValues {
    /// Collects the values: each one as a whole, its words (`Bearer` is none), the user and password of `Basic`, and what
    /// [`hide_secrets`], which changes messages first, leaves of each of these.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let sensitive = headers.values().filter(|value| value.is_sensitive());
        let mut found = Vec::new();
        for value in sensitive.filter_map(|value| value.to_str().ok()) {
            found.push(value.to_owned());
            found.extend(value.split_whitespace().skip(1).map(str::to_owned));
            let decoded =
                value.split_whitespace().last().and_then(|word| STANDARD.decode(word).ok());
            if let Some(decoded) = decoded.and_then(|bytes| String::from_utf8(bytes).ok()) {
                found.extend(decoded.split_once(':').map(|(_, password)| password.to_owned()));
                found.push(decoded);
            }
        }
        for value in found.clone() {
            // Messages quote the values of headers and of JSON.
            found.push(value.escape_debug().to_string());
            for text in [value.clone(), format!("token: {value}")] {
                let shown = hide_secrets(&text);
                if shown != text {
                    let left = shown.trim_start_matches("token: ").split("***");
                    found.extend(left.map(str::to_owned));
                }
            }
        }
        found.retain(|value| value.len() >= MIN_SECRET_LENGTH);
        // The longest first, because it may contain others.
        found.sort_by(|a, b| Reverse(a.len()).cmp(&Reverse(b.len())).then_with(|| a.cmp(b)));
        found.dedup();
        Self(found)
    }

    /// Replaces the values in a message by `***`, also the beginning of a value where a text was cut.
    pub(crate) fn hide(&self, message: &str) -> String {
        let mut shown = message.to_owned();
        for value in &self.0 {
            shown = shown.replace(value, "***");
            let mut cuts: BTreeSet<usize> = shown.match_indices('…').map(|(at, _)| at).collect();
            cuts.insert(shown.trim_end_matches(['…', '.']).len());
            for cut in cuts.into_iter().rev() {
                let start = (MIN_SECRET_LENGTH..value.len())
                    .rev()
                    .filter_map(|length| value.get(..length))
                    .find(|start| shown.get(..cut).is_some_and(|text| text.ends_with(start)));
                if let Some(start) = start {
                    shown.replace_range(cut - start.len()..cut, "***");
                }
            }
        }
        shown
    }
}

impl fmt::Debug for SecretValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretValues({})", self.0.len())
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(value: &str) -> SecretValues {
        let mut headers = HeaderMap::new();
        insert_header(&mut headers, "authorization", value).unwrap();
        headers.get_mut("authorization").unwrap().set_sensitive(true);
        insert_header(&mut headers, "accept", "text/plain").unwrap();
        SecretValues::of(&headers)
    }

    #[test]
    fn values_of_secrets_are_hidden_however_a_target_repeats_them() {
        for (value, message, shown) in [
            ("Bearer tiger-42", "no user has tiger-42", "no user has ***"),
            ("Bearer tiger-42", "Bearer tiger-42 is not text/plain", "*** is not text/plain"),
            ("tiger-42", "bad key \"tiger-42\"", "bad key \"***\""),
            ("tiger-42", "bad key tiger-…", "bad key ***…"),
            ("tiger-42", "the value is \"key tiger-…\", not x", "the value is \"key ***…\", not x"),
            ("ti\"ger\"42", "the value is \"ti\\\"ger\\\"42\"", "the value is \"***\""),
            ("P4ss:w0rd!long", "invalid api-key: ***:w0rd!long", "invalid api-key: ******"),
            ("Basic YW5uOnRpZ2Vy", "wrong password tiger", "wrong password ***"),
            ("Basic YW5uOnRpZ2Vy", "ann:tiger and YW5uOnRpZ2Vy", "*** and ***"),
            ("abc", "the abc", "the abc"),
        ] {
            assert_eq!(secrets(value).hide(message), shown, "{value}");
        }
        assert!(!format!("{:?}", secrets("Bearer tiger-42")).contains("tiger"));
    }
}
