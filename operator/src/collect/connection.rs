//! HTTP/1.1 connections to runners, which are kept between requests.
//!
//! A client for general use holds buffers of about 45 KB for each kept connection. With 1,000 runners, they would take
//! more memory than all the rest. Here, a kept connection is a socket.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use loadtest_core::control::HISTORY_HEADER;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// Time limit for a new connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Initial size of the buffer for a response, in bytes. Most responses fit into it.
const USUAL_BYTES: usize = 16 << 10;
/// Maximum of bytes before the body.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// Maximum of header fields. A runner sends four.
const MAX_HEADERS: usize = 32;

/// The open connections to the runners of one test, by the UIDs of their pods.
#[derive(Debug, Default)]
pub(crate) struct Connections(Mutex<HashMap<String, TcpStream>>);

/// A GET request to a runner.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    /// Address of the runner.
    pub(crate) address: SocketAddr,
    /// UID of the runner's pod.
    pub(crate) pod_uid: &'a str,
    /// Path and query.
    pub(crate) path: &'a str,
    /// Token of the run, for a runner that has to know it.
    pub(crate) token: Option<&'a str>,
}

/// A response whose body is still to be read.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// Value of the header [`HISTORY_HEADER`].
    pub(crate) history_header: Option<String>,
    /// Length of the body in bytes. A response without a length has no readable body.
    pub(crate) length: Option<usize>,
    /// Time of the request, and of the head of the response.
    pub(crate) sent_at: Instant,
    pub(crate) received_at: Instant,
    /// True if the runner does not close the connection after this response.
    is_kept: bool,
    /// The bytes of the body received so far.
    body: Vec<u8>,
    stream: TcpStream,
}

impl Connections {
    /// Sends a request to a runner, over the open connection to it if there is one. Sets no limit to the time for the
    /// answer.
    ///
    /// # Errors
    /// Fails if the runner can't be reached, or does not speak HTTP/1.
    pub(crate) async fn send(&self, request: Request<'_>) -> io::Result<Response> {
        let kept = self.lock().remove(request.pod_uid);
        if let Some(kept) = kept
            // The runner may have closed it at any time.
            && let Ok(response) = send_over(kept, request).await
        {
            return Ok(response);
        }
        let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(request.address));
        let stream = connected.await.map_err(io::Error::from)??;
        stream.set_nodelay(true)?;
        send_over(stream, request).await
    }

    /// Reads the body of a response, and keeps the connection for the next request. The caller has checked the length.
    ///
    /// # Errors
    /// Fails if the connection ends before the body, and if the response has no length.
    pub(crate) async fn read_body(&self, pod_uid: &str, response: Response) -> io::Result<Vec<u8>> {
        let Response { length, is_kept, mut body, mut stream, .. } = response;
        let length = length.ok_or(io::ErrorKind::InvalidData)?;
        let received = body.len();
        if received > length {
            return Err(io::ErrorKind::InvalidData.into());
        }
        body.resize(length, 0);
        stream.read_exact(body.get_mut(received..).unwrap_or_default()).await?;
        if is_kept {
            self.lock().insert(pod_uid.to_owned(), stream);
        }
        Ok(body)
    }

    /// Closes the connections to all pods but these.
    pub(crate) fn retain(&self, pod_uids: &HashSet<&str>) {
        self.lock().retain(|pod_uid, _| pod_uids.contains(pod_uid.as_str()));
    }

    /// No panic can leave the map half updated.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, TcpStream>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn send_over(mut stream: TcpStream, request: Request<'_>) -> io::Result<Response> {
    let Request { address, path, token, .. } = request;
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n{token}\r\n");
    let sent_at = Instant::now();
    stream.write_all(request.as_bytes()).await?;
    // The buffer is allocated when the response comes: hundreds of runners may be slow at the same time.
    stream.readable().await?;
    let mut bytes = Vec::with_capacity(USUAL_BYTES);
    loop {
        let known = bytes.len();
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // A head ends with an empty line. Its first bytes may have come before.
        let new = bytes.get(known.saturating_sub(2)..).unwrap_or_default();
        if has_empty_line(new)
            && let Some(head) = parse_head(&bytes)?
        {
            let body = bytes.split_off(head.bytes);
            let Head { status, history_header, length, is_kept, .. } = head;
            let received_at = Instant::now();
            return Ok(Response {
                status,
                history_header,
                length,
                sent_at,
                received_at,
                is_kept,
                body,
                stream,
            });
        }
        if bytes.len() > MAX_HEAD_BYTES {
            return Err(io::Error::other("head of the response is too large"));
        }
    }
}

fn has_empty_line(bytes: &[u8]) -> bool {
    bytes.windows(2).any(|pair| pair == b"\n\n") || bytes.windows(3).any(|three| three == b"\n\r\n")
}

/// Status line and header fields of a response.
#[derive(Debug, PartialEq)]
struct Head {
    status: u16,
    history_header: Option<String>,
    length: Option<usize>,
    is_kept: bool,
    /// Number of bytes before the body.
    bytes: usize,
}

