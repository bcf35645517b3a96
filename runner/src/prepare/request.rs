//! Requests as they go over the wire, and those that redirects lead to.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Uri, header};
use url::Url;

use crate::failure::{ErrorKind, Failure};

/// A whole request as it goes over the wire.
#[derive(Clone)]
pub(crate) struct Request {
    pub(crate) bytes: Bytes,
    /// Its answer has no body, whatever its head says.
    pub(crate) is_head: bool,
    /// The same for HTTP/2, where the target speaks it.
    pub(crate) http2: Option<Arc<http::Request<Bytes>>>,
}

/// Headers may hold credentials.
impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Request({} bytes)", self.bytes.len())
    }
}

/// What requests of one endpoint have in common.
#[derive(Clone, Debug)]
pub(crate) struct Form {
    /// `http://host:port`, with the default port left out.
    pub(crate) origin: Url,
    /// True when the target speaks HTTP/2.
    pub(crate) http2: bool,
}

/// What a request is made of.
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) form: Form,
    pub(crate) method: Method,
    /// Path and query.
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// Headers may hold credentials.
impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Source({} {})", self.method, self.uri)
    }
}

impl Source {
    /// The request.
    pub(crate) fn request(&self) -> Request {
        let Self { form, method, uri, headers, body } = self;
        Request {
            bytes: http1(method, uri, headers, body),
            is_head: method == Method::HEAD,
            http2: form.http2.then(|| self.http2()).flatten().map(Arc::new),
        }
    }

