//! Redirects: the request that a redirect response leads to.

use bytes::Bytes;
use http::{Method, header};
use url::Url;

use crate::{
    failure::{ErrorKind, Failure},
    prepare::request::{EncodedRequest, RequestTemplate},
    protocol::target_words::shorten,
};

/// The redirects that may still be followed, and the template of the latest request.
#[derive(Clone, Debug)]
pub(crate) struct Redirects {
    pub(crate) remaining: u32,
    pub(crate) template: RequestTemplate,
}

impl Redirects {
    /// Returns the request that a response with this status and location leads to.
    ///
    /// Only redirects within the target are followed: no other service may receive the load or its
    /// credentials.
    pub(crate) fn follow(
        &mut self,
        status: u16,
        location: &str,
    ) -> Result<EncodedRequest, Failure> {
        let fail = |message: String| Err(Failure::new(ErrorKind::Redirect, message));
        // The query is left out because it may hold a credential.
        let shown = location.split(['?', '#']).next().unwrap_or_default();
        let shown = loadtest_core::text::truncate(&shorten(shown), 100);
        let template = &mut self.template;
        let origin = &template.origin.url;
        let path = template.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let from = origin.join(path);
        let to = from.clone().and_then(|from| from.join(location));
        let Some(remaining) = self.remaining.checked_sub(1) else {
            let advice = if from == to {
                "the target redirects to the same URL, as targets do that set a cookie, and the load generator keeps no cookies"
            } else {
                "see maxRedirects"
            };
            return fail(format!("one redirect too many, to {shown:?}: {advice}"));
        };
        self.remaining = remaining;
        let to = match to {
            Ok(to) => to,
            Err(error) => return fail(format!("redirect to {shown:?}: {error}")),
        };
        // A target that is called with another Host header redirects to that host.
        let host = template.headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let host_origin = host.and_then(|host| {
            let url = format!("{}://{host}", origin.scheme());
            url.parse::<Url>().ok()
        });
        let allowed = [Some(origin), host_origin.as_ref()];
        if !allowed.into_iter().flatten().any(|o| o.origin() == to.origin()) {
            return fail(format!("redirect out of the target, to {shown:?}: not followed"));
        }
        let query = to.query().map_or_else(String::new, |query| format!("?{query}"));
        let Ok(uri) = format!("{}{query}", to.path()).parse() else {
            return fail(format!("redirect to {shown:?}, which is not a valid path"));
        };
        template.uri = uri;
        // Like browsers, and as RFC 9110, 15.4 allows: 301 and 302 turn a POST into a GET, and 303
        // turns every method except HEAD into a GET.
        let keeps_method = match status {
            307 | 308 => true,
            303 => matches!(template.method, Method::GET | Method::HEAD),
            _ => template.method != Method::POST,
        };
        if !keeps_method {
            template.method = Method::GET;
            template.body = Bytes::new();
            template.headers.remove(header::CONTENT_TYPE);
        }
        Ok(template.encode_request())
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;
    use crate::prepare::request::Origin;

    fn redirects(method: Method, remaining: u32) -> Redirects {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, http::HeaderValue::from_static("cell0:18800"));
        Redirects {
            remaining,
            template: RequestTemplate {
                origin: Origin { url: "http://cell0:18800".parse().unwrap(), speaks_http2: true },
                method,
                uri: "/a/b?c".parse().unwrap(),
                headers,
                body: Bytes::from_static(b"body"),
            },
        }
    }

    fn request_line(request: &EncodedRequest) -> String {
        let text = String::from_utf8_lossy(&request.bytes).into_owned();
        text.lines().next().unwrap().to_owned()
    }

    #[test]
    fn a_redirect_leads_to_its_location() {
        for (location, expected) in [
            ("/x?y=1", "GET /x?y=1 HTTP/1.1"),
            ("x", "GET /a/x HTTP/1.1"),
            ("http://cell0:18800/z", "GET /z HTTP/1.1"),
            ("//cell0:18800/z", "GET /z HTTP/1.1"),
        ] {
            let found = redirects(Method::GET, 1).follow(302, location).unwrap();
            assert_eq!(request_line(&found), expected, "{location}");
        }
    }

    #[test]
    fn a_302_turns_a_post_into_a_get_and_a_307_does_not() {
        let found = redirects(Method::POST, 1).follow(307, "/x").unwrap();
        assert!(request_line(&found).starts_with("POST"));
        let found = redirects(Method::POST, 1).follow(302, "/x").unwrap();
        assert!(request_line(&found).starts_with("GET"));
        assert!(!String::from_utf8_lossy(&found.bytes).contains("body"));
    }

    #[test]
    fn only_303_turns_other_methods_into_a_get() {
        for (method, status, expected) in [
            (Method::DELETE, 302, "DELETE"),
            (Method::PUT, 301, "PUT"),
            (Method::PUT, 303, "GET"),
            (Method::HEAD, 303, "HEAD"),
            (Method::POST, 308, "POST"),
        ] {
            let found = redirects(method.clone(), 1).follow(status, "/x").unwrap();
            assert!(request_line(&found).starts_with(expected), "{method} {status}");
        }
    }

    #[test]
    fn redirects_out_of_the_target_are_not_followed() {
        for location in ["http://elsewhere/", "https://cell0:18800/", "http://cell0:1/", "//x/"] {
            let failure = redirects(Method::GET, 5).follow(302, location).unwrap_err();
            assert_eq!(failure.kind, ErrorKind::Redirect, "{location}");
            assert!(failure.message.contains("out of the target"), "{location}");
        }
    }

    #[test]
    fn redirects_to_the_host_header_are_followed() {
        let mut redirects = redirects(Method::GET, 5);
        let shop = http::HeaderValue::from_static("shop.example.com");
        redirects.template.headers.insert(header::HOST, shop);
        for location in ["http://shop.example.com/z", "http://cell0:18800/z"] {
            let found = redirects.follow(302, location).unwrap();
            assert_eq!(request_line(&found), "GET /z HTTP/1.1");
        }
        for location in ["https://shop.example.com/", "http://shop.example.com:1/"] {
            assert!(redirects.follow(302, location).is_err(), "{location}");
        }
    }

    #[test]
    fn redirects_are_limited() {
        let mut redirects = redirects(Method::GET, 2);
        assert!(redirects.follow(302, "/1").is_ok() && redirects.follow(302, "/2").is_ok());
        assert!(redirects.follow(302, "/3").unwrap_err().message.contains("maxRedirects"));
    }
}