/// Returns the head of a response; `None` if some of it is missing.
fn parse_head(bytes: &[u8]) -> io::Result<Option<Head>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response.parse(bytes).map_err(io::Error::other)?;
    let httparse::Status::Complete(bytes) = parsed else { return Ok(None) };
    let text_of = |name: &str| {
        let mut found =
            response.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
        found.next().and_then(|field| std::str::from_utf8(field.value).ok())
    };
    let is_close = |text: &str| text.eq_ignore_ascii_case("close");
    let is_number = |text: &&str| text.bytes().all(|byte| byte.is_ascii_digit());
    // A runner sends neither chunks nor several lengths.
    let lengths = response.headers.iter().filter(|field| {
        ["content-length", "transfer-encoding"]
            .iter()
            .any(|name| field.name.eq_ignore_ascii_case(name))
    });
    let length = text_of("content-length").filter(is_number).filter(|_| lengths.count() == 1);
    Ok(Some(Head {
        status: response.code.unwrap_or_default(),
        history_header: text_of(HISTORY_HEADER).map(str::to_owned),
        length: length.and_then(|length| length.parse().ok()),
        is_kept: response.version == Some(1) && !text_of("connection").is_some_and(is_close),
        bytes,
    }))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// Answers the requests on each connection with these responses, one after the other, and then closes it. Returns
    /// the heads of the requests.
    async fn serve(
        responses: &[Vec<&'static [u8]>],
    ) -> (SocketAddr, tokio::task::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let responses = responses.to_vec();
        let serving = tokio::spawn(async move {
            let mut requests = Vec::new();
            for of_connection in responses {
                let (mut stream, _) = listener.accept().await.unwrap();
                for response in of_connection {
                    let mut request = Vec::new();
                    while !request.ends_with(b"\r\n\r\n") {
                        assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0);
                    }
                    requests.push(String::from_utf8(request).unwrap());
                    stream.write_all(response).await.unwrap();
                }
            }
            requests
        });
        (address, serving)
    }

    async fn ask(connections: &Connections, address: SocketAddr) -> io::Result<(u16, Vec<u8>)> {
        let request = Request { address, pod_uid: "pod", path: "/metrics", token: Some("abc") };
        let response = connections.send(request).await?;
        let status = response.status;
        Ok((status, connections.read_body("pod", response).await?))
    }

    const HELLO: &[u8] =
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nLoadTest-Runner: me\r\n\r\nhello";

    #[tokio::test]
    async fn a_connection_is_used_again() {
        let (address, serving) = serve(&[vec![HELLO, HELLO]]).await;
        let connections = Connections::default();
        for _ in 0..2 {
            assert_eq!(ask(&connections, address).await.unwrap(), (200, b"hello".to_vec()));
        }
        let requests = serving.await.unwrap();
        let expected = format!(
            "GET /metrics HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer abc\r\n\r\n"
        );
        assert_eq!(requests, [expected.clone(), expected]);
    }

    #[tokio::test]
    async fn a_response_may_come_in_pieces() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            for byte in HELLO {
                stream.write_all(&[*byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
            // The connection stays open.
            std::future::pending::<()>().await;
        });
        assert_eq!(ask(&Connections::default(), address).await.unwrap(), (200, b"hello".to_vec()));
    }

    #[tokio::test]
    async fn a_closed_connection_is_replaced() {
        let (address, serving) = serve(&[vec![HELLO], vec![HELLO]]).await;
        let connections = Connections::default();
        for _ in 0..2 {
            assert_eq!(ask(&connections, address).await.unwrap(), (200, b"hello".to_vec()));
        }
        assert_eq!(serving.await.unwrap().len(), 2);
        assert_eq!(connections.lock().len(), 1);
        connections.retain(&HashSet::from(["another pod"]));
        assert!(connections.lock().is_empty());
    }

    #[tokio::test]
    async fn a_response_that_says_close_is_the_last_one() {
        let close = b"HTTP/1.1 503 Busy\r\nconnection: Close\r\ncontent-length: 0\r\n\r\n";
        let (address, _serving) = serve(&[vec![close]]).await;
        let connections = Connections::default();
        assert_eq!(ask(&connections, address).await.unwrap(), (503, Vec::new()));
        assert!(connections.lock().is_empty());
    }

    #[tokio::test]
    async fn what_is_no_response_is_an_error() {
        let long = [b"HTTP/1.1 200 OK\r\nx: ".as_slice(), &[b'x'; MAX_HEAD_BYTES]].concat();
        let long: &[u8] = long.leak();
        let responses: [&[u8]; 9] = [
            b"220 mail.example.com ESMTP\r\n",
            b"HTTP/1.1 200 OK\r\n\r\nno length",
            b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\nx",
            b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx",
            b"HTTP/1.1 200 OK\r\ncontent-length: +1\r\n\r\nx",
            b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\nx",
            b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\ntoo short",
            b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\ntoo long",
            long,
        ];
        for response in responses {
            let (address, _serving) = serve(&[vec![response]]).await;
            let connections = Connections::default();
            assert!(ask(&connections, address).await.is_err(), "{}", response.escape_ascii());
            assert!(connections.lock().is_empty());
        }
    }
}
