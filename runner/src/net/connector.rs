//! Names to addresses, addresses to connections.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use loadtest_core::metrics::ConnectStep;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::{
    failure::{ErrorKind, Failure},
    net::{
        kernel_timestamps::Clock,
        stream::{Stream, Wire},
        timestamped_socket::{Socket, Stamps},
    },
    prepare::Endpoint,
};

/// How long an answer of the resolver is used. Kubernetes' own DNS caches for 30 s too.
const FRESH: Duration = Duration::from_secs(30);
/// How long its refusal is: users that waited for it must not all ask again, one by one.
const FRESH_REFUSAL: Duration = Duration::from_secs(1);

/// What steps of opening a connection took, in the order of [`ConnectStep::ALL`].
pub(crate) type Steps = [Option<Duration>; 4];
/// What the resolver said.
type Resolved = Result<Vec<SocketAddr>, Failure>;

/// Connects one worker's users to one endpoint.
#[derive(Debug)]
pub(crate) struct Connector {
    endpoint: Endpoint,
    clock: Rc<Clock>,
    known: RefCell<Option<(Instant, Resolved)>>,
    /// Users that start together ask once: the others wait for the first one's answer.
    asking: tokio::sync::Mutex<()>,
    next: Cell<usize>,
}

impl Connector {
    pub(crate) fn new(endpoint: Endpoint, clock: Rc<Clock>) -> Self {
        Self {
            endpoint,
            clock,
            known: RefCell::new(None),
            asking: tokio::sync::Mutex::new(()),
            next: Cell::new(0),
        }
    }

    /// A new connection, to the addresses in turn, and what its steps took.
    pub(crate) async fn connect(&self) -> Result<(Wire, Rc<Stamps>, Steps), Failure> {
        let mut steps = Steps::default();
        let addresses = self.resolve(&mut steps).await?;
        let turn = self.next.get();
        self.next.set(turn.wrapping_add(1));
        let mut last = None;
        for i in 0..addresses.len() {
            let address = addresses[turn.wrapping_add(i) % addresses.len()];
            let began = Instant::now();
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    steps[ConnectStep::Tcp.index()] = Some(began.elapsed());
                    let (wire, stamps) = self.wrap(stream, &mut steps).await?;
                    return Ok((wire, stamps, steps));
                }
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

    async fn wrap(
        &self,
        stream: TcpStream,
        steps: &mut Steps,
    ) -> Result<(Wire, Rc<Stamps>), Failure> {
        // Without it, a small request may wait for the last answer's acknowledgement.
        stream.set_nodelay(true).map_err(|e| Failure::new(ErrorKind::Connect, e))?;
        let (socket, stamps) = Socket::new(stream, Rc::clone(&self.clock));
        let Some((name, config)) = &self.endpoint.tls else {
            return Ok((Wire::new(Stream::Plain(socket), Rc::clone(&stamps)), stamps));
        };
        let connector = TlsConnector::from(std::sync::Arc::clone(config));
        let began = Instant::now();
        let session = connector.connect(name.clone(), socket).await;
        let session = session.map_err(|e| Failure::new(ErrorKind::Tls, e))?;
        steps[ConnectStep::Tls.index()] = Some(began.elapsed());
        let wanted = config.alpn_protocols.first();
        if let Some(wanted) = wanted.filter(|w| session.get_ref().1.alpn_protocol() != Some(w)) {
            let wanted = String::from_utf8_lossy(wanted);
            let message = format!("target did not agree to speak {wanted}: see target.httpVersion");
            return Err(Failure::new(ErrorKind::Protocol, message));
        }
        Ok((Wire::new(Stream::Tls(Box::new(session)), Rc::clone(&stamps)), stamps))
    }

    fn fresh(&self) -> Option<Resolved> {
        let known = self.known.borrow();
        let (at, answer) = known.as_ref()?;
        let lasts = if answer.is_ok() { FRESH } else { FRESH_REFUSAL };
        (at.elapsed() < lasts).then(|| answer.clone())
    }

    async fn resolve(&self, steps: &mut Steps) -> Resolved {
        if let Some(answer) = self.fresh() {
            return answer;
        }
        let _turn = self.asking.lock().await;
        if let Some(answer) = self.fresh() {
            return answer;
        }
        let began = Instant::now();
        let Endpoint { host, port, .. } = &self.endpoint;
        let answer = match tokio::net::lookup_host((host.as_str(), *port)).await {
            Ok(addresses) => Ok(addresses.collect()),
            Err(error) => Err(Failure::new(ErrorKind::Dns, format!("{host}: {error}"))),
        };
        steps[ConnectStep::Dns.index()] = Some(began.elapsed());
        *self.known.borrow_mut() = Some((Instant::now(), answer.clone()));
        answer
    }
}
