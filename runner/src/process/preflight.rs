//! The preflight: opens a connection to the target before the load, so that a test of a target that
//! can't be reached ends with the cause, and without load.
//!
//! No request is sent: the target counts only those of the load, and none has a side effect.

use std::time::Duration;

use loadtest_core::{plan::TaskKind, resource::Preflight};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, timeout},
};

use crate::{
    failure::{ErrorKind, Failure},
    net::{
        arrival_clock::ArrivalClock,
        connector::{ConnectState, Connector},
        stream::MeteredStream,
    },
    prepare::{endpoint::Endpoint, plan::PreparedPlan},
};

/// How long the runner tries. A target that was created together with the test needs a moment.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum time of one attempt.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time between two attempts.
const PAUSE: Duration = Duration::from_secs(1);
/// Maximum time to wait until the target also closes the connection.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// Connects to each base URL that tasks use, as the spec wants it.
///
/// # Errors
/// What was tried, if the target accepts no connection.
pub(crate) async fn connect_to_target(prepared: &PreparedPlan) -> Result<(), String> {
    let test = &prepared.plan().test;
    if test.preflight == Preflight::Skip {
        return Ok(());
    }
    let is_used = |is_web_socket: bool| {
        let mut kinds = test.scenario.picked_kinds();
        kinds.any(|kind| matches!(kind, TaskKind::WebSocket(_)) == is_web_socket)
    };
    let target = &test.target;
    let base_urls = [
        (&prepared.http, "target.http", &target.http, is_used(false)),
        (&prepared.websocket, "target.webSocket", &target.web_socket, is_used(true)),
    ];
    for (endpoint, field, url, is_used) in base_urls {
        if let Some(endpoint) = endpoint.as_ref().filter(|_| is_used) {
            let name = format!("{field} {}", url.as_deref().unwrap_or_default());
            connect_within(CONNECT_TIMEOUT, endpoint, &name).await?;
        }
    }
    Ok(())
}

/// Tries to connect until it succeeds or the time is over. `name` is that of the base URL in messages.
async fn connect_within(limit: Duration, endpoint: &Endpoint, name: &str) -> Result<(), String> {
    let began = Instant::now();
    for attempts in 1_u32.. {
        let Err(failure) = try_to_connect(endpoint).await else { break };
        if matches!(failure.kind, ErrorKind::FileLimit | ErrorKind::PortExhausted) {
            // This says nothing about the target. The load will report it.
            tracing::warn!(error = failure.message, "no connection to {name} could be tried");
            break;
        }
        let Failure { message, .. } = failure;
        tracing::info!(error = message, attempts, "no connection to {name} yet");
        if began.elapsed() + PAUSE > limit {
            let times = if attempts == 1 { "once".to_owned() } else { format!("{attempts} times") };
            let seconds = began.elapsed().as_secs();
            return Err(format!(
                "no connection to {name}, tried {times} in {seconds} s. The last attempt: {message}"
            ));
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

async fn try_to_connect(endpoint: &Endpoint) -> Result<(), Failure> {
    let connector = Connector::new(endpoint.clone(), ArrivalClock::new(), 0);
    let user = ConnectState::default();
    let (stream, ..) =
        timeout(ATTEMPT_TIMEOUT, connector.connect(&user)).await.map_err(|_| {
            let seconds = ATTEMPT_TIMEOUT.as_secs();
            let message = format!("{} within {seconds} s", user.step.get().awaited());
            Failure::new(ErrorKind::TimeoutConnect, message)
        })??;
    // The target has answered, however this ends.
    let _ = timeout(CLOSE_TIMEOUT, close(stream)).await;
    Ok(())
}

/// Closes a connection in order, so that the target reports no reset.
async fn close(mut stream: MeteredStream) -> std::io::Result<()> {
    stream.shutdown().await?;
    while stream.read(&mut [0; 1024]).await? > 0 {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use loadtest_core::{
        plan::{Plan, RunIdentity, size_test, validate},
        resource::LoadTestSpec,
    };
    use tokio::net::TcpListener;

    use super::*;

    fn prepared(preflight: &str, task: &str, port: u16) -> std::sync::Arc<PreparedPlan> {
        let spec = format!(
            "{{target: {{http: 'http://127.0.0.1:{port}', webSocket: 'ws://127.0.0.1:{port}'}}, \
             load: {{users: 1, duration: 1s}}, preflight: {preflight}, \
             scenario: {{tasks: [{task}]}}}}"
        );
        let spec: LoadTestSpec = serde_saphyr::from_str(&spec).unwrap();
        let test = validate(&spec).unwrap();
        let plan = Plan::new(test.clone(), &size_test(&test), RunIdentity::default());
        PreparedPlan::new(plan, |_| None).unwrap()
    }

    async fn closed_port() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().port()
    }

    #[tokio::test]
    async fn a_target_that_refuses_is_reported_in_its_words() {
        let prepared = prepared("Connect", "{name: a, http: {path: /}}", closed_port().await);
        let endpoint = prepared.http.as_ref().unwrap();
        let tried = connect_within(Duration::from_millis(1500), endpoint, "target.http X")
            .await
            .unwrap_err();
        assert!(
            tried.starts_with("no connection to target.http X, tried 2 times in 1 s"),
            "{tried}"
        );
        assert!(tried.contains("Connection refused"), "{tried}");
    }

    #[tokio::test]
    async fn the_target_gets_a_connection_and_no_byte() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let prepared = prepared("Connect", "{name: a, webSocket: {}}", port);
        let target = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut received = Vec::new();
            socket.read_to_end(&mut received).await.unwrap();
            received
        };
        let (result, received) = tokio::join!(connect_to_target(&prepared), target);
        assert_eq!((result, received), (Ok(()), Vec::new()));
    }

    #[tokio::test]
    async fn base_urls_without_tasks_and_skipped_checks_need_no_target() {
        let port = closed_port().await;
        let skipped = prepared("Skip", "{name: a, http: {path: /}}", port);
        assert_eq!(connect_to_target(&skipped).await, Ok(()));
    }
}
