//! Connections to the HTTP target, and their reuse: by one user, by all users of a load thread, or
//! for a single request.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use loadtest_core::resource::{ConnectionLimits, ConnectionReuse, HttpVersion};
use tokio::io::AsyncReadExt;

use self::keep_alive::KeepAlive;
use crate::{
    failure::Failure,
    measure::{in_flight::InFlightRequest, recorder::OpenedConnection},
    net::{arrival_clock::ArrivalClock, connector::Connector, timestamped_socket::ConnectionStats},
    prepare::plan::PreparedPlan,
    protocol::{http1::Http1Connection, http2::Http2Connection},
};

mod keep_alive;

/// Maximum time to wait until the target closes a connection.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(100);

/// Maximum number of connections that wait until the target closes them.
const MAX_CLOSING: usize = 48;

/// Maximum time to wait for the rest of a body that nobody needs. A new connection takes longer.
const REST_TIMEOUT: Duration = Duration::from_millis(5);

/// Number of responses in a row that the target left open, after which their rest is not waited for any more.
const MAX_LEFT_OPEN: u32 = 3;

/// An open connection.
#[derive(Debug)]
pub(crate) enum Connection {
    /// Boxed, because a slot moves from its user to each request and back.
    Http1(Box<Http1Connection>),
    Http2(Rc<Http2Connection>),
}

impl Connection {
    fn stats(&self) -> &Rc<ConnectionStats> {
        match self {
            Self::Http1(connection) => &connection.stats,
            Self::Http2(connection) => &connection.stats,
        }
    }

    /// Returns true when another request can be sent. Checks the socket of an HTTP/1.1 connection.
    pub(crate) fn can_send(&mut self) -> bool {
        match self {
            Self::Http1(connection) => !connection.is_used_up && connection.is_open(),
            Self::Http2(connection) => connection.can_send(),
        }
    }

    /// Returns true when the connection is older than the plan allows.
    fn is_expired(&self) -> bool {
        let expires = match self {
            Self::Http1(connection) => connection.expires,
            Self::Http2(connection) => connection.expires,
        };
        expires.is_some_and(|at| at <= Instant::now())
    }

    /// Returns true when no other request can be sent, without a check of the socket.
    fn is_used_up(&self) -> bool {
        match self {
            Self::Http1(connection) => connection.is_used_up,
            Self::Http2(connection) => !connection.can_send(),
        }
    }

    /// Returns the bytes sent and received since the last call. Users that share a connection share
    /// these counts: the next caller gets them.
    fn take_bytes(&self) -> (u64, u64) {
        self.stats().take_bytes()
    }
}

/// A slot for one connection, which may be empty.
#[derive(Debug, Default)]
pub(crate) struct ConnectionSlot {
    pub(crate) connection: Option<Connection>,
    /// True when the last connection in the slot ended by the target or a failure, so that the next
    /// one is a reconnect.
    is_lost: bool,
}

impl ConnectionSlot {
    /// Returns when the connection in the slot last received bytes.
    pub(crate) fn last_read(&self) -> Option<Instant> {
        self.connection.as_ref().map(|open| open.stats().last_read.get())
    }

    /// Stops new requests on a connection that many users may share.
    pub(crate) fn stop_sending(&self) {
        if let Some(Connection::Http2(shared)) = &self.connection {
            shared.stop_sending();
        }
    }

    /// Drops a connection that has ended.
    pub(crate) fn discard(&mut self) {
        self.is_lost |= self.connection.take().is_some();
    }

    /// Opens a connection in the slot.
    pub(crate) async fn open_connection(
        &mut self,
        pool: &ConnectionPool,
        in_flight: &InFlightRequest,
    ) -> Result<&mut Connection, Failure> {
        let connection = pool.open_connection(self.is_lost, in_flight).await?;
        // Reset only after success: if the connect fails, the next attempt is a reconnect too.
        self.is_lost = false;
        Ok(self.connection.insert(connection))
    }

    /// Returns the bytes sent and received since the last call.
    pub(crate) fn take_bytes(&self) -> (u64, u64) {
        self.connection.as_ref().map_or((0, 0), Connection::take_bytes)
    }

    /// Returns the address of the open connection.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.connection.as_ref().map(|open| open.stats().address)
    }

    /// Ends a request.
    ///
    /// `is_broken` means that the state of the protocol on the connection is unknown. `is_silent`
    /// means that the request timed out and the target sent nothing after it.
    pub(crate) fn finish_request(&mut self, is_broken: bool, is_silent: bool) {
        let Some(open) = &self.connection else { return };
        let is_lost = match open {
            Connection::Http1(_) => is_broken,
            // A failed request breaks only its stream. A silent connection, though, is broken for
            // all streams.
            Connection::Http2(connection) => {
                if is_silent {
                    connection.stop_sending();
                }
                is_silent
            }
        };
        if !is_lost && open.is_expired() {
            // Neither the target nor a failure has ended it.
            self.connection = None;
        } else if is_lost || open.is_used_up() {
            self.discard();
        }
    }
}

