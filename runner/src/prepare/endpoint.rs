//! Base URLs: host, port, path and TLS settings of a target.

use http::{Uri, uri::Authority};
use loadtest_core::resource::HttpVersion;
use rustls::pki_types::ServerName;

use crate::prepare::{
    error::PrepareError,
    request::Origin,
    tls::{EndpointTls, TlsSettings},
};

/// Host, port, path and TLS settings of a base URL.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    /// The name or address to connect to.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// `None` without TLS.
    pub(crate) tls: Option<EndpointTls>,
    /// `host` or `host:port`, as in the Host header.
    pub(crate) authority: String,
    /// Path of the base URL, without a slash at its end.
    pub(crate) base_path: String,
}

impl Endpoint {
    pub(super) fn parse(
        url: &str,
        field: &'static str,
        example: &'static str,
        settings: &TlsSettings,
        server_name: Option<&String>,
    ) -> Result<Self, PrepareError> {
        let invalid = || PrepareError::Url { field, value: url.to_owned(), example };
        let uri: Uri = url.parse().map_err(|_| invalid())?;
        let authority = uri.authority().ok_or_else(invalid)?;
        let (is_secure, default_port) = match uri.scheme_str() {
            Some("http" | "ws") => (false, 80),
            Some("https" | "wss") => (true, 443),
            _ => return Err(invalid()),
        };
        // An invalid port must not become the default port, which belongs to another service.
        let rest = authority.as_str().strip_prefix(authority.host()).unwrap_or_default();
        let port = match rest.strip_prefix(':') {
            None if rest.is_empty() => default_port,
            None => return Err(invalid()),
            Some(text) => text.parse().map_err(|_| invalid())?,
        };
        let host = host_to_resolve(authority);
        let tls = if is_secure {
            let name = server_name.unwrap_or(&host);
            Some(EndpointTls {
                name: ServerName::try_from(name.clone()).map_err(|_| invalid())?,
                settings: settings.clone(),
            })
        } else {
            None
        };
        Ok(Self {
            port,
            authority: authority.as_str().to_owned(),
            base_path: uri.path().trim_end_matches('/').to_owned(),
            host,
            tls,
        })
    }

    /// Returns the origin that all requests to this endpoint share.
    pub(super) fn origin(&self, version: HttpVersion) -> Result<Origin, PrepareError> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}", self.authority);
        let url = url.parse().map_err(|_| PrepareError::Url {
            field: "target.http",
            value: url,
            example: "http://cell0:18800",
        })?;
        Ok(Origin { url, speaks_http2: version == HttpVersion::Http2 })
    }

    /// Returns the path and query of a request: the base path followed by `path`.
    pub(super) fn request_uri(&self, path: &str) -> Result<Uri, PrepareError> {
        let full_path = format!("{}{path}", self.base_path);
        full_path.parse().map_err(|_| PrepareError::Url {
            field: "path",
            value: full_path,
            example: "/health",
        })
    }
}

/// Returns the host of a URL in lower case, without the brackets of an IPv6 address.
///
/// Names have no case (RFC 4343), but musl searches `/etc/hosts` for the exact letters.
fn host_to_resolve(authority: &Authority) -> String {
    authority.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_resolved_in_lower_case() {
        for (authority, host) in
            [("SHOP.Test:80", "shop.test"), ("[::FFFF:1]", "::ffff:1"), ("cell0", "cell0")]
        {
            assert_eq!(host_to_resolve(&Authority::from_static(authority)), host);
        }
    }
}
