//! A TCP connection whose reads know when their bytes came: by the stamp the kernel puts on a
//! packet as it receives it.
//!
//! What this process was doing meanwhile, or whether it had the CPU, is not in a latency then.
//! Where the kernel has no stamp, a read came when it returned.

use std::{
    cell::{Cell, RefCell},
    fmt, io,
    io::IoSliceMut,
    os::fd::AsRawFd,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::{
    cmsg_space,
    sys::{
        socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt},
        time::TimeSpec,
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};

/// Bytes of one read at most.
const READ: usize = 64 << 10;
/// How long two looks at two clocks are believed, and the age of a stamp up to which they are:
/// someone may set the clock of the stamps.
const FRESH: Duration = Duration::from_millis(1);
/// Looks at two clocks that are so close count as one.
const CLOSE: Duration = Duration::from_micros(1);
/// Looks, when the thread loses its CPU in between.
const LOOKS: u32 = 3;

/// One moment by two clocks: this process's, and the one that stamps packets (since the epoch).
#[derive(Clone, Copy, Debug)]
struct Same {
    instant: Instant,
    real: Duration,
}

impl Same {
    /// Looks at both clocks, and how long that took.
    fn look() -> (Duration, Self) {
        let before = Instant::now();
        let real = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let took = before.elapsed();
        (took, Self { instant: before + took / 2, real })
    }

    /// Looks until the thread had its CPU in between.
    fn now() -> Self {
        let mut best = Self::look();
        for _ in 1..LOOKS {
            if best.0 < CLOSE {
                break;
            }
            let next = Self::look();
            if next.0 < best.0 {
                best = next;
            }
        }
        best.1
    }

    /// A stamp, as a moment of this process; none when that would be before its machine's time.
    fn moment(self, stamp: Duration) -> Option<Instant> {
        match self.real.checked_sub(stamp) {
            Some(ago) => self.instant.checked_sub(ago),
            None => self.instant.checked_add(stamp.saturating_sub(self.real)),
        }
    }
}

/// When bytes came that were read at `now`, by their stamp. It is looked at the clocks anew when
/// the last look is old, or the stamp is.
fn came(
    same: Same,
    stamp: Option<Duration>,
    now: Instant,
    look: impl FnOnce() -> Same,
) -> (Same, Instant) {
    let Some(stamp) = stamp else { return (same, now) };
    let aged =
        |moment: Option<Instant>| moment.is_none_or(|at| now.saturating_duration_since(at) > FRESH);
    let stale = now.saturating_duration_since(same.instant) > FRESH;
    let same = if stale || aged(same.moment(stamp)) { look() } else { same };
    (same, same.moment(stamp).map_or(now, |at| at.min(now)))
}

/// What the sockets of a load thread share.
pub(crate) struct Clock {
    same: Cell<Same>,
    /// Where bytes are read to: what waits for them needs no memory of its own until they come.
    bytes: RefCell<Box<[u8]>>,
    control: RefCell<Vec<u8>>,
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock").field("same", &self.same).finish_non_exhaustive()
    }
}

impl Clock {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self {
            same: Cell::new(Same::now()),
            bytes: RefCell::new(vec![0; READ].into_boxed_slice()),
            control: RefCell::new(cmsg_space!(TimeSpec)),
        })
    }

    /// When bytes came that have just been read.
    fn came(&self, stamp: Option<Duration>) -> Instant {
        let (same, at) = came(self.same.get(), stamp, Instant::now(), Same::now);
        self.same.set(same);
        at
    }
}

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
}

impl Stamps {
    /// Bytes sent and received since this was last asked.
    pub(crate) fn take_bytes(&self) -> (u64, u64) {
        let now = (self.sent.get(), self.received.get());
        let before = self.counted.replace(now);
        (now.0 - before.0, now.1 - before.1)
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
        // A system that has no such stamps goes without.
        let _ = setsockopt(&tcp, sockopt::ReceiveTimestampns, &true);
        let stamps = Rc::new(Stamps {
            last_read: Cell::new(Instant::now()),
            received: Cell::new(0),
            sent: Cell::new(0),
            counted: Cell::new((0, 0)),
        });
        (Self { tcp, clock, stamps: Rc::clone(&stamps) }, stamps)
    }

