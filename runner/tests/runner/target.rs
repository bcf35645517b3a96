//! A target with answers that Cell 0 does not give: redirects, compression, JSON; over both
//! versions of HTTP, with TLS and without.

use std::{
    io::Write,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, Version, header},
    response::{IntoResponse, Redirect, Response},
    routing::{any, get},
};
use flate2::{Compression, write::GzEncoder};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use loadtest_core::plan::Plan;
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use crate::load::{plan, simulator};

/// What a target has seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) connections: AtomicU64,
    pub(crate) requests: AtomicU64,
    /// Requests open at once now, and the most there were.
    open: AtomicU64,
    pub(crate) most: AtomicU64,
    /// Method and version of the latest request.
    pub(crate) latest: Mutex<String>,
}

#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) url: String,
    pub(crate) seen: Arc<Seen>,
    /// The certificate, with TLS.
    pub(crate) certificate: Option<String>,
}

/// How a target speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tls {
    None,
    /// Without agreeing to HTTP/2.
    Http1,
    Http2,
}

/// What a target allows of HTTP/2.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bounds {
    /// Requests at once on a connection.
    pub(crate) streams: Option<u32>,
    /// How long a connection lives before the target says that it goes away.
    pub(crate) life: Option<Duration>,
}

impl Target {
    pub(crate) async fn start(tls: Tls) -> Self {
        Self::bounded(tls, Bounds::default()).await
    }

    pub(crate) async fn bounded(tls: Tls, bounds: Bounds) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen: Arc<Seen> = Arc::default();
        let (acceptor, certificate) = acceptor(tls).unzip();
        let app = router(Arc::clone(&seen));
        let counted = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                counted.connections.fetch_add(1, Ordering::Relaxed);
                let (app, acceptor) = (app.clone(), acceptor.clone());
                tokio::spawn(async move {
                    match acceptor {
                        None => serve(socket, app, bounds).await,
                        Some(acceptor) => {
                            if let Ok(session) = acceptor.accept(socket).await {
                                serve(session, app, bounds).await;
                            }
                        }
                    }
                });
            }
        });
        let scheme = if tls == Tls::None { "http" } else { "https" };
        Self { url: format!("{scheme}://localhost:{port}"), seen, certificate }
    }

    /// A plan with one http task against it.
    pub(crate) async fn plan(&self, users: u32, task: Value) -> Plan {
        let simulator = simulator("{}").await;
        let tasks = json!([{"name": "it", "http": task}]);
        let mut plan = plan(&simulator, users, "1s", &tasks);
        plan.target.http = Some(self.url.clone());
        plan.target.tls = self.certificate.clone().map(|pem| loadtest_core::resource::Tls {
            ca_bundle: Some(pem),
            insecure_skip_verify: false,
        });
        plan
    }

    pub(crate) fn count(&self, which: fn(&Seen) -> &AtomicU64) -> u64 {
        which(&self.seen).load(Ordering::Relaxed)
    }

    pub(crate) fn latest(&self) -> String {
        self.seen.latest.lock().unwrap().clone()
    }
}

fn acceptor(tls: Tls) -> Option<(TlsAcceptor, String)> {
    if tls == Tls::None {
        return None;
    }
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    if tls == Tls::Http2 {
        config.alpn_protocols = vec![b"h2".to_vec()];
    }
    Some((TlsAcceptor::from(Arc::new(config)), cert.pem()))
}

async fn serve(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    app: Router,
    bounds: Bounds,
) {
    let service = TowerToHyperService::new(app);
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http2().max_concurrent_streams(bounds.streams);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(io), service));
    let life = tokio::time::sleep(bounds.life.unwrap_or(Duration::MAX));
    // A client that leaves is not the target's failure.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = life => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

fn router(seen: Arc<Seen>) -> Router {
    Router::new()
        .route("/ok", any(ok))
        .route("/slow", get(slow))
        .route("/never", get(std::future::pending::<()>))
        .route("/close", get(|| async { ([(header::CONNECTION, "close")], "bye") }))
        .route("/json", get(|headers: HeaderMap| async move { compressed(&headers) }))
        .route("/moved", any(|| async { Redirect::to("ok") }))
        .route("/moved-for-good", any(|| async { Redirect::permanent("/moved") }))
        .route("/loop", get(|| async { Redirect::to("/loop") }))
        .route("/away", get(|| async { Redirect::to("http://elsewhere.example/") }))
        .with_state(seen)
}

async fn ok(
    State(seen): State<Arc<Seen>>,
    version: Version,
    method: axum::http::Method,
    body: Bytes,
) -> Response {
    seen.requests.fetch_add(1, Ordering::Relaxed);
    *seen.latest.lock().unwrap() = format!("{method} {version:?} {} bytes", body.len());
    StatusCode::OK.into_response()
}

/// Answers after 50 ms.
async fn slow(State(seen): State<Arc<Seen>>) -> &'static str {
    let open = seen.open.fetch_add(1, Ordering::Relaxed) + 1;
    seen.most.fetch_max(open, Ordering::Relaxed);
    seen.requests.fetch_add(1, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(50)).await;
    seen.open.fetch_sub(1, Ordering::Relaxed);
    "slow"
}

/// JSON, compressed for those who ask.
fn compressed(headers: &HeaderMap) -> Response {
    let body = json!({"status": "ok", "items": [{"id": 7}], "pad": "x".repeat(5000)}).to_string();
    let kind = (header::CONTENT_TYPE, "application/json");
    let asked = headers.get(header::ACCEPT_ENCODING).is_some_and(|value| value == "gzip");
    if !asked {
        return ([kind], body).into_response();
    }
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(body.as_bytes()).unwrap();
    ([kind, (header::CONTENT_ENCODING, "gzip")], encoder.finish().unwrap()).into_response()
}
