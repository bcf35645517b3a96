//! Base URLs: where connections go, and how the other side's certificate is judged.

use std::sync::Arc;

use http::Uri;
use loadtest_core::{plan::Plan, resource::HttpVersion};
use rustls::{
    ClientConfig, RootCertStore,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};

use super::{Form, PrepareError};

/// Host, port and TLS of a base URL.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(crate) host: String,
    pub(crate) port: u16,
    /// The certificate's expected name and how it is judged; absent without TLS.
    pub(crate) tls: Option<(ServerName<'static>, Arc<ClientConfig>)>,
    /// `host` or `host:port`, as the Host header wants it.
    pub(crate) authority: String,
    /// Path of the base URL, without a slash at its end.
    pub(crate) base: String,
}

impl Endpoint {
    pub(super) fn parse(
        url: &str,
        field: &'static str,
        example: &'static str,
        tls: &Arc<ClientConfig>,
    ) -> Result<Self, PrepareError> {
        let wrong = || PrepareError::Url { field, value: url.to_owned(), example };
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let authority = uri.authority().ok_or_else(wrong)?;
        let (secure, default_port) = match uri.scheme_str() {
            Some("http" | "ws") => (false, 80),
            Some("https" | "wss") => (true, 443),
            _ => return Err(wrong()),
        };
        // A port that is none must not become the default one: that is another service.
        let rest = authority.as_str().strip_prefix(authority.host()).unwrap_or_default();
        let port = match rest.strip_prefix(':') {
            None if rest.is_empty() => default_port,
            None => return Err(wrong()),
            Some(text) => text.parse().map_err(|_| wrong())?,
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let tls = if secure {
            let name = ServerName::try_from(host.clone()).map_err(|_| wrong())?;
            Some((name, Arc::clone(tls)))
        } else {
            None
        };
        Ok(Self {
            port,
            authority: authority.as_str().to_owned(),
            base: uri.path().trim_end_matches('/').to_owned(),
            host,
            tls,
        })
    }

    /// What its requests have in common.
    pub(super) fn form(&self, version: HttpVersion) -> Result<Form, PrepareError> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let origin = format!("{scheme}://{}", self.authority);
        let origin = origin.parse().map_err(|_| PrepareError::Url {
            field: "target.http",
            value: origin,
            example: "http://cell0:18800",
        })?;
        Ok(Form { origin, http2: version == HttpVersion::Http2 })
    }

    pub(super) fn uri(&self, path: &str) -> Result<Uri, PrepareError> {
        let full = format!("{}{path}", self.base);
        full.parse().map_err(|_| PrepareError::Url {
            field: "path",
            value: full,
            example: "/health",
        })
    }
}

/// How TLS is spoken; HTTP/2 has to be agreed upon.
pub(super) fn tls_config(
    plan: &Plan,
    version: HttpVersion,
) -> Result<Arc<ClientConfig>, PrepareError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(PrepareError::Tls)?;
    let tls = plan.target.tls.clone().unwrap_or_default();
    if tls.insecure_skip_verify {
        let verifier = Arc::new(AnyCertificate(provider));
        let config = builder.dangerous().with_custom_certificate_verifier(verifier);
        return Ok(Arc::new(agreeing(config.with_no_client_auth(), version)));
    }
    let mut roots = RootCertStore::empty();
    match &tls.ca_bundle {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                let certificate = certificate.map_err(|_| PrepareError::CaBundle)?;
                roots.add(certificate).map_err(|_| PrepareError::CaBundle)?;
            }
            if roots.is_empty() {
                return Err(PrepareError::CaBundle);
            }
        }
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
    }
    Ok(Arc::new(agreeing(builder.with_root_certificates(roots).with_no_client_auth(), version)))
}

fn agreeing(mut config: ClientConfig, version: HttpVersion) -> ClientConfig {
    if version == HttpVersion::Http2 {
        config.alpn_protocols = vec![b"h2".to_vec()];
    }
    config
}

/// Takes any certificate: what `insecureSkipVerify` asks for by name.
#[derive(Debug)]
struct AnyCertificate(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
