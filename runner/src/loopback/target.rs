//! An HTTP target that records when each request arrived and when its response was sent. It runs
//! on a thread of its own and uses the timer of this crate.

use std::{
    cell::RefCell,
    io,
    net::SocketAddr,
    rc::Rc,
    thread,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
};

use crate::timer::PreciseTimer;

const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// When the target responds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ResponseTiming {
    /// At once.
    Immediate,
    /// This long after each request.
    Delayed(Duration),
    /// At once, except between two moments: a request that arrives between them gets its response
    /// at the second.
    Frozen(Instant, Instant),
}

/// One request, as the target saw it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ObservedRequest {
    pub(crate) arrived: Instant,
    pub(crate) responded: Instant,
}

/// A running target.
#[derive(Debug)]
pub(crate) struct LoopbackTarget {
    pub(crate) address: SocketAddr,
    stop: oneshot::Sender<()>,
    thread: thread::JoinHandle<io::Result<Vec<ObservedRequest>>>,
}

impl LoopbackTarget {
    /// Starts a target on a free port.
    ///
    /// # Errors
    /// When the system refuses a thread or a socket.
    pub(crate) fn start(timing: ResponseTiming) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new().name("loopback-target".into()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, serve_connections(listener, timing, stopped))
        })?;
        Ok(Self { address, stop, thread })
    }

    /// Stops the target. Returns all requests in the order of their arrival.
    ///
    /// # Errors
    /// When the target could not run.
    pub(crate) fn finish(self) -> io::Result<Vec<ObservedRequest>> {
        // A target that failed has stopped already.
        let _ = self.stop.send(());
        let requests = self.thread.join();
        let requests = requests.map_err(|_| io::Error::other("the loopback target panicked"))?;
        requests.map(|mut requests| {
            requests.sort_by_key(|request| request.arrived);
            requests
        })
    }
}

async fn serve_connections(
    listener: std::net::TcpListener,
    timing: ResponseTiming,
    mut stopped: oneshot::Receiver<()>,
) -> io::Result<Vec<ObservedRequest>> {
    let listener = TcpListener::from_std(listener)?;
    let timer = PreciseTimer::new()?;
    let driver = Rc::clone(&timer);
    tokio::task::spawn_local(async move { driver.drive().await });
    let requests: Rc<RefCell<Vec<ObservedRequest>>> = Rc::default();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (socket, _) = accepted?;
                let (timer, requests) = (Rc::clone(&timer), Rc::clone(&requests));
                tokio::task::spawn_local(async move {
                    // A client that disconnects is not a failure of the target.
                    let _ = serve_connection(socket, timing, &timer, &requests).await;
                });
            }
            _ = &mut stopped => return Ok(requests.take()),
        }
    }
}

/// Responds to the requests of one connection. Each request must arrive within one read.
async fn serve_connection(
    mut socket: TcpStream,
    timing: ResponseTiming,
    timer: &PreciseTimer,
    requests: &RefCell<Vec<ObservedRequest>>,
) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let mut request = [0; 4096];
    while socket.read(&mut request).await? > 0 {
        let arrived = Instant::now();
        let due = match timing {
            ResponseTiming::Delayed(time) => arrived + time,
            ResponseTiming::Frozen(from, until) if (from..until).contains(&arrived) => until,
            ResponseTiming::Immediate | ResponseTiming::Frozen(..) => arrived,
        };
        while Instant::now() < due {
            timer.sleep_until(due).await;
        }
        // The time is taken before the write: the write wakes the client, and this thread may have
        // to wait for a CPU after it.
        let responded = Instant::now();
        socket.write_all(RESPONSE).await?;
        requests.borrow_mut().push(ObservedRequest { arrived, responded });
    }
    Ok(())
}
