//! HTTP server of the operator: its own metrics, and the probes for the kubelet.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::context::Context;

/// Listens on an address.
///
/// The address `[::]` accepts IPv6 and IPv4. On a machine without IPv6 it is replaced by `0.0.0.0`.
///
/// # Errors
/// Fails if the operating system can't bind the address.
pub async fn bind_listener(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(_) if address.ip() == Ipv6Addr::UNSPECIFIED => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        result => result,
    }
}

/// Serves `/metrics`, `/healthz` and `/readyz` until `stop` is cancelled.
///
/// # Errors
/// Fails if the listener fails.
pub async fn serve(
    listener: TcpListener,
    context: Arc<Context>,
    ready: Arc<AtomicBool>,
    stop: CancellationToken,
) -> io::Result<()> {
    let app = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route(
            "/readyz",
            get(async move || {
                if ready.load(Ordering::Acquire) {
                    (StatusCode::OK, "ok\n")
                } else {
                    (
                        StatusCode::SERVICE_UNAVAILABLE,
                        "this replica has not listed the LoadTests yet\n",
                    )
                }
            }),
        )
        .route("/metrics", get(serve_metrics))
        .with_state(context);
    axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn serve_metrics(State(context): State<Arc<Context>>) -> Response {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match context.metrics.encode_text() {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "failed to encode the metrics");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