/// The connections of a load thread to the HTTP target.
#[derive(Debug)]
pub(crate) struct ConnectionPool {
    connector: Connector,
    version: HttpVersion,
    reuse: ConnectionReuse,
    /// Shared connections that are idle. The one used last is the warmest, and the next to be used.
    idle: RefCell<Vec<ConnectionSlot>>,
    limits: ConnectionLimits,
    /// Number of connections that were opened.
    opened: Cell<u64>,
    /// The HTTP/2 connections that all users share, and the lock for opening one.
    shared_http2: RefCell<Vec<ConnectionSlot>>,
    opening_lock: tokio::sync::Mutex<()>,
    /// Number of connections that wait until the target closes them.
    closing: Rc<Cell<usize>>,
    /// How many responses in a row the target has left open after their last event.
    left_open: Cell<u32>,
    keep_alive: KeepAlive,
}

impl ConnectionPool {
    pub(crate) fn new(
        prepared: &PreparedPlan,
        timestamps: &Rc<ArrivalClock>,
        thread: usize,
    ) -> Option<Self> {
        let target = &prepared.plan.test.target;
        Some(Self {
            connector: Connector::new(prepared.http.clone()?, Rc::clone(timestamps), thread),
            version: target.http_version,
            reuse: target.connections,
            idle: RefCell::default(),
            limits: target.connection_limits,
            opened: Cell::new(0),
            shared_http2: RefCell::default(),
            opening_lock: tokio::sync::Mutex::new(()),
            closing: Rc::default(),
            left_open: Cell::new(0),
            keep_alive: KeepAlive::default(),
        })
    }

    /// Returns a slot for the next request of a user: the user's own slot, or an idle one.
    pub(crate) fn checkout(&self, own: &mut ConnectionSlot) -> ConnectionSlot {
        match (self.reuse, self.version) {
            (ConnectionReuse::PerUser, _) => std::mem::take(own),
            (ConnectionReuse::PerRequest, _) => ConnectionSlot::default(),
            (ConnectionReuse::Shared, HttpVersion::Http1) => {
                self.idle.borrow_mut().pop().unwrap_or_default()
            }
            (ConnectionReuse::Shared, HttpVersion::Http2) => ConnectionSlot {
                connection: self.shared_connection().map(Connection::Http2),
                is_lost: false,
            },
        }
    }

    /// Returns a slot to the pool, or to the user.
    pub(crate) fn checkin(&self, slot: ConnectionSlot, own: &mut ConnectionSlot) {
        match (self.reuse, self.version) {
            (ConnectionReuse::PerUser, _) => *own = slot,
            (ConnectionReuse::Shared, HttpVersion::Http1) => self.idle.borrow_mut().push(slot),
            (ConnectionReuse::PerRequest, _) | (ConnectionReuse::Shared, HttpVersion::Http2) => {}
        }
    }

    /// Makes the connection in a slot ready for another request, or drops it. `is_idempotent` means that the request may
    /// be sent again if the connection ends.
    pub(crate) async fn prepare_reuse(
        &self,
        slot: &mut ConnectionSlot,
        is_idempotent: bool,
        buffer: &mut BytesMut,
    ) {
        if let Some(Connection::Http1(open)) = &mut slot.connection
            && open.unread_body.is_some()
        {
            // A target that leaves responses open is waited for only some times.
            let is_patient = self.left_open.get() < MAX_LEFT_OPEN;
            let limit = if is_patient { REST_TIMEOUT } else { Duration::ZERO };
            let read = open.finish_unread_body(buffer);
            let is_ready = tokio::time::timeout(limit, read).await;
            self.left_open.set(if is_ready.is_err() { self.left_open.get() + 1 } else { 0 });
            open.is_used_up |= !is_ready.unwrap_or(false);
        }
        if slot.connection.as_ref().is_some_and(Connection::is_expired) {
            // Neither the target nor a failure has ended it.
            slot.connection = None;
        } else if slot.connection.as_mut().is_some_and(|open| !open.can_send()) {
            slot.discard();
        } else if !is_idempotent {
            self.avoid_doubtful_reuse(slot);
        }
    }

    /// Takes a connection out of its slot if the target seems to close each of them. One such connection is watched, so
    /// that connections are used again as soon as the target keeps them.
    fn avoid_doubtful_reuse(&self, slot: &mut ConnectionSlot) {
        if !self.keep_alive.is_doubtful() {
            return;
        }
        let is_http1 = |open: &mut Connection| matches!(open, Connection::Http1(_));
        let Some(Connection::Http1(open)) = slot.connection.take_if(is_http1) else { return };
        slot.is_lost = true;
        if let Some(mut open) = self.keep_alive.watch(open) {
            open.is_used_up = true;
            slot.connection = Some(Connection::Http1(open));
            self.retire(slot);
            slot.connection = None;
        }
    }

