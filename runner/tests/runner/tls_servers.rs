//! TLS servers with unusual certificates and wishes.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use loadtest_core::{
    metrics::TaskMetrics,
    plan::Plan,
    resource::{ConnectionReuse, SessionResumption, Tls},
};
use rustls::{
    RootCertStore, ServerConfig, SupportedProtocolVersion,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{NoClientAuth, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
    version::{TLS12, TLS13},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

use crate::{
    harness::{only_task, run_plan},
    scripted_target::{ScriptedTarget, Step},
};

/// A certificate of version 1 for `localhost`, and its key. No other test uses them.
const VERSION_1: (&str, &str) = (
    "\
-----BEGIN CERTIFICATE-----\n\
MIIBJDCBywIUVcLuyHtbj+SJJ/yxegZmLF3YvGEwCgYIKoZIzj0EAwIwFDESMBAG\n\
A1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyODEzMjE0OVoYDzIxMjYxMTA0MTMyMTQ5\n\
WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNC\n\
AAT8ClhHrsm2/SI7NBXVTPw6A16Fzj+kje1MAZDWw5ElooYR9kcqveT6Z5Ayvbsq\n\
idJgZNU0OsnUkrWrim/HJSX+MAoGCCqGSM49BAMCA0gAMEUCIDb1aUPB3tgmofxQ\n\
Wzd0PWMY0vMBjmNgCgYtbkyNO6uPAiEAxllc08mnt5aHydvsBoMrt2MNVY3wIHjN\n\
FifW2SlTrkI=\n\
-----END CERTIFICATE-----",
    "\
-----BEGIN PRIVATE KEY-----\n\
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgiFf3UXgL60zAtdxt\n\
3PwmYgN3CizIAt1xAP+HI2mRKSChRANCAAT8ClhHrsm2/SI7NBXVTPw6A16Fzj+k\n\
je1MAZDWw5ElooYR9kcqveT6Z5AyvbsqidJgZNU0OsnUkrWrim/HJSX+\n\
-----END PRIVATE KEY-----",
);

/// Whether a server asks for a client certificate.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ClientAuth {
    None,
    Optional,
    Required,
}

/// A TLS server for `localhost`.
struct TlsServer {
    url: String,
    /// Its certificate in PEM form.
    certificate: String,
    /// Number of handshakes that resumed a session.
    resumed: Arc<AtomicU64>,
    /// True when it closes every third connection in the handshake.
    is_busy: Arc<AtomicBool>,
}

/// Returns a new certificate for `localhost` and its key, in PEM form.
fn new_certificate() -> (String, String) {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    (cert.pem(), signing_key.serialize_pem())
}

impl TlsServer {
    /// Starts a server that responds with status 200 to everything it reads. It may ask for a
    /// client certificate.
    async fn start(
        (certificate, key): (String, String),
        versions: &[&'static SupportedProtocolVersion],
        client_auth: ClientAuth,
    ) -> Self {
        let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let key = provider.key_provider.load_private_key(key).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(chain[0].clone()).unwrap();
        let builder =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let verifier: Arc<dyn ClientCertVerifier> = match client_auth {
            ClientAuth::None => Arc::new(NoClientAuth),
            ClientAuth::Optional => builder.allow_unauthenticated().build().unwrap(),
            ClientAuth::Required => builder.build().unwrap(),
        };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key))));
        config.ticketer = rustls::crypto::ring::Ticketer::new().unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let resumed = Arc::<AtomicU64>::default();
        let is_busy = Arc::<AtomicBool>::default();
        let (counter, busy) = (Arc::clone(&resumed), Arc::clone(&is_busy));
        tokio::spawn(async move {
            for number in 1_u64.. {
                let Ok((mut socket, _)) = listener.accept().await else { return };
                if busy.load(Ordering::Relaxed) && number.is_multiple_of(3) {
                    // The client has sent its part of the handshake. With unread bytes, the end would be a reset.
                    let _ = socket.read(&mut [0; 4096]).await;
                    continue;
                }
                tokio::spawn(serve_connection(socket, acceptor.clone(), Arc::clone(&counter)));
            }
        });
        Self { url, certificate, resumed, is_busy }
    }

    /// Builds a plan of two users for a second.
    async fn plan(&self, tls: Tls) -> Plan {
        let target = ScriptedTarget::start(vec![Step::Close]).await;
        let mut plan = target.plan(json!({"http": {"path": "/", "timeout": "3s"}}));
        plan.test.target.http = Some(self.url.clone());
        plan.test.target.tls = Some(tls);
        plan
    }

    /// Runs two users for a second. Returns the metrics of their task and the messages of its errors.
    async fn run(&self, tls: Tls) -> (TaskMetrics, Vec<String>) {
        let result = run_plan(self.plan(tls).await).await;
        (only_task(&result.metrics).clone(), result.examples.into_values().collect())
    }
}

