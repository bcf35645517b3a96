//! WebSocket sessions: one for each task, or one that outlives them.

use loadtest_core::metrics::ConnectStep;
use serde_json::{Value, json};

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
    assert!(numbers.completed() > 30, "{:?}", numbers.requests);
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
    assert!(numbers.connections.again > 3, "{:?}", numbers.connections.opened);
}
