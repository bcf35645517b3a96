//! The kernel's stamps of packets, as moments of this process.

use std::{
    cell::{Cell, RefCell},
    fmt, io,
    io::IoSliceMut,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    rc::Rc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::{
    cmsg_space,
    sys::{
        socket::{
            AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, getsockopt, recvmsg,
            setsockopt, socket,
            sockopt::{GetStruct, ReceiveTimestampns},
        },
        time::TimeSpec,
    },
};
use tokio::net::TcpStream;

/// Bytes of one read at most.
pub(crate) const READ: usize = 64 << 10;
/// How long a look at two clocks is believed, and the age up to which a stamp is.
const FRESH: Duration = Duration::from_millis(1);
/// Looks at two clocks that are so close count as one.
const CLOSE: Duration = Duration::from_micros(1);
/// Looks, when the thread loses its CPU in between.
const LOOKS: u32 = 3;
/// A clock that two looks find so far off has been set; less is the looks' own error.
const SET: Duration = Duration::from_micros(50);
/// The first kernel that counts packets out of order.
const KERNEL: (u32, u32) = (5, 4);

/// What of `tcp_info` is asked for: all up to the count of packets out of order.
const DISORDERED: usize = std::mem::offset_of!(libc::tcp_info, tcpi_rcv_ooopack);
type TcpInfo = [u8; DISORDERED + 4];

#[derive(Clone, Copy)]
struct AskTcpInfo;

nix::getsockopt_impl!(AskTcpInfo, libc::IPPROTO_TCP, libc::TCP_INFO, TcpInfo, GetStruct<TcpInfo>);

/// One moment by two clocks: this process's, and the one that stamps packets (since the epoch).
#[derive(Clone, Copy, Debug)]
struct Same {
    instant: Instant,
    real: Duration,
    /// How long looking at both took.
    apart: Duration,
}

impl Same {
    fn look() -> Self {
        let before = Instant::now();
        let real = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let apart = before.elapsed();
        Self { instant: before + apart / 2, real, apart }
    }

    /// Looks until the thread had its CPU in between.
    fn now() -> Self {
        let mut best = Self::look();
        for _ in 1..LOOKS {
            if best.apart < CLOSE {
                break;
            }
            let next = Self::look();
            if next.apart < best.apart {
                best = next;
            }
        }
        best
    }

    /// A stamp, as a moment of this process, if it has one for it.
    fn moment(self, stamp: Duration) -> Option<Instant> {
        match self.real.checked_sub(stamp) {
            Some(ago) => self.instant.checked_sub(ago),
            None => self.instant.checked_add(stamp.saturating_sub(self.real)),
        }
    }

    /// Whether nobody has set the clock since an earlier look.
    fn follows(self, earlier: Self) -> bool {
        let passed = self.instant.saturating_duration_since(earlier.instant);
        let told = self.real.checked_sub(earlier.real);
        let error = SET + self.apart + earlier.apart;
        told.is_some_and(|told| told.abs_diff(passed) <= error)
    }
}

/// What is known of the clocks.
#[derive(Clone, Copy, Debug)]
struct Known {
    same: Same,
    /// From when on the clock of the stamps was not set: earlier ones mean nothing.
    since: Instant,
}

impl Known {
    const fn first(same: Same) -> Self {
        Self { same, since: same.instant }
    }

    fn next(self, same: Same) -> Self {
        if same.follows(self.same) { Self { same, ..self } } else { Self::first(same) }
    }

    fn moment(self, stamp: Duration) -> Option<Instant> {
        self.same.moment(stamp).filter(|at| *at >= self.since)
    }
}

/// When bytes came that were read at `now`, by their stamp; and what is known now.
///
/// The clocks are looked at anew when the last look, or the stamp, is old. The stamp is that of
/// the packet with the last of the bytes: one that has waited for a lost packet before it says
/// too early a moment. An old one is believed if it is of after packets last came out of order.
fn came(
    known: Known,
    stamp: Duration,
    now: Instant,
    look: impl FnOnce() -> Same,
    disordered: impl FnOnce() -> Instant,
) -> (Known, Instant) {
    let old = |at: Instant| now.saturating_duration_since(at) > FRESH;
    let stale = old(known.same.instant) || known.moment(stamp).is_none_or(old);
    let known = if stale { known.next(look()) } else { known };
    let at = match known.moment(stamp) {
        Some(at) if at > now || old(at) && at <= disordered() => now,
        Some(at) => at,
        None => now,
    };
    (known, at)
}

/// Whether a kernel of this release counts packets out of order.
fn counts_disorder(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    let (major, minor) = (numbers.next(), numbers.next());
    major.zip(minor).is_some_and(|pair| matches!(pair, (Ok(a), Ok(b)) if (a, b) >= KERNEL))
}

/// What is known of the order of a connection's packets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    /// Packets that had come out of it.
    disordered: u32,
    /// When that was last found to have grown, or its connection's beginning.
    until: Instant,
}

