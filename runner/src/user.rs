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
    chat::Answer,
    connection::{Links, Slot},
    failure::{ErrorKind, Failure},
    flight::Flight,
    http,
    prepare::{PreparedKind, PreparedTask},
    web_socket::{self, Place},
    worker::Worker,
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
                let ended = open.any(|(_, place)| place.poll_idle(context).is_ready());
                if ended { Poll::Ready(()) } else { Poll::Pending }
            });
            tokio::select! {
                reached = worker.reaches(until) => return reached,
                () = ended => {}
            }
        }
    }

    /// Ends what it kept open.
    pub(crate) async fn leave(&mut self, worker: &Worker) {
        for (task, mut place) in std::mem::take(&mut self.places) {
            if let Some(PreparedTask { kind: PreparedKind::WebSocket(socket), .. }) =
                worker.prepared.tasks.get(task)
            {
                let (sent, received) = place.take_messages();
                worker.record(task, |recorder| recorder.messages(sent, received));
                place.leave(socket).await;
            }
        }
    }
}

/// What is left to count of a request that has ended.
struct Settled {
    bytes: (u64, u64),
    messages: (u64, u64),
}

impl Held {
    /// The request on it is over, in a failure or well.
    fn settle(&mut self, failure: Option<&Failure>) -> Settled {
        match self {
            Self::Http(slot) => {
                // What an answer that was not wanted leaves behind is a good connection; no
                // other failure does.
                let broken = failure.is_some_and(|failure| {
                    !matches!(
                        failure.kind,
                        ErrorKind::Http(_)
                            | ErrorKind::CheckBody
                            | ErrorKind::CheckHeader
                            | ErrorKind::CheckJson
                    )
                });
                Settled { bytes: slot.settle(broken), messages: (0, 0) }
            }
            Self::Socket(place) => {
                let settled =
                    Settled { bytes: place.take_bytes(), messages: place.take_messages() };
                if failure.is_some() {
                    place.lose();
                }
                settled
            }
        }
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
    let mut held = user.take(worker.links(), task, &prepared.kind);
    let flight = Rc::clone(&user.flight);
    flight.begin(task, planned, prepared.timeout);
    // Users that wait hold none.
    let mut buffer = worker.take_buffer();
    let exchange =
        exchange(worker, task, prepared, &mut user.choices, &flight, &mut held, &mut buffer);
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
    let Settled { bytes, messages } = held.settle(failure.as_ref());
    user.give(worker.links(), task, &prepared.kind, held);
    worker.give_buffer(buffer);
    let opened = flight.take_opened();
    let sample = flight.sample(&prepared.kind, outcome, planned, last);
    worker.keep(task, outcome, &sample);
    worker.record(task, |recorder| {
        recorder.bytes(bytes.0, bytes.1);
        recorder.messages(messages.0, messages.1);
        opened.iter().for_each(|opened| recorder.opened(opened));
        recorder.record(outcome, &sample);
        let each = answer.and_then(|answer| answer.each);
        if let Some(answer) = answer {
            recorder.tokens(&answer.tokens, each);
        }
        if outcome == Outcome::Success && sample.meets(&prepared.goals, each) {
            recorder.good();
        }
        if let Some(failure) = failure {
            recorder.fail(failure);
        }
    });
    flight.end();
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
            let run = web_socket::task(place, connector, socket, flight, round_trip);
            Ok((Box::pin(run).await?, None))
        }
        // Each kind takes what it runs on.
        (_, Held::Http(_) | Held::Socket(_)) => Err(missing("connection for this task")),
    }
}
