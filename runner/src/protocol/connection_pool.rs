//! HTTP connections and whose they are: one user's, all users' of a load thread, or one
//! request's.

use std::{
    cell::RefCell,
    pin::Pin,
    rc::Rc,
    task::{Context, Waker},
    time::{Duration, Instant},
};

use loadtest_core::resource::{HttpVersion, Reuse};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

use crate::{
    failure::Failure,
    measure::{in_flight::Flight, recorder::Opened},
    net::{
        connector::Connector, kernel_timestamps::Clock, stream::Wire, timestamped_socket::Stamps,
    },
    prepare::Prepared,
    protocol::http2::Http2,
    timer::Pacer,
};

/// How long a target that was told to close a connection may take.
const PATIENCE: Duration = Duration::from_millis(100);

/// An HTTP/1.1 connection.
#[derive(Debug)]
pub(crate) struct Http1 {
    pub(crate) wire: Wire,
    pub(crate) stamps: Rc<Stamps>,
    /// True when it can't be used again: the target said so, or an answer ended with it.
    pub(crate) spent: bool,
    /// There is more on it of an answer that was given up.
    pub(crate) unread: bool,
}

impl Http1 {
    /// True unless the target has closed it, or said something nobody asked for. Between
    /// requests there is nothing to read, so asking costs no system call.
    fn is_open(&mut self) -> bool {
        let mut byte = [0];
        let mut buffer = ReadBuf::new(&mut byte);
        let mut context = Context::from_waker(Waker::noop());
        Pin::new(&mut self.wire).poll_read(&mut context, &mut buffer).is_pending()
    }
}

/// An open connection.
#[derive(Debug)]
pub(crate) enum Connection {
    One(Http1),
    Two(Rc<Http2>),
}

impl Connection {
    pub(crate) fn stamps(&self) -> &Rc<Stamps> {
        match self {
            Self::One(one) => &one.stamps,
            Self::Two(two) => &two.stamps,
        }
    }

    /// True when another request can be sent on it.
    pub(crate) fn is_open(&mut self) -> bool {
        match self {
            Self::One(one) => !one.spent && one.is_open(),
            Self::Two(two) => two.is_open(),
        }
    }

    /// True when it is known that none can.
    fn is_spent(&self) -> bool {
        match self {
            Self::One(one) => one.spent,
            Self::Two(two) => !two.is_open(),
        }
    }

    /// Bytes sent and received since this was last asked. Of a connection that many share,
    /// whoever asks has them.
    fn take_bytes(&self) -> (u64, u64) {
        self.stamps().take_bytes()
    }
}

/// The place of one connection, which may be open.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    pub(crate) connection: Option<Connection>,
    /// There was one, and it ended without us: the next one is in its place.
    lost: bool,
}

impl Slot {
    /// Lets go of a connection that has ended.
    pub(crate) fn lose(&mut self) {
        self.lost |= self.connection.take().is_some();
    }

    /// Opens one, in place of what was there.
    pub(crate) async fn open(
        &mut self,
        links: &Links,
        flight: &Flight,
    ) -> Result<&mut Connection, Failure> {
        let opened = links.open(self.lost, flight).await?;
        // Without one, the next attempt would be in its place too.
        self.lost = false;
        Ok(self.connection.insert(opened))
    }

    /// A request on it is over; bytes sent and received meanwhile. `broken` is true when nobody
    /// knows what is left on the connection, `unheard` when nothing came on it since the request
    /// was sent, which then took too long.
    pub(crate) fn settle(&mut self, broken: bool, unheard: bool) -> (u64, u64) {
        let Some(open) = &self.connection else { return (0, 0) };
        let bytes = open.take_bytes();
        let lost = match open {
            Connection::One(_) => broken,
            // Only the stream is broken; but on one that is silent, all others are too.
            Connection::Two(two) => {
                if unheard {
                    two.end();
                }
                unheard
            }
        };
        if lost || open.is_spent() {
            self.lose();
        }
        bytes
    }
}

