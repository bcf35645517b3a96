//! One virtual user: what it keeps between its requests, and one request from plan to record.

use std::{
    future::poll_fn,
    rc::Rc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use loadtest_core::{metrics::Outcome, mix::Choices};

use crate::{
    failure::{ErrorKind, Failure},
    load::thread::Worker,
    measure::in_flight::Flight,
    prepare::{PreparedKind, PreparedTask},
    protocol::{
        chat::Answer,
        connection_pool::{Links, Slot},
        http,
        websocket::{self, Place},
    },
};

/// What a user keeps between its requests.
#[derive(Debug)]
pub(crate) struct User {
    pub(crate) choices: Choices,
    flight: Rc<Flight>,
    /// Its own HTTP connection, where users have them.
    slot: Slot,
    /// Its WebSocket sessions that go on from task to task, by the task's index.
    places: Vec<(usize, Place)>,
}

/// How long a close frame may take to be written.
const LEAVING: Duration = Duration::from_millis(100);

/// What a request runs on.
enum Held {
    Http(Slot),
    Socket(Place),
}

impl User {
    pub(crate) fn new(worker: &Worker, number: u64, flight: Rc<Flight>) -> Self {
        let choices = worker.prepared.mix.choices_of(number);
        Self { choices, flight, slot: Slot::default(), places: Vec::new() }
    }

    fn take(&mut self, links: Option<&Links>, task: usize, kind: &PreparedKind) -> Held {
        match kind {
            PreparedKind::WebSocket(_) => {
                let kept = self.places.iter().position(|(of, _)| *of == task);
                Held::Socket(kept.map_or_else(Place::default, |i| self.places.swap_remove(i).1))
            }
            _ => Held::Http(links.map_or_else(Slot::default, |links| links.take(&mut self.slot))),
        }
    }

    fn give(&mut self, links: Option<&Links>, task: usize, kind: &PreparedKind, held: Held) {
        match (held, kind, links) {
            (Held::Socket(place), PreparedKind::WebSocket(socket), _) if socket.keep => {
                self.places.push((task, place));
            }
            (Held::Http(slot), _, Some(links)) => links.give(slot, &mut self.slot),
            _ => {}
        }
    }

    /// Waits until a moment or the end of the load, and sees to its sessions meanwhile; false
    /// when the end came first.
    pub(crate) async fn rest(&mut self, worker: &Worker, until: Instant) -> bool {
        loop {
            if !self.places.iter().any(|(_, place)| place.is_open()) {
                return worker.reaches(until).await;
            }
            let places = &mut self.places;
            let ended = poll_fn(|context| {
                let mut open = places.iter_mut().filter(|(_, place)| place.is_open());
                let ended = open.any(|(task, place)| {
                    let ended = place.poll_idle(context).is_ready();
                    worker.count(*task, place.take_bytes(), place.take_messages());
                    ended
                });
                if ended { Poll::Ready(()) } else { Poll::Pending }
            });
            tokio::select! {
                reached = worker.reaches(until) => return reached,
                () = ended => {}
            }
        }
    }

    /// Ends what it kept open, within [`LEAVING`].
    pub(crate) async fn leave(&mut self, worker: &Worker) {
        if self.places.is_empty() {
            return;
        }
        let left = async {
            for (task, mut place) in std::mem::take(&mut self.places) {
                if let Some(PreparedTask { kind: PreparedKind::WebSocket(socket), .. }) =
                    worker.prepared.tasks.get(task)
                {
                    place.leave(socket).await;
                    worker.count(task, place.take_bytes(), place.take_messages());
                }
            }
        };
        tokio::select! {
            () = left => {}
            // A target that reads nothing must not hold up who comes back.
            () = worker.pacer.until(Instant::now() + LEAVING) => {}
        }
    }
}

/// How what a request ran on is left.
#[derive(Clone, Copy, Debug, Default)]
struct Left {
    /// Nobody knows what comes on it next.
    broken: bool,
    /// Nothing came on it since the request was sent, which then took too long.
    unheard: bool,
}

impl Left {
    fn by(failure: &Failure, held: &Held, flight: &Flight) -> Self {
        // What an answer that was not wanted leaves behind is a good connection; no other failure
        // does. One that was not read to its end is told apart by its connection.
        let broken = !matches!(
            failure.kind,
            ErrorKind::Http(_)
                | ErrorKind::Redirect
                | ErrorKind::CheckBody
                | ErrorKind::CheckHeader
                | ErrorKind::CheckJson
        );
        let overdue = matches!(failure.kind, ErrorKind::TimeoutResponse | ErrorKind::TimeoutBody);
        let last_read = match held {
            Held::Http(slot) => slot.connection.as_ref().map(|open| open.stamps().last_read.get()),
            Held::Socket(_) => None,
        };
        let silent = last_read.zip(flight.sent()).is_some_and(|(read, sent)| read < sent);
        Self { broken, unheard: overdue && silent }
    }
}

/// What a request runs on while it does: counted even when the load ends before it.
struct Use<'a> {
    worker: &'a Worker,
    task: usize,
    held: Held,
}

