//! WebSocket sessions: one for each task, or one that outlives them.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use futures::{SinkExt, StreamExt};
use loadtest_core::metrics::{ConnectStep, TaskNumbers};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::Message;

use crate::load::{only, plan, run, simulator, truth};

const CALM: &str = "{webSocket: {connectLatency: 10ms, latency: 20ms}}";

fn task(session: &str) -> Value {
    json!([{"name": "socket", "webSocket": {
        "path": "/", "send": ["one", "two"], "replies": 1, "session": session, "timeout": "2s",
    }}])
}

#[tokio::test]
async fn a_session_per_user_is_opened_once_and_goes_on() {
    let simulator = simulator(CALM).await;
    let found = run(plan(&simulator, 6, "1s", &task("PerUser"))).await;
    let numbers = only(&found.numbers);
    let counts = truth(&simulator).await;
    assert_eq!(numbers.failures(), 0, "{:?}", found.examples);
    assert!(numbers.completed() > 6, "{:?}", numbers.requests);
    assert_eq!((numbers.connections.opened, numbers.connections.again), (6, 0));
    // What the target calls a request is a session: each was closed as it should be.
    assert_eq!((counts.received, counts.completed), (6, 6), "{counts:?}");
    assert_eq!(numbers.messages_sent, counts.messages_received);
    assert_eq!(numbers.messages_received, counts.messages_sent);
    assert_eq!(numbers.messages_sent, 2 * numbers.completed());
    assert_eq!(numbers.web_socket_connect[0].count(), 6);
    let upgrades = &numbers.connections.steps[ConnectStep::Upgrade.index()];
    assert_eq!(upgrades.count(), 6);
    assert!(upgrades.quantile(0.0).unwrap().as_secs_f64() >= 0.0099);
}

#[tokio::test]
async fn users_that_only_hold_a_session_leave_the_thread_to_others() {
    let simulator = simulator(CALM).await;
    let tasks = json!([{"name": "socket", "webSocket": {"path": "/", "session": "PerUser"}}]);
    let mut plan = plan(&simulator, 3, "500ms", &tasks);
    (plan.workers, plan.scenario.pause) = (1, None);
    let numbers = run(plan).await.numbers;
    assert_eq!((numbers.users_peak, only(&numbers).connections.opened), (3, 3));
}

#[tokio::test]
async fn round_trips_are_of_messages() {
    let simulator = simulator(CALM).await;
    for session in ["PerTask", "PerUser"] {
        let found = run(plan(&simulator, 4, "1s", &task(session))).await;
        let numbers = only(&found.numbers);
        assert_eq!(numbers.round_trip.count(), 2 * numbers.completed(), "{session}");
        let shortest = numbers.round_trip.quantile(0.0).unwrap().as_secs_f64();
        assert!((0.0199..0.1).contains(&shortest), "{session}: {shortest}");
    }
}

#[tokio::test]
async fn a_session_that_the_target_ends_is_opened_again() {
    let settings = "{webSocket: {errors: {rate: 100%, kinds: [{closeCode: 1013}]}}}";
    let simulator = simulator(settings).await;
    let found = run(plan(&simulator, 3, "1s", &task("PerUser"))).await;
    let numbers = only(&found.numbers);
    assert_eq!(numbers.completed(), numbers.errors["websocket_close_1013"], "{:?}", numbers.errors);
    assert_eq!(numbers.connections.again, numbers.connections.opened - 3);
    assert!(numbers.connections.again > 0, "{:?}", numbers.connections.opened);
}

/// What a target of its own has seen of sessions.
#[derive(Debug, Default)]
struct Seen {
    pongs: AtomicU64,
    /// Messages that came before the ping that was sent before them was answered.
    unanswered: AtomicU64,
    sessions: AtomicU64,
}