    /// Reads what is there; how much, and its stamp.
    fn receive(&self, buffer: &mut ReadBuf<'_>) -> io::Result<usize> {
        let mut bytes = self.clock.bytes.borrow_mut();
        let mut control = self.clock.control.borrow_mut();
        let room = buffer.remaining().min(bytes.len());
        let mut parts = [IoSliceMut::new(&mut bytes[..room])];
        let flags = MsgFlags::empty();
        let message = recvmsg::<()>(self.tcp.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
        let n = message.bytes;
        if n > 0 {
            let stamp = message.cmsgs()?.find_map(|message| match message {
                ControlMessageOwned::ScmTimestampns(at) => Some(Duration::from(at)),
                _ => None,
            });
            // Two looks at the clocks may differ by less than a microsecond.
            let last = &self.stamps.last_read;
            last.set(last.get().max(self.clock.came(stamp)));
        }
        buffer.put_slice(&bytes[..n]);
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const MICRO: Duration = Duration::from_micros(1);
    const REAL: Duration = Duration::from_hours(500_000);

    /// A look at the clocks so long ago, when the other one said `real`.
    fn looked(now: Instant, ago: Duration, real: Duration) -> Same {
        Same { instant: now.checked_sub(ago).unwrap(), real }
    }

    /// A stamp of so long before `REAL`.
    fn stamp(ago: Duration) -> Duration {
        REAL.checked_sub(ago).unwrap()
    }

    fn must_not_look() -> Same {
        panic!("looked at the clocks anew")
    }

    #[test]
    fn bytes_came_when_their_stamp_says() {
        let now = Instant::now() + Duration::from_mins(1);
        let same = looked(now, 400 * MICRO, stamp(400 * MICRO));
        for ago in [0, 1, 399, 400, 401, 999] {
            let (_, at) = came(same, Some(stamp(ago * MICRO)), now, must_not_look);
            assert_eq!(now - at, ago * MICRO);
        }
        assert_eq!(came(same, None, now, must_not_look).1, now);
    }

    #[test]
    fn the_clocks_are_looked_at_anew_when_the_look_or_the_stamp_is_old() {
        let now = Instant::now() + Duration::from_mins(1);
        let look = || looked(now, Duration::ZERO, REAL);
        // An old look, which said something else.
        let old = looked(now, 2 * FRESH, REAL + Duration::from_secs(5));
        let (same, at) = came(old, Some(stamp(10 * MICRO)), now, look);
        assert_eq!((now - at, same.real), (10 * MICRO, REAL));
        // A clock set back by an hour since the last look: the stamp is not an hour old.
        let ahead = looked(now, 10 * MICRO, REAL + Duration::from_hours(1));
        assert_eq!(now - came(ahead, Some(stamp(10 * MICRO)), now, look).1, 10 * MICRO);
        // One that really lay there for a second is.
        let second = Duration::from_secs(1);
        assert_eq!(
            now - came(looked(now, 10 * MICRO, REAL), Some(stamp(second)), now, look).1,
            second
        );
    }

    #[test]
    fn nothing_came_later_than_it_was_read() {
        let now = Instant::now() + Duration::from_mins(1);
        let look = || looked(now, Duration::ZERO, REAL);
        for stamp in [REAL + 20 * MICRO, REAL + Duration::from_hours(1), Duration::MAX] {
            assert_eq!(came(look(), Some(stamp), now, look).1, now);
        }
        // Before this machine's time, as far as its clock goes.
        assert!(came(look(), Some(Duration::ZERO), now, look).1 <= now);
    }

    #[tokio::test]
    async fn what_keeps_the_thread_is_not_in_the_moment_bytes_came() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut peer, _) = listener.accept().await.unwrap();
        let (mut socket, stamps) = Socket::new(tcp, Clock::new());
        // The kernel begins to stamp a moment after the first socket has asked it to.
        let kept = Duration::from_millis(100);
        for attempt in 1.. {
            let sent = Instant::now();
            peer.write_all(b"hello").await.unwrap();
            while sent.elapsed() < kept {}
            let mut text = [0; 5];
            socket.read_exact(&mut text).await.unwrap();
            let took = stamps.last_read.get().saturating_duration_since(sent);
            if took < kept / 2 {
                return;
            }
            assert!(attempt < 10, "{took:?}");
        }
    }
}