impl Order {
    pub(crate) const fn new(now: Instant) -> Self {
        Self { disordered: 0, until: now }
    }

    /// The same once so many are counted; none are by who doesn't say.
    const fn counted(self, count: Option<u32>, now: Instant) -> Self {
        match count {
            Some(count) if count == self.disordered => self,
            Some(disordered) => Self { disordered, until: now },
            None => Self { until: now, ..self },
        }
    }
}

/// What the sockets of a load thread read by.
pub(crate) struct Clock {
    known: Cell<Known>,
    /// Where bytes are read to: who waits for them needs no memory of its own until they come.
    bytes: RefCell<Box<[u8]>>,
    control: RefCell<Vec<u8>>,
    /// A socket that wants stamps for as long as this lives: the kernel begins and ends to take
    /// them with the first and the last one that does, and a moment late. None without stamps.
    wants: Option<OwnedFd>,
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock").field("known", &self.known).finish_non_exhaustive()
    }
}

impl Clock {
    pub(crate) fn new() -> Rc<Self> {
        let counts = rustix::system::uname().release().to_str().is_ok_and(counts_disorder);
        let wants = || {
            let flags = SockFlag::SOCK_CLOEXEC;
            let any = socket(AddressFamily::Inet, SockType::Datagram, flags, None).ok()?;
            stamps(&any).then_some(any)
        };
        Rc::new(Self {
            known: Cell::new(Known::first(Same::now())),
            bytes: RefCell::new(vec![0; READ].into_boxed_slice()),
            control: RefCell::new(cmsg_space!(TimeSpec)),
            wants: counts.then(wants).flatten(),
        })
    }

    /// Has the packets of a connection stamped, where that is possible.
    pub(crate) fn stamp(&self, tcp: &TcpStream) {
        if self.wants.is_some() {
            stamps(tcp);
        }
    }

