//! Everything a request needs that can be made before load starts, shared by all workers.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use loadtest_core::{
    mix::Mix,
    plan::{Goals, Plan, header_variable},
    resource::{ChatTask, HttpTask, Task, TaskKind, WebSocketTask},
};
use rustls::{
    ClientConfig, RootCertStore,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};

/// The header with the run's UID that every request carries.
pub const RUN_HEADER: &str = "x-loadtest-run";

/// A plan that a runner can't carry out, with the field to mend.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// A base URL that is none.
    #[error("{field}: {value:?} is not a URL such as {example}")]
    Url {
        /// The field of the spec.
        field: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        example: &'static str,
    },
    /// A task without the base URL it needs.
    #[error("{field} is missing: task {task:?} needs it")]
    MissingUrl {
        /// The field of the spec.
        field: &'static str,
        /// The task's name.
        task: String,
    },
    /// A header that can't be sent.
    #[error("header {name:?} is not a valid header, or its value is not")]
    Header {
        /// The header's name; its value may be a secret.
        name: String,
    },
    /// A header's value from a Secret that is not in the environment.
    #[error("environment variable {variable} is not set: it gives the value of header {name:?}")]
    Secret {
        /// The header's name.
        name: String,
        /// The variable.
        variable: String,
    },
    /// Certificates that can't be read.
    #[error("target.tls.caBundle: no certificate could be read from it")]
    CaBundle,
    /// A task with no kind or several.
    #[error("task {task:?} must have exactly one of http, chat and webSocket")]
    Kind {
        /// The task's name.
        task: String,
    },
    /// TLS can't be set up.
    #[error("TLS can't be set up")]
    Tls(#[source] rustls::Error),
}

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

/// One task, ready to run.
#[derive(Debug)]
pub(crate) struct PreparedTask {
    pub(crate) name: String,
    pub(crate) timeout: Duration,
    /// What makes a request of it a good one.
    pub(crate) goals: Goals,
    pub(crate) kind: PreparedKind,
}

#[derive(Debug)]
pub(crate) enum PreparedKind {
    Http(PreparedHttp),
    Chat(PreparedChat),
    WebSocket(PreparedWebSocket),
}

/// A whole request as it goes over the wire.
#[derive(Clone)]
pub(crate) struct Request {
    pub(crate) bytes: Bytes,
    /// Its answer has no body, whatever its head says.
    pub(crate) is_head: bool,
}

/// Headers may hold credentials.
impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Request({} bytes)", self.bytes.len())
    }
}

/// An HTTP request.
#[derive(Debug)]
pub(crate) struct PreparedHttp {
    pub(crate) request: Request,
    /// Method and path, for messages.
    pub(crate) name: String,
    /// Statuses that count as success; any below 400 when empty.
    pub(crate) expect: Vec<u16>,
}

/// A chat completion: one request for each model and message.
#[derive(Debug)]
pub(crate) struct PreparedChat {
    pub(crate) http: PreparedHttp,
    pub(crate) requests: Vec<Request>,
    pub(crate) stream: bool,
}

/// A WebSocket session.
#[derive(Debug)]
pub(crate) struct PreparedWebSocket {
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) send: Vec<String>,
    pub(crate) replies: u32,
    pub(crate) close: bool,
}

/// A plan, ready to run.
#[derive(Debug)]
pub struct Prepared {
    pub(crate) plan: Plan,
    pub(crate) http: Option<Endpoint>,
    pub(crate) web_socket: Option<Endpoint>,
    pub(crate) tasks: Vec<PreparedTask>,
    pub(crate) mix: Mix,
}

impl Prepared {
    /// Prepares a plan. `secret` gives the value of an environment variable.
    ///
    /// # Errors
    /// When a URL, header or certificate can't be used; the message names the field.
    pub fn new(
        plan: Plan,
        secret: impl Fn(&str) -> Option<String>,
    ) -> Result<Arc<Self>, PrepareError> {
        let shared = shared_headers(&plan, secret)?;
        let tls = tls_config(&plan)?;
        let endpoint = |url: &Option<String>, field, example| {
            url.as_ref().map(|url| Endpoint::parse(url, field, example, &tls)).transpose()
        };
        let http = endpoint(&plan.target.http, "target.http", "http://cell0:18800")?;
        let web_socket = endpoint(&plan.target.web_socket, "target.webSocket", "ws://cell0:18801")?;
        let tasks = plan
            .scenario
            .tasks
            .iter()
            .map(|task| {
                let goals = Goals::of(&plan.thresholds, &task.name);
                prepare(task, goals, &shared, http.as_ref(), web_socket.as_ref())
            })
            .collect::<Result<_, _>>()?;
        let mix = Mix::new(&plan.scenario);
        Ok(Arc::new(Self { plan, http, web_socket, tasks, mix }))
    }

