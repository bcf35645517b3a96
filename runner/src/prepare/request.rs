//! Encoded requests, and the templates that they are encoded from.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Uri, header};
use url::Url;

/// A whole request, encoded before the load starts.
#[derive(Clone)]
pub(crate) struct EncodedRequest {
    /// The HTTP/1.1 request as it is sent.
    pub(crate) bytes: Bytes,
    /// True for a HEAD request: its response has no body, whatever its headers say.
    pub(crate) is_head: bool,
    /// True when the request may be sent twice (RFC 9110, 9.2.2).
    pub(crate) is_idempotent: bool,
    /// The HTTP/2 request, if the target speaks HTTP/2.
    pub(crate) http2: Option<Arc<http::Request<Bytes>>>,
}

/// Prints no headers, because they may hold credentials.
impl std::fmt::Debug for EncodedRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EncodedRequest({} bytes)", self.bytes.len())
    }
}

/// The origin of an endpoint, and its protocol.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    /// `http://host:port`, without a default port.
    pub(crate) url: Url,
    /// True when the target speaks HTTP/2.
    pub(crate) speaks_http2: bool,
}

/// The parts of a request before it is encoded.
#[derive(Clone)]
pub(crate) struct RequestTemplate {
    pub(crate) origin: Origin,
    pub(crate) method: Method,
    /// Path and query.
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// Prints no headers, because they may hold credentials.
impl std::fmt::Debug for RequestTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RequestTemplate({} {})", self.method, self.uri)
    }
}

impl RequestTemplate {
    /// Encodes the request.
    pub(crate) fn encode_request(&self) -> EncodedRequest {
        let Self { origin, method, uri, headers, body } = self;
        EncodedRequest {
            bytes: encode_http1(method, uri, headers, body),
            is_head: method == Method::HEAD,
            is_idempotent: method.is_idempotent(),
            http2: origin.speaks_http2.then(|| self.build_http2()).flatten().map(Arc::new),
        }
    }

    /// Returns the request for HTTP/2: the authority is part of the URI, and headers about the
    /// connection are left out (RFC 9113, 8.2.2).
    fn build_http2(&self) -> Option<http::Request<Bytes>> {
        let mut request = http::Request::new(self.body.clone());
        let path = self.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let host = self.headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let authority = host.unwrap_or(self.origin.url.authority());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() =
            format!("{}://{authority}{path}", self.origin.url.scheme()).parse().ok()?;
        *request.headers_mut() = self.headers.clone();
        let headers = request.headers_mut();
        for name in ["host", "connection", "keep-alive", "proxy-connection", "te", "upgrade"] {
            headers.remove(name);
        }
        if expects_body(&self.method) || !self.body.is_empty() {
            headers.insert(header::CONTENT_LENGTH, self.body.len().into());
        }
        Some(request)
    }
}

/// Returns true for a method that expects a body. An empty body needs a `content-length` then
/// (RFC 9110, 8.6).
fn expects_body(method: &Method) -> bool {
    [Method::POST, Method::PUT, Method::PATCH].contains(method)
}

/// Encodes a request for HTTP/1.1 (RFC 9112, 3).
fn encode_http1(method: &Method, uri: &Uri, headers: &HeaderMap, body: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(512 + body.len());
    write_request_line(&mut bytes, method, uri);
    for (name, value) in headers {
        write_header(&mut bytes, name.as_str(), value.as_bytes());
    }
    if expects_body(method) || !body.is_empty() {
        write_header(&mut bytes, "content-length", body.len().to_string().as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    bytes.freeze()
}

/// Writes the first line of an HTTP/1.1 request.
pub(super) fn write_request_line(bytes: &mut BytesMut, method: &Method, uri: &Uri) {
    let target = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    bytes.extend_from_slice(format!("{method} {target} HTTP/1.1\r\n").as_bytes());
}

/// Writes a header of an HTTP/1.1 request.
pub(super) fn write_header(bytes: &mut BytesMut, name: &str, value: &[u8]) {
    for part in [name.as_bytes(), b": ", value, b"\r\n"] {
        bytes.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http2_requests_have_the_authority_in_the_uri() {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, http::HeaderValue::from_static("cell0:18800"));
        let template = RequestTemplate {
            origin: Origin { url: "http://cell0:18800".parse().unwrap(), speaks_http2: true },
            method: Method::GET,
            uri: "/a/b?c".parse().unwrap(),
            headers,
            body: Bytes::from_static(b"body"),
        };
        let request = template.encode_request().http2.unwrap();
        assert_eq!(request.uri(), "http://cell0:18800/a/b?c");
        assert!(!request.headers().contains_key(header::HOST));
    }
}
