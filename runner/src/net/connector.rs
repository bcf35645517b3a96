//! Opening connections: name resolution, TCP and TLS.

use std::{
    cell::{Cell, RefCell},
    io,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::{
    failure::{ErrorKind, Failure},
    net::{
        arrival_clock::ArrivalClock,
        stream::{MaybeTlsStream, MeteredStream},
        timestamped_socket::{ConnectionStats, TimestampedSocket},
        user_tls::UserTls,
    },
    prepare::{
        endpoint::Endpoint,
        tls::{describe_tls_error, refuses_protocol},
    },
};

/// How long addresses from the resolver are used. The DNS cache of Kubernetes also keeps them for
/// 30 s.
const DNS_TTL: Duration = Duration::from_secs(30);
/// How long a failed lookup is kept, so that users that waited for it don't repeat the lookup one
/// by one.
const DNS_ERROR_TTL: Duration = Duration::from_secs(1);

/// How long an address may be silent before the next one is tried in parallel (RFC 8305, 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// Maximum number of addresses in the message about a failed connect.
const MAX_TOLD: usize = 3;
/// How long an address that did not answer is tried last.
const SILENT_TTL: Duration = Duration::from_secs(30);

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

/// The step of opening a connection that is under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ConnectStep {
    /// Waiting for the connection that another user opens for both.
    #[default]
    Wait,
    Resolve,
    Tcp,
    Tls,
    Upgrade,
}

impl ConnectStep {
    /// Returns what has not happened yet.
    pub(crate) const fn awaited(self) -> &'static str {
        match self {
            Self::Wait => "the shared connection was not open",
            Self::Resolve => "the name was not resolved",
            Self::Tcp => "the target did not accept the TCP connection",
            Self::Tls => "the target did not end the TLS handshake",
            Self::Upgrade => "the target did not answer the WebSocket handshake",
        }
    }
}

/// The state of a user that its connections share.
#[derive(Debug, Default)]
pub(crate) struct ConnectState {
    /// The user's TLS settings, with its sessions.
    pub(crate) tls: UserTls,
    /// The step that is under way.
    pub(crate) step: Cell<ConnectStep>,
}

/// The result of a lookup.
type LookupResult = Result<Vec<SocketAddr>, Failure>;

/// An open connection, its statistics and the durations of its steps.
pub(crate) type OpenedStream = (MeteredStream, Rc<ConnectionStats>, ConnectSteps);

/// Connects the users of one load thread to one endpoint.
#[derive(Debug)]
pub(crate) struct Connector {
    endpoint: Endpoint,
    timestamps: Rc<ArrivalClock>,
    cached_lookup: RefCell<Option<(Instant, LookupResult)>>,
    /// Held during a lookup. Users that start together share the result of one lookup.
    lookup_lock: tokio::sync::Mutex<()>,
    next_address: Cell<usize>,
    /// Addresses that did not answer, and when. They are tried last for a while.
    silent_addresses: RefCell<Vec<(SocketAddr, Instant)>>,
    /// True after the first TLS handshake that succeeded.
    has_completed_handshake: Cell<bool>,
    /// True after the first response.
    has_responded: Cell<bool>,
    /// How many close frames of WebSockets in a row the target has not replied to.
    pub(crate) missed_closes: Cell<u32>,
}

impl Connector {
    /// Creates a connector. `first_address` is the place of the address that it begins with, which
    /// differs from thread to thread.
    pub(crate) fn new(
        endpoint: Endpoint,
        timestamps: Rc<ArrivalClock>,
        first_address: usize,
    ) -> Self {
        Self {
            endpoint,
            timestamps,
            cached_lookup: RefCell::new(None),
            lookup_lock: tokio::sync::Mutex::new(()),
            next_address: Cell::new(first_address),
            silent_addresses: RefCell::default(),
            has_completed_handshake: Cell::new(false),
            has_responded: Cell::new(false),
            missed_closes: Cell::new(0),
        }
    }

    /// Opens a connection for the user of a request. Each call starts with the next address (round
    /// robin).
    pub(crate) async fn connect(&self, user: &ConnectState) -> Result<OpenedStream, Failure> {
        let mut steps = ConnectSteps::default();
        user.step.set(ConnectStep::Resolve);
        let addresses = self.resolve_host(&mut steps).await?;
        let began = Instant::now();
        user.step.set(ConnectStep::Tcp);
        let tcp = self.connect_tcp(&self.order_addresses(&addresses)).await?;
        steps.tcp = Some(began.elapsed());
        user.step.set(ConnectStep::Tls);
        let wrapped = self.wrap_stream(tcp, &user.tls, &mut steps).await;
        let (stream, stats) = wrapped.map_err(|failure| self.explain_failure(failure))?;
        Ok((stream, stats, steps))
    }

    /// Notes a response of the target.
    pub(crate) fn note_response(&self) {
        self.has_responded.set(true);
    }

