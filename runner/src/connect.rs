//! Names to addresses, addresses to connections.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::{
    failure::{ErrorKind, Failure},
    prepare::Endpoint,
    wire::{Stamps, Stream, Wire},
};

/// How long an answer of the resolver is used. Kubernetes' own DNS caches for 30 s too.
const FRESH: Duration = Duration::from_secs(30);
/// How long its refusal is: users that waited for it must not all ask again, one by one.
const FRESH_REFUSAL: Duration = Duration::from_secs(1);

/// What the resolver said.
type Resolved = Result<Vec<SocketAddr>, Failure>;

/// Connects one worker's users to one endpoint.
#[derive(Debug)]
pub(crate) struct Connector {
    endpoint: Endpoint,
    known: RefCell<Option<(Instant, Resolved)>>,
    /// Users that start together ask once: the others wait for the first one's answer.
    asking: tokio::sync::Mutex<()>,
    next: Cell<usize>,
}

impl Connector {
    pub(crate) fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            known: RefCell::new(None),
            asking: tokio::sync::Mutex::new(()),
            next: Cell::new(0),
        }
    }

    /// A new connection, to the addresses in turn.
    pub(crate) async fn connect(&self) -> Result<(Wire, Rc<Stamps>), Failure> {
        let addresses = self.resolve().await?;
        let turn = self.next.get();
        self.next.set(turn.wrapping_add(1));
        let mut last = None;
        for i in 0..addresses.len() {
            let address = addresses[turn.wrapping_add(i) % addresses.len()];
            match TcpStream::connect(address).await {
                Ok(stream) => return self.wrap(stream).await,
                Err(error) => last = Some((address, error)),
            }
        }
        Err(match last {
            Some((address, error)) => {
                Failure::new(ErrorKind::of_connect(&error), format!("{address}: {error}"))
            }
            None => Failure::new(ErrorKind::Dns, format!("{} has no address", self.endpoint.host)),
        })
    }

    async fn wrap(&self, stream: TcpStream) -> Result<(Wire, Rc<Stamps>), Failure> {
        // Without it, a small request may wait for the last answer's acknowledgement.
        stream.set_nodelay(true).map_err(|e| Failure::new(ErrorKind::Connect, e))?;
        let Some((name, config)) = &self.endpoint.tls else {
            return Ok(Wire::new(Stream::Plain(stream)));
        };
        let connector = TlsConnector::from(std::sync::Arc::clone(config));
        let session = connector.connect(name.clone(), stream).await;
        let session = session.map_err(|e| Failure::new(ErrorKind::Tls, e))?;
        Ok(Wire::new(Stream::Tls(Box::new(session))))
    }

    fn fresh(&self) -> Option<Resolved> {
        let known = self.known.borrow();
        let (at, answer) = known.as_ref()?;
        let lasts = if answer.is_ok() { FRESH } else { FRESH_REFUSAL };
        (at.elapsed() < lasts).then(|| answer.clone())
    }

    async fn resolve(&self) -> Resolved {
        if let Some(answer) = self.fresh() {
            return answer;
        }
        let _turn = self.asking.lock().await;
        if let Some(answer) = self.fresh() {
            return answer;
        }
        let Endpoint { host, port, .. } = &self.endpoint;
        let answer = match tokio::net::lookup_host((host.as_str(), *port)).await {
            Ok(addresses) => Ok(addresses.collect()),
            Err(error) => Err(Failure::new(ErrorKind::Dns, format!("{host}: {error}"))),
        };
        *self.known.borrow_mut() = Some((Instant::now(), answer.clone()));
        answer
    }
}
