//! Opening connections: name resolution, TCP and TLS.

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
    net::{
        arrival_clock::ArrivalClock,
        stream::{MaybeTlsStream, MeteredStream},
        timestamped_socket::{ConnectionStats, TimestampedSocket},
    },
    prepare::endpoint::Endpoint,
};

/// How long addresses from the resolver are used. The DNS cache of Kubernetes also keeps them for
/// 30 s.
const DNS_TTL: Duration = Duration::from_secs(30);
/// How long a failed lookup is kept, so that users that waited for it don't repeat the lookup one
/// by one.
const DNS_ERROR_TTL: Duration = Duration::from_secs(1);

/// Durations of the steps of opening a connection. `None` for a step that was not needed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ConnectSteps {
    pub(crate) dns: Option<Duration>,
    pub(crate) tcp: Option<Duration>,
    pub(crate) tls: Option<Duration>,
    /// The handshake of a WebSocket.
    pub(crate) upgrade: Option<Duration>,
    /// True when the TLS handshake resumed an earlier session.
    pub(crate) is_tls_resumed: bool,
}

/// The result of a lookup.
type LookupResult = Result<Vec<SocketAddr>, Failure>;

/// Connects the users of one load thread to one endpoint.
#[derive(Debug)]
pub(crate) struct Connector {
    endpoint: Endpoint,
    timestamps: Rc<ArrivalClock>,
    cached_lookup: RefCell<Option<(Instant, LookupResult)>>,
    /// Held during a lookup. Users that start together share the result of one lookup.
    lookup_lock: tokio::sync::Mutex<()>,
    next_address: Cell<usize>,
}

impl Connector {
    pub(crate) fn new(endpoint: Endpoint, timestamps: Rc<ArrivalClock>) -> Self {
        Self {
            endpoint,
            timestamps,
            cached_lookup: RefCell::new(None),
            lookup_lock: tokio::sync::Mutex::new(()),
            next_address: Cell::new(0),
        }
    }

    /// Opens a connection and returns the durations of its steps. Each call starts with the next
    /// address (round robin).
    pub(crate) async fn connect(
        &self,
    ) -> Result<(MeteredStream, Rc<ConnectionStats>, ConnectSteps), Failure> {
        let mut steps = ConnectSteps::default();
        let addresses = self.resolve_host(&mut steps).await?;
        let first = self.next_address.get();
        self.next_address.set(first.wrapping_add(1));
        let mut last = None;
        for i in 0..addresses.len() {
            let address = addresses[first.wrapping_add(i) % addresses.len()];
            let began = Instant::now();
            match TcpStream::connect(address).await {
                Ok(tcp) => {
                    steps.tcp = Some(began.elapsed());
                    let (stream, stats) = self.wrap_stream(tcp, &mut steps).await?;
                    return Ok((stream, stats, steps));
                }
                Err(error) => last = Some((address, error)),
            }
        }
        Err(match last {
            Some((address, error)) => {
                Failure::new(ErrorKind::from_connect_error(&error), format!("{address}: {error}"))
            }
            None => Failure::new(ErrorKind::Dns, format!("{} has no address", self.endpoint.host)),
        })
    }

    async fn wrap_stream(
        &self,
        tcp: TcpStream,
        steps: &mut ConnectSteps,
    ) -> Result<(MeteredStream, Rc<ConnectionStats>), Failure> {
        // With Nagle's algorithm, a small request may wait for the acknowledgement of the previous
        // response.
        tcp.set_nodelay(true).map_err(|error| Failure::new(ErrorKind::Connect, error))?;
        let (socket, stats) = TimestampedSocket::new(tcp, Rc::clone(&self.timestamps));
        let Some((name, config)) = &self.endpoint.tls else {
            return Ok((
                MeteredStream::new(MaybeTlsStream::Plain(socket), Rc::clone(&stats)),
                stats,
            ));
        };
        let connector = TlsConnector::from(std::sync::Arc::clone(config));
        let began = Instant::now();
        let session = connector.connect(name.clone(), socket).await;
        let session = session.map_err(|error| Failure::new(ErrorKind::Tls, error))?;
        steps.tls = Some(began.elapsed());
        let kind = session.get_ref().1.handshake_kind();
        steps.is_tls_resumed = kind == Some(rustls::HandshakeKind::Resumed);
        let protocol = config.alpn_protocols.first();
        if let Some(protocol) = protocol.filter(|p| session.get_ref().1.alpn_protocol() != Some(p))
        {
            let protocol = String::from_utf8_lossy(protocol);
            let message =
                format!("target did not agree to speak {protocol}: see target.httpVersion");
            return Err(Failure::new(ErrorKind::Protocol, message));
        }
        Ok((MeteredStream::new(MaybeTlsStream::Tls(Box::new(session)), Rc::clone(&stats)), stats))
    }

    fn valid_lookup(&self) -> Option<LookupResult> {
        let cached_lookup = self.cached_lookup.borrow();
        let (at, result) = cached_lookup.as_ref()?;
        let ttl = if result.is_ok() { DNS_TTL } else { DNS_ERROR_TTL };
        (at.elapsed() < ttl).then(|| result.clone())
    }

    async fn resolve_host(&self, steps: &mut ConnectSteps) -> LookupResult {
        if let Some(result) = self.valid_lookup() {
            return result;
        }
        let _lock = self.lookup_lock.lock().await;
        if let Some(result) = self.valid_lookup() {
            return result;
        }
        let began = Instant::now();
        let Endpoint { host, port, .. } = &self.endpoint;
        let result = match tokio::net::lookup_host((host.as_str(), *port)).await {
            Ok(addresses) => Ok(addresses.collect()),
            Err(error) => Err(Failure::new(ErrorKind::Dns, format!("{host}: {error}"))),
        };
        steps.dns = Some(began.elapsed());
        *self.cached_lookup.borrow_mut() = Some((Instant::now(), result.clone()));
        result
    }
}
