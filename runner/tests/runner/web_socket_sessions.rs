//! WebSocket sessions: `PerTask` opens a session for each task, `PerUser` keeps a session across
//! the tasks of a user.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{SinkExt, StreamExt};
use loadtest_core::{
    metrics::{LatencyMetric, Outcome, TaskMetrics},
    plan::Pacing,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{
    build_plan, final_counts, load_model, only_task, run_plan, start_simulator, think_time,
};

/// Settings of a simulator that never fails.
const HEALTHY: &str = "{webSocket: {connectLatency: 10ms, latency: 20ms}}";

fn socket_task(session: &str) -> Value {
    json!([{"name": "socket", "webSocket": {
        "path": "/", "send": ["one", "two"], "replies": 1, "session": session, "timeout": "2s",
    }}])
}

#[tokio::test]
async fn per_user_session_is_opened_once_and_reused() {
    let simulator = start_simulator(HEALTHY).await;
    let result = run_plan(build_plan(&simulator, 6, "1s", &socket_task("PerUser"))).await;
    let task = only_task(&result.metrics);
    let target_counts = final_counts(&simulator).await;
    assert_eq!(task.failed_requests(), 0, "{:?}", result.examples);
    assert!(task.completed_requests() > 6, "{:?}", task.requests);
    assert_eq!((task.connections, task.reconnects), (6, 0));
    // The simulator counts a session as one request. `completed` means a clean close.
    assert_eq!((target_counts.received, target_counts.completed), (6, 6), "{target_counts:?}");
    assert_eq!(task.messages_sent, target_counts.messages_received);
    assert_eq!(task.messages_received, target_counts.messages_sent);
    assert_eq!(task.messages_sent, 2 * task.completed_requests());
    assert_eq!(task.latencies.get(LatencyMetric::WebSocketConnect, Outcome::Success).count(), 6);
    let upgrades = task.latencies.get(LatencyMetric::ConnectUpgrade, Outcome::Success);
    assert_eq!(upgrades.count(), 6);
    assert!(upgrades.quantile(0.0).unwrap().as_secs_f64() >= 0.0099);
}

#[tokio::test]
async fn pings_are_answered_while_the_user_runs_another_task() {
    // The target ends a session that has not answered a ping for 300 ms.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let lost = Arc::<AtomicU64>::default();
    let counted = Arc::clone(&lost);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let counted = Arc::clone(&counted);
            tokio::spawn(async move {
                let Ok(mut session) = tokio_tungstenite::accept_async(socket).await else { return };
                loop {
                    if session.send(Message::Ping(Vec::new().into())).await.is_err() {
                        return;
                    }
                    let pong = async {
                        while let Some(Ok(message)) = session.next().await {
                            if message.is_pong() {
                                return true;
                            }
                        }
                        false
                    };
                    match tokio::time::timeout(Duration::from_millis(300), pong).await {
                        Ok(true) => tokio::time::sleep(Duration::from_millis(20)).await,
                        Ok(false) => return,
                        Err(_) => {
                            counted.fetch_add(1, Ordering::Relaxed);
                            return;
                        }
                    }
                }
            });
        }
    });
    let simulator = start_simulator("{health: {latency: 800ms}}").await;
    let tasks = json!([
        {"name": "socket", "webSocket": {"path": "/", "session": "PerUser"}},
        {"name": "slow", "http": {"path": "/health"}},
    ]);
    let mut plan = build_plan(&simulator, 4, "3s", &tasks);
    plan.test.target.web_socket = Some(format!("ws://{address}"));
    let result = run_plan(plan).await;
    assert!(result.metrics.tasks["slow"].completed_requests() > 4);
    assert_eq!(lost.load(Ordering::Relaxed), 0, "{:?}", result.examples);
    assert_eq!(result.metrics.tasks["socket"].reconnects, 0);
}

#[tokio::test]
async fn tasks_without_messages_do_not_block_the_load_thread() {
    let simulator = start_simulator(HEALTHY).await;
    let tasks = json!([{"name": "socket", "webSocket": {"path": "/", "session": "PerUser"}}]);
    let mut plan = build_plan(&simulator, 3, "500ms", &tasks);
    (plan.threads, plan.test.scenario.pacing) = (1, Pacing::None);
    let metrics = run_plan(plan).await.metrics;
    assert_eq!((metrics.users_peak, only_task(&metrics).connections), (3, 3));
}

#[tokio::test]
async fn round_trips_are_measured_per_message() {
    let simulator = start_simulator(HEALTHY).await;
    for session in ["PerTask", "PerUser"] {
        let result = run_plan(build_plan(&simulator, 4, "1s", &socket_task(session))).await;
        let task = only_task(&result.metrics);
        assert_eq!(
            task.latencies.get(LatencyMetric::WebSocketRoundTrip, Outcome::Success).count(),
            2 * task.completed_requests(),
            "{session}"
        );
        let shortest = task
            .latencies
            .get(LatencyMetric::WebSocketRoundTrip, Outcome::Success)
            .quantile(0.0)
            .unwrap()
            .as_secs_f64();
        assert!((0.0199..0.1).contains(&shortest), "{session}: {shortest}");
    }
}

#[tokio::test]
async fn session_closed_by_the_target_is_reopened() {
    let settings = "{webSocket: {errors: {rate: 100%, kinds: [{closeCode: 1013}]}}}";
    let simulator = start_simulator(settings).await;
    let result = run_plan(build_plan(&simulator, 3, "1s", &socket_task("PerUser"))).await;
    let task = only_task(&result.metrics);
    assert_eq!(task.completed_requests(), task.errors["websocket_close_1013"], "{:?}", task.errors);
    assert_eq!(task.reconnects, task.connections - 3);
    assert!(task.reconnects > 0, "{:?}", task.connections);
}

