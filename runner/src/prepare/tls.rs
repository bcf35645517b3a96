//! TLS settings: trusted certificates, the protocol that the target has to agree to, and the
//! resumption of sessions.

mod certificate;

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use loadtest_core::{
    plan::Plan,
    resource::{HttpVersion, SessionResumption},
};
use rustls::{
    AlertDescription, ClientConfig, NamedGroup, RootCertStore, SignatureScheme,
    client::{
        ClientSessionStore, ResolvesClientCert, Resumption, Tls12ClientSessionValue,
        Tls13ClientSessionValue, WebPkiServerVerifier,
    },
    pki_types::{CertificateDer, ServerName, pem::PemObject},
    sign::CertifiedKey,
};

use self::certificate::{AcceptAnyCertificate, BundleVerifier};
use crate::prepare::error::PrepareError;

/// Number of sessions that all users of a runner share.
const SHARED_SESSIONS: usize = 256;

/// TLS settings of an endpoint.
#[derive(Clone, Debug)]
pub(crate) struct EndpointTls {
    /// The name that the certificate must carry.
    pub(crate) name: ServerName<'static>,
    pub(crate) settings: TlsSettings,
}

/// TLS settings of a plan.
#[derive(Clone, Debug)]
pub(crate) struct TlsSettings {
    pub(crate) config: Arc<ClientConfig>,
    pub(crate) client_certificate: Arc<NoClientCertificate>,
    /// True when each user resumes its own sessions, and needs settings of its own for that.
    pub(crate) is_per_user: bool,
}

/// The answer to a target that asks for a client certificate: there is none.
#[derive(Debug, Default)]
pub(crate) struct NoClientCertificate {
    was_asked: AtomicBool,
}

impl NoClientCertificate {
    /// Returns true when the target has asked for a certificate.
    pub(crate) fn was_asked(&self) -> bool {
        self.was_asked.load(Ordering::Relaxed)
    }
}

impl ResolvesClientCert for NoClientCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.was_asked.store(true, Ordering::Relaxed);
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

impl TlsSettings {
    /// Returns the settings for a new user.
    pub(crate) fn config_for_user(&self) -> Arc<ClientConfig> {
        if !self.is_per_user {
            return Arc::clone(&self.config);
        }
        let mut config = ClientConfig::clone(&self.config);
        config.resumption = Resumption::store(Arc::new(LastSession::default()));
        Arc::new(config)
    }
}

/// Returns the TLS settings of a plan. For HTTP/2 the target has to agree by ALPN.
pub(super) fn tls_settings(plan: &Plan, version: HttpVersion) -> Result<TlsSettings, PrepareError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(PrepareError::Tls)?;
    let tls = plan.test.target.tls.clone().unwrap_or_default();
    let builder = if tls.insecure_skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AcceptAnyCertificate))
    } else if let Some(pem) = &tls.ca_bundle {
        let certificates = CertificateDer::pem_slice_iter(pem.as_bytes());
        let bundle: Vec<_> =
            certificates.collect::<Result<_, _>>().map_err(|_| PrepareError::CaBundle)?;
        let mut roots = RootCertStore::empty();
        // A certificate that can't sign others may still be that of the target.
        let (added, _) = roots.add_parsable_certificates(bundle.iter().cloned());
        if added == 0 {
            return Err(PrepareError::CaBundle);
        }
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        let inner = inner.build().map_err(|_| PrepareError::CaBundle)?;
        let verifier = Arc::new(BundleVerifier { inner, bundle });
        builder.dangerous().with_custom_certificate_verifier(verifier)
    } else {
        let mut roots = RootCertStore::empty();
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        builder.with_root_certificates(roots)
    };
    let client_certificate = Arc::new(NoClientCertificate::default());
    let resolver = Arc::clone(&client_certificate);
    let mut config = builder.with_client_cert_resolver(resolver);
    if version == HttpVersion::Http2 {
        config.alpn_protocols = vec![b"h2".to_vec()];
    }
    config.resumption = match tls.session_resumption {
        SessionResumption::Shared => Resumption::in_memory_sessions(SHARED_SESSIONS),
        SessionResumption::PerUser | SessionResumption::Never => Resumption::disabled(),
    };
    let is_per_user = tls.session_resumption == SessionResumption::PerUser;
    Ok(TlsSettings { config: Arc::new(config), client_certificate, is_per_user })
}

/// The last TLS session of one user with one target. The store of the library keeps eight tickets
/// for each target, which is much for a user.
#[derive(Debug, Default)]
struct LastSession {
    state: Mutex<SessionState>,
}

#[derive(Debug, Default)]
struct SessionState {
    group: Option<NamedGroup>,
    tls12: Option<Tls12ClientSessionValue>,
    tls13: Option<Tls13ClientSessionValue>,
}

impl LastSession {
    fn with<T>(&self, change: impl FnOnce(&mut SessionState) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ClientSessionStore for LastSession {
    fn set_kx_hint(&self, _: ServerName<'static>, group: NamedGroup) {
        self.with(|state| state.group = Some(group));
    }

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        self.with(|state| state.group)
    }

    fn set_tls12_session(&self, _: ServerName<'static>, session: Tls12ClientSessionValue) {
        self.with(|state| state.tls12 = Some(session));
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.with(|state| state.tls12.clone())
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        self.with(|state| state.tls12 = None);
    }

    fn insert_tls13_ticket(&self, _: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        self.with(|state| state.tls13 = Some(ticket));
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.with(|state| state.tls13.take())
    }
}

/// Returns true for the failure of a handshake with a target that does not speak the offered version of HTTP.
pub(crate) fn refuses_protocol(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let refusal = rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol);
    inner == Some(&refusal) || inner == Some(&rustls::Error::NoApplicationProtocol)
}

/// Describes a failed handshake, and what to do where the load generator can't speak as the target
/// does.
pub(crate) fn describe_tls_error(error: &io::Error) -> String {
    const NO_COMMON_CIPHER: &str = "the load generator speaks TLS 1.3, and TLS 1.2 with ECDHE and AES-GCM or ChaCha20-Poly1305; it can't use older versions, CBC ciphers or RSA key exchange";
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(
            rustls::Error::AlertReceived(
                AlertDescription::HandshakeFailure
                | AlertDescription::ProtocolVersion
                | AlertDescription::InsufficientSecurity,
            )
            | rustls::Error::PeerIncompatible(_),
        ) => format!("{error}: {NO_COMMON_CIPHER}"),
        Some(rustls::Error::InvalidMessage(_)) => {
            format!("{error}: the target does not speak TLS on this port")
        }
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other))) => {
            let cause = other.0.to_string();
            let advice = match cause.as_str() {
                "UnsupportedCertVersion" => {
                    "the certificate has version 1, which the load generator can't verify; set tls.insecureSkipVerify"
                }
                "CaUsedAsEndEntity" => {
                    "the certificate is one of an authority; put it into tls.caBundle to trust it"
                }
                _ => {
                    "the load generator can't verify this certificate; tls.insecureSkipVerify accepts it"
                }
            };
            format!("{cause}: {advice}")
        }
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)) => {
            "the issuer of the certificate is not trusted: put its certificate into tls.caBundle, or let the target send its whole chain".to_owned()
        }
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            format!("target closed the connection in the handshake: {NO_COMMON_CIPHER}")
        }
        _ => error.to_string(),
    }
}
