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
    time::Instant,
};

use rustix::net::SendFlags;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};

use crate::net::arrival_clock::{ArrivalClock, MAX_READ, ReorderCount};

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
        let (n, at) = timestamps.read(tcp, room, &stats.reordering, append)?;
        if n > 0 {
            // Two readings of the clocks may differ by less than a microsecond, so the time must
            // not go back.
            stats.last_read.set(stats.last_read.get().max(at));
        }
        Ok(n)
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
        let tcp = &self.get_mut().tcp;
        loop {
            ready!(tcp.poll_write_ready(context))?;
            // The call of the C library is a cancellation point, and does more than the system call.
            let sent = tcp.try_io(Interest::WRITABLE, || {
                rustix::net::send(tcp, buffer, SendFlags::NOSIGNAL).map_err(io::Error::from)
            });
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return Poll::Ready(sent),
            }
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().tcp).poll_write_vectored(context, buffers)
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
    use std::time::Duration;

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