    /// Adds to the failure of a new connection that the target asks for a client certificate, if it
    /// does. With TLS 1.3, a target without one closes the connection after the handshake. A target that has ever responded
    /// needs no certificate.
    pub(crate) fn explain_failure(&self, mut failure: Failure) -> Failure {
        let is_asked = self
            .endpoint
            .tls
            .as_ref()
            .is_some_and(|tls| tls.settings.client_certificate.was_asked());
        let is_end = matches!(failure.kind, ErrorKind::Tls | ErrorKind::Reset);
        if is_asked && is_end && !self.has_responded.get() {
            failure.message +=
                ". The target asks for a client certificate, and the load generator has none";
        }
        failure
    }

    /// Returns the addresses in the order in which they are tried: from the next one on, IPv4 and
    /// IPv6 in turn, and those last that did not answer lately.
    fn order_addresses(&self, addresses: &[SocketAddr]) -> Vec<SocketAddr> {
        let first = self.next_address.get();
        self.next_address.set(first.wrapping_add(1));
        let mut silent = self.silent_addresses.borrow_mut();
        silent.retain(|(_, since)| since.elapsed() < SILENT_TTL);
        let is_silent = |address: &SocketAddr| silent.iter().any(|(silent, _)| silent == address);
        let (mut last, mut ordered): (Vec<_>, Vec<_>) =
            addresses.iter().partition(|a| is_silent(a));
        if !ordered.is_empty() {
            let first = first % ordered.len();
            ordered.rotate_left(first);
        }
        let mut ordered = alternate_families(&ordered);
        ordered.append(&mut last);
        ordered
    }

    /// Connects to the first address that answers (RFC 8305, "happy eyeballs"): when an address has
    /// not answered for a while, the next one is tried in parallel.
    async fn connect_tcp(&self, addresses: &[SocketAddr]) -> Result<TcpStream, Failure> {
        let mut attempts = FuturesUnordered::new();
        let mut waiting = addresses.iter().copied();
        let mut pending: Vec<SocketAddr> = Vec::new();
        let mut errors: Vec<(SocketAddr, io::Error)> = Vec::new();
        loop {
            if let Some(address) = waiting.next() {
                pending.push(address);
                attempts.push(async move { (address, TcpStream::connect(address).await) });
            } else if attempts.is_empty() {
                break;
            }
            let has_more = waiting.len() > 0;
            let result = tokio::select! {
                result = attempts.next() => result,
                () = tokio::time::sleep(ATTEMPT_DELAY), if has_more => None,
            };
            match result {
                Some((address, Ok(stream))) => {
                    let silent = pending.into_iter().filter(|other| *other != address);
                    let now = Instant::now();
                    self.silent_addresses.borrow_mut().extend(silent.map(|other| (other, now)));
                    return Ok(stream);
                }
                Some((address, Err(error))) => {
                    // An address that refuses is not silent: it costs no time.
                    pending.retain(|other| *other != address);
                    errors.push((address, error));
                }
                None => {}
            }
        }
        Err(connect_failure(errors).unwrap_or_else(|| {
            Failure::new(ErrorKind::Dns, format!("{} has no address", self.endpoint.host))
        }))
    }

    async fn wrap_stream(
        &self,
        tcp: TcpStream,
        user_tls: &UserTls,
        steps: &mut ConnectSteps,
    ) -> Result<(MeteredStream, Rc<ConnectionStats>), Failure> {
        // With Nagle's algorithm, a small request may wait for the acknowledgement of the previous
        // response.
        tcp.set_nodelay(true).map_err(|error| Failure::new(ErrorKind::Connect, error))?;
        let (socket, stats) = TimestampedSocket::new(tcp, Rc::clone(&self.timestamps));
        let Some(tls) = &self.endpoint.tls else {
            return Ok((
                MeteredStream::new(MaybeTlsStream::Plain(socket), Rc::clone(&stats)),
                stats,
            ));
        };
        let config = user_tls.config_for(&tls.settings);
        let protocol = config.alpn_protocols.first().cloned();
        let began = Instant::now();
        let session = TlsConnector::from(config).connect(tls.name.clone(), socket).await;
        let not_agreed = |protocol: &[u8]| {
            let protocol = String::from_utf8_lossy(protocol);
            let message =
                format!("target did not agree to speak {protocol}: see target.httpVersion");
            Failure::new(ErrorKind::Protocol, message)
        };
        let session = session.map_err(|error| match &protocol {
            Some(protocol) if refuses_protocol(&error) => not_agreed(protocol),
            // The target can agree with the load generator on TLS, so it closed for another reason.
            _ if self.has_completed_handshake.get()
                && error.kind() == io::ErrorKind::UnexpectedEof =>
            {
                Failure::new(ErrorKind::Reset, "target closed the connection in the TLS handshake")
            }
            _ => Failure::new(ErrorKind::Tls, describe_tls_error(&error)),
        })?;
        self.has_completed_handshake.set(true);
        steps.tls = Some(began.elapsed());
        let connection = session.get_ref().1;
        steps.is_tls_resumed = connection.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
        if let Some(protocol) = protocol.filter(|p| connection.alpn_protocol() != Some(p)) {
            return Err(not_agreed(&protocol));
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
            Err(error) => {
                let kind = match ErrorKind::from_connect_error(&error) {
                    ErrorKind::FileLimit => ErrorKind::FileLimit,
                    _ => ErrorKind::Dns,
                };
                Err(Failure::new(kind, format!("{host}: {error}")))
            }
        };
        steps.dns = Some(began.elapsed());
        *self.cached_lookup.borrow_mut() = Some((Instant::now(), result.clone()));
        result
    }
}

