//! JSON responses and errors in the format of `OpenAI`'s API.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::json;

use super::body::ResponseBody;
use crate::connection::Connection;

/// Returns a response with status 200 and a JSON body.
pub(super) fn json_response(body: ResponseBody) -> Response<ResponseBody> {
    response_of_type("application/json", body)
}

/// Returns a response with status 200 and this content type.
pub(super) fn response_of_type(
    content_type: &'static str,
    body: ResponseBody,
) -> Response<ResponseBody> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Returns an error in the format of `OpenAI`'s API.
pub(crate) fn error_response(
    connection: &Connection,
    status: StatusCode,
    message: &str,
    code: &str,
) -> Response<ResponseBody> {
    let kind = if status.is_server_error() { "server_error" } else { "invalid_request_error" };
    let error = json!({"error": {"message": message, "type": kind, "param": null, "code": code}});
    let body = Bytes::from(error.to_string());
    let mut response = json_response(ResponseBody::complete(&connection.tracker, body));
    *response.status_mut() = status;
    response
}
