//! A TCP connection whose reads know when their bytes came: by the stamp the kernel puts on a
//! packet as it receives it.
//!
//! What this process was doing meanwhile, or whether it had the CPU, is not in a latency then.
//! Where the kernel has no stamp, or one that can't be right, a read came when it returned.

use std::{
    cell::Cell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Instant,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};

use crate::net::kernel_timestamps::{Clock, Order, READ};

/// What a connection has seen.
#[derive(Debug)]
pub(crate) struct Stamps {
    /// When the bytes of the latest read that brought some had come.
    pub(crate) last_read: Cell<Instant>,
    /// Bytes read, as the protocol sees them.
    pub(crate) received: Cell<u64>,
    /// Bytes written, as the protocol sees them.
    pub(crate) sent: Cell<u64>,
    /// What of them was counted already.
    counted: Cell<(u64, u64)>,
    order: Cell<Order>,
    /// The next read looks for itself, whatever was told of the socket.
    looks: Cell<bool>,
}

impl Stamps {
    /// Bytes sent and received since this was last asked.
    pub(crate) fn take_bytes(&self) -> (u64, u64) {
        let now = (self.sent.get(), self.received.get());
        let before = self.counted.replace(now);
        (now.0 - before.0, now.1 - before.1)
    }

    /// Has the next read look for itself: what came since the thread last waited for its sockets
    /// is there, though nobody was told yet.
    pub(crate) fn look(&self) {
        self.looks.set(true);
    }
}

/// A connection that stamps what it reads.
#[derive(Debug)]
pub(crate) struct Socket {
    tcp: TcpStream,
    clock: Rc<Clock>,
    stamps: Rc<Stamps>,
}

impl Socket {
    pub(crate) fn new(tcp: TcpStream, clock: Rc<Clock>) -> (Self, Rc<Stamps>) {
        clock.stamp(&tcp);
        let now = Instant::now();
        let stamps = Rc::new(Stamps {
            last_read: Cell::new(now),
            received: Cell::new(0),
            sent: Cell::new(0),
            counted: Cell::new((0, 0)),
            order: Cell::new(Order::new(now)),
            looks: Cell::new(false),
        });
        (Self { tcp, clock, stamps: Rc::clone(&stamps) }, stamps)
    }

    /// Reads what is there; how much.
    fn receive(&self, buffer: &mut ReadBuf<'_>) -> io::Result<usize> {
        let Self { tcp, clock, stamps } = self;
        let room = buffer.remaining();
        let put = |bytes: &[u8]| buffer.put_slice(bytes);
        let (n, at) = clock.read(tcp, room, &stamps.order, put)?;
        if n > 0 {
            // Two looks at the clocks may differ by less than a microsecond.
            stamps.last_read.set(stamps.last_read.get().max(at));
        }
        Ok(n)
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if this.stamps.looks.take() {
            match this.receive(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done.map(drop)),
            }
        }
        loop {
            ready!(this.tcp.poll_read_ready(context))?;
            let mut read = None;
            let done = this.tcp.try_io(Interest::READABLE, || {
                let room = buffer.remaining().min(READ);
                let n = this.receive(buffer)?;
                read = Some(n);
                // A read that had room left has taken all there was: the next one waits for the
                // kernel to say there is more, without asking it.
                if n > 0 && n < room { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            match done {
                _ if read.is_some() => return Poll::Ready(Ok(())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().tcp).poll_write(context, buffer)
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

    use futures::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// What an exact moment may be off: two looks at two clocks.
    const OFF: Duration = Duration::from_micros(10);

    #[tokio::test]
    async fn what_keeps_the_thread_is_not_in_the_moment_bytes_came() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut peer, _) = listener.accept().await.unwrap();
        let (mut socket, stamps) = Socket::new(tcp, Clock::new());
        // The kernel begins to stamp a moment after it was asked to; and packets are received in
        // the call that sends them, but on a machine that has no time for it.
        for attempt in 1.. {
            let before = Instant::now();
            peer.write_all(b"hello").await.unwrap();
            let sent = Instant::now();
            while sent.elapsed() < Duration::from_millis(20) {}
            let mut text = [0; 5];
            socket.read_exact(&mut text).await.unwrap();
            let came = stamps.last_read.get();
            assert!(came + OFF >= before, "{:?} too early", before - came);
            if came <= sent + OFF {
                return;
            }
            assert!(attempt < 50, "{:?} too late", came - sent);
        }
    }

    #[tokio::test]
    async fn a_read_that_looks_finds_what_nobody_was_told_of() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        let (mut socket, stamps) = Socket::new(tcp, Clock::new());
        let mut text = [0; 5];
        assert!(socket.read(&mut text).now_or_never().is_none());
        std::io::Write::write_all(&mut peer, b"hello").unwrap();
        assert!(socket.read(&mut text).now_or_never().is_none());
        stamps.look();
        assert_eq!(socket.read(&mut text).now_or_never().unwrap().unwrap(), 5);
        stamps.look();
        assert!(socket.read(&mut text).now_or_never().is_none());
        std::io::Write::write_all(&mut peer, b"again").unwrap();
        assert_eq!(socket.read(&mut text).await.unwrap(), 5);
        assert_eq!(&text, b"again");
    }
}
