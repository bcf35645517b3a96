//! TLS settings: trusted certificates and the protocol that the target has to agree to.

use std::sync::Arc;

use loadtest_core::{plan::Plan, resource::HttpVersion};
use rustls::{
    ClientConfig, RootCertStore,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};

use crate::prepare::error::PrepareError;

/// Returns the TLS settings of a plan. For HTTP/2 the target has to agree by ALPN.
pub(super) fn client_config(
    plan: &Plan,
    version: HttpVersion,
) -> Result<Arc<ClientConfig>, PrepareError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(PrepareError::Tls)?;
    let tls = plan.test.target.tls.clone().unwrap_or_default();
    if tls.insecure_skip_verify {
        let verifier = Arc::new(AcceptAnyCertificate(provider));
        let config = builder.dangerous().with_custom_certificate_verifier(verifier);
        return Ok(Arc::new(with_alpn(config.with_no_client_auth(), version)));
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
    Ok(Arc::new(with_alpn(builder.with_root_certificates(roots).with_no_client_auth(), version)))
}

fn with_alpn(mut config: ClientConfig, version: HttpVersion) -> ClientConfig {
    if version == HttpVersion::Http2 {
        config.alpn_protocols = vec![b"h2".to_vec()];
    }
    config
}

/// Accepts any certificate. Used only with `insecureSkipVerify`.
#[derive(Debug)]
struct AcceptAnyCertificate(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for AcceptAnyCertificate {
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
