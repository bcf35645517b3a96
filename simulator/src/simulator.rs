//! Starts and stops a simulator: its three ports and their accept loops.

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

/// Maximum number of connections that wait to be accepted. Many users may connect at once.
const BACKLOG: u32 = 4096;

/// Addresses to listen on, and the record limit. Port 0 selects any free port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The address of all three ports.
    pub address: IpAddr,
    /// The port of chat, health and models.
    pub http_port: u16,
    /// The port of WebSocket.
    pub web_socket_port: u16,
    /// The port of probes, truth and settings.
    pub control_port: u16,
    /// Maximum number of records over all runs. Further requests are counted without a record.
    pub max_records: usize,
}

/// The reason why a simulator did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting is out of range.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// Listening on a port failed.
    #[error("can't listen on {address} for {port}")]
    Listen {
        /// The name of the port: HTTP, WebSocket or control.
        port: &'static str,
        /// The requested address.
        address: SocketAddr,
        /// The error of the system.
        source: io::Error,
    },
}

/// A running simulator. Dropping it stops the simulator.
#[derive(Debug)]
pub struct Simulator {
    server: Arc<Server>,
    http: SocketAddr,
    web_socket: SocketAddr,
    control: SocketAddr,
    /// True, or a dropped sender, stops the ports. The channel closes when all ports have stopped.
    stop: watch::Sender<bool>,
}

impl Listen {
    /// The default of `max_records`. This many records use about 100 MB.
    pub const MAX_RECORDS: usize = 2_000_000;

    /// Returns any free ports on 127.0.0.1.
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

/// Cell 0's ports, on all addresses.
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
    /// Starts a simulator on the current tokio runtime, which may have one or more threads.
    ///
    /// # Errors
    /// If a setting is out of range, or listening on a port fails.
    #[expect(clippy::unused_async, reason = "an async function requires a runtime")]
    pub async fn start(settings: Settings, listen: Listen) -> Result<Self, StartError> {
        settings.validate()?;
        let Listen { address, http_port, web_socket_port, control_port, max_records } = listen;
        let (http_listener, http) = bind_listener("HTTP", address, http_port)?;
        let (socket_listener, web_socket) = bind_listener("WebSocket", address, web_socket_port)?;
        let (control_listener, control) = bind_listener("control", address, control_port)?;
        let server = Arc::new(Server::new(settings, max_records));
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(accept_connections(
            http_listener,
            server.clone(),
            stopped.clone(),
            http::serve_connection,
        ));
        tokio::spawn(accept_connections(
            socket_listener,
            server.clone(),
            stopped.clone(),
            web_socket::serve_connection,
        ));
        tokio::spawn(accept_connections(
            control_listener,
            server.clone(),
            stopped,
            control::serve_connection,
        ));
        Ok(Self { server, http, web_socket, control, stop })
    }

    /// Returns the address of chat, health and models.
    pub const fn http_addr(&self) -> SocketAddr {
        self.http
    }

    /// Returns the address of WebSocket.
    pub const fn websocket_addr(&self) -> SocketAddr {
        self.web_socket
    }

    /// Returns the address of probes, truth and settings.
    pub const fn control_addr(&self) -> SocketAddr {
        self.control
    }

    /// Returns the truth about one run so far; all counts of an unknown run are zero.
    ///
    /// A request can be `inFlight` for some microseconds after the client has read its response.
    pub fn truth(&self, run_uid: &str) -> RunTruth {
        self.server.runs.run_truth(run_uid)
    }

    /// Returns the counts of all runs, oldest run first.
    pub fn run_summaries(&self) -> Vec<RunSummary> {
        self.server.runs.run_summaries()
    }

    /// Forgets all runs.
    pub fn forget_runs(&self) {
        self.server.runs.forget_runs();
    }

    /// Returns the settings in force.
    pub fn current_settings(&self) -> Settings {
        self.server.current_settings().as_ref().clone()
    }

    /// Replaces the settings. Every connection uses the new ones from its next request on.
    ///
    /// # Errors
    /// If a setting is out of range. The old settings stay in force.
    pub fn replace_settings(&self, settings: Settings) -> Result<(), SettingsError> {
        settings.validate()?;
        self.server.replace_settings(settings);
        Ok(())
    }

    /// Stops listening, closes all connections, and waits for both.
    ///
    /// The truth stays readable. Requests in flight are recorded as aborted.
    pub async fn shutdown(&self) {
        self.stop.send_replace(true);
        self.stop.closed().await;
    }
}

fn bind_listener(
    port: &'static str,
    address: IpAddr,
    number: u16,
) -> Result<(TcpListener, SocketAddr), StartError> {
    let address = SocketAddr::new(address, number);
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        let local = listener.local_addr()?;
        Ok((listener, local))
    };
    listen().map_err(|source| StartError::Listen { port, address, source })
}

/// Accepts connections until `stopped` is true, then drops all of them.
async fn accept_connections<F>(
    listener: TcpListener,
    server: Arc<Server>,
    mut stopped: watch::Receiver<bool>,
    serve: impl Fn(Arc<Server>, TcpStream) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    // Dropping the tasks closes the connections. A stop signal in each task would cost a check at
    // every wake-up.
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            _ = stopped.wait_for(|&stop| stop) => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, _)) => {
                // Setting the option fails only if the socket is closed already.
                let _ = socket.set_nodelay(true);
                connections.spawn(serve(server.clone(), socket));
            }
            Err(error) => {
                // The usual cause is a lack of file descriptors, so other connections must end
                // first.
                tracing::warn!(%error, "can't accept a connection");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
    drop(listener);
    connections.shutdown().await;
}
