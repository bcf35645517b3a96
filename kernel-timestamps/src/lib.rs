//! Receive timestamps of the Linux kernel.
//!
//! The kernel can tell when a packet arrived, however late the process reads the packet's bytes.
//! The runner times responses by these timestamps, and the simulator times requests by them.
//!
//! This crate asks for the timestamps and reads them. It does not convert them to another clock:
//! the runner and the simulator convert on their own, so that an error of one shows when their
//! times are compared.

use std::{
    io::{self, IoSliceMut},
    os::fd::{AsFd, AsRawFd, OwnedFd},
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

/// Asks the kernel to timestamp the packets that `socket` receives. Returns false if the kernel
/// refuses.
pub fn enable_timestamps(socket: &impl AsFd) -> bool {
    setsockopt(socket, ReceiveTimestampns, &true).is_ok()
}

/// Opens a socket that keeps the kernel's timestamps turned on as long as the socket is open.
///
/// The kernel turns its timestamps on with the first socket that asks for them and off after the
/// last one, each with a short delay. With this socket open, timestamps are there from the first
/// connection on. Returns `None` if the kernel refuses.
pub fn keep_timestamps_enabled() -> Option<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Inet, SockType::Datagram, flags, None).ok()?;
    enable_timestamps(&socket).then_some(socket)
}

/// Reads bytes together with the kernel's timestamp. Each reader needs one of its own.
#[derive(Debug)]
pub struct TimestampReader {
    /// Buffer for the control message with the timestamp.
    control: Vec<u8>,
}

impl TimestampReader {
    /// Returns a reader for any number of sockets.
    #[must_use]
    pub fn new() -> Self {
        Self { control: cmsg_space!(TimeSpec) }
    }

    /// Reads the bytes that `socket` has received into `bytes`. Returns their number and the
    /// timestamp of the packet with the last of them: system time since 1970. The timestamp is
    /// `None` if the kernel sent none, or one that can't be parsed.
    ///
    /// # Errors
    ///
    /// Returns the error of `recvmsg`, such as [`io::ErrorKind::WouldBlock`].
    pub fn receive_bytes(
        &mut self,
        socket: &impl AsRawFd,
        bytes: &mut [u8],
    ) -> io::Result<(usize, Option<Duration>)> {
        let mut parts = [IoSliceMut::new(bytes)];
        let control = Some(self.control.as_mut_slice());
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, control, MsgFlags::empty())?;
        let timestamp =
            message.cmsgs().ok().into_iter().flatten().find_map(|message| match message {
                ControlMessageOwned::ScmTimestampns(timestamp) => Some(Duration::from(timestamp)),
                _ => None,
            });
        Ok((message.bytes, timestamp))
    }
}

impl Default for TimestampReader {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        net::{TcpListener, TcpStream},
        time::{Instant, SystemTime, UNIX_EPOCH},
    };

    use super::*;

    #[expect(clippy::disallowed_methods, reason = "it is compared with the kernel's timestamps")]
    fn read_system_clock() -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
    }

    #[test]
    fn a_timestamp_is_the_time_of_arrival_and_not_of_the_read() {
        let keeper = keep_timestamps_enabled();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, _) = listener.accept().unwrap();
        assert_eq!(keeper.is_some(), enable_timestamps(&socket));
        let mut reader = TimestampReader::new();
        // The kernel turns timestamps on with a delay, and a busy machine may stop this thread
        // between two lines.
        for attempt in 1.. {
            let before = read_system_clock();
            peer.write_all(b"hello").unwrap();
            let sent = read_system_clock();
            let wait = Instant::now();
            while wait.elapsed() < Duration::from_millis(20) {}
            let mut bytes = [0; 8];
            let (n, timestamp) = reader.receive_bytes(&socket, &mut bytes).unwrap();
            assert_eq!(&bytes[..n], b"hello");
            if timestamp.is_some_and(|at| (before..=sent).contains(&at)) || keeper.is_none() {
                return;
            }
            assert!(attempt < 50, "{before:?} {timestamp:?} {sent:?}");
        }
    }
}
