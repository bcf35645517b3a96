//! One virtual user: what it keeps between its requests, and one request from plan to record.

use std::{rc::Rc, time::Instant};

use bytes::BytesMut;
use loadtest_core::{metrics::Outcome, mix::Choices};

use crate::{
    chat::Answer,
    failure::{ErrorKind, Failure},
    flight::Flight,
    http::{self, HttpConnection},
    prepare::{PreparedKind, PreparedTask},
    web_socket,
    worker::Worker,
};

/// What a user keeps between its requests.
#[derive(Debug)]
pub(crate) struct User {
    pub(crate) choices: Choices,
    flight: Rc<Flight>,
    connection: Option<HttpConnection>,
}

impl User {
    pub(crate) fn new(worker: &Worker, number: u64, flight: Rc<Flight>) -> Self {
        Self { choices: worker.prepared.mix.choices_of(number), flight, connection: None }
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
    let User { choices, flight, connection } = user;
    flight.begin(task, planned, prepared.timeout);
    let mut progress = web_socket::Progress::default();
    // Users that wait hold none.
    let mut buffer = worker.take_buffer();
    let exchange =
        exchange(worker, task, prepared, flight, choices, connection, &mut buffer, &mut progress);
    let ended = flight.in_time(exchange).await;
    let (outcome, failure, last, answer) = match ended {
        Some(Ok((last, answer))) => (Outcome::Success, None, last, answer),
        Some(Err(failure)) => (Outcome::Failure, Some(failure), Instant::now(), None),
        None => {
            let kind = flight.part().timeout();
            let after = loadtest_core::Duration::from(prepared.timeout);
            let failure = Failure::new(kind, format!("no complete answer within {after}"));
            (Outcome::Timeout, Some(failure), Instant::now(), None)
        }
    };
    let (mut sent_bytes, mut received_bytes) = progress.bytes();
    if let Some(open) = connection {
        let (sent, received) = open.take_bytes();
        (sent_bytes, received_bytes) = (sent_bytes + sent, received_bytes + received);
    }
    worker.give_buffer(buffer);
    // What an unexpected status leaves behind is a good connection; nothing else does.
    let reusable = match &failure {
        None => true,
        Some(failure) => matches!(failure.kind, ErrorKind::Http(_)),
    };
    let broken = !reusable && !matches!(prepared.kind, PreparedKind::WebSocket(_));
    if broken || connection.as_ref().is_some_and(HttpConnection::is_spent) {
        *connection = None;
    }
    let sample = flight.sample(&prepared.kind, outcome, planned, last);
    worker.record(task, |recorder| {
        recorder.bytes(sent_bytes, received_bytes);
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
#[expect(clippy::too_many_arguments, reason = "parts of a user that are borrowed apart")]
async fn exchange(
    worker: &Worker,
    task: usize,
    prepared: &PreparedTask,
    flight: &Flight,
    choices: &mut Choices,
    connection: &mut Option<HttpConnection>,
    buffer: &mut BytesMut,
    progress: &mut web_socket::Progress,
) -> Result<(Instant, Option<Answer>), Failure> {
    match &prepared.kind {
        PreparedKind::Http(request) => {
            let last = http::request(connection, worker.http()?, request, buffer, flight).await?;
            Ok((last, None))
        }
        PreparedKind::Chat(chat) => {
            let body = choices.pick(chat.requests.len());
            let gap = |gap| worker.record(task, |recorder| recorder.token_gap(gap));
            let (last, answer) =
                http::chat(connection, worker.http()?, chat, body, buffer, flight, gap).await?;
            Ok((last, Some(answer)))
        }
        PreparedKind::WebSocket(session) => {
            let last = web_socket::session(worker.web_socket()?, session, flight, progress).await?;
            Ok((last, None))
        }
    }
}