impl Use<'_> {
    /// The request is over: counts what went over it.
    fn settle(&mut self, left: Left) {
        let (bytes, messages) = match &mut self.held {
            Held::Http(slot) => (slot.settle(left.broken, left.unheard), (0, 0)),
            Held::Socket(place) => {
                let counts = (place.take_bytes(), place.take_messages());
                if left.broken {
                    place.lose();
                }
                counts
            }
        };
        self.worker.count(self.task, bytes, messages);
    }
}

impl Drop for Use<'_> {
    fn drop(&mut self) {
        self.settle(Left::default());
    }
}

/// One request: run it, within its timeout, and record it. How it ended.
pub(crate) async fn perform(
    worker: &Worker,
    user: &mut User,
    task: usize,
    planned: Instant,
) -> Outcome {
    let Some(prepared) = worker.prepared.tasks.get(task) else { return Outcome::Failure };
    let held = user.take(worker.links(), task, &prepared.kind);
    let mut running = Use { worker, task, held };
    let flight = Rc::clone(&user.flight);
    flight.begin(task, planned, prepared.timeout);
    // Users that wait hold none.
    let mut buffer = worker.take_buffer();
    let exchange = exchange(
        worker,
        task,
        prepared,
        &mut user.choices,
        &flight,
        &mut running.held,
        &mut buffer,
    );
    let ended = flight.in_time(exchange).await;
    let (outcome, failure, last, answer) = match ended {
        Some(Ok((last, answer))) => (Outcome::Success, None, last, answer),
        Some(Err(failure)) => (Outcome::Failure, Some(failure), Instant::now(), None),
        None => {
            let kind = flight.part().timeout();
            let failure = Failure::new(kind, flight.overdue(prepared.timeout));
            (Outcome::Timeout, Some(failure), Instant::now(), None)
        }
    };
    let left = failure.as_ref().map(|failure| Left::by(failure, &running.held, &flight));
    worker.give_buffer(buffer);
    let opened = flight.take_opened();
    let awaited = flight.awaiting(last).filter(|_| outcome == Outcome::Timeout);
    let sample = flight.sample(&prepared.kind, outcome, planned, last);
    worker.keep(task, outcome, &sample);
    worker.record(task, |recorder| {
        opened.iter().for_each(|opened| recorder.opened(opened));
        recorder.record(outcome, &sample);
        let each = answer.and_then(|answer| answer.each);
        if let Some(answer) = answer {
            recorder.tokens(&answer.tokens, each);
        }
        if outcome == Outcome::Success && sample.meets(&prepared.goals, each) {
            recorder.good();
        }
        // Replies that never came took at least so long.
        if let Some(age) = awaited {
            recorder.round_trip(age);
        }
        if let Some(failure) = failure {
            recorder.fail(failure);
        }
    });
    flight.end();
    // Only now, when the request is counted: what follows is for the next one.
    let left = left.unwrap_or_default();
    if let (Held::Http(slot), Some(links), false) = (&mut running.held, worker.links(), left.broken)
    {
        links.outlive(slot, &worker.pacer).await;
    }
    running.settle(left);
    let held = std::mem::replace(&mut running.held, Held::Http(Slot::default()));
    drop(running);
    user.give(worker.links(), task, &prepared.kind, held);
    outcome
}

/// Runs a request; the moment its last byte was read and, of a chat, what it holds.
async fn exchange(
    worker: &Worker,
    task: usize,
    prepared: &PreparedTask,
    choices: &mut Choices,
    flight: &Flight,
    held: &mut Held,
    buffer: &mut BytesMut,
) -> Result<(Instant, Option<Answer>), Failure> {
    let missing = |what| Failure::new(ErrorKind::Connect, format!("no {what}"));
    match (&prepared.kind, held) {
        (PreparedKind::Http(request), Held::Http(slot)) => {
            let links = worker.links().ok_or_else(|| missing("target.http"))?;
            let last = http::request(slot, links, request, buffer, flight).await?;
            Ok((last, None))
        }
        (PreparedKind::Chat(chat), Held::Http(slot)) => {
            let links = worker.links().ok_or_else(|| missing("target.http"))?;
            let body = choices.pick(chat.requests.len());
            let gap = |gap| worker.record(task, |recorder| recorder.token_gap(gap));
            // Its state is large next to that of a request, and costs little next to its answer.
            let run = http::chat(slot, links, chat, body, buffer, flight, gap);
            let (last, answer) = Box::pin(run).await?;
            Ok((last, Some(answer)))
        }
        (PreparedKind::WebSocket(socket), Held::Socket(place)) => {
            let connector = worker.web_socket().ok_or_else(|| missing("target.webSocket"))?;
            let round_trip = |time: Duration| {
                worker.record(task, |recorder| recorder.round_trip(time));
            };
            // Its handshake's state is large, and most users never have one.
            let run = websocket::task(place, connector, socket, flight, round_trip);
            Ok((Box::pin(run).await?, None))
        }
        // Each kind takes what it runs on.
        (_, Held::Http(_) | Held::Socket(_)) => Err(missing("connection for this task")),
    }
}