/// Counters of the target that [`start_pinging_target`] starts.
#[derive(Debug, Default)]
struct PingStats {
    pongs: AtomicU64,
    /// Messages that arrived before the pong to the previous ping.
    messages_before_pong: AtomicU64,
    sessions: AtomicU64,
}

/// Starts a target that echoes each message and sends a ping after it. The target closes a session
/// after `messages` messages, once the pong to its last ping is there. Returns the URL and the
/// counters of the target.
async fn start_pinging_target(messages: usize) -> (String, Arc<PingStats>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let stats: Arc<PingStats> = Arc::default();
    let server_stats = Arc::clone(&stats);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let stats = Arc::clone(&server_stats);
            tokio::spawn(async move {
                let mut session = tokio_tungstenite::accept_async(socket).await.unwrap();
                stats.sessions.fetch_add(1, Ordering::Relaxed);
                let (mut awaits_pong, mut count) = (false, 0);
                while let Some(Ok(message)) = session.next().await {
                    match message {
                        Message::Pong(_) => {
                            awaits_pong = false;
                            stats.pongs.fetch_add(1, Ordering::Relaxed);
                            if count == messages && session.close(None).await.is_err() {
                                return;
                            }
                        }
                        Message::Text(_) => {
                            let early = u64::from(awaits_pong);
                            stats.messages_before_pong.fetch_add(early, Ordering::Relaxed);
                            count += 1;
                            awaits_pong = true;
                            let echoed = session.send(message).await;
                            let ping = Message::Ping(Vec::new().into());
                            if echoed.is_err() || session.send(ping).await.is_err() {
                                return;
                            }
                        }
                        _ => {}
                    }
                }
            });
        }
    });
    (url, stats)
}

/// Runs four users for 3 s against a target that closes each session after `messages` messages. The
/// users pause for about half a second between tasks.
async fn run_pausing_users(messages: usize) -> (TaskMetrics, Arc<PingStats>) {
    let simulator = start_simulator(HEALTHY).await;
    let (url, stats) = start_pinging_target(messages).await;
    let tasks = json!([{"name": "socket", "webSocket": {
        "send": ["hello"], "replies": 1, "session": "PerUser", "timeout": "2s",
    }}]);
    let mut plan = build_plan(&simulator, 4, "3s", &tasks);
    plan.test.target.web_socket = Some(url);
    // A pause must be longer than the machine may stall. A user that wakes up late would send while
    // the target closes the session.
    plan.test.scenario.pacing = think_time("500ms", "600ms");
    let result = run_plan(plan).await;
    assert_eq!(only_task(&result.metrics).failed_requests(), 0, "{:?}", result.examples);
    (only_task(&result.metrics).clone(), stats)
}

#[tokio::test]
async fn pings_get_pongs_while_the_user_pauses() {
    let (task, stats) = run_pausing_users(usize::MAX).await;
    assert!(stats.pongs.load(Ordering::Relaxed) >= task.completed_requests() - 4);
    assert_eq!(stats.messages_before_pong.load(Ordering::Relaxed), 0);
    assert_eq!(task.connections, 4);
}

#[tokio::test]
async fn session_closed_during_a_pause_reopens_without_failure() {
    let (task, stats) = run_pausing_users(2).await;
    assert_eq!(task.connections, stats.sessions.load(Ordering::Relaxed));
    assert_eq!(task.reconnects, task.connections - 4);
    assert!(task.reconnects >= 1, "{:?}", task.connections);
}

#[tokio::test]
async fn missing_replies_count_with_the_time_waited() {
    let simulator = start_simulator("{webSocket: {errors: {rate: 100%, kinds: [hang]}}}").await;
    let tasks = json!([{"name": "socket", "webSocket": {
        "send": ["hello"], "replies": 1, "timeout": "1s",
    }}]);
    let result = run_plan(build_plan(&simulator, 3, "1s", &tasks)).await;
    let task = only_task(&result.metrics);
    assert_eq!(task.completed_requests(), task.errors["timeout_response"], "{:?}", task.errors);
    assert_eq!(
        task.latencies.get(LatencyMetric::WebSocketRoundTrip, Outcome::Timeout).count(),
        task.completed_requests()
    );
    assert!(
        task.latencies
            .get(LatencyMetric::WebSocketRoundTrip, Outcome::Timeout)
            .quantile(0.5)
            .unwrap()
            .as_secs_f64()
            > 0.9
    );
}

#[tokio::test]
async fn sessions_of_arrivals_are_closed_at_the_end() {
    let simulator = start_simulator(HEALTHY).await;
    let mut plan = build_plan(&simulator, 1, "1s", &socket_task("PerUser"));
    let load = json!({"arrivalRate": "60/s", "maxUsers": 20, "duration": "1s"});
    plan.test.load = load_model(load);
    plan.test.scenario.pacing = Pacing::None;
    let result = run_plan(plan).await;
    let task = only_task(&result.metrics);
    let target_counts = final_counts(&simulator).await;
    assert_eq!(task.failed_requests(), 0, "{:?}", result.examples);
    assert_eq!(task.completed_requests() + task.dropped, 60);
    assert!(task.completed_requests() >= 50, "{}", task.completed_requests());
    assert!(task.connections <= 20, "{}", task.connections);
    assert_eq!(target_counts.completed, task.connections, "{target_counts:?}");
    assert_eq!(target_counts.aborted, 0, "{target_counts:?}");
    assert_eq!(task.messages_received, target_counts.messages_sent);
}
