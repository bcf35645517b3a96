//! A TCP connection that records when the bytes of each read arrived, by the timestamp of the
//! kernel.
//!
//! So a latency excludes the time that this process spent on other work or without a CPU. When the
//! kernel has no usable timestamp, the time of the read counts.

use std::{
    cell::Cell,
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use rustix::net::SendFlags;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};

use crate::net::{
    arrival_clock::{ArrivalClock, MAX_READ, ReorderCount},
    tcp_info,
};

/// Maximum time from the end of TLS to the end of the connection.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(100);

/// Times and byte counts of a connection.
#[derive(Debug)]
pub(crate) struct ConnectionStats {
    /// The address of the target.
    pub(crate) address: SocketAddr,
    /// When the bytes of the latest read arrived. Reads without bytes don't count.
    pub(crate) last_read: Cell<Instant>,
    /// Bytes read, after decryption.
    pub(crate) bytes_received: Cell<u64>,
    /// Bytes written, before encryption.
    pub(crate) bytes_sent: Cell<u64>,
    /// Bytes written to the socket, after encryption.
    pub(crate) socket_bytes_sent: Cell<u64>,
    /// True when the target has closed the connection in an orderly way (FIN).
    is_closed: Cell<bool>,
    /// True when the connection has failed, as by a reset.
    is_reset: Cell<bool>,
    /// Bytes that [`Self::take_bytes`] has reported already: sent, received.
    bytes_reported: Cell<(u64, u64)>,
    reordering: Cell<ReorderCount>,
    /// True when the next read must try the socket, even if no readiness event has come.
    force_read: Cell<bool>,
}

impl ConnectionStats {
    /// Returns the bytes sent and received since the last call.
    pub(crate) fn take_bytes(&self) -> (u64, u64) {
        let now = (self.bytes_sent.get(), self.bytes_received.get());
        let before = self.bytes_reported.replace(now);
        (now.0 - before.0, now.1 - before.1)
    }

    /// Makes the next read try the socket. Bytes may have arrived since the thread last polled for
    /// events.
    pub(crate) fn force_next_read(&self) {
        self.force_read.set(true);
    }
}

/// A TCP connection that records when its bytes arrived.
#[derive(Debug)]
pub(crate) struct TimestampedSocket {
    tcp: TcpStream,
    timestamps: Rc<ArrivalClock>,
    stats: Rc<ConnectionStats>,
}

impl TimestampedSocket {
    pub(crate) fn new(tcp: TcpStream, timestamps: Rc<ArrivalClock>) -> (Self, Rc<ConnectionStats>) {
        timestamps.enable_for(&tcp);
        let now = Instant::now();
        // The address of a connection that has ended already is unknown.
        let address = tcp.peer_addr().unwrap_or_else(|_| (Ipv4Addr::UNSPECIFIED, 0).into());
        let stats = Rc::new(ConnectionStats {
            address,
            last_read: Cell::new(now),
            bytes_received: Cell::new(0),
            bytes_sent: Cell::new(0),
            socket_bytes_sent: Cell::new(0),
            is_closed: Cell::new(false),
            is_reset: Cell::new(false),
            bytes_reported: Cell::new((0, 0)),
            reordering: Cell::new(ReorderCount::new(now)),
            force_read: Cell::new(false),
        });
        (Self { tcp, timestamps, stats: Rc::clone(&stats) }, stats)
    }

    /// Reads the bytes that are there. Returns their number.
    fn receive_bytes(&self, buffer: &mut ReadBuf<'_>) -> io::Result<usize> {
        let Self { tcp, timestamps, stats } = self;
        let room = buffer.remaining();
        let append = |bytes: &[u8]| buffer.put_slice(bytes);
        let read = timestamps.read(tcp, room, &stats.reordering, append);
        if read.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock) {
            stats.is_reset.set(true);
        }
        let (n, at) = read?;
        if n > 0 {
            // Two readings of the clocks may differ by less than a microsecond, so the time must
            // not go back.
            stats.last_read.set(stats.last_read.get().max(at));
        } else if room > 0 {
            stats.is_closed.set(true);
        }
        Ok(n)
    }

    /// Returns true if it is certain that the target closed its end before any byte after the first `count` ones
    /// reached it. The caller has read to the end, or to the end of TLS.
    ///
    /// The end of the connection (FIN) acknowledges all bytes that came before it. A reset does not, so it proves nothing.
    pub(super) async fn was_closed_after(&self, count: u64) -> bool {
        // After a reset, reads end too.
        if self.stats.is_reset.get() {
            return false;
        }
        // The end of TLS is a message of its own, and the end of the connection follows it.
        let is_closed = self.stats.is_closed.get()
            || tokio::time::timeout(CLOSE_TIMEOUT, self.reads_end()).await.unwrap_or(false);
        is_closed && tcp_info::acknowledged_bytes(&self.tcp).is_some_and(|n| n <= count)
    }

    /// Waits for the next bytes or the end of the connection. Returns true for the end.
    async fn reads_end(&self) -> bool {
        loop {
            if self.tcp.readable().await.is_err() {
                return false;
            }
            match self.tcp.try_read(&mut [0]) {
                Ok(n) => return n == 0,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => {
                    self.stats.is_reset.set(true);
                    return false;
                }
            }
        }
    }

    fn note_sent(&self, sent: &io::Result<usize>) {
        match sent {
            Ok(n) => {
                let before = self.stats.socket_bytes_sent.get();
                self.stats.socket_bytes_sent.set(before + *n as u64);
            }
            // The target had closed its end before it replied with a reset.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(_) => self.stats.is_reset.set(true),
        }
    }
}

