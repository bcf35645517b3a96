//! A socket that tells a connection's line when bytes came and went.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use nix::{
    cmsg_space,
    sys::{
        socket::{
            AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, setsockopt,
            socket, sockopt::ReceiveTimestampns,
        },
        time::TimeSpec,
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};

use crate::line::Line;

/// A socket that reports what was read from it and written to it.
#[derive(Debug)]
pub(crate) struct Tap {
    socket: TcpStream,
    line: Arc<Line>,
    /// Where the kernel's stamp is read to.
    control: Vec<u8>,
}

impl Tap {
    pub(crate) fn new(socket: TcpStream, line: Arc<Line>) -> Self {
        // Without stamps, bytes came when they were read.
        stamp(&socket);
        Self { socket, line, control: cmsg_space!(TimeSpec) }
    }

    /// Ends the connection with a TCP reset.
    pub(crate) fn reset(self) {
        // If the option can't be set the peer is gone already.
        let _ = self.socket.set_zero_linger();
    }
}

/// Reads what is there, and tells the line when it had come; how much.
fn receive(
    socket: &TcpStream,
    line: &Line,
    control: &mut [u8],
    bytes: &mut [u8],
) -> io::Result<usize> {
    let mut parts = [IoSliceMut::new(bytes)];
    let flags = MsgFlags::empty();
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(control), flags)?;
    // One that can't be read is none.
    let stamp = message.cmsgs().ok().into_iter().flatten().find_map(|it| match it {
        ControlMessageOwned::ScmTimestampns(at) => Some(Duration::from(at)),
        _ => None,
    });
    let clock = &line.server.clock;
    line.came(stamp.map_or_else(|| clock.now(), |stamp| clock.at(stamp)));
    Ok(message.bytes)
}

/// Asks the kernel to stamp what this socket receives.
fn stamp(socket: &impl AsFd) -> bool {
    setsockopt(socket, ReceiveTimestampns, &true).is_ok()
}

/// A socket that wants stamps for as long as it lives: the kernel begins and ends to take them with
/// the first and the last one that does, and a moment late.
pub(crate) fn wanted() -> Option<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let any = socket(AddressFamily::Inet, SockType::Datagram, flags, None).ok()?;
    stamp(&any).then_some(any)
}

impl AsyncRead for Tap {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { socket, line, control } = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            ready!(socket.poll_read_ready(cx))?;
            let bytes = buf.initialize_unfilled();
            let room = bytes.len();
            let mut read = None;
            let done = socket.try_io(Interest::READABLE, || {
                let n = receive(socket, line, control, bytes)?;
                read = Some(n);
                // A read that had room left has taken all there was: the next one waits for the
                // kernel to say there is more, without asking it.
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

impl AsyncWrite for Tap {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.socket).poll_write(cx, buf))?;
        self.line.wrote();
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.socket).poll_write_vectored(cx, bufs))?;
        self.line.wrote();
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.socket).poll_flush(cx))?;
        self.line.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