/// Returns the failure of a connect by the errors of all addresses; `None` without an error.
///
/// The error that says the most about the target is the first one in the message, and its kind counts: a machine without
/// IPv6, for example, has no local address for IPv6, and the target has refused the connection all the same.
fn connect_failure(mut errors: Vec<(SocketAddr, io::Error)>) -> Option<Failure> {
    let rank = |error: &io::Error| match (ErrorKind::from_connect_error(error), error.kind()) {
        (ErrorKind::FileLimit, _) => 0,
        (ErrorKind::PortExhausted, _) => 2,
        (_, io::ErrorKind::NetworkUnreachable) => 3,
        _ => 1,
    };
    errors.sort_by_key(|(_, error)| rank(error));
    let (_, telling) = errors.first()?;
    let kind = ErrorKind::from_connect_error(telling);
    let texts: Vec<String> = errors
        .iter()
        .take(MAX_TOLD)
        .map(|(address, error)| format!("{address}: {error}"))
        .collect();
    Some(Failure::new(kind, texts.join("; ")))
}

/// Orders addresses so that IPv4 and IPv6 take turns, beginning with the family of the first one
/// (RFC 8305, 4).
fn alternate_families(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let begins_with_ipv4 = addresses.first().is_some_and(SocketAddr::is_ipv4);
    let (first, second): (Vec<SocketAddr>, Vec<SocketAddr>) =
        addresses.iter().partition(|address| address.is_ipv4() == begins_with_ipv4);
    let turns = first.len().max(second.len());
    (0..turns)
        .flat_map(|turn| first.get(turn).into_iter().chain(second.get(turn)))
        .copied()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns() {
        let parse = |texts: &[&str]| -> Vec<SocketAddr> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let ordered = alternate_families(&parse(&["[::1]:1", "[::2]:1", "1.1.1.1:1", "2.2.2.2:1"]));
        assert_eq!(ordered, parse(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1"]));
        assert_eq!(alternate_families(&[]), []);
    }

    #[test]
    fn a_failed_connect_is_the_targets_if_one_address_shows_it() {
        let failure_of = |codes: &[(&str, i32)]| {
            let error = |(address, code): &(&str, i32)| {
                (address.parse().unwrap(), io::Error::from_raw_os_error(*code))
            };
            connect_failure(codes.iter().map(error).collect()).unwrap()
        };
        let (refused, no_address, no_network, no_file) = (111, 99, 101, 24);
        let down = failure_of(&[("10.0.0.5:80", refused), ("[::1]:80", no_address)]);
        assert_eq!(down.kind, ErrorKind::Connect);
        assert!(down.message.starts_with("10.0.0.5:80: Connection refused"), "{}", down.message);
        assert!(down.message.contains("[::1]:80: "), "{}", down.message);
        let ours = failure_of(&[("[::1]:80", no_network), ("10.0.0.5:80", no_address)]);
        assert_eq!(ours.kind, ErrorKind::PortExhausted);
        let files = failure_of(&[("10.0.0.5:80", refused), ("[::1]:80", no_file)]);
        assert_eq!(files.kind, ErrorKind::FileLimit);
        assert!(connect_failure(Vec::new()).is_none());
    }

    #[tokio::test]
    async fn a_silent_address_does_not_hold_up_a_connection() {
        // Nobody accepts, and the queue of connections is full: the system drops what comes.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(0).unwrap();
        let silent = listener.local_addr().unwrap();
        let connect =
            || tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(silent));
        let _held = [connect().await, connect().await];
        let open = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = open.local_addr().unwrap();
        let endpoint = Endpoint {
            host: "cell0".to_owned(),
            port: 0,
            tls: None,
            authority: "cell0".to_owned(),
            base_path: String::new(),
        };
        let connector = Connector::new(endpoint, ArrivalClock::new(), 0);
        let began = Instant::now();
        let stream = connector.connect_tcp(&[silent, good]).await.unwrap();
        let took = began.elapsed();
        assert!(stream.peer_addr().unwrap() == good && took < Duration::from_secs(2), "{took:?}");
        // From now on the silent address is the last.
        assert_eq!(connector.order_addresses(&[silent, good]), [good, silent]);
    }
}
