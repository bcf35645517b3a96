//! A connection, plain or with TLS, that counts its bytes.

use std::{
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::client::TlsStream;

use crate::net::timestamped_socket::{ConnectionStats, TimestampedSocket};

#[derive(Debug)]
pub(crate) enum MaybeTlsStream {
    Plain(TimestampedSocket),
    Tls(Box<TlsStream<TimestampedSocket>>),
}

/// A connection that counts the bytes of its protocol: after decryption, before encryption.
#[derive(Debug)]
pub(crate) struct MeteredStream {
    stream: MaybeTlsStream,
    stats: Rc<ConnectionStats>,
}

impl MeteredStream {
    pub(crate) const fn new(stream: MaybeTlsStream, stats: Rc<ConnectionStats>) -> Self {
        Self { stream, stats }
    }

    /// See [`TimestampedSocket::was_closed_after`]. `count` is a number of bytes of the socket, after encryption.
    pub(crate) async fn was_closed_after(&self, count: u64) -> bool {
        let socket = match &self.stream {
            MaybeTlsStream::Plain(socket) => socket,
            MaybeTlsStream::Tls(stream) => stream.get_ref().0,
        };
        socket.was_closed_after(count).await
    }
}

impl AsyncRead for MeteredStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = match &mut self.stream {
            MaybeTlsStream::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            MaybeTlsStream::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        };
        ready!(read)?;
        let n = buffer.filled().len() - before;
        self.stats.bytes_received.set(self.stats.bytes_received.get() + n as u64);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for MeteredStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = match &mut self.stream {
            MaybeTlsStream::Plain(stream) => Pin::new(stream).poll_write(context, buffer),
            MaybeTlsStream::Tls(stream) => Pin::new(stream).poll_write(context, buffer),
        };
        let n = ready!(written)?;
        self.stats.bytes_sent.set(self.stats.bytes_sent.get() + n as u64);
        Poll::Ready(Ok(n))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = match &mut self.stream {
            MaybeTlsStream::Plain(stream) => Pin::new(stream).poll_write_vectored(context, buffers),
            MaybeTlsStream::Tls(stream) => Pin::new(stream).poll_write_vectored(context, buffers),
        };
        let n = ready!(written)?;
        self.stats.bytes_sent.set(self.stats.bytes_sent.get() + n as u64);
        Poll::Ready(Ok(n))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            MaybeTlsStream::Plain(stream) => stream.is_write_vectored(),
            MaybeTlsStream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            MaybeTlsStream::Plain(stream) => Pin::new(stream).poll_flush(context),
            MaybeTlsStream::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            MaybeTlsStream::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            MaybeTlsStream::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