impl AsyncRead for TimestampedSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if this.stats.force_read.take() {
            match this.receive_bytes(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result.map(drop)),
            }
        }
        loop {
            ready!(this.tcp.poll_read_ready(context))?;
            let mut read = None;
            let result = this.tcp.try_io(Interest::READABLE, || {
                let room = buffer.remaining().min(MAX_READ);
                let n = this.receive_bytes(buffer)?;
                read = Some(n);
                // A short read has emptied the socket. `WouldBlock` makes the next read wait for a
                // readiness event without another system call.
                if n > 0 && n < room { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            match result {
                _ if read.is_some() => return Poll::Ready(Ok(())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }
}

impl AsyncWrite for TimestampedSocket {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let tcp = &this.tcp;
        loop {
            ready!(tcp.poll_write_ready(context))?;
            // The call of the C library is a cancellation point, and does more than the system call.
            let sent = tcp.try_io(Interest::WRITABLE, || {
                rustix::net::send(tcp, buffer, SendFlags::NOSIGNAL).map_err(io::Error::from)
            });
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => {
                    this.note_sent(&sent);
                    return Poll::Ready(sent);
                }
            }
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let sent = ready!(Pin::new(&mut this.tcp).poll_write_vectored(context, buffers));
        this.note_sent(&sent);
        Poll::Ready(sent)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Error of an exact time: two readings of two clocks.
    const MAX_ERROR: Duration = Duration::from_micros(10);

    #[tokio::test]
    async fn a_busy_thread_does_not_delay_the_arrival_time() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut peer, _) = listener.accept().await.unwrap();
        let (mut socket, stats) = TimestampedSocket::new(tcp, ArrivalClock::new());
        // The kernel starts to take timestamps a moment after the socket asks for them. A packet on
        // loopback is received within the call that sends it, unless the machine is busy.
        for attempt in 1.. {
            let before = Instant::now();
            peer.write_all(b"hello").await.unwrap();
            let sent = Instant::now();
            while sent.elapsed() < Duration::from_millis(20) {}
            let mut text = [0; 5];
            socket.read_exact(&mut text).await.unwrap();
            let arrived = stats.last_read.get();
            assert!(arrived + MAX_ERROR >= before, "{:?} too early", before - arrived);
            if arrived <= sent + MAX_ERROR {
                return;
            }
            assert!(attempt < 50, "{:?} too late", arrived - sent);
        }
    }

    /// Sends "first" and "hello" to a peer that does something before and after "hello" comes. Reads to the end, and returns
    /// true if the peer is known to have closed before "hello" came.
    async fn is_missed(
        before: impl AsyncFnOnce(TcpStream) -> Option<TcpStream>,
        after: impl AsyncFnOnce(TcpStream),
    ) -> bool {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut peer, _) = listener.accept().await.unwrap();
        let (mut socket, stats) = TimestampedSocket::new(tcp, ArrivalClock::new());
        socket.write_all(b"first").await.unwrap();
        peer.read_exact(&mut [0; 5]).await.unwrap();
        let peer = before(peer).await;
        socket.write_all(b"hello").await.unwrap();
        assert_eq!(stats.socket_bytes_sent.get(), 10);
        if let Some(peer) = peer {
            after(peer).await;
        }
        // As after the end of TLS, where the end of the connection is not read.
        let unread = socket.was_closed_after(5).await;
        let end = socket.read(&mut [0; 5]).await;
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
        assert_eq!(socket.was_closed_after(5).await, unread);
        unread
    }

    #[tokio::test]
    async fn a_close_before_the_bytes_came_is_told_apart() {
        let keep = async |peer| Some(peer);
        let close = async |peer| drop(peer);
        assert!(is_missed(async |_closed| None, close).await);
        // The bytes lie in the socket of the peer.
        assert!(!is_missed(keep, close).await);
        let read = async |mut peer: TcpStream| drop(peer.read_exact(&mut [0; 5]).await);
        assert!(!is_missed(keep, read).await);
        let reset = async |peer: TcpStream| peer.set_zero_linger().unwrap();
        assert!(!is_missed(keep, reset).await);
    }

    #[tokio::test]
    async fn a_forced_read_finds_bytes_without_a_readiness_event() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        let (mut socket, stats) = TimestampedSocket::new(tcp, ArrivalClock::new());
        let mut text = [0; 5];
        assert!(socket.read(&mut text).now_or_never().is_none());
        std::io::Write::write_all(&mut peer, b"hello").unwrap();
        assert!(socket.read(&mut text).now_or_never().is_none());
        stats.force_next_read();
        assert_eq!(socket.read(&mut text).now_or_never().unwrap().unwrap(), 5);
        stats.force_next_read();
        assert!(socket.read(&mut text).now_or_never().is_none());
        std::io::Write::write_all(&mut peer, b"again").unwrap();
        assert_eq!(socket.read(&mut text).await.unwrap(), 5);
        assert_eq!(&text, b"again");
    }
}
