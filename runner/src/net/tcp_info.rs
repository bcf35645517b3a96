//! What the kernel knows about a TCP connection (`TCP_INFO`).

use std::sync::LazyLock;

use nix::sys::socket::{getsockopt, sockopt::GetStruct};
use tokio::net::TcpStream;

/// The first kernel version that reports every field that is read here.
const MIN_KERNEL: (u32, u32) = (5, 4);

/// The kernel counts the start of a connection as one acknowledged byte (RFC 9293, 3.4).
const SYN_LENGTH: u64 = 1;

const ACKNOWLEDGED_OFFSET: usize = std::mem::offset_of!(libc::tcp_info, tcpi_bytes_acked);
/// The part that is read ends with the count of reordered packets.
const REORDER_COUNT_OFFSET: usize = std::mem::offset_of!(libc::tcp_info, tcpi_rcv_ooopack);
type TcpInfo = [u8; REORDER_COUNT_OFFSET + 4];

#[derive(Clone, Copy)]
struct GetTcpInfo;

nix::getsockopt_impl!(GetTcpInfo, libc::IPPROTO_TCP, libc::TCP_INFO, TcpInfo, GetStruct<TcpInfo>);

/// Returns true if the kernel reports every field that is read here.
pub(super) fn is_supported() -> bool {
    static IS_SUPPORTED: LazyLock<bool> =
        LazyLock::new(|| rustix::system::uname().release().to_str().is_ok_and(is_new_enough));
    *IS_SUPPORTED
}

/// Returns true if a kernel of this release reports every field that is read here.
fn is_new_enough(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    let (major, minor) = (numbers.next(), numbers.next());
    major.zip(minor).is_some_and(|pair| matches!(pair, (Ok(a), Ok(b)) if (a, b) >= MIN_KERNEL))
}

fn read(tcp: &TcpStream) -> Option<TcpInfo> {
    // A shorter answer of an older kernel would be a panic in `GetStruct`.
    if is_supported() { getsockopt(tcp, GetTcpInfo).ok() } else { None }
}

/// The number of packets that arrived out of order. `None` if the kernel does not report it.
pub(super) fn reordered_packets(tcp: &TcpStream) -> Option<u32> {
    let info = read(tcp)?;
    info.last_chunk().copied().map(u32::from_ne_bytes)
}

/// The number of sent bytes that the other side has acknowledged. `None` if the kernel does not report it.
pub(super) fn acknowledged_bytes(tcp: &TcpStream) -> Option<u64> {
    let info = read(tcp)?;
    let count = info.get(ACKNOWLEDGED_OFFSET..)?.first_chunk().copied().map(u64::from_ne_bytes)?;
    Some(count.saturating_sub(SYN_LENGTH))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn acknowledged_bytes_are_those_that_arrived() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut peer, _) = listener.accept().await.unwrap();
        assert_eq!(acknowledged_bytes(&tcp), Some(0));
        tcp.write_all(b"hello").await.unwrap();
        let mut text = [0; 5];
        peer.read_exact(&mut text).await.unwrap();
        // The reply acknowledges at the latest.
        peer.write_all(b"hello").await.unwrap();
        tcp.read_exact(&mut text).await.unwrap();
        assert_eq!(acknowledged_bytes(&tcp), Some(5));
        assert_eq!(reordered_packets(&tcp), Some(0));
    }

    #[test]
    fn old_kernels_report_too_little() {
        for release in ["5.4.0-150-generic", "5.10", "6.18.44-fc-v657", "10.0.1"] {
            assert!(is_new_enough(release), "{release}");
        }
        for release in ["4.4.0", "5.3.18", "5", "", "gVisor"] {
            assert!(!is_new_enough(release), "{release}");
        }
    }
}