    /// The plan this was prepared from.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }
}

impl Endpoint {
    fn parse(
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

    fn uri(&self, path: &str) -> Result<Uri, PrepareError> {
        let full = format!("{}{path}", self.base);
        full.parse().map_err(|_| PrepareError::Url {
            field: "path",
            value: full,
            example: "/health",
        })
    }
}

fn put(headers: &mut HeaderMap, name: &str, value: &str) -> Result<(), PrepareError> {
    let wrong = || PrepareError::Header { name: name.to_owned() };
    let key = HeaderName::try_from(name).map_err(|_| wrong())?;
    let value = HeaderValue::try_from(value).map_err(|_| wrong())?;
    headers.insert(key, value);
    Ok(())
}

fn put_all(headers: &mut HeaderMap, from: &BTreeMap<String, String>) -> Result<(), PrepareError> {
    from.iter().try_for_each(|(name, value)| put(headers, name, value))
}

fn shared_headers(
    plan: &Plan,
    secret: impl Fn(&str) -> Option<String>,
) -> Result<HeaderMap, PrepareError> {
    let mut headers = HeaderMap::new();
    put(&mut headers, "user-agent", concat!("loadtest-runner/", env!("CARGO_PKG_VERSION")))?;
    put(&mut headers, "accept", "*/*")?;
    put_all(&mut headers, &plan.target.headers)?;
    for (index, from) in plan.target.headers_from.iter().enumerate() {
        let variable = header_variable(index);
        let value = secret(&variable).ok_or_else(|| PrepareError::Secret {
            name: from.header.clone(),
            variable: variable.clone(),
        })?;
        // Files in Secrets often end in a line break, which no header can carry.
        put(&mut headers, &from.header, value.trim_end_matches(['\r', '\n']))?;
        if let Some(value) = headers.get_mut(from.header.as_str()) {
            value.set_sensitive(true);
        }
    }
    put(&mut headers, RUN_HEADER, &plan.run)?;
    Ok(headers)
}

fn prepare(
    task: &Task,
    goals: Goals,
    shared: &HeaderMap,
    http: Option<&Endpoint>,
    web_socket: Option<&Endpoint>,
) -> Result<PreparedTask, PrepareError> {
    let missing = |field| PrepareError::MissingUrl { field, task: task.name.clone() };
    let kind = task.kind().ok_or_else(|| PrepareError::Kind { task: task.name.clone() })?;
    let (timeout, kind) = match kind {
        TaskKind::Http(http_task) => {
            let endpoint = http.ok_or_else(|| missing("target.http"))?;
            (http_task.timeout, PreparedKind::Http(prepare_http(http_task, shared, endpoint)?))
        }
        TaskKind::Chat(chat) => {
            let endpoint = http.ok_or_else(|| missing("target.http"))?;
            (chat.timeout, PreparedKind::Chat(prepare_chat(chat, shared, endpoint)?))
        }
        TaskKind::WebSocket(socket) => {
            let endpoint = web_socket.ok_or_else(|| missing("target.webSocket"))?;
            let prepared = prepare_web_socket(socket, shared, endpoint)?;
            (socket.timeout, PreparedKind::WebSocket(prepared))
        }
    };
    Ok(PreparedTask { name: task.name.clone(), timeout: timeout.std(), goals, kind })
}

fn with_host(
    shared: &HeaderMap,
    endpoint: &Endpoint,
    own: &BTreeMap<String, String>,
) -> Result<HeaderMap, PrepareError> {
    let mut headers = shared.clone();
    if !headers.contains_key(header::HOST) {
        put(&mut headers, "host", &endpoint.authority)?;
    }
    put_all(&mut headers, own)?;
    Ok(headers)
}

/// A request in HTTP/1.1's own form (RFC 9112, 3).
fn request(method: &Method, uri: &Uri, headers: &HeaderMap, body: &[u8]) -> Request {
    let mut bytes = BytesMut::with_capacity(512 + body.len());
    let target = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    bytes.extend_from_slice(format!("{method} {target} HTTP/1.1\r\n").as_bytes());
    for (name, value) in headers {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    // Of methods that expect a body, an empty one has to be announced (RFC 9110, 8.6).
    let expects_body = [Method::POST, Method::PUT, Method::PATCH].contains(method);
    if expects_body || !body.is_empty() {
        bytes.extend_from_slice(format!("content-length: {}\r\n", body.len()).as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    Request { bytes: bytes.freeze(), is_head: method == Method::HEAD }
}

fn prepare_http(
    task: &HttpTask,
    shared: &HeaderMap,
    endpoint: &Endpoint,
) -> Result<PreparedHttp, PrepareError> {
    let method = Method::from_bytes(task.method.as_str().as_bytes()).unwrap_or(Method::GET);
    let uri = endpoint.uri(&task.path)?;
    let headers = with_host(shared, endpoint, &task.headers)?;
    let body = task.body.as_deref().unwrap_or_default();
    Ok(PreparedHttp {
        request: request(&method, &uri, &headers, body.as_bytes()),
        name: format!("{method} {}", uri.path()),
        expect: task.expect_status.iter().filter_map(|s| u16::try_from(*s).ok()).collect(),
    })
}

fn prepare_chat(
    task: &ChatTask,
    shared: &HeaderMap,
    endpoint: &Endpoint,
) -> Result<PreparedChat, PrepareError> {
    let mut headers = with_host(shared, endpoint, &BTreeMap::new())?;
    put(&mut headers, "content-type", "application/json")?;
    put_all(&mut headers, &task.headers)?;
    let uri = endpoint.uri(&task.path)?;
    let requests: Vec<Request> = task
        .models
        .iter()
        .flat_map(|model| task.messages.iter().map(move |message| (model, message)))
        .map(|(model, message)| {
            let mut body = serde_json::json!({
                "model": model,
                "messages": [{"role": "user", "content": message}],
                "stream": task.stream,
            });
            if task.stream && task.usage {
                // Else a stream does not say how many tokens it had.
                body["stream_options"] = serde_json::json!({"include_usage": true});
            }
            if let Some(max) = task.max_tokens {
                body["max_tokens"] = max.into();
            }
            request(&Method::POST, &uri, &headers, body.to_string().as_bytes())
        })
        .collect();
    let first = requests.first().cloned();
    Ok(PreparedChat {
        http: PreparedHttp {
            // The schema wants at least one model and one message.
            request: first.unwrap_or_else(|| request(&Method::POST, &uri, &headers, b"{}")),
            name: format!("POST {}", uri.path()),
            expect: vec![200],
        },
        requests,
        stream: task.stream,
    })
}

fn prepare_web_socket(
    task: &WebSocketTask,
    shared: &HeaderMap,
    endpoint: &Endpoint,
) -> Result<PreparedWebSocket, PrepareError> {
    let scheme = if endpoint.tls.is_some() { "wss" } else { "ws" };
    let full = format!("{scheme}://{}{}{}", endpoint.authority, endpoint.base, task.path);
    let uri = full.parse().map_err(|_| PrepareError::Url {
        field: "webSocket.path",
        value: full,
        example: "/",
    })?;
    Ok(PreparedWebSocket {
        uri,
        headers: with_host(shared, endpoint, &task.headers)?,
        send: task.send.clone(),
        replies: u32::try_from(task.replies).unwrap_or(0),
        close: task.close,
    })
}

fn tls_config(plan: &Plan) -> Result<Arc<ClientConfig>, PrepareError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(PrepareError::Tls)?;
    let tls = plan.target.tls.clone().unwrap_or_default();
    if tls.insecure_skip_verify {
        let verifier = Arc::new(AnyCertificate(provider));
        let config = builder.dangerous().with_custom_certificate_verifier(verifier);
        return Ok(Arc::new(config.with_no_client_auth()));
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
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
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
