//! A connection that notes when bytes come and how many: stamped at the socket's read,
//! before anything is parsed.

use std::{
    cell::Cell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Instant,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

/// What a connection has seen.
#[derive(Debug)]
pub(crate) struct Stamps {
    /// The latest read that brought bytes.
    pub(crate) last_read: Cell<Instant>,
    /// Bytes read, as the protocol sees them.
    pub(crate) received: Cell<u64>,
    /// Bytes written, as the protocol sees them.
    pub(crate) sent: Cell<u64>,
    /// What of them was counted already.
    counted: Cell<(u64, u64)>,
}

impl Stamps {
    /// Bytes sent and received since this was last asked.
    pub(crate) fn take_bytes(&self) -> (u64, u64) {
        let now = (self.sent.get(), self.received.get());
        let before = self.counted.replace(now);
        (now.0 - before.0, now.1 - before.1)
    }
}

#[derive(Debug)]
pub(crate) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A stamped connection.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: Stream,
    stamps: Rc<Stamps>,
}

impl Wire {
    pub(crate) fn new(stream: Stream) -> (Self, Rc<Stamps>) {
        let stamps = Rc::new(Stamps {
            last_read: Cell::new(Instant::now()),
            received: Cell::new(0),
            sent: Cell::new(0),
            counted: Cell::new((0, 0)),
        });
        (Self { stream, stamps: Rc::clone(&stamps) }, stamps)
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        };
        ready!(read)?;
        let n = buffer.filled().len() - before;
        if n > 0 {
            self.stamps.last_read.set(Instant::now());
            self.stamps.received.set(self.stamps.received.get() + n as u64);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(context, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_write(context, buffer),
        };
        let n = ready!(written)?;
        self.stamps.sent.set(self.stamps.sent.get() + n as u64);
        Poll::Ready(Ok(n))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(context, buffers),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(context, buffers),
        };
        let n = ready!(written)?;
        self.stamps.sent.set(self.stamps.sent.get() + n as u64);
        Poll::Ready(Ok(n))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