    /// Takes a connection that will not be used again out of its slot. It stays open in the
    /// background until the target closes it, because the side that closes first keeps the port in
    /// `TIME_WAIT` for a minute. No user waits for that.
    pub(crate) fn retire(&self, slot: &mut ConnectionSlot) {
        let Some(Connection::Http1(open)) = &slot.connection else { return };
        let is_over = open.is_used_up || self.reuse == ConnectionReuse::PerRequest;
        // The rest of a response that was given up is not worth reading.
        if !is_over || open.unread_body.is_some() || self.closing.get() >= MAX_CLOSING {
            return;
        }
        let Some(Connection::Http1(mut open)) = slot.connection.take() else { return };
        slot.is_lost = true;
        self.closing.set(self.closing.get() + 1);
        let closing = Rc::clone(&self.closing);
        tokio::task::spawn_local(async move {
            let mut discarded = [0; 64];
            let closed =
                async { while open.stream.read(&mut discarded).await.is_ok_and(|n| n > 0) {} };
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, closed).await;
            closing.set(closing.get() - 1);
        });
    }

    /// Returns true when the target is called over HTTP/2.
    pub(crate) const fn speaks_http2(&self) -> bool {
        matches!(self.version, HttpVersion::Http2)
    }

    /// Returns the HTTP/2 connection with the fewest streams among those that all users share.
    /// `None` when there may be one more.
    fn shared_connection(&self) -> Option<Rc<Http2Connection>> {
        let shared = self.shared_http2.borrow();
        let usable = shared.iter().filter_map(|slot| match &slot.connection {
            Some(Connection::Http2(connection)) if connection.can_send() => Some(connection),
            _ => None,
        });
        if usable.clone().count() < self.limits.per_thread.get() as usize {
            return None;
        }
        usable.min_by_key(|connection| connection.open_stream_count()).map(Rc::clone)
    }

    /// Keeps a connection for all users, and drops those that have ended.
    fn replace_shared(&self, connection: &Rc<Http2Connection>) {
        let mut shared = self.shared_http2.borrow_mut();
        shared.retain(|slot| slot.connection.as_ref().is_some_and(|open| !open.is_used_up()));
        let connection = Some(Connection::Http2(Rc::clone(connection)));
        shared.push(ConnectionSlot { connection, is_lost: false });
    }

    /// Notes a response of the target. `is_kept` means that it is not the first one on its connection.
    pub(crate) fn note_response(&self, is_kept: bool) {
        self.connector.note_response();
        if is_kept {
            self.keep_alive.note_response();
        }
    }

    /// Notes that a kept connection ended before a response.
    pub(crate) fn note_ended_connection(&self) {
        self.keep_alive.note_end();
    }

    /// Adds what is known about the target to a failure of a new connection.
    pub(crate) fn explain_failure(&self, failure: Failure) -> Failure {
        self.connector.explain_failure(failure)
    }

    /// Returns when a connection that opens now is too old. Ages differ by up to 10 %, so that not
    /// all connections are replaced at once.
    fn new_expiry(&self) -> Option<Instant> {
        let max_age = self.limits.max_age?.to_std();
        let number = self.opened.replace(self.opened.get() + 1);
        // Multiples of the golden ratio spread evenly between 0 and 1, whatever their number.
        let spread = (number as f64 * 0.618_034).fract();
        Some(Instant::now() + max_age.mul_f64(0.9 + 0.1 * spread))
    }

    async fn open_connection(
        &self,
        is_reconnect: bool,
        in_flight: &InFlightRequest,
    ) -> Result<Connection, Failure> {
        if self.version == HttpVersion::Http1 {
            let (stream, stats, steps) = self.connector.connect(in_flight.connect_state()).await?;
            in_flight.add_opened_connection(OpenedConnection { is_reconnect, steps });
            return Ok(Connection::Http1(Box::new(Http1Connection {
                stream,
                stats,
                is_used_up: false,
                unread_body: None,
                expires: self.new_expiry(),
            })));
        }
        if self.reuse != ConnectionReuse::Shared {
            return self.open_http2(is_reconnect, in_flight).await.map(Connection::Http2);
        }
        // Users that start together open a single connection: one opens it, the others wait.
        let _lock = self.opening_lock.lock().await;
        if let Some(shared) = self.shared_connection() {
            return Ok(Connection::Http2(shared));
        }
        let has_lost = |slot: &ConnectionSlot| {
            slot.connection.as_ref().is_some_and(|open| open.is_used_up() && !open.is_expired())
        };
        let is_reconnect = self.shared_http2.borrow().iter().any(has_lost);
        let connection = self.open_http2(is_reconnect, in_flight).await?;
        self.replace_shared(&connection);
        Ok(Connection::Http2(connection))
    }

    async fn open_http2(
        &self,
        is_reconnect: bool,
        in_flight: &InFlightRequest,
    ) -> Result<Rc<Http2Connection>, Failure> {
        let (stream, stats, steps) = self.connector.connect(in_flight.connect_state()).await?;
        let expires = self.new_expiry();
        let connection = Rc::new(Http2Connection::handshake(stream, stats, expires).await?);
        in_flight.add_opened_connection(OpenedConnection { is_reconnect, steps });
        Ok(connection)
    }
}
