//! Starting and stopping: three ports and their accept loops.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
    task::JoinSet,
};

use crate::{
    control, http,
    server::Server,
    settings::{Settings, SettingsError},
    truth::{RunSummary, RunTruth},
    web_socket,
};

/// Connections that may wait to be accepted: a burst of users connects at once.
const BACKLOG: u32 = 4096;

/// How long [`Simulator::shutdown`] waits for control requests that are being answered.
const GRACE: Duration = Duration::from_millis(500);

/// Where to listen, and how much to remember. A port of 0 is any free one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The address of all three ports.
    pub address: IpAddr,
    /// Chat, health and models.
    pub http_port: u16,
    /// WebSocket.
    pub web_socket_port: u16,
    /// Probes, truth and settings.
    pub control_port: u16,
    /// Records kept over all runs; beyond them requests are only counted.
    pub max_records: usize,
}

/// Why a simulator did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting is out of its bounds.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A port can't be listened on.
    #[error("can't listen on {address} for {port}")]
    Listen {
        /// Which port it was to be.
        port: &'static str,
        /// The address asked for.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
}

/// A running simulator. Dropping it stops it.
#[derive(Debug)]
pub struct Simulator {
    server: Arc<Server>,
    http: SocketAddr,
    web_socket: SocketAddr,
    control: SocketAddr,
    /// Gone or true: stop. Closed once all accept loops have ended.
    stop: watch::Sender<bool>,
}

impl Listen {
    /// Records kept unless told otherwise: about 100 MB when all are used.
    pub const MAX_RECORDS: usize = 2_000_000;

    /// Any free ports on 127.0.0.1.
    pub const fn loopback() -> Self {
        Self {
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            http_port: 0,
            web_socket_port: 0,
            control_port: 0,
            max_records: Self::MAX_RECORDS,
        }
    }
}

/// Cell 0's own ports, on all addresses.
impl Default for Listen {
    fn default() -> Self {
        Self {
            address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            http_port: 18800,
            web_socket_port: 18801,
            control_port: 18802,
            max_records: Self::MAX_RECORDS,
        }
    }
}

impl Simulator {
    /// Starts a simulator on the current tokio runtime, of either kind.
    ///
    /// # Errors
    /// When a setting is out of bounds, or a port can't be listened on.
    #[expect(clippy::unused_async, reason = "a future proves that there is a runtime to run on")]
    pub async fn start(settings: Settings, listen: Listen) -> Result<Self, StartError> {
        settings.validate()?;
        let Listen { address, http_port, web_socket_port, control_port, max_records } = listen;
        let (http_listener, http) = bind("HTTP", address, http_port)?;
        let (socket_listener, web_socket) = bind("WebSocket", address, web_socket_port)?;
        let (control_listener, control) = bind("control", address, control_port)?;
        let server = Arc::new(Server::new(settings, max_records));
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(accept(http_listener, server.clone(), stopped.clone(), http::serve));
        tokio::spawn(accept(socket_listener, server.clone(), stopped.clone(), web_socket::serve));
        tokio::spawn(control::serve(control_listener, server.clone(), stopped));
        Ok(Self { server, http, web_socket, control, stop })
    }

    /// Where chat, health and models are.
    pub const fn http_addr(&self) -> SocketAddr {
        self.http
    }

    /// Where the echo over WebSocket is.
    pub const fn websocket_addr(&self) -> SocketAddr {
        self.web_socket
    }

    /// Where probes, truth and settings are.
    pub const fn control_addr(&self) -> SocketAddr {
        self.control
    }

    /// What happened in one run so far; all zero for a run that is unknown. A request whose answer
    /// a client has just read may still be `inFlight` for some microseconds.
    pub fn truth(&self, run: &str) -> RunTruth {
        self.server.ledger.truth(run)
    }

    /// The counts of all runs, oldest first.
    pub fn runs(&self) -> Vec<RunSummary> {
        self.server.ledger.summaries()
    }

    /// Forgets all runs.
    pub fn forget(&self) {
        self.server.ledger.clear();
    }

    /// The settings in force.
    pub fn settings(&self) -> Settings {
        self.server.settings().as_ref().clone()
    }

    /// Puts new settings in force, from the next request of every connection on.
    ///
    /// # Errors
    /// When a setting is out of bounds; the old ones then stay.
    pub fn set(&self, settings: Settings) -> Result<(), SettingsError> {
        settings.validate()?;
        self.server.set(settings);
        Ok(())
    }

    /// Stops listening, cuts all connections and waits until that is done.
    ///
    /// The truth stays readable; what was in flight is recorded as aborted.
    pub async fn shutdown(&self) {
        self.stop.send_replace(true);
        // A control client that never reads its answer must not hold us up.
        let _ = tokio::time::timeout(GRACE, self.stop.closed()).await;
    }
}

fn bind(
    port: &'static str,
    address: IpAddr,
    number: u16,
) -> Result<(TcpListener, SocketAddr), StartError> {
    let address = SocketAddr::new(address, number);
    let bound = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        let local = listener.local_addr()?;
        Ok((listener, local))
    };
    bound().map_err(|source| StartError::Listen { port, address, source })
}

/// Accepts until told to stop, and then drops every connection it accepted.
async fn accept<F>(
    listener: TcpListener,
    server: Arc<Server>,
    mut stopped: watch::Receiver<bool>,
    serve: impl Fn(Arc<Server>, TcpStream) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    // Connections are cut by dropping their tasks: to wait for a signal each would have to look
    // for it at every wake-up.
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            _ = stopped.wait_for(|&stop| stop) => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, _)) => {
                // Only a socket that is closed already can refuse.
                let _ = socket.set_nodelay(true);
                connections.spawn(serve(server.clone(), socket));
            }
            Err(error) => {
                // Out of file descriptors, mostly: others must end before this can go on.
                tracing::warn!(%error, "can't accept a connection");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
    drop(listener);
    connections.shutdown().await;
}
