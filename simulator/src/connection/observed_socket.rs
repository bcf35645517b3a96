//! A socket that reports to the request tracker when bytes arrived and when they were written.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use kernel_timestamps::{TimestampReader, enable_timestamps};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};

use super::request_tracker::RequestTracker;

/// A TCP socket that reports its reads and writes to a [`RequestTracker`].
#[derive(Debug)]
pub(crate) struct ObservedSocket {
    socket: TcpStream,
    tracker: Arc<RequestTracker>,
    reader: TimestampReader,
}

impl ObservedSocket {
    pub(crate) fn new(socket: TcpStream, tracker: Arc<RequestTracker>) -> Self {
        // Without kernel timestamps, the arrival time is the time of the read.
        enable_timestamps(&socket);
        Self { socket, tracker, reader: TimestampReader::new() }
    }

    /// Ends the connection with a TCP reset.
    pub(crate) fn reset(self) {
        // Setting the option fails only if the client is gone already.
        let _ = self.socket.set_zero_linger();
    }
}

/// Reads the available bytes and reports their arrival time. Returns the number of bytes.
fn receive_bytes(
    socket: &TcpStream,
    tracker: &RequestTracker,
    reader: &mut TimestampReader,
    bytes: &mut [u8],
) -> io::Result<usize> {
    let (n, timestamp) = reader.receive_bytes(socket, bytes)?;
    let clock = &tracker.server.clock;
    let arrival =
        timestamp.map_or_else(|| clock.now(), |timestamp| clock.convert_timestamp(timestamp));
    tracker.record_arrival(arrival);
    Ok(n)
}

impl AsyncRead for ObservedSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { socket, tracker, reader } = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            ready!(socket.poll_read_ready(cx))?;
            let bytes = buf.initialize_unfilled();
            let room = bytes.len();
            let mut read = None;
            let done = socket.try_io(Interest::READABLE, || {
                let n = receive_bytes(socket, tracker, reader, bytes)?;
                read = Some(n);
                // A read that left room in the buffer has emptied the socket. `WouldBlock` makes
                // tokio wait for the kernel's next event instead of reading once more.
                if (1..room).contains(&n) { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            match (read, done) {
                (Some(n), _) => {
                    buf.advance(n);
                    return Poll::Ready(Ok(()));
                }
                (None, Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
                (None, done) => return Poll::Ready(done),
            }
        }
    }
}

impl AsyncWrite for ObservedSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.socket).poll_write(cx, buf))?;
        self.tracker.record_write();
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.socket).poll_write_vectored(cx, bufs))?;
        self.tracker.record_write();
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.socket).poll_flush(cx))?;
        self.tracker.record_flush();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