async fn serve_connection(
    socket: TcpStream,
    acceptor: TlsAcceptor,
    resumed: Arc<AtomicU64>,
) -> Option<()> {
    let mut stream = acceptor.accept(socket).await.ok()?;
    if stream.get_ref().1.handshake_kind() == Some(rustls::HandshakeKind::Resumed) {
        resumed.fetch_add(1, Ordering::Relaxed);
    }
    let mut request = [0; 4096];
    while stream.read(&mut request).await.ok()? > 0 {
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.ok()?;
    }
    Some(())
}

#[tokio::test]
async fn certificate_is_verified_as_the_spec_says() {
    let server = TlsServer::start(new_certificate(), &[&TLS13, &TLS12], ClientAuth::None).await;
    let (task, messages) = server.run(Tls::default()).await;
    assert_eq!(task.errors.get("tls"), Some(&task.completed_requests()));
    assert!(messages[0].contains("put its certificate into tls.caBundle"), "{messages:?}");
    for tls in [
        Tls { ca_bundle: Some(server.certificate.clone()), ..Tls::default() },
        Tls { insecure_skip_verify: true, ..Tls::default() },
    ] {
        let (task, messages) = server.run(tls).await;
        assert!(task.completed_requests() > 0 && task.failed_requests() == 0, "{messages:?}");
    }
}

#[tokio::test]
async fn a_certificate_of_version_1_is_named_and_can_be_accepted() {
    let (certificate, key) = VERSION_1;
    let pair = (certificate.to_owned(), key.to_owned());
    let server = TlsServer::start(pair, &[&TLS13], ClientAuth::None).await;
    let (task, messages) =
        server.run(Tls { ca_bundle: Some(new_certificate().0), ..Tls::default() }).await;
    assert_eq!(task.errors.get("tls"), Some(&task.completed_requests()));
    assert!(messages[0].contains("version 1"), "{messages:?}");
    let (task, messages) = server.run(Tls { insecure_skip_verify: true, ..Tls::default() }).await;
    assert!(task.completed_requests() > 0 && task.failed_requests() == 0, "{messages:?}");
}

#[tokio::test]
async fn a_target_that_asks_for_a_client_certificate_is_named() {
    for version in [&TLS12, &TLS13] {
        let server = TlsServer::start(new_certificate(), &[version], ClientAuth::Required).await;
        let tls = Tls { ca_bundle: Some(server.certificate.clone()), ..Tls::default() };
        let (task, messages) = server.run(tls).await;
        assert_eq!(task.completed_requests(), task.failed_requests());
        let is_named = |message: &String| message.contains("asks for a client certificate");
        assert!(messages.iter().all(is_named) && !messages.is_empty(), "{version:?} {messages:?}");
    }
}

#[tokio::test]
async fn a_close_in_some_handshakes_is_no_matter_of_certificates() {
    let server = TlsServer::start(new_certificate(), &[&TLS13], ClientAuth::Optional).await;
    server.is_busy.store(true, Ordering::Relaxed);
    let tls = Tls { ca_bundle: Some(server.certificate.clone()), ..Tls::default() };
    let mut plan = server.plan(tls).await;
    plan.threads = 1;
    plan.test.target.connections = ConnectionReuse::PerRequest;
    let result = run_plan(plan).await;
    let errors = &only_task(&result.metrics).errors;
    assert!(errors["reset"] > 2, "{errors:?}");
    assert_eq!(errors.values().sum::<u64>(), errors["reset"], "{errors:?}");
    let messages: Vec<String> = result.examples.into_values().collect();
    assert_eq!(messages, ["target closed the connection in the TLS handshake"]);
}

#[tokio::test]
async fn sessions_are_resumed_as_the_spec_says() {
    let server = TlsServer::start(new_certificate(), &[&TLS13, &TLS12], ClientAuth::None).await;
    for resumption in
        [SessionResumption::PerUser, SessionResumption::Never, SessionResumption::Shared]
    {
        let before = server.resumed.load(Ordering::Relaxed);
        let mut plan = server
            .plan(Tls {
                ca_bundle: Some(server.certificate.clone()),
                session_resumption: resumption,
                ..Tls::default()
            })
            .await;
        plan.threads = 1;
        plan.test.target.connections = ConnectionReuse::PerRequest;
        let metrics = run_plan(plan).await.metrics;
        let task = only_task(&metrics);
        let resumed = server.resumed.load(Ordering::Relaxed) - before;
        assert_eq!((task.failed_requests(), task.tls_resumed), (0, resumed), "{resumption:?}");
        assert!(task.connections > 10, "{resumption:?}: {}", task.connections);
        // Each of two users has one full handshake of its own.
        let full = task.connections - resumed;
        match resumption {
            SessionResumption::PerUser => assert_eq!(full, 2),
            SessionResumption::Never => assert_eq!(resumed, 0),
            SessionResumption::Shared => assert!(full <= 2, "{full}"),
        }
    }
}
