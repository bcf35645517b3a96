//! The control port: probes, the truth, and settings that change while the simulator runs.

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
GET    /truth/{run}                          one run; /truth/ has requests without x-loadtest-run
GET    /truth/{run}/records?endpoint=chat    records of one run as CSV, not sorted
DELETE /truth                                forget all runs
GET    /settings
PUT    /settings                             replace all settings; missing fields get their defaults
PATCH  /settings                             change some settings (JSON merge patch)
";

/// Serves the control port until `stopped` is true.
pub(crate) async fn serve_control(
    listener: TcpListener,
    server: Arc<Server>,
    mut stopped: watch::Receiver<bool>,
) {
    let router = Router::new()
        .route("/", get(INDEX))
        .route("/healthz", get("ok"))
        .route("/readyz", get("ok"))
        .route("/truth", get(list_runs).delete(forget_runs))
        .route("/truth/", get(get_unnamed_truth))
        .route("/truth/{run}", get(get_truth))
        .route("/truth/{run}/records", get(list_records))
        .route("/settings", get(get_settings).put(put_settings).patch(patch_settings))
        .with_state(server);
    // `Simulator::shutdown` waits until all receivers are dropped, so this one lives to the end.
    let _receiver = stopped.clone();
    let stop = async move {
        // `wait_for` fails when the `Simulator` was dropped; the port stops in this case, too.
        let _ = stopped.wait_for(|&stop| stop).await;
    };
    if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stop).await {
        tracing::error!(%error, "the control port stopped");
    }
}

async fn list_runs(State(server): State<Arc<Server>>) -> Response {
    Json(json!({"runs": server.runs.run_summaries()})).into_response()
}

async fn forget_runs(State(server): State<Arc<Server>>) -> StatusCode {
    server.runs.forget_runs();
    StatusCode::NO_CONTENT
}

async fn get_unnamed_truth(State(server): State<Arc<Server>>) -> Response {
    respond_with_truth(server, String::new()).await
}

async fn get_truth(State(server): State<Arc<Server>>, Path(run_uid): Path<String>) -> Response {
    respond_with_truth(server, run_uid).await
}

async fn respond_with_truth(server: Arc<Server>, run_uid: String) -> Response {
    // Sorting millions of records takes long, and this runtime may have only one thread.
    match tokio::task::spawn_blocking(move || server.runs.run_truth(&run_uid)).await {
        Ok(truth) => Json(truth).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[derive(Deserialize)]
struct RecordFilter {
    endpoint: Option<Endpoint>,
}

async fn list_records(
    State(server): State<Arc<Server>>,
    Path(run_uid): Path<String>,
    Query(filter): Query<RecordFilter>,
) -> Response {
    let Some(run) = server.runs.find_run(&run_uid) else {
        return (StatusCode::NOT_FOUND, format!("no run {run_uid:?}\n")).into_response();
    };
    let RecordFilter { endpoint } = filter;
    // The response is written one block at a time: CSV can need much more memory than records.
    let blocks = (0..run.shard_count()).flat_map(move |shard| {
        let run = run.clone();
        (0..).map_while(move |block| run.read_block(shard, block))
    });
    let lines = blocks.map(move |records| write_csv_lines(&records, endpoint));
    let header = std::iter::once(Record::CSV_HEADER.to_owned());
    let chunks = header.chain(lines).map(Ok::<_, Infallible>);
    let body = Body::from_stream(futures::stream::iter(chunks));
    ([(header::CONTENT_TYPE, "text/csv")], body).into_response()
}

fn write_csv_lines(records: &[Record], endpoint: Option<Endpoint>) -> String {
    let mut lines = String::new();
    let matches = |record: &&Record| endpoint.is_none_or(|endpoint| record.endpoint == endpoint);
    for record in records.iter().filter(matches) {
        record.write_csv(&mut lines);
    }
    lines
}

async fn get_settings(State(server): State<Arc<Server>>) -> Response {
    Json(server.current_settings().as_ref()).into_response()
}

async fn put_settings(State(server): State<Arc<Server>>, body: Bytes) -> Response {
    change_settings(&server, &body, Settings::from_json)
}

async fn patch_settings(State(server): State<Arc<Server>>, body: Bytes) -> Response {
    let current = server.current_settings();
    change_settings(&server, &body, |patch| current.with_patch(patch))
}

fn change_settings(
    server: &Server,
    body: &[u8],
    parse: impl FnOnce(Value) -> Result<Settings, SettingsError>,
) -> Response {
    let refuse = |problem: String| {
        (StatusCode::BAD_REQUEST, Json(json!({"error": problem}))).into_response()
    };
    let value = match serde_json::from_slice(body) {
        Ok(value) => value,
        Err(error) => return refuse(format!("settings are not JSON: {error}")),
    };
    match parse(value) {
        Ok(settings) => {
            tracing::info!("settings changed");
            server.replace_settings(settings.clone());
            Json(settings).into_response()
        }
        Err(error) => refuse(error.to_string()),
    }
}
