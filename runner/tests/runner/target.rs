//! A test target for responses that the simulator does not send: redirects, gzip and JSON. It
//! serves HTTP/1.1 and HTTP/2, with and without TLS.

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

use crate::harness::{build_plan, start_simulator};

/// Counters of a [`Target`].
#[derive(Debug, Default)]
pub(crate) struct TargetStats {
    pub(crate) connections: AtomicU64,
    pub(crate) requests: AtomicU64,
    /// Requests to `/slow` that are in flight.
    in_flight: AtomicU64,
    /// Maximum of `in_flight`.
    pub(crate) max_in_flight: AtomicU64,
    /// Method, HTTP version and body size of the latest request to `/ok`.
    pub(crate) latest_request: Mutex<String>,
}

/// A running test target.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) url: String,
    pub(crate) stats: Arc<TargetStats>,
    /// Certificate in PEM form; `None` without TLS.
    pub(crate) certificate: Option<String>,
}

/// TLS of a target, and the HTTP version that it negotiates by ALPN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tls {
    None,
    /// The target offers no HTTP/2.
    Http1,
    Http2,
}

/// Limits of a target.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limits {
    /// Maximum concurrent HTTP/2 streams per connection.
    pub(crate) max_streams: Option<u32>,
    /// Age of a connection when the target starts its graceful shutdown (GOAWAY in HTTP/2).
    pub(crate) max_connection_age: Option<Duration>,
}

impl Target {
    pub(crate) async fn start(tls: Tls) -> Self {
        Self::start_limited(tls, Limits::default()).await
    }

    pub(crate) async fn start_limited(tls: Tls, limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let stats: Arc<TargetStats> = Arc::default();
        let (acceptor, certificate) = build_acceptor(tls).unzip();
        let app = build_router(Arc::clone(&stats));
        let server_stats = Arc::clone(&stats);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                server_stats.connections.fetch_add(1, Ordering::Relaxed);
                let (app, acceptor) = (app.clone(), acceptor.clone());
                tokio::spawn(async move {
                    match acceptor {
                        None => serve_connection(socket, app, limits).await,
                        Some(acceptor) => {
                            if let Ok(session) = acceptor.accept(socket).await {
                                serve_connection(session, app, limits).await;
                            }
                        }
                    }
                });
            }
        });
        let scheme = if tls == Tls::None { "http" } else { "https" };
        Self { url: format!("{scheme}://localhost:{port}"), stats, certificate }
    }

    /// Builds a plan of 1 s with one `http` task, named `it`, against this target.
    pub(crate) async fn build_plan(&self, users: u32, task_spec: Value) -> Plan {
        let simulator = start_simulator("{}").await;
        let tasks = json!([{"name": "it", "http": task_spec}]);
        let mut plan = build_plan(&simulator, users, "1s", &tasks);
        plan.test.target.http = Some(self.url.clone());
        plan.test.target.tls = self.certificate.clone().map(|pem| loadtest_core::resource::Tls {
            ca_bundle: Some(pem),
            insecure_skip_verify: false,
            ..loadtest_core::resource::Tls::default()
        });
        plan
    }

    /// Reads one counter.
    pub(crate) fn count(&self, counter: fn(&TargetStats) -> &AtomicU64) -> u64 {
        counter(&self.stats).load(Ordering::Relaxed)
    }

    pub(crate) fn latest_request(&self) -> String {
        self.stats.latest_request.lock().unwrap().clone()
    }
}

fn build_acceptor(tls: Tls) -> Option<(TlsAcceptor, String)> {
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

async fn serve_connection(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    app: Router,
    limits: Limits,
) {
    let service = TowerToHyperService::new(app);
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http2().max_concurrent_streams(limits.max_streams);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(io), service));
    let max_age = tokio::time::sleep(limits.max_connection_age.unwrap_or(Duration::MAX));
    // The client may close its connection at any time, so errors are ignored.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = max_age => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

fn build_router(stats: Arc<TargetStats>) -> Router {
    Router::new()
        .route("/ok", any(respond_ok))
        .route("/slow", get(respond_slowly))
        .route("/never", get(std::future::pending::<()>))
        .route("/close", get(|| async { ([(header::CONNECTION, "close")], "bye") }))
        .route("/json", get(|headers: HeaderMap| async move { respond_json(&headers) }))
        .route("/moved", any(|| async { Redirect::to("ok") }))
        .route("/moved-for-good", any(|| async { Redirect::permanent("/moved") }))
        .route("/loop", get(|| async { Redirect::to("/loop") }))
        .route("/away", get(|| async { Redirect::to("http://elsewhere.example/") }))
        .with_state(stats)
}

async fn respond_ok(
    State(stats): State<Arc<TargetStats>>,
    version: Version,
    method: axum::http::Method,
    body: Bytes,
) -> Response {
    stats.requests.fetch_add(1, Ordering::Relaxed);
    *stats.latest_request.lock().unwrap() = format!("{method} {version:?} {} bytes", body.len());
    StatusCode::OK.into_response()
}

/// Responds after 50 ms.
async fn respond_slowly(State(stats): State<Arc<TargetStats>>) -> &'static str {
    let in_flight = stats.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
    stats.max_in_flight.fetch_max(in_flight, Ordering::Relaxed);
    stats.requests.fetch_add(1, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(50)).await;
    stats.in_flight.fetch_sub(1, Ordering::Relaxed);
    "slow"
}

/// Responds with JSON of over 5,000 bytes, compressed with gzip if the client accepts gzip.
fn respond_json(headers: &HeaderMap) -> Response {
    let body = json!({"status": "ok", "items": [{"id": 7}], "pad": "x".repeat(5000)}).to_string();
    let content_type = (header::CONTENT_TYPE, "application/json");
    let accepts_gzip = headers.get(header::ACCEPT_ENCODING).is_some_and(|value| value == "gzip");
    if !accepts_gzip {
        return ([content_type], body).into_response();
    }
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(body.as_bytes()).unwrap();
    ([content_type, (header::CONTENT_ENCODING, "gzip")], encoder.finish().unwrap()).into_response()
}
