//! A proxy between the pods of the cluster and its API server, which can be slow or fail. The tests must run on
//! the node of a testbed, whose certificates the proxy uses.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{Either, Full};
use hyper::{
    body::{Bytes, Incoming},
    client::conn::http1 as client,
    server::conn::http1 as server,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Mutex, watch},
    task::JoinHandle,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::node::NetworkRule;

/// What is wrong with the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiFault {
    /// Nothing.
    None,
    /// Each request takes this much longer.
    Slow(Duration),
    /// Each request gets the status 429.
    TooManyRequests,
    /// Each change of an object gets the status 409.
    Conflicts,
    /// Watches end, and new ones get the status 410 once.
    ExpiredWatches,
}

/// A proxy that all new connections of pods to the API server go through, until this value is dropped.
#[derive(Debug)]
pub struct ApiProxy {
    fault: watch::Sender<ApiFault>,
    serving: JoinHandle<()>,
    _rule: NetworkRule,
}

impl ApiProxy {
    /// Starts the proxy. Connections that are open stay as they are.
    pub async fn start() -> Result<Self> {
        let tls = TlsFiles::of_testbed()?;
        let acceptor = TlsAcceptor::from(Arc::new(tls.server()?));
        let connector = TlsConnector::from(Arc::new(tls.client()?));
        let listener = TcpListener::bind("0.0.0.0:0").await?;
        let rule = NetworkRule::redirect_api_server(listener.local_addr()?.port())?;
        let (fault, seen) = watch::channel(ApiFault::None);
        let serving = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (acceptor, connector) = (acceptor.clone(), connector.clone());
                let mut cut = seen.clone();
                cut.mark_unchanged();
                let seen = seen.clone();
                tokio::spawn(async move {
                    // A new kind of expired watches ends the connections that watch.
                    let expired = cut.wait_for(|fault| *fault == ApiFault::ExpiredWatches);
                    tokio::select! {
                        result = serve(socket, &acceptor, &connector, seen) => drop(result),
                        _ = expired => {}
                    }
                });
            }
        });
        Ok(Self { fault, serving, _rule: rule })
    }

    /// Makes the API server fail in a way from now on.
    pub fn set(&self, fault: ApiFault) {
        self.fault.send_replace(fault);
    }
}

impl Drop for ApiProxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

struct TlsFiles(PathBuf);

impl TlsFiles {
    fn of_testbed() -> Result<Self> {
        let kubeconfig = std::env::var_os("KUBECONFIG").context("no KUBECONFIG")?;
        let folder = PathBuf::from(kubeconfig).with_file_name("pki");
        ensure!(folder.is_dir(), "{} is missing: this test needs a testbed", folder.display());
        Ok(Self(folder))
    }

    fn server(&self) -> Result<ServerConfig> {
        let certificate = CertificateDer::from_pem_file(self.0.join("kube-apiserver.crt"))?;
        let key = PrivateKeyDer::from_pem_file(self.0.join("kube-apiserver.key"))?;
        let config = ServerConfig::builder().with_no_client_auth();
        Ok(config.with_single_cert(vec![certificate], key)?)
    }

    fn client(&self) -> Result<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.0.join("ca.crt"))?)?;
        Ok(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
    }
}

type Body = Either<Incoming, Full<Bytes>>;

/// Serves one connection of a client by one connection to the API server.
async fn serve(
    socket: TcpStream,
    acceptor: &TlsAcceptor,
    connector: &TlsConnector,
    seen: watch::Receiver<ApiFault>,
) -> Result<()> {
    let inward = acceptor.accept(socket).await?;
    let outward = TcpStream::connect("127.0.0.1:6443").await?;
    let outward = connector.connect(ServerName::try_from("localhost")?, outward).await?;
    let (sender, connection) = client::handshake(TokioIo::new(outward)).await?;
    tokio::spawn(connection);
    let sender = Mutex::new(sender);
    let service = service_fn(|request: Request<Incoming>| {
        let (fault, sender) = (*seen.borrow(), &sender);
        async move {
            if let ApiFault::Slow(delay) = fault {
                tokio::time::sleep(delay).await;
            }
            if let Some(status) = refusal(fault, &request) {
                return Ok::<_, hyper::Error>(refuse(status));
            }
            let response = sender.lock().await.send_request(request).await?;
            Ok(response.map(Either::Left))
        }
    });
    server::Builder::new().serve_connection(TokioIo::new(inward), service).await?;
    Ok(())
}

fn refusal(fault: ApiFault, request: &Request<Incoming>) -> Option<StatusCode> {
    let is_watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
    match fault {
        ApiFault::TooManyRequests => Some(StatusCode::TOO_MANY_REQUESTS),
        ApiFault::Conflicts if [Method::PATCH, Method::PUT].contains(request.method()) => {
            Some(StatusCode::CONFLICT)
        }
        ApiFault::ExpiredWatches if is_watch => Some(StatusCode::GONE),
        _ => None,
    }
}

/// An answer as the API server gives it.
fn refuse(code: StatusCode) -> Response<Body> {
    let reason = match code {
        StatusCode::TOO_MANY_REQUESTS => "TooManyRequests",
        StatusCode::GONE => "Expired",
        _ => "Conflict",
    };
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "message": "refused by a test", "reason": reason, "code": code.as_u16(),
    });
    let mut response = Response::new(Either::Right(Full::from(status.to_string())));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}
