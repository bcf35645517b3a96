//! A target that knows exactly what happened to it: when each request came, and when it was
//! answered. On a thread of its own, with this crate's own clock.

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

use crate::timer::Pacer;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// When answers are given.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Script {
    /// At once.
    AtOnce,
    /// So long after each request.
    After(Duration),
    /// At once, but not between two moments: what comes then waits for the second.
    Frozen(Instant, Instant),
}

/// One request, as the target saw it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) arrived: Instant,
    pub(crate) answered: Instant,
}

/// A running oracle.
#[derive(Debug)]
pub(crate) struct Oracle {
    pub(crate) address: SocketAddr,
    stop: oneshot::Sender<()>,
    thread: thread::JoinHandle<io::Result<Vec<Seen>>>,
}

impl Oracle {
    /// Starts one on a free port.
    ///
    /// # Errors
    /// When the system refuses a thread or a socket.
    pub(crate) fn start(script: Script) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new().name("oracle".into()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, serve(listener, script, stopped))
        })?;
        Ok(Self { address, stop, thread })
    }

    /// Ends it; all it has seen, in the order in which requests came.
    ///
    /// # Errors
    /// When it could not run.
    pub(crate) fn finish(self) -> io::Result<Vec<Seen>> {
        // One that failed has ended by itself.
        let _ = self.stop.send(());
        let seen = self.thread.join().map_err(|_| io::Error::other("the oracle panicked"))?;
        seen.map(|mut seen| {
            seen.sort_by_key(|one| one.arrived);
            seen
        })
    }
}

async fn serve(
    listener: std::net::TcpListener,
    script: Script,
    mut stopped: oneshot::Receiver<()>,
) -> io::Result<Vec<Seen>> {
    let listener = TcpListener::from_std(listener)?;
    let pacer = Pacer::new()?;
    let driver = Rc::clone(&pacer);
    tokio::task::spawn_local(async move { driver.drive().await });
    let seen: Rc<RefCell<Vec<Seen>>> = Rc::default();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (socket, _) = accepted?;
                let (pacer, seen) = (Rc::clone(&pacer), Rc::clone(&seen));
                tokio::task::spawn_local(async move {
                    // A client that leaves is not the oracle's failure.
                    let _ = answer(socket, script, &pacer, &seen).await;
                });
            }
            _ = &mut stopped => return Ok(seen.take()),
        }
    }
}

/// Answers the requests of one connection: GETs, each within one read.
async fn answer(
    mut socket: TcpStream,
    script: Script,
    pacer: &Pacer,
    seen: &RefCell<Vec<Seen>>,
) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let mut request = [0; 4096];
    while socket.read(&mut request).await? > 0 {
        let arrived = Instant::now();
        let due = match script {
            Script::After(time) => arrived + time,
            Script::Frozen(from, until) if (from..until).contains(&arrived) => until,
            Script::AtOnce | Script::Frozen(..) => arrived,
        };
        while Instant::now() < due {
            pacer.until(due).await;
        }
        // Before the write, which wakes the client: after it, this thread may have to wait.
        let answered = Instant::now();
        socket.write_all(ANSWER).await?;
        seen.borrow_mut().push(Seen { arrived, answered });
    }
    Ok(())
}