    /// The request in HTTP/2's form: its authority is part of the URI, and no header says what
    /// becomes of the connection (RFC 9113, 8.2.2).
    fn http2(&self) -> Option<http::Request<Bytes>> {
        let mut request = http::Request::new(self.body.clone());
        let path = self.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let host = self.headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let authority = host.unwrap_or(self.form.origin.authority());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() =
            format!("{}://{authority}{path}", self.form.origin.scheme()).parse().ok()?;
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

/// Redirects that may yet be followed, from the latest request on.
#[derive(Clone, Debug)]
pub(crate) struct Redirects {
    pub(crate) left: u32,
    pub(crate) source: Source,
}

impl Redirects {
    /// The request that an answer of this status leads to.
    ///
    /// Within the target only: the load, and its credentials, are for nobody else.
    pub(crate) fn follow(&mut self, status: u16, location: &str) -> Result<Request, Failure> {
        let fails = |message: String| Err(Failure::new(ErrorKind::Redirect, message));
        // A query may hold a credential.
        let shown = location.split(['?', '#']).next().unwrap_or_default();
        let shown = loadtest_core::report::truncated(shown, 100);
        let Some(left) = self.left.checked_sub(1) else {
            return fails(format!("one redirect too many, to {shown:?}: see maxRedirects"));
        };
        self.left = left;
        let source = &mut self.source;
        let origin = &source.form.origin;
        let path = source.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let to = origin.join(path).and_then(|from| from.join(location));
        let to = match to {
            Ok(to) => to,
            Err(error) => return fails(format!("redirect to {shown:?}: {error}")),
        };
        // A target that is called by another name knows itself by that.
        let named = source.headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let named = named.and_then(|host| {
            let origin = format!("{}://{host}", origin.scheme());
            origin.parse::<Url>().ok()
        });
        if ![Some(origin), named.as_ref()].into_iter().flatten().any(|o| o.origin() == to.origin())
        {
            return fails(format!("redirect out of the target, to {shown:?}: not followed"));
        }
        let query = to.query().map_or_else(String::new, |query| format!("?{query}"));
        let Ok(uri) = format!("{}{query}", to.path()).parse() else {
            return fails(format!("redirect to {shown:?}, which is no path"));
        };
        source.uri = uri;
        // As browsers do it, and RFC 9110, 15.4 allows: 301 and 302 turn a POST into a GET, and 303
        // everything but a HEAD.
        let keeps = match status {
            307 | 308 => true,
            303 => matches!(source.method, Method::GET | Method::HEAD),
            _ => source.method != Method::POST,
        };
        if !keeps {
            source.method = Method::GET;
            source.body = Bytes::new();
            source.headers.remove(header::CONTENT_TYPE);
        }
        Ok(source.request())
    }
}

/// Of methods that expect a body, an empty one has to be announced (RFC 9110, 8.6).
fn expects_body(method: &Method) -> bool {
    [Method::POST, Method::PUT, Method::PATCH].contains(method)
}

/// A request in HTTP/1.1's own form (RFC 9112, 3).
fn http1(method: &Method, uri: &Uri, headers: &HeaderMap, body: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(512 + body.len());
    let target = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    bytes.extend_from_slice(format!("{method} {target} HTTP/1.1\r\n").as_bytes());
    for (name, value) in headers {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    if expects_body(method) || !body.is_empty() {
        bytes.extend_from_slice(format!("content-length: {}\r\n", body.len()).as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    bytes.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redirects(method: Method, left: u32) -> Redirects {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, http::HeaderValue::from_static("cell0:18800"));
        Redirects {
            left,
            source: Source {
                form: Form { origin: "http://cell0:18800".parse().unwrap(), http2: true },
                method,
                uri: "/a/b?c".parse().unwrap(),
                headers,
                body: Bytes::from_static(b"body"),
            },
        }
    }

    fn line(request: &Request) -> String {
        let text = String::from_utf8_lossy(&request.bytes).into_owned();
        text.lines().next().unwrap().to_owned()
    }

    #[test]
    fn redirects_lead_to_where_they_say() {
        for (location, wanted) in [
            ("/x?y=1", "GET /x?y=1 HTTP/1.1"),
            ("x", "GET /a/x HTTP/1.1"),
            ("http://cell0:18800/z", "GET /z HTTP/1.1"),
            ("//cell0:18800/z", "GET /z HTTP/1.1"),
        ] {
            let found = redirects(Method::GET, 1).follow(302, location).unwrap();
            assert_eq!(line(&found), wanted, "{location}");
        }
    }

    #[test]
    fn a_post_stays_one_only_if_it_is_told_to() {
        assert!(line(&redirects(Method::POST, 1).follow(307, "/x").unwrap()).starts_with("POST"));
        let found = redirects(Method::POST, 1).follow(302, "/x").unwrap();
        assert!(line(&found).starts_with("GET"));
        assert!(!String::from_utf8_lossy(&found.bytes).contains("body"));
    }

    #[test]
    fn only_a_post_becomes_a_get_unless_303_says_so() {
        for (method, status, wanted) in [
            (Method::DELETE, 302, "DELETE"),
            (Method::PUT, 301, "PUT"),
            (Method::PUT, 303, "GET"),
            (Method::HEAD, 303, "HEAD"),
            (Method::POST, 308, "POST"),
        ] {
            let found = redirects(method.clone(), 1).follow(status, "/x").unwrap();
            assert!(line(&found).starts_with(wanted), "{method} {status}");
        }
    }

    #[test]
    fn nothing_leaves_the_target() {
        for location in ["http://elsewhere/", "https://cell0:18800/", "http://cell0:1/", "//x/"] {
            let failure = redirects(Method::GET, 5).follow(302, location).unwrap_err();
            assert_eq!(failure.kind, ErrorKind::Redirect, "{location}");
            assert!(failure.message.contains("out of the target"), "{location}");
        }
    }

    #[test]
    fn a_target_may_lead_to_itself_by_the_name_it_is_called_by() {
        let mut called = redirects(Method::GET, 5);
        let shop = http::HeaderValue::from_static("shop.example.com");
        called.source.headers.insert(header::HOST, shop);
        for location in ["http://shop.example.com/z", "http://cell0:18800/z"] {
            assert_eq!(line(&called.follow(302, location).unwrap()), "GET /z HTTP/1.1");
        }
        for location in ["https://shop.example.com/", "http://shop.example.com:1/"] {
            assert!(called.follow(302, location).is_err(), "{location}");
        }
    }

    #[test]
    fn redirects_end() {
        let mut redirects = redirects(Method::GET, 2);
        assert!(redirects.follow(302, "/1").is_ok() && redirects.follow(302, "/2").is_ok());
        assert!(redirects.follow(302, "/3").unwrap_err().message.contains("maxRedirects"));
    }

    #[test]
    fn http2_has_its_authority_in_the_uri() {
        let request = redirects(Method::GET, 0).source.request().http2.unwrap();
        assert_eq!(request.uri(), "http://cell0:18800/a/b?c");
        assert!(!request.headers().contains_key(header::HOST));
    }
}
