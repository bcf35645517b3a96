//! Chat tasks, prepared.

use std::collections::BTreeMap;

use http::{HeaderMap, Method, header::ACCEPT_ENCODING};
use loadtest_core::resource::{ChatTask, HttpVersion};

use crate::prepare::{
    endpoint::Endpoint,
    error::PrepareError,
    headers::{insert_header, insert_headers, task_headers},
    http_task::PreparedHttp,
    request::{EncodedRequest, RequestTemplate},
};

/// A chat completion. There is one request for each pair of a model and a message.
#[derive(Debug)]
pub(crate) struct PreparedChat {
    pub(crate) http: PreparedHttp,
    pub(crate) requests: Vec<EncodedRequest>,
    pub(crate) stream: bool,
}

impl PreparedChat {
    pub(super) fn new(
        task: &ChatTask,
        shared: &HeaderMap,
        version: HttpVersion,
        endpoint: &Endpoint,
    ) -> Result<Self, PrepareError> {
        let mut headers = task_headers(shared, endpoint, &BTreeMap::new())?;
        insert_header(&mut headers, "content-type", "application/json")?;
        insert_headers(&mut headers, &task.headers)?;
        if task.stream {
            remove_zstd(&mut headers)?;
        }
        let uri = endpoint.request_uri(&task.path)?;
        let origin = endpoint.origin(version)?;
        let name = format!("POST {}", uri.path());
        let template = |body: String| RequestTemplate {
            origin: origin.clone(),
            method: Method::POST,
            uri: uri.clone(),
            headers: headers.clone(),
            body: body.into(),
        };
        let requests: Vec<EncodedRequest> = task
            .models
            .iter()
            .flat_map(|model| task.messages.iter().map(move |message| (model, message)))
            .map(|(model, message)| template(request_body(task, model, message)).encode_request())
            .collect();
        let first = requests.first().cloned();
        Ok(Self {
            http: PreparedHttp {
                // The schema requires at least one model and one message.
                request: first.unwrap_or_else(|| template("{}".into()).encode_request()),
                name,
                // The body decides. Some frameworks answer each POST with 201.
                expected_statuses: (200..300).collect(),
                checks: Vec::new(),
                redirects: None,
            },
            requests,
            stream: task.stream,
        })
    }
}

/// Removes zstd from `accept-encoding`. The decoder returns nothing before a whole block has come, so the times of tokens
/// would be wrong.
fn remove_zstd(headers: &mut HeaderMap) -> Result<(), PrepareError> {
    let Some(value) = headers.get(ACCEPT_ENCODING).and_then(|value| value.to_str().ok()) else {
        return Ok(());
    };
    let is_zstd = |encoding: &&str| {
        encoding.split(';').next().is_some_and(|name| name.trim().eq_ignore_ascii_case("zstd"))
    };
    let others: Vec<&str> = value.split(',').filter(|e| !is_zstd(e)).map(str::trim).collect();
    let others = if others.is_empty() { "identity".to_owned() } else { others.join(", ") };
    insert_header(headers, ACCEPT_ENCODING.as_str(), &others)
}

fn request_body(task: &ChatTask, model: &str, message: &str) -> String {
    let mut body = serde_json::json!({
        "model": model,
        "messages": [{"role": "user", "content": message}],
        "stream": task.stream,
    });
    if task.stream && task.usage {
        // Without this option a stream does not report its number of tokens.
        body["stream_options"] = serde_json::json!({"include_usage": true});
    }
    if let Some(max) = task.max_tokens {
        body["max_tokens"] = max.get().into();
    }
    if let Some(max) = task.max_completion_tokens {
        body["max_completion_tokens"] = max.get().into();
    }
    if let Some(fields) = body.as_object_mut() {
        for (name, value) in &task.body {
            if value.is_null() {
                fields.remove(name);
            } else {
                fields.insert(name.clone(), value.clone());
            }
        }
    }
    body.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_never_asks_for_zstd() {
        let asked = |value: &str| {
            let mut headers = HeaderMap::new();
            insert_header(&mut headers, "accept-encoding", value).unwrap();
            remove_zstd(&mut headers).unwrap();
            headers[ACCEPT_ENCODING].to_str().unwrap().to_owned()
        };
        assert_eq!(asked("gzip, deflate, br, zstd"), "gzip, deflate, br");
        assert_eq!(asked("ZSTD;q=0.9,gzip;q=0.5"), "gzip;q=0.5");
        assert_eq!((asked("zstd"), asked("gzip")), ("identity".into(), "gzip".into()));
    }

    #[test]
    fn further_fields_are_merged_into_the_body() {
        let task: ChatTask = serde_json::from_value(serde_json::json!({
            "models": ["m"], "messages": ["Hi"], "stream": true, "maxCompletionTokens": 9,
            "body": {"temperature": 0, "stop": ["x"], "stream_options": null, "model": "other"},
        }))
        .unwrap();
        let body: serde_json::Value =
            serde_json::from_str(&request_body(&task, "m", "Hi")).unwrap();
        let expected = serde_json::json!({
            "model": "other", "messages": [{"role": "user", "content": "Hi"}], "stream": true,
            "max_completion_tokens": 9, "temperature": 0, "stop": ["x"],
        });
        assert_eq!(body, expected);
    }
}