/// A target that sends each message back and a ping after it, and ends a session, which waits by
/// then, after so many messages.
async fn pinging(messages: usize) -> (String, Arc<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let seen: Arc<Seen> = Arc::default();
    let told = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let seen = Arc::clone(&told);
            tokio::spawn(async move {
                let mut session = tokio_tungstenite::accept_async(socket).await.unwrap();
                seen.sessions.fetch_add(1, Ordering::Relaxed);
                let (mut pinged, mut count) = (false, 0);
                while let Some(Ok(message)) = session.next().await {
                    match message {
                        Message::Pong(_) => {
                            pinged = false;
                            seen.pongs.fetch_add(1, Ordering::Relaxed);
                            if count == messages && session.close(None).await.is_err() {
                                return;
                            }
                        }
                        Message::Text(_) => {
                            seen.unanswered.fetch_add(u64::from(pinged), Ordering::Relaxed);
                            count += 1;
                            pinged = true;
                            let answered = session.send(message).await;
                            let ping = Message::Ping(Vec::new().into());
                            if answered.is_err() || session.send(ping).await.is_err() {
                                return;
                            }
                        }
                        _ => {}
                    }
                }
            });
        }
    });
    (url, seen)
}

async fn waiting(messages: usize) -> (TaskNumbers, Arc<Seen>) {
    let simulator = simulator(CALM).await;
    let (url, seen) = pinging(messages).await;
    let task = json!([{"name": "socket", "webSocket": {
        "send": ["hello"], "replies": 1, "session": "PerUser", "timeout": "2s",
    }}]);
    let mut plan = plan(&simulator, 4, "3s", &task);
    plan.target.web_socket = Some(url);
    // Longer than a machine stands still: a user that wakes late sends while the target closes.
    plan.scenario.pause =
        Some(serde_json::from_value(json!({"min": "500ms", "max": "600ms"})).unwrap());
    let found = run(plan).await;
    assert_eq!(only(&found.numbers).failures(), 0, "{:?}", found.examples);
    (only(&found.numbers).clone(), seen)
}

#[tokio::test]
async fn pings_are_answered_while_users_pause() {
    let (numbers, seen) = waiting(usize::MAX).await;
    assert!(seen.pongs.load(Ordering::Relaxed) >= numbers.completed() - 4);
    assert_eq!(seen.unanswered.load(Ordering::Relaxed), 0);
    assert_eq!(numbers.connections.opened, 4);
}

#[tokio::test]
async fn a_session_that_ends_while_its_user_pauses_is_opened_again_and_fails_nothing() {
    let (numbers, seen) = waiting(2).await;
    assert_eq!(numbers.connections.opened, seen.sessions.load(Ordering::Relaxed));
    assert_eq!(numbers.connections.again, numbers.connections.opened - 4);
    assert!(numbers.connections.again >= 1, "{:?}", numbers.connections.opened);
}

#[tokio::test]
async fn replies_that_never_come_took_at_least_until_they_were_given_up() {
    let simulator = simulator("{webSocket: {errors: {rate: 100%, kinds: [hang]}}}").await;
    let task = json!([{"name": "socket", "webSocket": {
        "send": ["hello"], "replies": 1, "timeout": "1s",
    }}]);
    let found = run(plan(&simulator, 3, "1s", &task)).await;
    let numbers = only(&found.numbers);
    assert_eq!(numbers.completed(), numbers.errors["timeout_response"], "{:?}", numbers.errors);
    assert_eq!(numbers.round_trip.count(), numbers.completed() + numbers.requests[3]);
    assert!(numbers.round_trip.quantile(0.5).unwrap().as_secs_f64() > 0.9);
}

#[tokio::test]
async fn sessions_that_arrivals_use_are_closed_at_the_end() {
    let simulator = simulator(CALM).await;
    let mut plan = plan(&simulator, 1, "1s", &task("PerUser"));
    plan.load =
        serde_json::from_value(json!({"arrivalRate": "60/s", "maxUsers": 20, "duration": "1s"}))
            .unwrap();
    plan.scenario.pause = None;
    let found = run(plan).await;
    let (numbers, counts) = (only(&found.numbers), truth(&simulator).await);
    assert_eq!(numbers.failures(), 0, "{:?}", found.examples);
    assert_eq!(numbers.completed() + numbers.dropped, 60);
    assert!(numbers.completed() >= 50, "{}", numbers.completed());
    assert!(numbers.connections.opened <= 20, "{}", numbers.connections.opened);
    assert_eq!((counts.completed, counts.aborted), (numbers.connections.opened, 0), "{counts:?}");
    assert_eq!(numbers.messages_received, counts.messages_sent);
}
