//! One virtual user: a task, a pause, and again, until the test ends.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use loadtest_core::{metrics::Outcome, mix::Choices};

use crate::{
    failure::Failure,
    flight::Flight,
    http::{self, Answered, HttpConnection},
    prepare::{PreparedKind, PreparedTask},
    record::Sample,
    web_socket,
    worker::Worker,
};

/// Runs a user from its planned start to the end of the test.
pub(crate) async fn run(worker: Rc<Worker>, flight: Rc<Flight>, number: u64, start: Instant) {
    let mut choices = worker.prepared.mix.choices_of(number);
    let mut connection = None;
    let mut planned = start;
    loop {
        worker.pacer.until(planned.min(worker.end())).await;
        let now = Instant::now();
        if now >= worker.end() {
            return;
        }
        if now < planned {
            // Woken for another reason than the time.
            continue;
        }
        worker.lag(now - planned);
        let task = worker.prepared.mix.next_task(&mut choices);
        flight.begin(task, planned);
        perform(&worker, &flight, task, planned, &mut choices, &mut connection).await;
        flight.end();
        let ended = Instant::now();
        planned = ended + worker.prepared.mix.next_pause(&mut choices).std();
        if planned == ended {
            // A target that answers at once must not keep other users from running.
            tokio::task::yield_now().await;
        }
    }
}

/// One request: run it, within its timeout, and record it.
async fn perform(
    worker: &Worker,
    flight: &Flight,
    task: usize,
    planned: Instant,
    choices: &mut Choices,
    connection: &mut Option<HttpConnection>,
) {
    let Some(prepared) = worker.prepared.tasks.get(task) else { return };
    let mut progress = web_socket::Progress::default();
    let ended = within(
        planned + prepared.timeout,
        exchange(worker, prepared, flight, choices, connection, &mut progress),
    )
    .await;
    let (outcome, failure, answered) = match ended {
        Some(Ok(answered)) => (Outcome::Success, None, Some(answered)),
        Some(Err(failure)) => (Outcome::Failure, Some(failure), None),
        None => {
            let kind = flight.part().timeout();
            let after = loadtest_core::Duration::from(prepared.timeout);
            let failure = Failure::new(kind, format!("no complete answer within {after}"));
            (Outcome::Timeout, Some(failure), None)
        }
    };
    let (mut sent_bytes, mut received_bytes) = progress.bytes();
    if let Some(open) = connection {
        let (sent, received) = open.take_bytes();
        (sent_bytes, received_bytes) = (sent_bytes + sent, received_bytes + received);
    }
    // What an unexpected status leaves behind is a good connection; nothing else does.
    let reusable = match &failure {
        None => true,
        Some(failure) => matches!(failure.kind, crate::failure::ErrorKind::Http(_)),
    };
    if !reusable && !matches!(prepared.kind, PreparedKind::WebSocket(_)) {
        *connection = None;
    }
    worker.record(task, |recorder| {
        recorder.bytes(sent_bytes, received_bytes);
        recorder.record(
            outcome,
            &Sample {
                planned,
                sent: flight.sent(),
                first: answered.and_then(|a| a.first),
                last: answered.map_or_else(Instant::now, |a| a.last),
                connect: progress.connect,
            },
        );
        if let Some(failure) = failure {
            recorder.fail(failure);
        }
    });
}

async fn exchange(
    worker: &Worker,
    prepared: &PreparedTask,
    flight: &Flight,
    choices: &mut Choices,
    connection: &mut Option<HttpConnection>,
    progress: &mut web_socket::Progress,
) -> Result<Answered, Failure> {
    match &prepared.kind {
        PreparedKind::Http(request) => {
            http::request(connection, worker.http()?, request, flight).await
        }
        PreparedKind::Chat(chat) => {
            let body = choices.pick(chat.bodies.len());
            http::chat(connection, worker.http()?, chat, body, flight).await
        }
        PreparedKind::WebSocket(session) => {
            let last = web_socket::session(worker.web_socket()?, session, flight, progress).await?;
            Ok(Answered { first: None, last })
        }
    }
}

/// Awaits a future until a deadline. A timeout may be late by a tick of tokio's clock; it
/// is recorded at its real age.
async fn within<T>(deadline: Instant, future: impl Future<Output = T>) -> Option<T> {
    // No request takes so long that this overflows; far deadlines cost nothing.
    let deadline = deadline.min(Instant::now() + Duration::from_hours(24));
    tokio::time::timeout_at(deadline.into(), future).await.ok()
}