    /// Reads what is there, `room` bytes at most: hands it to `take`; how much it was, and when it
    /// had come.
    pub(crate) fn read(
        &self,
        tcp: &TcpStream,
        room: usize,
        order: &Cell<Order>,
        take: impl FnOnce(&[u8]),
    ) -> io::Result<(usize, Instant)> {
        let mut bytes = self.bytes.borrow_mut();
        let mut control = self.control.borrow_mut();
        let room = room.min(bytes.len());
        let mut parts = [IoSliceMut::new(&mut bytes[..room])];
        let flags = MsgFlags::empty();
        let message = recvmsg::<()>(tcp.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
        let n = message.bytes;
        // One that can't be read is none.
        let stamp = message.cmsgs().ok().into_iter().flatten().find_map(|it| match it {
            ControlMessageOwned::ScmTimestampns(at) => Some(Duration::from(at)),
            _ => None,
        });
        take(&bytes[..n]);
        let now = Instant::now();
        let Some(stamp) = stamp else { return Ok((n, now)) };
        let (known, at) = came(self.known.get(), stamp, now, Same::now, || {
            let info = getsockopt(tcp, AskTcpInfo).ok();
            let count = info.and_then(|info| info.last_chunk().copied()).map(u32::from_ne_bytes);
            order.set(order.get().counted(count, now));
            order.get().until
        });
        self.known.set(known);
        Ok((n, at))
    }
}

/// Has what a socket receives stamped; false where that is not to be had.
fn stamps(socket: &impl AsFd) -> bool {
    setsockopt(socket, ReceiveTimestampns, &true).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICRO: Duration = Duration::from_micros(1);
    const REAL: Duration = Duration::from_hours(500_000);

    /// Some moment, long after another.
    fn now() -> Instant {
        Instant::now() + Duration::from_hours(2)
    }

    /// What is known by a look so long ago, when the other clock said `real`.
    fn looked(now: Instant, ago: Duration, real: Duration) -> Known {
        let instant = now.checked_sub(ago).unwrap();
        let since = now.checked_sub(Duration::from_hours(1)).unwrap();
        Known { same: Same { instant, real, apart: Duration::ZERO }, since }
    }

    /// A stamp of so long before `REAL`.
    fn stamp(ago: Duration) -> Duration {
        REAL.checked_sub(ago).unwrap()
    }

    fn must_not_look() -> Same {
        panic!("looked at the clocks anew")
    }

    fn must_not_ask() -> Instant {
        panic!("asked for the order of packets")
    }

    #[test]
    fn bytes_came_when_their_stamp_says() {
        let now = now();
        let known = looked(now, 400 * MICRO, stamp(400 * MICRO));
        for ago in [0, 1, 399, 400, 401, 999] {
            let (_, at) = came(known, stamp(ago * MICRO), now, must_not_look, must_not_ask);
            assert_eq!(now - at, ago * MICRO);
        }
    }

    #[test]
    fn the_clocks_are_looked_at_anew_when_the_look_or_the_stamp_is_old() {
        let now = now();
        let look = || looked(now, Duration::ZERO, REAL).same;
        let old = looked(now, 2 * FRESH, stamp(2 * FRESH));
        let (known, at) = came(old, stamp(10 * MICRO), now, look, must_not_ask);
        assert_eq!((now - at, known.same.instant, known.since), (10 * MICRO, now, old.since));
        // One that lay there for a second.
        let second = Duration::from_secs(1);
        let known = looked(now, 10 * MICRO, stamp(10 * MICRO));
        let order = || known.since;
        assert_eq!(now - came(known, stamp(second), now, look, order).1, second);
    }

    #[test]
    fn a_stamp_that_may_have_waited_for_a_lost_packet_is_not_believed() {
        let read = now();
        let look = || looked(read, Duration::ZERO, REAL).same;
        let known = looked(read, 10 * MICRO, stamp(10 * MICRO));
        let (beginning, stamped) = (known.since, 5 * FRESH);
        let at = |order: Order| came(known, stamp(stamped), read, look, || order.until).1;
        let order = Order::new(beginning);
        assert_eq!(read - at(order.counted(Some(0), read)), stamped);
        // Two were found to be out of order when this was read: one of them may be this.
        let two = order.counted(Some(2), read);
        assert_eq!(at(two), read);
        // Or when something before it was, after this one had come.
        let before = read.checked_sub(FRESH).unwrap();
        assert_eq!(at(order.counted(Some(2), before).counted(Some(2), read)), read);
        // It came after all that.
        let before = read.checked_sub(2 * stamped).unwrap();
        assert_eq!(read - at(order.counted(Some(2), before).counted(Some(2), read)), stamped);
        assert_eq!(at(order.counted(None, read)), read);
    }

    #[test]
    fn nothing_came_later_than_it_was_read() {
        let now = now();
        let known = looked(now, Duration::ZERO, REAL);
        for stamp in [REAL + 20 * MICRO, REAL + Duration::from_hours(1), Duration::MAX] {
            assert_eq!(came(known, stamp, now, || known.same, must_not_ask).1, now);
        }
    }

    #[test]
    fn stamps_of_before_the_clock_was_set_mean_nothing() {
        let now = now();
        let look = || looked(now, Duration::ZERO, REAL).same;
        for set in [Duration::from_secs(2), Duration::from_hours(1)] {
            for (told, stamped) in [
                // Set back: the stamp is of later.
                (REAL + set, REAL + set),
                // Set forward: the stamp is of long ago.
                (stamp(set), stamp(set + 5 * MICRO)),
            ] {
                let old = looked(now, 2 * FRESH, told);
                let (known, at) = came(old, stamped, now, look, must_not_ask);
                assert_eq!((at, known.since), (now, now), "{set:?}");
                // The next one that was stamped before is no better.
                let (_, at) = came(known, stamped, now, look, must_not_ask);
                assert_eq!(at, now, "{set:?}");
            }
        }
        // One that was never seen.
        let known = looked(now, Duration::ZERO, REAL);
        assert_eq!(came(known, Duration::ZERO, now, look, must_not_ask).1, now);
    }

    #[test]
    fn kernels_that_count_are_told_from_others() {
        for release in ["5.4.0-150-generic", "5.10", "6.18.44-fc-v657", "10.0.1"] {
            assert!(counts_disorder(release), "{release}");
        }
        for release in ["4.4.0", "5.3.18", "5", "", "gVisor"] {
            assert!(!counts_disorder(release), "{release}");
        }
    }
}
