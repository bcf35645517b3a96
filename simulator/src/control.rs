//! The control port: probes, the truth, and live settings.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch};

use crate::{
    server::Server,
    settings::{Settings, SettingsError},
    truth::{Endpoint, Record},
};

const INDEX: &str = "Cell 0 simulator, control port
GET    /healthz  /readyz
GET    /truth                                all runs
GET    /truth/{run}                          one run (/truth/ for requests without x-loadtest-run)
GET    /truth/{run}/records?endpoint=chat    its records, as CSV, in no order
DELETE /truth                                forget all runs
GET    /settings
PUT    /settings                             all settings; what is left out has its default
PATCH  /settings                             a JSON merge patch
";

/// Serves the control port until told to stop.
pub(crate) async fn serve(
    listener: TcpListener,
    server: Arc<Server>,
    mut stopped: watch::Receiver<bool>,
) {
    let router = Router::new()
        .route("/", get(INDEX))
        .route("/healthz", get("ok"))
        .route("/readyz", get("ok"))
        .route("/truth", get(runs).delete(forget))
        .route("/truth/", get(nameless))
        .route("/truth/{run}", get(truth))
        .route("/truth/{run}/records", get(records))
        .route("/settings", get(settings).put(put_settings).patch(patch_settings))
        .with_state(server);
    // Kept to the end: whoever stops us waits until all receivers are gone.
    let _open = stopped.clone();
    let stop = async move {
        // A simulator that is gone stops, too.
        let _ = stopped.wait_for(|&stop| stop).await;
    };
    if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stop).await {
        tracing::error!(%error, "the control port ended");
    }
}

async fn runs(State(server): State<Arc<Server>>) -> Response {
    Json(json!({"runs": server.ledger.summaries()})).into_response()
}

async fn forget(State(server): State<Arc<Server>>) -> StatusCode {
    server.ledger.clear();
    StatusCode::NO_CONTENT
}

async fn nameless(State(server): State<Arc<Server>>) -> Response {
    truth_of(server, String::new()).await
}

async fn truth(State(server): State<Arc<Server>>, Path(run): Path<String>) -> Response {
    truth_of(server, run).await
}

async fn truth_of(server: Arc<Server>, run: String) -> Response {
    // Sorting millions of records takes a while, and this runtime may have one thread only.
    match tokio::task::spawn_blocking(move || server.ledger.truth(&run)).await {
        Ok(truth) => Json(truth).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[derive(Deserialize)]
struct Selection {
    endpoint: Option<Endpoint>,
}

async fn records(
    State(server): State<Arc<Server>>,
    Path(run): Path<String>,
    Query(selection): Query<Selection>,
) -> Response {
    let Some(run) = server.ledger.find(&run) else {
        return (StatusCode::NOT_FOUND, format!("no run {run:?}\n")).into_response();
    };
    let Selection { endpoint } = selection;
    // One block at a time: a run's records may be much larger as text than they are in memory.
    let blocks = (0..run.shards()).flat_map(move |shard| {
        let run = run.clone();
        (0..).map_while(move |block| run.block(shard, block))
    });
    let lines = blocks.map(move |records| csv(&records, endpoint));
    let header = std::iter::once(Record::CSV_HEADER.to_owned());
    let chunks = header.chain(lines).map(Ok::<_, Infallible>);
    let body = Body::from_stream(futures::stream::iter(chunks));
    ([(header::CONTENT_TYPE, "text/csv")], body).into_response()
}

fn csv(records: &[Record], endpoint: Option<Endpoint>) -> String {
    let mut lines = String::new();
    let wanted = |record: &&Record| endpoint.is_none_or(|endpoint| record.endpoint == endpoint);
    for record in records.iter().filter(wanted) {
        record.write_csv(&mut lines);
    }
    lines
}

async fn settings(State(server): State<Arc<Server>>) -> Response {
    Json(server.settings().as_ref()).into_response()
}

async fn put_settings(State(server): State<Arc<Server>>, body: Bytes) -> Response {
    change(&server, &body, Settings::from_json)
}

async fn patch_settings(State(server): State<Arc<Server>>, body: Bytes) -> Response {
    let now = server.settings();
    change(&server, &body, |patch| now.patched(patch))
}

fn change(
    server: &Server,
    body: &[u8],
    read: impl FnOnce(Value) -> Result<Settings, SettingsError>,
) -> Response {
    let refuse = |problem: String| {
        (StatusCode::BAD_REQUEST, Json(json!({"error": problem}))).into_response()
    };
    let value = match serde_json::from_slice(body) {
        Ok(value) => value,
        Err(error) => return refuse(format!("settings are not JSON: {error}")),
    };
    match read(value) {
        Ok(settings) => {
            tracing::info!("settings changed");
            server.set(settings.clone());
            Json(settings).into_response()
        }
        Err(error) => refuse(error.to_string()),
    }
}