/// The way to the HTTP target, and its connections that no user owns.
#[derive(Debug)]
pub(crate) struct Links {
    connector: Connector,
    version: HttpVersion,
    reuse: Reuse,
    /// Shared connections that are free; the one used last is the warmest.
    free: RefCell<Vec<Slot>>,
    /// The one HTTP/2 connection that all share, and a turn to open it.
    shared: RefCell<Slot>,
    opening: tokio::sync::Mutex<()>,
}

impl Links {
    pub(crate) fn new(prepared: &Prepared, clock: &Rc<Clock>) -> Option<Self> {
        let target = &prepared.plan.target;
        Some(Self {
            connector: Connector::new(prepared.http.clone()?, Rc::clone(clock)),
            version: target.http_version,
            reuse: target.connections,
            free: RefCell::default(),
            shared: RefCell::default(),
            opening: tokio::sync::Mutex::new(()),
        })
    }

    /// The slot for a user's next request: its own, or one that is free.
    pub(crate) fn take(&self, own: &mut Slot) -> Slot {
        match (self.reuse, self.version) {
            (Reuse::PerUser, _) => std::mem::take(own),
            (Reuse::PerRequest, _) => Slot::default(),
            (Reuse::Shared, HttpVersion::Http1) => self.free.borrow_mut().pop().unwrap_or_default(),
            (Reuse::Shared, HttpVersion::Http2) => {
                Slot { connection: self.live().map(Connection::Two), lost: false }
            }
        }
    }

    /// Gives the slot back.
    pub(crate) fn give(&self, slot: Slot, own: &mut Slot) {
        match (self.reuse, self.version) {
            (Reuse::PerUser, _) => *own = slot,
            (Reuse::Shared, HttpVersion::Http1) => self.free.borrow_mut().push(slot),
            (Reuse::PerRequest, _) | (Reuse::Shared, HttpVersion::Http2) => {}
        }
    }

    /// Waits for the target to close a connection that was for one request, or that takes no other:
    /// whoever closes first keeps the port for a minute.
    pub(crate) async fn outlive(&self, slot: &mut Slot, pacer: &Pacer) {
        let Some(Connection::One(open)) = &mut slot.connection else { return };
        // What is left of an answer that was given up is not worth reading.
        if open.unread || self.reuse != Reuse::PerRequest && !open.spent {
            return;
        }
        let mut rest = [0; 64];
        let ended = async { while open.wire.read(&mut rest).await.is_ok_and(|n| n > 0) {} };
        tokio::select! {
            () = ended => {}
            () = pacer.until(Instant::now() + PATIENCE) => {}
        }
    }

    /// The HTTP/2 connection that all share, while it lives.
    fn live(&self) -> Option<Rc<Http2>> {
        match &self.shared.borrow().connection {
            Some(Connection::Two(two)) if two.is_open() => Some(Rc::clone(two)),
            _ => None,
        }
    }

    async fn open(&self, again: bool, flight: &Flight) -> Result<Connection, Failure> {
        if self.version == HttpVersion::Http1 {
            let (wire, stamps, steps) = self.connector.connect().await?;
            flight.opened(Opened { again, steps });
            return Ok(Connection::One(Http1 { wire, stamps, spent: false, unread: false }));
        }
        if self.reuse != Reuse::Shared {
            return self.open_http2(again, flight).await.map(Connection::Two);
        }
        // Users that start together open one: the others wait for it.
        let _turn = self.opening.lock().await;
        if let Some(live) = self.live() {
            return Ok(Connection::Two(live));
        }
        let again = self.shared.borrow().connection.is_some();
        let two = self.open_http2(again, flight).await?;
        self.shared.borrow_mut().connection = Some(Connection::Two(Rc::clone(&two)));
        Ok(Connection::Two(two))
    }

    async fn open_http2(&self, again: bool, flight: &Flight) -> Result<Rc<Http2>, Failure> {
        let (wire, stamps, steps) = self.connector.connect().await?;
        let two = Rc::new(Http2::open(wire, stamps).await?);
        flight.opened(Opened { again, steps });
        Ok(two)
    }
}
