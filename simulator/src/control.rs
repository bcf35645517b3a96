//! The control port: probes, the truth, and settings that change while the simulator runs.

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::{
    http::http1_builder,
    server::Server,
    settings::{Settings, SettingsError},
    truth::{Endpoint, Record},
};

/// Maximum length of new settings.
const MAX_SETTINGS_BYTES: usize = 2 << 20;

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

type Reply = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// Serves one connection until it ends.
pub(crate) async fn serve_connection(server: Arc<Server>, socket: TcpStream) {
    let service = service_fn(|request| {
        let server = Arc::clone(&server);
        async move { Ok::<_, Infallible>(respond(server, request).await) }
    });
    let result = http1_builder().serve_connection(TokioIo::new(socket), service).await;
    if let Err(error) = result {
        tracing::debug!(%error, "control connection ended");
    }
}

async fn respond(server: Arc<Server>, request: Request<Incoming>) -> Reply {
    let (head, body) = request.into_parts();
    let path: Vec<&str> = head.uri.path().split('/').skip(1).collect();
    match (head.method.as_str(), path.as_slice()) {
        ("GET", [""]) => text_reply(StatusCode::OK, INDEX),
        ("GET", ["healthz" | "readyz"]) => text_reply(StatusCode::OK, "ok"),
        ("GET", ["truth"]) => {
            json_reply(StatusCode::OK, &json!({"runs": server.runs.run_summaries()}))
        }
        ("DELETE", ["truth"]) => {
            server.runs.forget_runs();
            text_reply(StatusCode::NO_CONTENT, "")
        }
        ("GET", ["truth", run_uid]) => truth_reply(server, (*run_uid).to_owned()).await,
        ("GET", ["truth", run_uid, "records"]) => {
            records_reply(&server, run_uid, head.uri.query().unwrap_or_default())
        }
        ("GET", ["settings"]) => json_reply(StatusCode::OK, server.current_settings().as_ref()),
        ("PUT", ["settings"]) => change_settings(&server, body, Settings::from_json).await,
        ("PATCH", ["settings"]) => {
            let current = server.current_settings();
            change_settings(&server, body, |patch| current.with_patch(patch)).await
        }
        _ => {
            let problem = format!("no {} {}; this port serves:\n{INDEX}", head.method, head.uri);
            text_reply(StatusCode::NOT_FOUND, problem)
        }
    }
}

fn reply_with(
    status: StatusCode,
    content_type: &'static str,
    body: UnsyncBoxBody<Bytes, Infallible>,
) -> Reply {
    let mut reply = Response::new(body);
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}

fn text_reply(status: StatusCode, text: impl Into<Bytes>) -> Reply {
    reply_with(status, "text/plain; charset=utf-8", Full::new(text.into()).boxed_unsync())
}

fn json_reply(status: StatusCode, value: &impl Serialize) -> Reply {
    match serde_json::to_vec(value) {
        Ok(body) => reply_with(status, "application/json", Full::from(body).boxed_unsync()),
        Err(error) => text_reply(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

async fn truth_reply(server: Arc<Server>, run_uid: String) -> Reply {
    // Sorting millions of records takes long, and this runtime may have only one thread.
    match tokio::task::spawn_blocking(move || server.runs.run_truth(&run_uid)).await {
        Ok(truth) => json_reply(StatusCode::OK, &truth),
        Err(error) => text_reply(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// Replies with the records of a run as CSV. The query may name one endpoint.
fn records_reply(server: &Server, run_uid: &str, query: &str) -> Reply {
    let Some(run) = server.runs.find_run(run_uid) else {
        return text_reply(StatusCode::NOT_FOUND, format!("no run {run_uid:?}\n"));
    };
    let endpoint = match parse_endpoint(query) {
        Ok(endpoint) => endpoint,
        Err(problem) => return text_reply(StatusCode::BAD_REQUEST, problem),
    };
    // The response is written one block at a time: CSV can need much more memory than records.
    let blocks = (0..run.shard_count()).flat_map(move |shard| {
        let run = run.clone();
        (0..).map_while(move |block| run.read_block(shard, block))
    });
    let lines = blocks.map(move |records| write_csv_lines(&records, endpoint));
    let header = std::iter::once(Record::CSV_HEADER.to_owned());
    let frames = header.chain(lines).map(|chunk| Ok(Frame::data(Bytes::from(chunk))));
    let body = StreamBody::new(stream::iter(frames));
    reply_with(StatusCode::OK, "text/csv", body.boxed_unsync())
}

/// Parses the query of records: empty, or `endpoint=NAME`.
fn parse_endpoint(query: &str) -> Result<Option<Endpoint>, String> {
    if query.is_empty() {
        return Ok(None);
    }
    let name = query
        .strip_prefix("endpoint=")
        .ok_or_else(|| format!("query {query:?} is unknown; use ?endpoint=chat\n"))?;
    serde_json::from_value(Value::from(name))
        .map(Some)
        .map_err(|error| format!("endpoint: {error}\n"))
}

fn write_csv_lines(records: &[Record], endpoint: Option<Endpoint>) -> String {
    let mut lines = String::new();
    let matches = |record: &&Record| endpoint.is_none_or(|endpoint| record.endpoint == endpoint);
    for record in records.iter().filter(matches) {
        record.write_csv(&mut lines);
    }
    lines
}

async fn change_settings(
    server: &Server,
    body: Incoming,
    parse: impl FnOnce(Value) -> Result<Settings, SettingsError>,
) -> Reply {
    let refuse = |problem: String| json_reply(StatusCode::BAD_REQUEST, &json!({"error": problem}));
    let body = match Limited::new(body, MAX_SETTINGS_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return refuse(format!("settings can't be read: {error}")),
    };
    let value = match serde_json::from_slice(&body) {
        Ok(value) => value,
        Err(error) => return refuse(format!("settings are not JSON: {error}")),
    };
    match parse(value) {
        Ok(settings) => {
            tracing::info!("settings changed");
            server.replace_settings(settings.clone());
            json_reply(StatusCode::OK, &settings)
        }
        Err(error) => refuse(error.to_string()),
    }
}
